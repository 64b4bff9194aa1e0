"""Batches of a group are enqueued in order, whichever are merged at a time and whichever fail."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from typing import Any

import pytest
import redis

from redisagg import Task
from redisagg.sinks import CallableSink
from tests.support.aggregators import Make
from tests.support.servers import wait_until
from tests.support.tasks import (
    await_asleep,
    await_batches,
    await_dead,
    await_led,
    enqueued,
    numbered,
    payloads,
)


def merged(tasks: list[Task]) -> Task:
    return Task("merged", {"payloads": [task.payload for task in tasks]})


def by_group(agg: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for batch in enqueued(agg):
        found.setdefault(batch.group, []).extend(batch.payload["payloads"])
    return found


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_batches_of_a_group_are_merged_side_by_side_and_enqueued_in_order(
    make: Make, kind: str
) -> None:
    chance = random.Random(7)
    merging: dict[str, int] = {"one": 0, "two": 0}
    peak = 0
    lock = threading.Lock()

    def change(group: str, by: int) -> None:
        nonlocal peak
        with lock:
            merging[group] += by
            peak = max(peak, merging[group])

    def plain(group: str, tasks: list[Task]) -> Task:
        change(group, 1)
        time.sleep(chance.uniform(0, 0.03))  # so that merges end in another order
        change(group, -1)
        return merged(tasks)

    async def later(group: str, tasks: list[Task]) -> Task:
        change(group, 1)
        await asyncio.sleep(chance.uniform(0, 0.03))  # so that merges end in another order
        change(group, -1)
        return merged(tasks)

    agg = make(
        group_aggregator=plain if kind == "plain" else later, group_max_size=2, concurrency=8
    )
    with agg:
        agg.add_tasks(
            [task for n in range(80) for task in (*numbered("one", 1, n), *numbered("two", 1, n))]
        )
        assert agg.wait_until_idle(20)
    assert by_group(agg) == {"one": list(range(80)), "two": list(range(80))}
    assert peak > 1


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_failures_do_not_change_the_order_within_a_group(make: Make, kind: str) -> None:
    chance = random.Random(11)
    failed: set[int] = set()

    def fail_one_in_three(tasks: list[Task]) -> Task:
        first = tasks[0].payload
        if first not in failed and chance.random() < 0.33:
            failed.add(first)
            raise RuntimeError("by chance")
        return merged(tasks)

    def plain(group: str, tasks: list[Task]) -> Task:
        time.sleep(chance.uniform(0, 0.01))  # so that merges end in another order
        return fail_one_in_three(tasks)

    async def later(group: str, tasks: list[Task]) -> Task:
        await asyncio.sleep(chance.uniform(0, 0.01))  # so that merges end in another order
        return fail_one_in_three(tasks)

    agg = make(
        group_aggregator=plain if kind == "plain" else later, group_max_size=3, concurrency=8
    )
    with agg:
        agg.add_tasks(numbered("a", 150))
        assert agg.wait_until_idle(30)
        stats = agg.stats()
    assert failed
    assert by_group(agg) == {"a": list(range(150))}
    assert (stats.dead, stats.flushed) == (0, 150)


def test_a_batch_in_retry_holds_back_its_own_group_only(make: Make) -> None:
    failing = threading.Event()
    failing.set()
    failures = 0

    def merge(group: str, tasks: list[Task]) -> Task:
        nonlocal failures
        if group == "sick" and tasks[0].payload == 0 and failing.is_set():
            failures += 1
            raise RuntimeError("not yet")
        return merged(tasks)

    # One partition, so that both groups have the same leader.
    agg = make(
        group_aggregator=merge,
        group_max_size=2,
        partitions=1,
        max_attempts=1000,
        retry_max_delay=0.05,
    )
    with agg:
        agg.add_tasks(numbered("sick", 6))
        agg.add_tasks(numbered("well", 20))
        await_batches(agg, 10)
        retried = failures + 3
        wait_until(lambda: failures >= retried, what="the batch has failed several times more")
        assert by_group(agg) == {"well": list(range(20))}
        state = agg.get_entries()["sick"]
        assert state.size + state.in_flight == 6
        failing.clear()
        assert agg.wait_until_idle(10)
    assert by_group(agg)["sick"] == list(range(6))


def test_a_sink_that_fails_does_not_change_the_order_within_a_group(make: Make) -> None:
    chance = random.Random(3)
    delivered: list[int] = []
    attempts = 0

    def deliver(task: Task, batch_id: str) -> None:
        nonlocal attempts
        attempts += 1
        if chance.random() < 0.3:
            raise ConnectionError("the queue is away")
        delivered.extend(task.payload["payloads"])

    agg = make(
        sink=CallableSink(deliver),
        group_max_size=2,
        concurrency=8,
        max_attempts=100,
    )
    with agg:
        agg.add_tasks(numbered("a", 60))
        assert agg.wait_until_idle(30)
    assert delivered == list(range(60))
    assert attempts > 30


def test_a_buried_batch_leaves_the_others_in_order(make: Make) -> None:
    def merge(group: str, tasks: list[Task]) -> Task:
        time.sleep(random.uniform(0, 0.01))  # so that merges end in another order
        if tasks[0].payload % 10 == 4:
            raise RuntimeError("never")
        return merged(tasks)

    agg = make(group_aggregator=merge, group_max_size=2, concurrency=8, max_attempts=2)
    with agg:
        agg.add_tasks(numbered("a", 40))
        letters = await_dead(agg, 4)
        assert agg.wait_until_idle(10)
    assert by_group(agg)["a"] == [n for n in range(40) if n % 10 not in (4, 5)]
    buried = [[s.task.payload for s in letter.tasks or () if s.task] for letter in letters]
    assert buried == [[4, 5], [14, 15], [24, 25], [34, 35]]


def _script_calls(client: redis.Redis) -> int:
    stats: Any = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval"))


def test_one_hot_group_takes_no_more_script_calls_than_many_groups(
    make: Make, sync_redis: redis.Redis
) -> None:
    batches, size = 400, 10

    def drain(groups: list[str]) -> int:
        """Number of script calls until all tasks are enqueued."""
        agg = make(name=f"n{len(groups)}", partitions=1, group_max_size=size)
        agg.pause()
        for start in range(0, batches * size, 2_000):
            agg.add_tasks(
                Task("test", n, groups[n // size % len(groups)])
                for n in range(start, start + 2_000)
            )
        with agg:
            await_led(agg)
            await_asleep(sync_redis, name=agg.name, partitions=1)
            before = _script_calls(sync_redis)
            agg.resume()
            await_batches(agg, batches, timeout=30)
            used = _script_calls(sync_redis) - before
            assert agg.wait_until_idle(5)
        assert sorted(payloads(enqueued(agg))) == list(range(batches * size))
        return used

    many = drain([f"g{n}" for n in range(batches)])
    hot = drain(["hot"])
    assert hot <= many * 1.25 + 20
    assert hot < batches  # several batches share a call


def test_the_batches_of_one_hot_group_are_merged_side_by_side(make: Make) -> None:
    running = 0
    many = asyncio.Event()

    async def merge(group: str, tasks: list[Task]) -> Task:
        nonlocal running
        running += 1
        if running == 16:
            many.set()
        await asyncio.wait_for(many.wait(), 10)
        return merged(tasks)

    agg = make(group_aggregator=merge, group_max_size=10, concurrency=32, max_attempts=1)
    agg.pause()
    agg.add_tasks(numbered("hot", 1_000))
    with agg:
        agg.resume()
        assert agg.wait_until_idle(20)
    assert payloads(enqueued(agg)) == list(range(1_000))
