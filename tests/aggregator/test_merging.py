"""The arguments of the merge function, and the effect of each kind of result and failure."""

from __future__ import annotations

import asyncio
import decimal
import functools
import sys
import threading
import time
from collections.abc import Awaitable
from typing import Any

import pytest
import redis

from redisagg import Task
from redisagg.config import GroupAggregator
from redisagg.sinks import EnqueuedBatch
from tests.support.aggregators import Make
from tests.support.servers import wait_until
from tests.support.tasks import (
    await_asleep,
    await_batches,
    await_dead,
    await_led,
    await_server_ms,
    enqueued,
    lease_expiries,
    numbered,
    payloads,
)


def nothing(group: str, tasks: list[Task]) -> None:
    return None


async def nothing_later(group: str, tasks: list[Task]) -> None:
    return None


def boom(group: str, tasks: list[Task]) -> Task:
    raise ValueError(f"no way with {group}")


async def boom_later(group: str, tasks: list[Task]) -> Task:
    raise ValueError(f"no way with {group}")


def junk(group: str, tasks: list[Task]) -> Any:
    return {"not": "a task"}


async def junk_later(group: str, tasks: list[Task]) -> Any:
    return [Task("one", 1), 2]


def test_the_merge_function_gets_the_group_and_its_tasks_as_they_were_added(make: Make) -> None:
    seen: list[tuple[str, list[Task]]] = []

    def merge(group: str, tasks: list[Task]) -> Task:
        seen.append((group, tasks))
        return Task("merged", {"of": [task.id for task in tasks]}, headers={"by": "test"})

    added = [
        Task("one", {"n": 1, "at": decimal.Decimal("1.50")}, "a b:{c}\n", headers={"x": "ü"}),
        Task("two", b"\x00\xff", "a b:{c}\n", id="my-own-id", priority=3, max_size=9),
        Task("three", [None, {1, 2}], "a b:{c}\n", grace_period=50, max_delay=51),
    ]
    agg = make(group_aggregator=merge)
    with agg:
        for task in added:
            agg.add_task(task)
        agg.flush("a b:{c}\n")
        await_batches(agg, 1)
    assert seen == [("a b:{c}\n", added)]
    [batch] = enqueued(agg)
    assert (batch.type, batch.group, batch.count) == ("merged", "a b:{c}\n", 3)
    assert batch.payload == {"of": [task.id for task in added]}
    assert batch.headers == {"by": "test"}


class _Calls:
    """An object that is a merge function."""

    def __init__(self) -> None:
        self.threads: set[str] = set()

    async def __call__(self, group: str, tasks: list[Task]) -> Task:
        self.threads.add(threading.current_thread().name)
        return Task("object", len(tasks))


def _with_option(group: str, tasks: list[Task], *, name: str) -> Task:
    return Task(name, len(tasks))


async def _with_option_later(group: str, tasks: list[Task], *, name: str) -> Task:
    return Task(name, len(tasks))


def _returns_a_coroutine(group: str, tasks: list[Task]) -> Awaitable[Task]:
    return _with_option_later(group, tasks, name="coroutine")


@pytest.mark.parametrize(
    ("merge", "type_"),
    [
        (_Calls(), "object"),
        (functools.partial(_with_option, name="partial"), "partial"),
        (functools.partial(_with_option_later, name="later"), "later"),
        (_returns_a_coroutine, "coroutine"),
    ],
    ids=["object", "partial", "async-partial", "returns-coroutine"],
)
def test_all_kinds_of_functions_merge(make: Make, merge: GroupAggregator, type_: str) -> None:
    agg = make(group_aggregator=merge, group_max_size=2)
    with agg:
        agg.add_tasks(numbered("a", 2))
        await_batches(agg, 1)
    assert [(batch.type, batch.payload) for batch in enqueued(agg)] == [(type_, 2)]


@pytest.mark.parametrize("merge", [nothing, nothing_later])
def test_a_merge_that_returns_none_enqueues_nothing_and_counts_as_flushed(
    make: Make, merge: GroupAggregator, sync_redis: redis.Redis
) -> None:
    agg = make(group_aggregator=merge, group_max_size=2)
    with agg:
        agg.add_tasks(numbered("a", 4))
        assert agg.wait_until_idle(5)
        stats = agg.stats()
    assert (stats.flushed, stats.batches_flushed, stats.dead) == (4, 2, 0)
    assert enqueued(agg) == []
    assert agg.get_batches() == []
    assert not sync_redis.keys("*tasks*")


