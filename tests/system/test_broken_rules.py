"""The checker finds batches above a cap, cut early and left late, of scripts with such a fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.checker import Kind
from tests.faults.report import findings
from tests.faults.run import Plan, run
from tests.faults.scripts import Changes, changed_copy
from tests.faults.topologies import LimitedWork, SingleRedis, Topology

_DUE = "  local at = math.min(g[LAST] + g[GRACE], g[DEADLINE])\n"

NO_CAP_OF_BYTES_AND_WEIGHT: Changes = {
    "includes/segments": ("or s.bytes > room.bytes or s.weight > room.weight then", "then"),
}
NOT_HELD_BACK: Changes = {
    "includes/group": (
        "  return math.max(rules[NOT_BEFORE], rules[POSTPONED], rules[COOL_UNTIL])\n",
        "  return 0\n",
    ),
}
DUE_EARLY: Changes = {"includes/group": (_DUE, _DUE.replace(")\n", ") - 150\n"))}
# More than the faults of a run and the bound of the checker together, which are no lateness.
DUE_LATE: Changes = {"includes/group": (_DUE, _DUE.replace(")\n", ") + 20000\n"))}


NO_DEAD_LETTERS: Changes = {
    "includes/parts": ("      redis.call('RPUSH', KEYS[parts.key + i], entry)\n", ""),
}
NO_PAUSE_OF_A_GROUP: Changes = {
    "includes/group": ("return g[RULES] ~= 0 and g[RULES][PAUSED] > 0 end", "return false end"),
}

ANY_NUMBER_AT_ONCE: Changes = {
    "includes/permits": ("  if l.held + ahead >= most then\n", "  if false then\n"),
}


class SlowMerges(LimitedWork):
    """Limits on work, and merges that take long enough to meet each other."""

    merge_seconds = 0.2


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("changes", "kind", "topology"),
    [
        (NO_CAP_OF_BYTES_AND_WEIGHT, Kind.OVERSIZED, SingleRedis),
        (NOT_HELD_BACK, Kind.PREMATURE, SingleRedis),
        (DUE_EARLY, Kind.PREMATURE, SingleRedis),
        (NO_DEAD_LETTERS, Kind.PARTED, SingleRedis),
        (NO_PAUSE_OF_A_GROUP, Kind.PAUSED, SingleRedis),
        (DUE_LATE, Kind.LATE, SingleRedis),
        (ANY_NUMBER_AT_ONCE, Kind.EXCEEDED, SlowMerges),
    ],
    ids=["cap", "held-back", "early", "dead-letters", "pause", "late", "at-once"],
)
def test_the_checker_finds_broken_rules(
    server_binary: Path, tmp_path: Path, changes: Changes, kind: Kind, topology: type[Topology]
) -> None:
    lua = changed_copy(tmp_path, changes)
    config = {"on_task_failure": "dead"}
    plan = Plan(
        topology,
        12,
        5,
        rate=150,
        faults=2,
        config=config,
        lua=lua,
        server=server_binary,
    )
    result = run(plan)
    assert result.verdict.counts[kind] > 0, findings(result)
