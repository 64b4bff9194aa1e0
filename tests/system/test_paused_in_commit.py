"""A flusher is stopped in the middle of a commit, for three lease times, and then goes on.

Each commit of a partition is a trial of its own: a leader, a lease, a request. Those of one flusher
are stopped together, 20 at a time.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from redisagg.testing.embedded import EmbeddedRedis
from tests.faults.commit_race import LEASE, Duel, duelling
from tests.support.servers import wait_until

PARTITIONS = 40
AT_A_TIME = PARTITIONS // 2

# Requests are held back until just before the flusher gives up the connection and tries again.
_HELD_WITHIN = LEASE / 3


def pause_in_commit(duel: Duel, paused: int, *, replies: bool) -> int:
    """Stops one flusher while its commits, or the replies to them, are in the network.

    Returns how many there were.
    """
    victim, other = duel.flushers[paused], duel.flushers[1 - paused]
    groups = duel.groups_in(duel.partitions_of(victim))
    hold = victim.proxy.hold("commit_stream", replies=replies)
    since = time.monotonic()
    duel.fill(groups)
    wait_until(lambda: hold.count >= len(groups), timeout=5, what="all commits are under way")
    victim.process.freeze()
    stopped = time.monotonic()
    print(f"{len(groups)} commits held back and stopped within {stopped - since:.3f} s")
    wait_until(
        lambda: set(groups) <= duel.enqueued_by().keys(), timeout=2 * LEASE + 2, what="all are out"
    )
    wait_until(
        lambda: len(duel.partitions_of(other)) == PARTITIONS, what="the other one leads everything"
    )
    by = duel.enqueued_by()
    assert {by[group] for group in groups} == {victim.name if replies else other.name}
    time.sleep(max(0.0, stopped + 3 * LEASE - time.monotonic()))
    refused = stale_calls(duel)
    hold.release()
    if not replies:
        wait_until(
            lambda: stale_calls(duel) == refused + len(groups), what="Redis has refused them"
        )
    victim.process.thaw()
    duel.await_shares(AT_A_TIME, AT_A_TIME)
    return len(groups)


def stale_calls(duel: Duel) -> int:
    """How many calls Redis has refused because their lease was over."""
    counts: Any = duel.client.info("errorstats")
    return int(counts.get("errorstat_STALE", {"count": 0})["count"])


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("moment", "trials"), [("request", 100), ("reply", 20)])
def test_nothing_is_enqueued_twice(
    redis_server: EmbeddedRedis, redis_url: str, tmp_path: Path, moment: str, trials: int
) -> None:
    with duelling(redis_server, tmp_path, PARTITIONS) as duel:
        warm_up(duel)
        made = 0
        while made < trials:
            paused = made // AT_A_TIME % 2
            made += pause_in_commit(duel, paused, replies=moment == "reply")
        verdict = duel.verdict()
    print(f"{made} trials, {verdict.batches} batches")
    assert verdict.examples == []
    assert verdict.batches == made + PARTITIONS
    assert verdict.enqueued == verdict.acknowledged


def warm_up(duel: Duel) -> None:
    """One batch through each partition: a script that Redis does not know is sent as a whole."""
    groups = duel.groups_in(range(PARTITIONS))
    duel.fill(groups)
    wait_until(lambda: set(groups) <= duel.enqueued_by().keys(), what="all are out")
