"""Flushers that die, or lose their leases, while they have batches in flight.

A flusher that vanishes cannot say which batch it was merging. No batch may become a dead letter for
that but the one whose merge ends its process.
"""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from redisagg import Aggregator, Task
from tests.support.aggregators import Make
from tests.support.processes import Processes, WorkerProcess
from tests.support.servers import wait_until
from tests.support.tasks import enqueued

CONFIG: dict[str, Any] = {
    "partitions": 1,
    "lease_time": 0.5,
    "concurrency": 4,
    "group_max_size": 1,
    "max_attempts": 3,
}


def groups_of(agg: Aggregator) -> list[str]:
    return sorted(batch.group for batch in enqueued(agg))


def dead(agg: Aggregator) -> list[str]:
    return [letter.group_key for letter in agg.dead_letters()]


def kill_during_merges(agg: Aggregator, flusher: WorkerProcess, delay: random.Random) -> None:
    """Kills the flusher at a random moment of its merges."""
    wait_until(lambda: agg.stats().in_flight > 0, what="merges have begun")
    time.sleep(delay.uniform(0, 0.25))  # the moment is the point of the test
    flusher.kill()


def is_busy(agg: Aggregator) -> bool:
    stats = agg.stats()
    return stats.pending + stats.in_flight > 0


def await_death_or_end(flusher: WorkerProcess, agg: Aggregator) -> None:
    wait_until(
        lambda: not flusher.running or not is_busy(agg),
        timeout=60,
        what="the flusher has died, or all is done",
    )


@pytest.mark.slow
def test_deploys_by_sigkill_bury_no_batch(make: Make, processes: Processes, redis_url: str) -> None:
    agg = make(**CONFIG)
    names = sorted(f"g{n}" for n in range(200))
    agg.add_tasks([Task("t", n, name) for n, name in enumerate(names)])
    delay = random.Random(1)
    for _ in range(20):
        [flusher] = processes.flushers(1, redis_url, config=CONFIG, merge="slow")
        kill_during_merges(agg, flusher, delay)
    processes.flushers(1, redis_url, config=CONFIG, merge="slow")
    assert agg.wait_until_idle(60)
    assert (dead(agg), groups_of(agg)) == ([], names)


@pytest.mark.slow
def test_a_merge_that_kills_its_process_is_buried_alone(
    make: Make, processes: Processes, redis_url: str
) -> None:
    agg = make(**CONFIG)
    names = sorted(f"g{n}" for n in range(100))
    tasks = [Task("t", n, name) for n, name in enumerate(names)]
    tasks.insert(random.Random(1).randrange(100), Task("t", "poison", "poison"))
    agg.add_tasks(tasks)
    starts = 0
    while is_busy(agg):
        assert starts < 12
        starts += 1
        [flusher] = processes.flushers(1, redis_url, config=CONFIG, merge="slow")
        await_death_or_end(flusher, agg)
    assert (dead(agg), groups_of(agg)) == (["poison"], names)


@pytest.mark.parametrize("flushers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_merge_that_blocks_its_loop_past_the_lease_is_buried_alone(
    make: Make, processes: Processes, redis_url: str, flushers: int
) -> None:
    agg = make(**CONFIG)
    names = sorted(f"g{n}" for n in range(20))
    agg.add_tasks([Task("t", "poison", "poison")])
    agg.add_tasks([Task("t", n, name) for n, name in enumerate(names)])
    processes.flushers(flushers, redis_url, config=CONFIG, merge="block")
    assert agg.wait_until_idle(50)
    assert (dead(agg), groups_of(agg)) == (["poison"], names)
