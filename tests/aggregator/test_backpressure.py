"""Backpressure: pending tasks are bounded, and producers get an error or wait."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from redisagg import AggregationConfig, Aggregator, AsyncAggregator, Task
from redisagg.errors import AggregatorFull, InvalidConfig, RedisOutOfMemory
from redisagg.testing.embedded import EmbeddedRedis
from tests.support.aggregators import Make
from tests.support.servers.polling import wait_until
from tests.support.tasks import await_batches, enqueued, numbered, payloads, quick_config


def pending(aggregator: Any) -> int:
    """Tasks that wait or are in flight."""
    stats = aggregator.stats()
    count: int = stats.pending + stats.in_flight
    return count


def test_one_task_too_many_is_refused_and_nothing_is_written(make_both: Make) -> None:
    agg = make_both(max_pending_tasks=4, partitions=1, group_max_size=100)
    agg.add_tasks(numbered("a", 4))
    with pytest.raises(AggregatorFull, match="max_pending_tasks"):
        agg.add_task(Task("test", 4, "b"))
    assert pending(agg) == 4
    assert agg.get_group("b") is None
    assert agg.cancel_group("a") == 4
    agg.add_task(Task("test", 4, "b"))


def test_bytes_are_counted_as_stored_until_their_tasks_are_gone(make: Make) -> None:
    agg = make(
        partitions=1, group_max_size=100, max_task_bytes=400, max_pending_bytes=1200, max_attempts=1
    )
    first, second = numbered("a", 2, headers={"x": "y" * 250})
    agg.add_tasks([first, second])
    stored = agg.stats().stored_bytes
    assert 2 * 250 < stored < 2 * 350
    agg.add_task(Task("test", b"x" * 350, "b"))
    with pytest.raises(AggregatorFull, match="max_pending_bytes"):
        agg.add_task(Task("test", b"x" * 350, "b"))
    assert agg.cancel_task("a", first.id)
    assert agg.stats().stored_bytes < 1200 - 300
    agg.add_task(Task("test", b"x" * 200, "b"))
    agg.start()
    agg.flush_all()
    await_batches(agg, 2)
    assert agg.wait_until_idle(5)
    assert agg.stats().stored_bytes == 0


def test_tasks_that_wait_already_can_be_added_again_when_there_is_no_room(make_both: Make) -> None:
    agg = make_both(max_pending_tasks=2, partitions=1)
    tasks = numbered("a", 2)
    agg.add_tasks(tasks)
    assert agg.add_tasks(tasks) == [task.id for task in tasks]
    assert agg.add_task(tasks[0]) == tasks[0].id
    with pytest.raises(AggregatorFull):
        agg.add_tasks([*tasks, Task("test", 2, "a")])
    assert pending(agg) == 2


def test_each_partition_has_its_share(make: Make) -> None:
    agg = make(max_pending_tasks=20, partitions=2, group_max_size=100)
    groups = [f"g{n}" for n in range(40)]
    accepted = 0
    for group in groups:
        try:
            agg.add_task(Task("test", 1, group))
        except AggregatorFull:
            continue
        accepted += 1
    assert accepted == 20
    assert [each.pending for each in agg.stats().partitions] == [10, 10]


def test_tasks_in_flight_count_as_pending(make: Make) -> None:
    began, go_on = threading.Event(), threading.Event()

    def merge(group: str, tasks: list[Task]) -> None:
        began.set()
        assert go_on.wait(20)

    agg = make(max_pending_tasks=2, partitions=1, group_max_size=2, group_aggregator=merge)
    agg.start()
    try:
        agg.add_tasks(numbered("a", 2))
        assert began.wait(5)
        with pytest.raises(AggregatorFull):
            agg.add_task(Task("test", 2, "a"))
    finally:
        go_on.set()
    assert agg.wait_until_idle(5)
    agg.add_task(Task("test", 2, "a"))


def test_an_add_waits_for_room_up_to_full_timeout(make_both: Make) -> None:
    agg = make_both(max_pending_tasks=2, partitions=1, group_max_size=2, full_timeout=20)
    agg.add_tasks(numbered("a", 2))
    started = time.monotonic()
    starting = threading.Timer(0.2, agg.start)
    starting.start()
    agg.add_task(Task("test", 2, "b"))
    assert time.monotonic() - started >= 0.2
    starting.join()
    assert agg.flush("b") == 1
    await_batches(agg, 2)


def test_an_add_that_finds_no_room_raises_after_full_timeout(make_both: Make) -> None:
    agg = make_both(max_pending_tasks=2, partitions=1, full_timeout=0.3)
    agg.add_tasks(numbered("a", 2))
    started = time.monotonic()
    with pytest.raises(AggregatorFull):
        agg.add_task(Task("test", 2, "b"))
    assert 0.25 < time.monotonic() - started < 5
    with pytest.raises(AggregatorFull):
        agg.add_tasks(numbered("b", 5))
    assert pending(agg) == 2


@pytest.mark.parametrize("groups", [1, 4])
def test_a_stream_waits_for_room_and_each_task_is_enqueued_once(
    make_both: Make, groups: int
) -> None:
    seen: list[int] = []
    agg = make_both(max_pending_tasks=40, partitions=2, group_max_size=5, full_timeout=30)
    agg.start()
    tasks = [Task("test", n, f"g{n % groups}") for n in range(1_000)]
    assert agg.add_tasks(iter(tasks), progress=seen.append) == [task.id for task in tasks]
    assert seen[-1] == 1_000
    agg.flush_all()
    assert agg.wait_until_idle(10)
    assert sorted(payloads(enqueued(agg))) == list(range(1_000))
    if groups == 1:
        assert payloads(enqueued(agg)) == list(range(1_000))


def test_a_stream_without_full_timeout_adds_as_many_tasks_as_have_room(make_both: Make) -> None:
    agg = make_both(max_pending_tasks=8, partitions=1, group_max_size=100)
    with pytest.raises(AggregatorFull):
        agg.add_tasks(numbered("a", 100))
    assert pending(agg) == 8


def _payload_sizes(agg: Aggregator, group: str) -> list[int]:
    view = agg.get_group(group)
    tasks = view.tasks if view and view.tasks else ()
    return [len(each.task.payload) for each in tasks if each.task]


def _almost_full(make_both: Make, **config: Any) -> Aggregator:
    """An aggregator with room for small tasks, but not for one of 600 bytes."""
    agg = make_both(
        partitions=1, max_pending_bytes=4000, max_task_bytes=1000, group_max_size=100, **config
    )
    agg.add_tasks([Task("test", b"x" * 400, "filling") for _ in range(8)])
    return agg


@pytest.mark.parametrize("streams", ["neither", "the first", "the second", "both"])
def test_a_small_task_does_not_overtake_a_large_one_of_its_group_that_waits_for_room(
    make_both: Make, streams: str
) -> None:
    agg = _almost_full(make_both, full_timeout=20)

    def add(size: int, group: str, *, stream: bool) -> None:
        task = Task("test", b"x" * size, group)
        if stream:
            agg.add_tasks([task])
        else:
            agg.add_task(task)

    with ThreadPoolExecutor(2) as pool:
        large = pool.submit(add, 900, "a", stream=streams in {"the first", "both"})
        wait_until(lambda: _waiting(agg), what="the large task to find no room")
        small = pool.submit(add, 1, "a", stream=streams in {"the second", "both"})
        for size in (2, 3, 4):
            add(size, "b", stream=False)
            add(size, "b", stream=True)
        assert not small.done()
        assert _payload_sizes(agg, "a") == []
        agg.cancel_group("filling")
        large.result(10)
        small.result(10)
    assert _payload_sizes(agg, "a") == [900, 1]
    assert _payload_sizes(agg, "b") == [2, 2, 3, 3, 4, 4]
    assert not _waiting(agg)


def _waiting(agg: Any) -> bool:
    """Whether a group has a line."""
    inner = getattr(agg, "_inner", agg)
    adders = [each.adder for each in inner._on_loops.values()] if inner is not agg else [agg._adder]
    return any(adder.lines.by_group for adder in adders)


def test_a_small_task_does_not_overtake_a_large_one_of_its_stream(make_both: Make) -> None:
    agg = _almost_full(make_both, full_timeout=20)
    free = threading.Timer(0.2, lambda: agg.cancel_group("filling"))
    free.start()
    # Limits of its own, and so a section of its own in the same call.
    tasks = [Task("test", b"x" * 900, "a"), Task("test", b"x", "a", max_size=50)]
    agg.add_tasks(tasks)
    free.join()
    assert _payload_sizes(agg, "a") == [900, 1]


def test_those_that_wait_behind_a_task_raise_after_their_own_full_timeout(make_both: Make) -> None:
    agg = _almost_full(make_both, full_timeout=0.5)
    with ThreadPoolExecutor(2) as pool:
        began = time.monotonic()
        large = pool.submit(agg.add_task, Task("test", b"x" * 900, "a"))
        wait_until(lambda: _waiting(agg), what="the large task to find no room")
        other = pool.submit(agg.add_task, Task("test", b"x" * 901, "a"))
        for adding in (large, other):
            with pytest.raises(AggregatorFull):
                adding.result(10)
        assert 0.4 < time.monotonic() - began < 5
    assert not _waiting(agg)
    agg.add_task(Task("test", b"x", "a"))


async def test_a_cancelled_add_holds_up_nobody_behind_it(redis_url: str) -> None:
    config = quick_config(partitions=1, max_pending_tasks=16, group_max_size=100, full_timeout=20)
    async with AsyncAggregator("tests", redis_url, config=config) as agg:
        await agg.add_tasks(numbered("filling", 15))
        large = asyncio.create_task(agg.add_tasks(numbered("a", 2)))
        first = asyncio.create_task(agg.add_task(Task("test", 2, "b")))
        await first
        second = asyncio.create_task(agg.add_task(Task("test", 3, "a")))
        third = asyncio.create_task(agg.add_task(Task("test", 4, "a")))
        await asyncio.sleep(0.1)
        for each in (large, second):
            each.cancel()
        assert await agg.cancel_group("filling") == 15
        began = time.monotonic()
        await third
        assert time.monotonic() - began < 5
        assert large.cancelled()
        assert second.cancelled()


def test_many_adds_of_a_group_that_wait_for_room_are_added_in_few_round_trips(
    make_both: Make,
) -> None:
    agg = make_both(partitions=1, max_pending_tasks=4_000, group_max_size=10_000, full_timeout=20)
    agg.add_tasks(numbered("filling", 4_000))
    with ThreadPoolExecutor(32) as pool:
        adding = [pool.submit(agg.add_task, Task("test", n, "a")) for n in range(300)]
        wait_until(lambda: _waiting(agg), what="an add to find no room")
        agg.cancel_group("filling")
        for each in adding:
            each.result(10)
    assert pending(agg) == 300
    assert not _waiting(agg)


@pytest.fixture
def server(server_binary: Path) -> Iterator[EmbeddedRedis]:
    """A server for one test, which changes its settings."""
    with EmbeddedRedis(server_binary) as server:
        yield server


def test_an_add_waits_for_a_redis_that_is_out_of_memory_up_to_full_timeout(
    make: Make, server: EmbeddedRedis
) -> None:
    agg = make(url=server.url, full_timeout=20)
    with server.client() as client:
        agg.add_task(Task("test", 0, "a"))
        keys = set(client.scan_iter("*tasks:*"))
        client.config_set("maxmemory", 1)
        allow = threading.Timer(0.2, lambda: client.config_set("maxmemory", 0))
        allow.start()
        agg.add_task(Task("test", 1, "a"))
        allow.join()
        group = agg.get_group("a")
        assert group is not None
        assert group.size == 2
        client.config_set("maxmemory", 1)
        impatient = make(url=server.url)
        with pytest.raises(RedisOutOfMemory):
            impatient.add_task(Task("test", 2, "b"))
        client.config_set("maxmemory", 0)
        assert set(client.scan_iter("*tasks:*")) == keys


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"max_pending_tasks": 15}, "from 16 "),
        ({"max_pending_tasks": 1.5}, "whole number"),
        ({"max_pending_bytes": 0}, "from 16 "),
        ({"max_pending_bytes": 1_000_000}, "max_task_bytes"),
        ({"full_timeout": -1}, "full_timeout"),
        ({"dedupe_window": "long"}, "dedupe_window"),
    ],
)
def test_wrong_limits_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidConfig, match=says):
        AggregationConfig(**config)
