"""`on_event`: what a flusher tells, and that a function that misbehaves harms nobody."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import redis

from redisagg import (
    AggregationConfig,
    Aggregator,
    AsyncAggregator,
    Partial,
    RetryAfter,
    Task,
    Unrecoverable,
    events,
)
from redisagg.errors import InvalidConfig
from redisagg.events import BatchEvent, Event
from redisagg.flusher import event_queue
from redisagg.flusher.reporter import Reporter
from redisagg.observers import Observers
from redisagg.protocol.keys import Keyspace
from redisagg.sinks import CallableSink
from tests.support.aggregators import Make
from tests.support.servers import wait_until
from tests.support.tasks import await_batches, await_dead, await_led, numbered, quick_config

E = TypeVar("E", bound=Event)


class Seen:
    """Keeps the events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if type(event) is kind]

    def wait(self, kind: type[E], count: int = 1) -> list[E]:
        what = f"{count} events {kind.__name__}"
        wait_until(lambda: len(self.of(kind)) >= count, timeout=20, what=what)
        return self.of(kind)

    def batches(self) -> list[str]:
        """The kinds of the events of batches."""
        return [type(each).__name__ for each in self.events if isinstance(each, BatchEvent)]


@pytest.fixture
def seen() -> Seen:
    return Seen()


def test_a_batch_from_its_claim_to_the_queue(
    make_both: Make, seen: Seen, sync_redis: redis.Redis
) -> None:
    agg = make_both(group_max_size=3, on_event=seen)
    before = time.time()
    with agg:
        agg.add_tasks(numbered("a:\x1b", 3, weight=2))
        [enqueued] = seen.wait(events.BatchEnqueued)
    [started], [stopped] = seen.of(events.FlusherStarted), seen.wait(events.FlusherStopped)
    assert (started.namespace, started.partitions, started.concurrency) == ("tests", 2, 16)
    assert (stopped.error, stopped.flusher) == ("", started.flusher)
    assert 0 < stopped.seconds <= stopped.at - started.at + 1
    assert len(seen.of(events.LeaseTaken)) == len(seen.of(events.LeaseReleased)) == 2
    assert {each.partition for each in seen.of(events.LeaseTaken)} == {0, 1}
    assert seen.of(events.LeaseLost) == []

    assert seen.batches() == ["BatchClaimed", "BatchMerged", "BatchEnqueued"]
    for event in seen.events:  # raises an error for a field that was not set
        assert {"at", "namespace", "flusher"} <= dataclasses.asdict(event).keys()
    [claimed], [merged] = seen.of(events.BatchClaimed), seen.of(events.BatchMerged)
    batch = enqueued.batch
    assert claimed.batch is batch is merged.batch
    partition = Keyspace("tests", 2).partition_of(b"a:\x1b")
    assert (batch.group_key, batch.size, batch.weight, batch.reason, batch.attempt) == (
        *("a:\x1b", 3, 6, "size", 1),
    )
    assert batch.partition == partition.number
    assert before - 5 < batch.opened_at <= batch.due_at <= batch.claimed_at < time.time() + 5
    assert 30 < batch.bytes < 1000
    assert (merged.tasks, merged.failed, merged.error) == (1, 0, "")
    assert merged.bytes > 10
    assert enqueued.merge_seconds == merged.seconds < 10
    assert (enqueued.sink, enqueued.tasks, enqueued.failed) == ("StreamSink", 1, 0)
    assert 0 <= enqueued.lag < 10
    assert 0 < enqueued.sink_seconds < 10


