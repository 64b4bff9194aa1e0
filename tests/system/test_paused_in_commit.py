"""A flusher is stopped in the middle of a commit, for three lease times, and then goes on.

Each commit of a partition is a trial of its own, with a leader, a lease and a request. All commits
of a flusher are stopped together.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from redisagg.testing.embedded import EmbeddedRedis
from tests.faults.commit_race import LEASE, CommitRace, racing
from tests.support.servers import wait_until
from tests.support.tasks import error_count

PARTITIONS = 100
AT_A_TIME = PARTITIONS // 2


def pause_in_commit(race: CommitRace, paused: int, *, replies: bool) -> int:
    """Stops one flusher while its commits, or the replies to them, are in the network.

    Returns:
        The number of commits.
    """
    victim, other = race.flushers[paused], race.flushers[1 - paused]
    groups = race.groups_in(race.partitions_of(victim))
    hold = victim.proxy.hold("commit_stream", replies=replies)
    since = time.monotonic()
    race.fill(groups)
    wait_until(lambda: hold.count >= len(groups), timeout=5, what="all commits are under way")
    if replies:  # some of those calls may be repetitions of others that timed out
        wait_until(lambda: set(groups) <= race.enqueued_by().keys(), what="all are carried out")
    victim.process.freeze()
    stopped = time.monotonic()
    print(f"{len(groups)} commits held back and stopped within {stopped - since:.3f} s")
    wait_until(
        lambda: set(groups) <= race.enqueued_by().keys(),
        timeout=2 * LEASE + 2,
        what="all are enqueued",
    )
    wait_until(
        lambda: len(race.partitions_of(other)) == PARTITIONS, what="the other one leads everything"
    )
    by = race.enqueued_by()
    assert {by[group] for group in groups} == {victim.name if replies else other.name}
    time.sleep(max(0.0, stopped + 3 * LEASE - time.monotonic()))  # it is stopped for this time
    refused = error_count(race.client, "STALE")
    hold.release()
    if not replies:
        wait_until(
            # More than the groups if a request timed out before the flusher was stopped.
            lambda: error_count(race.client, "STALE") == refused + hold.count,
            what="Redis has refused them",
        )
    victim.process.thaw()
    race.await_shares(AT_A_TIME, AT_A_TIME)
    return len(groups)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("moment", "trials"),
    [
        ("request", 10),
        ("reply", 10),
        pytest.param("request", 100, marks=pytest.mark.slow),
        pytest.param("reply", 50, marks=pytest.mark.slow),
    ],
)
def test_a_flusher_paused_in_a_commit_enqueues_nothing_twice(
    redis_server: EmbeddedRedis, redis_url: str, tmp_path: Path, moment: str, trials: int
) -> None:
    with racing(redis_server, tmp_path, PARTITIONS) as race:
        warm_up(race)
        made = 0
        while made < trials:
            paused = made // AT_A_TIME % 2
            made += pause_in_commit(race, paused, replies=moment == "reply")
        verdict = race.verdict()
    print(f"{made} trials, {verdict.batches} batches")
    assert verdict.examples == []
    assert verdict.batches == made + PARTITIONS
    assert verdict.enqueued == verdict.acknowledged


def warm_up(race: CommitRace) -> None:
    """Enqueues one batch in each partition, so that Redis knows the scripts."""
    groups = race.groups_in(range(PARTITIONS))
    race.fill(groups)
    wait_until(lambda: set(groups) <= race.enqueued_by().keys(), what="all are enqueued")
