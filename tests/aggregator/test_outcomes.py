"""Failures that say more: `Unrecoverable`, `RetryAfter` and `Unavailable`."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import redis

from redisagg import RetryAfter, Task, Unavailable, Unrecoverable
from redisagg.flusher.breaker import Breaker
from redisagg.flusher.leader.claimer import Claimer
from redisagg.flusher.leader.session import LeaseSession
from redisagg.protocol.keys import Keyspace
from redisagg.sinks import CallableSink
from tests.support.aggregators import Make
from tests.support.servers import wait_until
from tests.support.tasks import await_dead, enqueued, numbered, server_ms

PARTITION = Keyspace("tests", 1).partitions[0]
EXECUTORS = ("thread", "process", "loop")


def refuse(group: str, tasks: list[Task]) -> None:
    raise Unrecoverable("no such tenant")


async def refuse_later(group: str, tasks: list[Task]) -> None:
    raise Unrecoverable("no such tenant")


class Raising:
    """A merge function or sink that raises what `error` returns, if it returns something."""

    def __init__(self, error: Callable[[], Exception | None]) -> None:
        self.error = error
        self.times: list[float] = []
        self.calls = Counter[str]()
        self._lock = threading.Lock()

    def __call__(self, group: str, tasks: list[Task]) -> Task:
        self._call(group)
        return Task("merged", [task.payload for task in tasks])

    def sink(self, task: Task, batch_id: str) -> None:
        self._call(str(task.group_key))

    def _call(self, group: str) -> None:
        with self._lock:
            self.times.append(time.monotonic())
            self.calls[group] += 1
            error = self.error()
        if error is not None:
            raise error


def first(count: int, error: Callable[[], Exception]) -> Raising:
    """One that raises in its first calls."""
    raising = Raising(lambda: error() if len(raising.times) <= count else None)
    return raising


@pytest.mark.parametrize("executor", EXECUTORS)
def test_an_unrecoverable_merge_is_a_dead_letter_at_once(make: Make, executor: str) -> None:
    function: Any = refuse_later if executor == "loop" else refuse
    kind = "process" if executor == "process" else "thread"
    with make(group_aggregator=function, executor=kind, group_max_size=2, retry_delay=60) as agg:
        agg.add_tasks(numbered("a", 2))
        [letter] = await_dead(agg, timeout=30)
    assert letter.attempts == 1
    assert letter.error == "Unrecoverable: no such tenant"


def test_an_unrecoverable_delivery_says_nothing_about_the_sink(make: Make) -> None:
    raising = Raising(lambda: Unrecoverable("refused for good"))
    sink = CallableSink(raising.sink)
    with make(sink=sink, group_max_size=1, retry_delay=60, retry_max_delay=60) as agg:
        agg.add_tasks(Task("test", n, f"group {n}") for n in range(12))
        letters = await_dead(agg, 12)
    assert {letter.attempts for letter in letters} == {1}
    assert len(raising.times) == 12


def test_retry_after_is_not_counted_and_keeps_its_time(make: Make) -> None:
    merge = first(4, lambda: RetryAfter(0.3))
    with make(group_aggregator=merge, group_max_size=1, max_attempts=1) as agg:
        agg.add_tasks(numbered("a", 2))
        wait_until(lambda: len(enqueued(agg)) == 2, what="both batches arrived")
        assert agg.stats().batches_dead == 0
        assert [batch.payload for batch in enqueued(agg)] == [[0], [1]]
    assert merge.times[-1] - merge.times[0] >= 0.3


def test_retry_after_shows_its_reason(make: Make) -> None:
    merge = Raising(lambda: RetryAfter(60, reason="the shop is shut"))
    with make(group_aggregator=merge, group_max_size=1) as agg:
        agg.add_tasks(numbered("a", 1))
        wait_until(lambda: agg.stats().batches_in_retry == 1, what="the batch waits")
        [batch] = agg.get_batches()
    assert batch.error == "RetryAfter: the shop is shut"
    assert batch.attempts == 0


@pytest.mark.parametrize("where", ["merge", "sink"])
def test_retry_after_of_the_aggregator_stops_calls_for_all_groups(make: Make, where: str) -> None:
    raising = first(1, lambda: RetryAfter(0.8, "aggregator"))
    merged = where == "merge"
    config: dict[str, Any] = {"group_aggregator": raising} if merged else {}
    sink = CallableSink(lambda task, batch_id: None) if merged else CallableSink(raising.sink)
    with make(sink=sink, group_max_size=1, max_attempts=1, partitions=1, **config) as agg:
        agg.add_tasks(numbered("a", 1))
        wait_until(lambda: len(raising.times) == 1, what="the first call")
        agg.add_tasks(Task("test", n, f"group {n}") for n in range(20))
        assert agg.wait_until_idle(20)
        assert agg.stats().batches_dead == 0
    assert len(raising.times) == 22
    assert raising.times[1] - raising.times[0] >= 0.8


@pytest.mark.parametrize("where", ["merge", "sink"])
def test_what_is_unavailable_costs_no_attempt_and_is_left_alone(make: Make, where: str) -> None:
    away = True
    raising = Raising(lambda: Unavailable("connection refused") if away else None)
    merged = where == "merge"
    config: dict[str, Any] = {"group_aggregator": raising} if merged else {}
    sink = CallableSink(lambda task, batch_id: None) if merged else CallableSink(raising.sink)
    with make(
        **config,
        sink=sink,
        group_max_size=1,
        max_attempts=1,
        retry_delay=0.4,
        retry_max_delay=0.4,
        concurrency=2,
    ) as agg:
        agg.add_tasks(Task("test", n, f"group {n}") for n in range(200))
        wait_until(lambda: len(raising.times) >= 5, what="five batches failed")
        time.sleep(1.5)  # the breaker lets 8 batches through each 0.4 s, of 200 that wait
        assert len(raising.times) < 300
        away = False
        assert agg.wait_until_idle(20)
        stats = agg.stats()
    assert stats.batches_dead == 0
    assert stats.flushed == 200


def test_one_batch_that_calls_the_provider_away_holds_back_no_other(make: Make) -> None:
    def merge(group: str, tasks: list[Task]) -> Task:
        if group == "bad":
            raise Unavailable("for this one only")
        return Task("merged", [task.payload for task in tasks])

    with make(group_aggregator=merge, group_max_size=1, max_attempts=1) as agg:
        agg.add_tasks(numbered("bad", 1))
        wait_until(lambda: agg.stats().batches_in_retry == 1, what="the bad batch waits")
        agg.add_tasks(Task("test", n, f"group {n}") for n in range(50))
        wait_until(lambda: len(enqueued(agg)) == 50, what="the others arrived")
        assert agg.stats().batches_dead == 0


# --- what a provider that is away or busy must not be able to do ----------------------------------


class Throttled(RetryAfter):
    """As users write one: its constructor does not call that of `RetryAfter`."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.seconds = 0.3