def test_retries_and_the_grave(make_both: Make, seen: Seen) -> None:
    def merge(group: str, tasks: list[Task]) -> Task:
        raise ValueError("no \x1b")

    agg = make_both(group_max_size=2, group_aggregator=merge, max_attempts=2, on_event=seen)
    with agg:
        agg.add_tasks(numbered("a", 2))
        await_dead(agg)
        [buried] = seen.wait(events.BatchBuried)
    [retried] = seen.of(events.BatchRetried)
    assert (retried.error, retried.counts) == ("ValueError: no \x1b", True)
    assert 0 <= retried.delay < 1
    assert [each.error for each in seen.of(events.BatchMerged)] == ["ValueError: no \x1b"] * 2
    assert (buried.error, buried.attempts, buried.batch.attempt) == (retried.error, 2, 2)
    assert "in merge" in buried.traceback
    assert seen.of(events.BatchEnqueued) == []


def test_a_batch_that_is_split(make: Make, seen: Seen) -> None:
    def merge(group: str, tasks: list[Task]) -> None:
        if any(task.payload == 1 for task in tasks):
            raise ValueError("bad")

    agg = make(group_max_size=2, group_aggregator=merge, isolate_failures=True, on_event=seen)
    with agg:
        agg.add_tasks(numbered("a", 2))
        [buried] = seen.wait(events.BatchBuried)
        [enqueued] = seen.wait(events.BatchEnqueued)
    [split] = seen.of(events.BatchSplit)
    assert (split.error, split.batch.size) == ("ValueError: bad", 2)
    assert (buried.batch.size, enqueued.batch.size) == (1, 1)
    assert seen.of(events.BatchRetried) == []
    assert (enqueued.sink, enqueued.tasks) == ("", 0)


def test_tasks_that_failed_alone_are_counted(make: Make, seen: Seen) -> None:
    def merge(group: str, tasks: list[Task]) -> Partial:
        return Partial(Task("merged", None), {tasks[0].id: "bad"})

    agg = make(group_max_size=3, group_aggregator=merge, on_event=seen)
    with agg:
        agg.add_tasks(numbered("a", 3))
        [enqueued] = seen.wait(events.BatchEnqueued)
    assert (enqueued.tasks, enqueued.failed) == (1, 1)
    assert [each.failed for each in seen.of(events.BatchMerged)] == [1]


def test_deliveries_and_a_breaker(redis_url: str, seen: Seen) -> None:
    calls: list[object] = []

    def send(task: Task, batch_id: str) -> None:
        calls.append(task)
        if len(calls) == 1:
            raise RetryAfter(0.2, "aggregator")

    config = quick_config(group_max_size=1, on_event=seen)
    with Aggregator("tests", redis_url, config=config, sink=CallableSink(send)) as agg:
        agg.add_task(Task("test", 1, "a"))
        [enqueued] = seen.wait(events.BatchEnqueued)
        [closed] = seen.wait(events.BreakerClosed)
    failed, delivered = seen.of(events.BatchDelivered)
    assert failed.error.startswith("RetryAfter")
    assert (delivered.error, delivered.sink) == ("", "CallableSink")
    assert (enqueued.sink, enqueued.tasks) == ("CallableSink", 1)
    [opened] = seen.of(events.BreakerOpened)
    assert (opened.sink, opened.reason, opened.queue) == ("CallableSink", "busy", closed.queue)
    assert opened.seconds > 0
    assert closed.seconds > 0
    assert len(seen.of(events.BreakerHalfOpened)) >= 1


def test_a_queue_that_refuses_a_batch(make: Make, seen: Seen, sync_redis: redis.Redis) -> None:
    sync_redis.set("tests-batches", "no stream")
    agg = make(group_max_size=1, on_event=seen)
    with agg:
        agg.add_task(Task("test", 1, "a"))
        refused = seen.wait(events.BatchDelivered)[0]
        assert refused.sink == "StreamSink"
        assert refused.error.startswith("KeyConflict: ")
        assert seen.of(events.BatchEnqueued) == []


def test_a_lease_that_is_lost(make: Make, seen: Seen, sync_redis: redis.Redis) -> None:
    agg = make(lease_time=0.6, on_event=seen)
    with agg:
        await_led(agg)
        state = Keyspace("tests", 2).partitions[1].state
        sync_redis.hincrby(state, "token", 1)
        lost = seen.wait(events.LeaseLost)[0]
        assert (lost.partition, lost.error != "") == (1, True)
        taken = seen.wait(events.LeaseTaken, 3)
        assert taken[-1].token > lost.token


