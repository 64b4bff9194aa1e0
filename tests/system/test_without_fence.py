"""The checker finds the stale writes of scripts from which the fence was removed.

Without the fence no batch is enqueued twice, because a commit also checks that its batch is in
flight. So a write without a lease is reported as a stale write.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from redisagg.testing.embedded import EmbeddedRedis
from tests.faults.checker import Kind, Verdict
from tests.faults.commit_race import racing
from tests.faults.scripts import Changes, changed_copy, using
from tests.support.servers import wait_until
from tests.support.tasks import error_count
from tests.support.worker import BEGAN

NO_CHECK_IN_COMMITS: Changes = {
    "includes/commit": ("  if stale then return stale end\n", ""),
}
NO_TOKEN_CHECK_ANYWHERE: Changes = {
    "includes/fence": (
        "  if newest_token ~= token then\n"
        "    return redis.error_reply('STALE the partition has another leader')\n"
        "  end\n",
        "",
    ),
}


@contextlib.contextmanager
def scripts_with(changes: Changes, folder: Path) -> Iterator[Path]:
    """A changed copy of the scripts, which this process uses too within the `with` block."""
    copy = changed_copy(folder, changes)
    with using(copy):
        yield copy


def commit_with_a_lost_lease(server: EmbeddedRedis, folder: Path, lua: Path) -> Verdict:
    """A commit arrives when the next leader is in the middle of merging the same batches."""
    with racing(server, folder, partitions=8, merge="gate", lua=str(lua)) as race:
        late, other = race.flushers
        race.open_gates(late)
        warm = race.groups_in(race.partitions_of(late))
        race.fill(warm)
        wait_until(lambda: set(warm) <= race.enqueued_by().keys(), what="the scripts are known")
        groups = race.groups_in(race.partitions_of(late))
        hold = late.proxy.hold("commit_stream")
        race.fill(groups)
        wait_until(lambda: hold.count >= len(groups), timeout=5, what="all commits are under way")
        late.process.freeze()
        wait_until(lambda: len(race.partitions_of(other)) == 8, what="the other one leads all")
        wait_until(
            lambda: (
                race.client.lrange(BEGAN, 0, -1).count(b"%d" % other.process.pid) >= len(groups)
            ),
            what="the other one merges the same batches",
        )
        refused = error_count(race.client, "STALE")
        hold.release()
        wait_until(
            lambda: (
                error_count(race.client, "STALE") >= refused + len(groups)
                or set(groups) <= race.enqueued_by().keys()
            ),
            what="the late commits are refused or carried out",
        )
        race.open_gates()
        late.process.thaw()
        race.await_shares(4, 4)
        return race.verdict()


@pytest.mark.parametrize("changes", [NO_CHECK_IN_COMMITS, NO_TOKEN_CHECK_ANYWHERE])
def test_the_checker_finds_stale_writes_of_scripts_without_a_fence(
    redis_server: EmbeddedRedis, redis_url: str, tmp_path: Path, changes: Changes
) -> None:
    with scripts_with(changes, tmp_path) as lua:
        verdict = commit_with_a_lost_lease(redis_server, tmp_path, lua)
    assert verdict.counts[Kind.STALE] == 4, verdict.examples
    assert verdict.violations > 0


def test_the_checker_finds_nothing_with_the_fence(
    redis_server: EmbeddedRedis, redis_url: str, tmp_path: Path
) -> None:
    with scripts_with({}, tmp_path) as lua:
        verdict = commit_with_a_lost_lease(redis_server, tmp_path, lua)
    assert verdict.examples == []
    assert verdict.batches == 8