@pytest.mark.parametrize(
    ("merge", "error", "in_traceback"),
    [
        (boom, "ValueError: no way with a", "in boom"),
        (boom_later, "ValueError: no way with a", "in boom_later"),
        (junk, "MergeError: the merge function returned dict", ""),
        (junk_later, "MergeError: the merge function returned int", ""),
    ],
)
def test_a_merge_that_fails_each_time_ends_among_the_dead_letters(
    make: Make, merge: GroupAggregator, error: str, in_traceback: str
) -> None:
    agg = make(group_aggregator=merge, group_max_size=3, max_attempts=2)
    with agg:
        added = numbered("a", 3, headers={"k": "v"})
        agg.add_tasks(added)
        [letter] = await_dead(agg)
        stats = agg.stats()
    assert (letter.group_key, letter.size, letter.attempts) == ("a", 3, 2)
    assert error in letter.error
    assert in_traceback in letter.traceback
    assert letter.tasks is not None
    assert [stored.task for stored in letter.tasks] == added
    assert letter.claimed_at <= letter.died_at
    assert (stats.pending, stats.in_flight, stats.dead, stats.flushed) == (0, 0, 3, 0)
    assert enqueued(agg) == []
    assert agg.get_entries() == {}


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_merge_beyond_merge_timeout_has_failed_and_gives_its_slot_back(
    make: Make, sync_redis: redis.Redis, kind: str
) -> None:
    end = threading.Event()
    ended: list[str] = []

    def plain(group: str, tasks: list[Task]) -> Task:
        if group == "slow":
            end.wait(20)
            ended.append(group)
        return Task("merged", group)

    async def later(group: str, tasks: list[Task]) -> Task:
        if group == "slow":
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(group)
        return Task("merged", group)

    # With one slot only, the other group is merged if the thread of a late merge does not keep it.
    agg = make(
        group_aggregator=plain if kind == "plain" else later,
        group_max_size=2,
        merge_timeout=0.2,
        max_attempts=2,
        concurrency=1,
    )
    with agg:
        agg.add_tasks(numbered("slow", 2))
        agg.add_tasks(numbered("other", 2))
        await_batches(agg, 1)
        [letter] = await_dead(agg)
        assert "MergeTimeout" in letter.error
        assert "0.2" in letter.error
        end.set()
        wait_until(lambda: len(ended) == 2, timeout=5, what="both late merges have ended")
        await_asleep(sync_redis)
    # Nobody takes the result of a late merge.
    assert [batch.group for batch in enqueued(agg)] == ["other"]
    assert agg.stats().dead == 2


async def cancels_itself(group: str, tasks: list[Task]) -> Task:
    raise asyncio.CancelledError


def exits(group: str, tasks: list[Task]) -> Task:
    sys.exit("out of here")


@pytest.mark.parametrize("merge", [cancels_itself, exits])
def test_a_merge_that_raises_a_base_exception_has_failed(
    make: Make, merge: GroupAggregator
) -> None:
    agg = make(group_aggregator=merge, group_max_size=1, max_attempts=1, shutdown_timeout=1)
    with agg:
        agg.add_task(Task("test", 0, "a"))
        [letter] = await_dead(agg, timeout=2)
    assert letter.size == 1


@pytest.mark.parametrize("url", ["stream://queue", "list://queue"])
def test_a_merge_may_return_several_tasks(make: Make, url: str) -> None:
    def merge(group: str, tasks: list[Task]) -> list[Task]:
        return [Task("each", task.payload) for task in tasks if task.payload % 2]

    agg = make(group_aggregator=merge, group_max_size=4, sink=url)
    with agg:
        agg.add_tasks([*numbered("a", 8), *numbered("even", 1), *numbered("even", 1, start=2)])
        agg.flush_all()
        assert agg.wait_until_idle(5)
        stats = agg.stats()
    batches = enqueued(agg)
    assert [batch.payload for batch in batches] == [1, 3, 5, 7]
    first, second = (batch_id.rpartition("-")[0] for batch_id in _ids(batches)[::2])
    assert _ids(batches) == [f"{first}-1", f"{first}-2", f"{second}-1", f"{second}-2"]
    assert {batch.count for batch in batches} == {4}
    assert (stats.flushed, stats.batches_flushed) == (10, 3)