def test_an_error_that_ends_the_flusher(make: Make, seen: Seen, monkeypatch: Any) -> None:
    async def ends(*arguments: Any) -> None:
        raise RuntimeError("the end of redis://user:secret@host")

    monkeypatch.setattr("redisagg.flusher.flusher.LeaseKeeper.run", ends)
    agg = make(on_event=seen)
    agg.start()
    [stopped] = seen.wait(events.FlusherStopped)
    assert stopped.error.startswith("RuntimeError: the end of redis://")
    assert "secret" not in stopped.error


def test_the_merge_function_gets_no_info_that_it_did_not_ask_for(make: Make, seen: Seen) -> None:
    given: list[int] = []

    def merge(*arguments: Any) -> None:
        given.append(len(arguments))

    agg = make(group_max_size=1, group_aggregator=merge, on_event=seen)
    with agg:
        agg.add_task(Task("test", 1, "a"))
        seen.wait(events.BatchEnqueued)
    assert given == [2]


# --- kinds of functions --------------------------------------------------------------------------


def test_an_async_function_of_blocking_code_has_a_loop_of_its_own(make: Make) -> None:
    threads: list[str] = []

    async def on_event(event: Event) -> None:
        await asyncio.sleep(0)
        threads.append(threading.current_thread().name)

    with make(on_event=on_event):
        wait_until(lambda: len(threads) >= 3, what="events came")
    assert set(threads) == {"redisagg-events"}


async def test_an_async_function_runs_on_the_users_loop(redis_url: str) -> None:
    threads: list[threading.Thread] = []
    enough = asyncio.Event()

    async def on_event(event: Event) -> None:
        threads.append(threading.current_thread())
        if len(threads) == 3:
            enough.set()
        if len(threads) == 1:
            raise asyncio.CancelledError  # which ends this call only

    async with AsyncAggregator("tests", redis_url, config=quick_config(on_event=on_event)):
        await asyncio.wait_for(enough.wait(), 20)
    assert set(threads) == {threading.current_thread()}


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="on_event must be a function of one event, not 'x'"):
        AggregationConfig(on_event="x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        ([events.BatchBuried], {events.BatchBuried}),
        ({events.BatchMerged, events.FlusherStopped}, {events.BatchMerged, events.FlusherStopped}),
        ((BatchEvent,), {events.BatchClaimed, events.BatchMerged, events.BatchBuried}),
    ],
)
def test_a_function_is_called_with_the_kinds_that_it_wants(
    make_both: Make, seen: Seen, kinds: Any, told: set[type[Event]]
) -> None:
    def merge(group: str, tasks: list[Task]) -> Task:
        raise Unrecoverable("no")

    with make_both(group_aggregator=merge, on_event=seen, event_kinds=kinds) as agg:
        agg.add_tasks(numbered("a", 1))
        agg.flush("a")
        await_dead(agg)
    wait_until(lambda: set(map(type, seen.events)) >= told, what="the function has been called")
    assert set(map(type, seen.events)) == told


def test_who_wants_no_events_of_batches_pays_nothing_for_them(seen: Seen) -> None:
    kinds = frozenset({events.FlusherStarted, events.BreakerEvent})
    report = Reporter("n", "f", [make_queue(seen, kinds)])
    assert (report.makes_events, report.of_batches) == (False, False)
    for wanted in (events.BatchBuried, BatchEvent, Event):
        assert Reporter("n", "f", [make_queue(seen, {wanted})]).of_batches