def throttled(group: str, tasks: list[Task]) -> Task:
    if group.startswith("bad"):
        raise Throttled(429)
    return Task("merged", [task.payload for task in tasks])


async def throttled_later(group: str, tasks: list[Task]) -> Task:
    return throttled(group, tasks)


def deliver_throttled(task: Task, batch_id: str) -> None:
    throttled(str(task.group_key), [task])


@pytest.mark.parametrize("place", [*EXECUTORS, "sink"])
def test_a_subclass_of_retry_after_without_its_constructor_is_one(make: Make, place: str) -> None:
    config: dict[str, Any] = {"group_aggregator": throttled}
    if place == "loop":
        config = {"group_aggregator": throttled_later}
    elif place == "process":
        config["executor"] = "process"
    elif place == "sink":
        config = {"sink": CallableSink(deliver_throttled)}
    with make(group_max_size=1, max_attempts=1, concurrency=2, **config) as agg:
        agg.add_tasks(Task("test", n, f"bad {n}") for n in range(6))  # more than threads
        wait_until(lambda: agg.stats().batches_in_retry > 0, timeout=30, what="one waits")
        agg.add_tasks(numbered("good", 3))
        wait_until(lambda: agg.stats().flushed == 3, timeout=30, what="the others are done")
        errors = {(batch.error, batch.attempts) for batch in agg.get_batches() if batch.error}
        assert agg.stats().dead == 0
    assert errors == {("Throttled: 429", 0)}