def _ids(batches: list[EnqueuedBatch]) -> list[str]:
    return [batch.batch_id for batch in batches]


def test_a_result_that_the_queue_cannot_carry_is_a_failed_merge(make: Make) -> None:
    def merge(group: str, tasks: list[Task]) -> Task:
        return Task("merged", {"fine": 1} if group == "fine" else {"odd": object()})

    agg = make(group_aggregator=merge, group_max_size=1, max_attempts=2)
    with agg:
        agg.add_tasks([Task("test", 0, "odd"), Task("test", 0, "fine")])
        [letter] = await_dead(agg)
        await_batches(agg, 1)
    assert "PayloadError" in letter.error
    assert [batch.group for batch in enqueued(agg)] == ["fine"]


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_as_many_merges_as_configured_run_at_a_time(make: Make, kind: str) -> None:
    running = peak = 0
    full, full_later = threading.Event(), asyncio.Event()
    lock = threading.Lock()

    def change(by: int) -> None:
        nonlocal running, peak
        with lock:
            running += by
            peak = max(peak, running)
            if running == 3:
                full.set()

    def plain(group: str, tasks: list[Task]) -> Task:
        change(1)
        assert full.wait(10)
        time.sleep(0.01)  # a fourth merge would begin meanwhile
        change(-1)
        return Task("merged")

    async def later(group: str, tasks: list[Task]) -> Task:
        change(1)
        if full.is_set():
            full_later.set()
        await asyncio.wait_for(full_later.wait(), 10)
        await asyncio.sleep(0.01)  # a fourth merge would begin meanwhile
        change(-1)
        return Task("merged")

    agg = make(
        group_aggregator=plain if kind == "plain" else later, group_max_size=1, concurrency=3
    )
    with agg:
        agg.add_tasks(Task("test", n, f"g{n}") for n in range(12))
        await_batches(agg, 12)
    assert peak == 3


def test_leases_are_renewed_while_a_plain_merge_runs(make: Make, sync_redis: redis.Redis) -> None:
    """A merge takes longer than the lease time, and its batch is merged once."""
    calls: list[str] = []

    def merge(group: str, tasks: list[Task]) -> Task:
        calls.append(group)
        await_server_ms(sync_redis, max(lease_expiries(sync_redis)))
        return Task("merged")

    agg = make(group_aggregator=merge, group_max_size=1, lease_time=0.6)
    with agg:
        await_led(agg)
        tokens = [each.token for each in agg.stats().partitions]
        agg.add_task(Task("test", 0, "a"))
        await_batches(agg, 1)
        assert [each.token for each in agg.stats().partitions] == tokens
    assert calls == ["a"]


def test_a_merge_may_add_tasks_to_another_aggregator(make_both: Make) -> None:
    second = make_both(name="second", group_max_size=2)

    def merge(group: str, tasks: list[Task]) -> None:
        second.add_task(Task("digest", group, "all"))

    first = make_both(name="first", group_max_size=1, group_aggregator=merge)
    with first, second:
        first.add_tasks([Task("test", 0, "x"), Task("test", 0, "y")])
        await_batches(second, 1)
    assert enqueued(first) == []
    assert sorted(payloads(enqueued(second))) == ["x", "y"]


@pytest.mark.parametrize("url", ["stream://queue", "list://queue"])
def test_too_large_a_result_harms_no_other_group(make: Make, url: str) -> None:
    def merge(group: str, tasks: list[Task]) -> Task:
        return Task("merged", b"x" * (3_000 if group == "large" else 10))

    agg = make(
        group_aggregator=merge, group_max_size=1, max_attempts=2, max_merged_bytes=2_048, sink=url
    )
    with agg:
        agg.add_tasks([Task("test", 0, "large"), Task("test", 0, "fine")])
        [letter] = await_dead(agg)
        await_batches(agg, 1)
    assert letter.group_key == "large"
    assert "MergedTaskTooLarge" in letter.error
    assert [batch.group for batch in enqueued(agg)] == ["fine"]