def make_queue(on_event: Any, kinds: Any) -> event_queue.EventQueue:
    queue = event_queue.make_event_queue(Observers(on_event, kinds), on_loop=False)
    assert queue is not None
    return queue


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (events.BatchBuried, "event_kinds must be classes of events, not <class"),
        (["BatchBuried"], "event_kinds must be classes of redisagg.events, not 'BatchBuried'"),
        ([int], "event_kinds must be classes of redisagg.events, not <class 'int'>"),
        ([], "event_kinds is empty: leave out on_event instead"),
    ],
)
def test_what_is_no_kind_of_event_is_refused(kinds: Any, said: str) -> None:
    with pytest.raises(InvalidConfig, match=re.escape(said)):
        AggregationConfig(event_kinds=kinds)


# --- functions that misbehave --------------------------------------------------------------------


def raising() -> Callable[[Event], Any]:
    def on_event(event: Event) -> None:
        raise SystemExit("out")

    return on_event


async def async_raising(event: Event) -> None:
    raise SystemExit("out")


@pytest.mark.parametrize("on_event", [raising(), async_raising])
def test_what_a_function_raises_is_logged_once(
    make_both: Make, caplog: pytest.LogCaptureFixture, on_event: Any
) -> None:
    agg = make_both(group_max_size=1, on_event=on_event)
    with agg:
        agg.add_tasks(numbered("a", 5))
        await_batches(agg, 5)
    lines = [each for each in caplog.records if "on_event raised" in each.getMessage()]
    assert len(lines) == 1
    assert lines[0].name == "redisagg.events"
    assert "SystemExit: out" in caplog.text


def test_a_function_that_hangs_stops_nothing(
    make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_queue, "_MOST_WAITING", 5)
    end = threading.Event()
    agg = make(group_max_size=1, on_event=lambda event: end.wait(60), shutdown_timeout=1)
    try:
        agg.start()
        agg.add_tasks(numbered("a", 20))
        await_batches(agg, 20)
        since = time.monotonic()
        agg.stop()
        assert time.monotonic() - since < 3
    finally:
        end.set()
    assert agg.observers.dropped >= 50
    [line] = [each for each in caplog.messages if "further ones are dropped" in each]
    assert "5 wait" in line


async def test_the_function_is_told_what_it_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_queue, "_MOST_WAITING", 3)
    go, began, taken = threading.Event(), threading.Event(), list[Event]()

    def on_event(event: Event) -> None:
        began.set()
        go.wait(20)
        taken.append(event)

    def event(number: int) -> Event:
        common = {"at": 1.0, "namespace": "n", "flusher": "f"}
        return events.LeaseTaken(partition=number, token=1, **common)  # type: ignore[arg-type]

    observers = Observers(on_event)
    queue = event_queue.make_event_queue(observers, on_loop=False)
    assert queue is not None
    queue(event(0))
    assert await asyncio.to_thread(began.wait, 20)
    for number in range(1, 7):  # 1 to 3 wait, 4 to 6 are dropped
        queue(event(number))
    assert observers.dropped == 3
    go.set()
    while len(taken) < 4:  # noqa: ASYNC110 - it waits for a thread
        await asyncio.sleep(0.005)
    queue(event(7))
    await queue.close()
    shown = [getattr(each, "partition", getattr(each, "count", None)) for each in taken]
    assert shown == [0, 1, 2, 3, 3, 7]
    assert type(taken[4]) is events.EventsDropped


# --- cost ----------------------------------------------------------------------------------------


def test_who_does_not_listen_pays_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """No batch has a trace, and Redis is not asked why it was due."""
    traced = []
    monkeypatch.setattr(
        "redisagg.flusher.batch_reports.BatchReports.__init__", lambda *args: traced.append(args)
    )
    asked = []
    claim = "redisagg.flusher.leader.requests.LeaderRequests.claim"
    original = __import__("redisagg.flusher.leader.requests", fromlist=["x"]).LeaderRequests.claim

    def noting(*args: Any) -> Any:
        request = original(*args)
        asked.append(request.args[-1])
        return request

    monkeypatch.setattr(claim, noting)
    with make(group_max_size=1) as agg:
        agg.add_task(Task("test", 1, "a"))
        await_batches(agg, 1)
    assert traced == []
    assert asked
    assert "cause" not in asked