@pytest.mark.parametrize("where", ["merge", "sink"])
def test_only_the_batch_of_a_retry_after_waits_for_that_time(
    make: Make, sync_redis: redis.Redis, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    """The others are for other flushers, or for this one after a restart."""
    begun, gate, held = threading.Event(), threading.Event(), threading.Event()

    def call(payload: object) -> None:
        if payload in (0, [0]):
            begun.set()
            gate.wait(30)
            raise RetryAfter(3600, "aggregator")

    def merge(group: str, tasks: list[Task]) -> Task:
        if where == "merge":
            call(tasks[0].payload)
        elif tasks[0].group_key != "a":
            held.wait(30)
        return tasks[0]

    sink = CallableSink(lambda task, _: call(task.payload) if where == "sink" else None)
    with make(
        group_aggregator=merge, sink=sink, group_max_size=1, partitions=1, concurrency=1
    ) as agg:
        agg.add_tasks(numbered("a", 5))
        assert begun.wait(10)
        agg.add_tasks(Task("test", 99, f"group {n}") for n in range(20))
        wait_until(lambda: agg.stats().batches_in_flight == 25, what="they are claimed")
        gate.set()
        wait_until(lambda: "is busy" in caplog.text, what="the breaker is open")
        held.set()
        wait_until(lambda: agg.stats().batches_in_retry == 25, what="they are given back")
        now = server_ms(sync_redis)
        retry: Any = sync_redis.zrange(PARTITION.retry, 0, -1, withscores=True)
        waits = sorted((due - now) / 1000 for _, due in retry)
    assert len(waits) == 25
    assert all(wait <= 33 for wait in waits[:20])
    assert all(3500 < wait <= 3600 for wait in waits[20:])  # with those behind it in its group


def test_a_batch_keeps_its_time_behind_an_older_one_that_fails(
    make: Make, sync_redis: redis.Redis
) -> None:
    asked = threading.Event()
    calls = Counter[object]()

    def merge(group: str, tasks: list[Task]) -> Task:
        payload = tasks[0].payload
        calls[payload] += 1
        if payload == 1:
            asked.set()
            raise RetryAfter(3600)
        assert asked.wait(10)
        if calls[payload] == 1:
            raise RuntimeError("the older one")
        return tasks[0]

    with make(
        group_aggregator=merge, group_max_size=1, partitions=1, concurrency=2, retry_delay=0.01
    ) as agg:
        agg.add_tasks(numbered("a", 2))
        wait_until(lambda: agg.stats().flushed == 1, what="the older one is enqueued")
        wait_until(lambda: agg.stats().batches_in_retry == 1, what="the other one waits")
        retry: Any = sync_redis.zrange(PARTITION.retry, 0, -1, withscores=True)
        [(_, due)] = retry
        assert 3500 < (due - server_ms(sync_redis)) / 1000 <= 3600
    assert calls[1] == 1


@pytest.mark.parametrize("where", ["merge", "sink"])
@pytest.mark.parametrize("retry_delay", [0.001, 0.4])
def test_a_retry_after_nothing_is_no_busy_loop(make: Make, where: str, retry_delay: float) -> None:
    raising = Raising(lambda: RetryAfter(0, "aggregator"))
    merged = where == "merge"
    config: dict[str, Any] = {"group_aggregator": raising} if merged else {}
    sink = CallableSink(lambda task, batch_id: None) if merged else CallableSink(raising.sink)
    config |= {"retry_delay": retry_delay, "retry_max_delay": 0.4}
    with make(sink=sink, group_max_size=1, max_attempts=1, partitions=1, **config) as agg:
        agg.add_tasks(Task("test", n, f"group {n}") for n in range(50))
        wait_until(lambda: raising.times, what="the first call")
        time.sleep(2)
    # Those that are under way when it opens, and 8 each 0.1 or 0.4 s.
    assert len(raising.times) < 60 + 8 * (20 if retry_delay < 0.1 else 5)


def test_queued_batches_of_a_busy_group_do_not_reach_what_is_away(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()
    calls: list[int] = []

    def merge(group: str, tasks: list[Task]) -> Task:
        calls.append(tasks[0].payload)
        if tasks[0].payload == 0:  # the oldest one of the group takes long
            gate.wait(60)
            return tasks[0]
        time.sleep(0.02)
        raise Unavailable("connection refused")

    with make(
        group_aggregator=merge,
        group_max_size=1,
        max_attempts=1,
        partitions=1,
        concurrency=2,
        retry_delay=60,
        retry_max_delay=60,
    ) as agg:
        agg.add_tasks(numbered("a", 100))
        wait_until(lambda: "fails for all batches" in caplog.text, timeout=20, what="it opens")
        time.sleep(1)  # for 50 calls
        gate.set()
        wait_until(lambda: agg.stats().batches_in_retry > 50, what="others are given back")
        stats = agg.stats()
    assert len(calls) < 30
    assert (stats.dead, stats.flushed) == (0, 1)


def test_what_is_claimed_while_the_breaker_opens_is_not_merged(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    breakers: list[Breaker] = []
    run, send_all = Claimer.run, LeaseSession.send_all

    async def noted_run(self: Claimer) -> None:
        breakers.append(self._merges)
        await run(self)

    async def opening(self: LeaseSession, requests: Any, **options: Any) -> list[Any]:
        replies = await send_all(self, requests, **options)
        if any(each.script and each.script.name == "claim" for each in requests):
            breakers[0].hold(60)
        return replies

    monkeypatch.setattr(Claimer, "run", noted_run)
    monkeypatch.setattr(LeaseSession, "send_all", opening)
    merge = Raising(lambda: None)
    agg = make(group_aggregator=merge, group_max_size=1, partitions=1)
    agg.add_tasks(Task("test", n, f"group {n}") for n in range(10))
    with agg:
        wait_until(lambda: agg.stats().batches_in_retry == 10, what="they are given back")
    assert not merge.times
