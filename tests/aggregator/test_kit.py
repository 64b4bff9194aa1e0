"""`redisagg.testing.Kit`: aggregators of a test, their clock, and flushes in the test's thread."""

from __future__ import annotations

import asyncio
import datetime as dt
import threading
from collections.abc import Callable
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from redisagg import (
    AggregationConfig,
    Aggregator,
    App,
    AsyncAggregator,
    Cron,
    Partial,
    Policy,
    RateLimit,
    Results,
    RetryAfter,
    Settings,
    Task,
    TaskFailed,
    Unavailable,
)
from redisagg.errors import FlusherFailed, InvalidConfig, PayloadError, RedisUnavailable
from redisagg.protocol.scripts import call
from redisagg.sinks import CallableSink, ListSink, StreamSink, WebhookSink
from redisagg.testing import (
    Clock,
    Crash,
    EmbeddedRedis,
    Flushed,
    Kit,
    RecordingSink,
    assert_batched,
)
from tests.support.tasks import await_led

Flush = Callable[..., Flushed]

NOWHERE = "redis://nowhere.invalid:1/0"

emails = App(NOWHERE)


@emails.aggregator("digests", group_grace_period=60, group_max_size=3)
def digest(group: str, tasks: list[Task]) -> Task:
    return Task("digest", [task.payload for task in tasks], group)


@emails.batched(max_size=4, grace=1)
def squares(items: list[int]) -> list[int]:
    return [item * item for item in items]


plain = Aggregator("plain", NOWHERE, config=AggregationConfig(group_grace_period=5))
held_twin = digest.asyncio


@pytest.fixture
def make(redisagg_kit: Kit) -> Callable[..., Aggregator]:
    """Makes an aggregator of the kit, whose clock stands still."""
    redisagg_kit.clock.freeze()

    def making(merge: Any = None, *, sink: Any = None, **config: Any) -> Aggregator:
        if merge is not None:
            config["group_aggregator"] = merge
        settings: dict[str, Any] = {"group_grace_period": 60, "retry_delay": 10, **config}
        return redisagg_kit.aggregator(config=AggregationConfig(**settings), sink=sink)

    return making


def joined(group: str, tasks: list[Task]) -> Task:
    return Task("joined", [task.payload for task in tasks], group)


# --- time ----------------------------------------------------------------------------------------


def test_a_group_is_due_to_the_millisecond(make: Any, clock: Clock, flush_due: Flush) -> None:
    agg = make(joined)
    agg.add_task(Task("x", 1, "ann"))
    clock.advance(seconds=59, milliseconds=999)
    assert flush_due() == []
    assert flush_due().next_due == pytest.approx(0.001)
    clock.advance(milliseconds=1)
    assert_batched(flush_due(), {"ann": [[1]]})
    assert flush_due() == []


def test_the_max_delay_holds_whatever_comes(make: Any, clock: Clock, flush_due: Flush) -> None:
    agg = make(joined, group_grace_period=60, group_max_delay=150)
    for number in range(3):
        agg.add_task(Task("x", number, "ann"))
        assert flush_due() == []
        clock.advance(seconds=50)
    assert_batched(flush_due(), {"ann": [[0, 1, 2]]})


def test_a_schedule_follows_the_clock_over_a_change_of_the_clocks(
    make: Any, clock: Clock, flush_due: Flush
) -> None:
    berlin = ZoneInfo("Europe/Berlin")
    clock.set(dt.datetime(2026, 3, 28, 9, 0, tzinfo=berlin))
    schedule = Cron("0 8 * * *", "Europe/Berlin")
    agg = make(joined, group_grace_period=None, group_max_delay=None, group_schedule=schedule)
    agg.add_task(Task("x", 1, "ann"))
    # The clocks go forward in the night: 23 hours from 9:00 to 8:00 less one.
    assert flush_due().next_due == 22 * 3600
    clock.set(dt.datetime(2026, 3, 29, 7, 59, 59, 999_000, tzinfo=berlin))
    assert flush_due() == []
    clock.advance(milliseconds=1)
    assert_batched(flush_due(), {"ann": [[1]]})
    # A producer knows the new time at once, although it has read the clock a moment ago.
    agg.add_task(Task("x", 2, "ann"))
    assert flush_due().next_due == 24 * 3600


def test_the_clock_runs_until_it_is_frozen(redisagg_kit: Kit, clock: Clock) -> None:
    agg = redisagg_kit.aggregator()
    machine = dt.datetime.now(dt.timezone.utc)
    assert abs(clock.now() - machine) < dt.timedelta(seconds=5)
    clock.advance(dt.timedelta(days=1), hours=1)
    assert agg.add_task(Task("x", 1, "ann"))
    group = agg.get_group("ann")
    assert group is not None
    assert group.first_task_at == pytest.approx(clock.now().timestamp(), abs=5)
    clock.freeze()
    at = clock.now_ms()
    agg.add_task(Task("x", 1, "ben"))
    group = agg.get_group("ben")
    assert group is not None
    assert group.first_task_at is not None
    assert round(group.first_task_at * 1000) == at == clock.now_ms()
    clock.unfreeze()
    assert 0 <= clock.now_ms() - at < 5_000
    clock.reset()
    assert abs(clock.now() - dt.datetime.now(dt.timezone.utc)) < dt.timedelta(seconds=5)
    with pytest.raises(ValueError, match="time zone"):
        clock.set(dt.datetime(2026, 1, 1))


def test_a_lease_ends_by_the_clock(make: Any, clock: Clock, flush_due: Flush) -> None:
    agg = make(joined, lease_time=10)
    agg.add_task(Task("x", 1, "ann"))
    clock.advance(hours=1)
    for partition in agg._namespace.keyspace.partitions:  # a flusher that was killed
        keys = [partition.state, partition.claims, partition.tasks(b"")]
        agg._transport.exchange([call("acquire", keys, "killed", 10_000, partition.label)])
    with pytest.raises(FlusherFailed, match="advance the clock by 10 seconds"):
        flush_due()
    clock.advance(seconds=10)
    assert_batched(flush_due(), {"ann": [[1]]})


def test_other_clients_send_the_scripts_as_they_are(
    make: Any, clock: Clock, redisagg_kit: Kit
) -> None:
    agg = make(joined)
    clock.advance(days=400)
    agg.add_task(Task("x", 1, "ann"))
    with Aggregator("tests", redisagg_kit.url) as other:
        other.add_task(Task("x", 2, "ben"))
        moved, real = other.get_group("ann"), other.get_group("ben")
    assert moved is not None
    assert real is not None
    assert (moved.first_task_at or 0) - (real.first_task_at or 0) > 399 * 86_400


# --- flushing ------------------------------------------------------------------------------------


def test_merges_run_in_the_thread_of_the_test_without_an_event_loop(
    make: Any, clock: Clock, flush_due: Flush
) -> None:
    threads: list[threading.Thread] = []

    async def fetch() -> int:
        await asyncio.sleep(0)
        return 7

    def merge(group: str, tasks: list[Task]) -> Task:
        threads.append(threading.current_thread())
        return Task("x", asyncio.run(fetch()), group)  # as in a thread of a flusher

    delivered: list[Any] = []

    def deliver(task: Task, batch_id: str) -> None:
        threads.append(threading.current_thread())
        delivered.append((asyncio.run(fetch()), task.payload))

    before = threading.active_count()
    agg = make(merge, sink=CallableSink(deliver))
    agg.add_task(Task("x", 1, "ann"))
    clock.advance(hours=1)
    assert_batched(flush_due(), {"ann": [7]})
    assert delivered == [(7, 7)]
    assert threads == [threading.current_thread()] * 2
    assert threading.active_count() == before


def test_what_a_merge_makes_due_is_flushed_too(redisagg_kit: Kit, clock: Clock) -> None:
    clock.freeze()
    second = redisagg_kit.aggregator("second", config=AggregationConfig(group_max_size=1))

    def merge(group: str, tasks: list[Task]) -> None:
        for number in range(20):
            second.add_task(Task("x", number, f"group {number}"))

    first = redisagg_kit.aggregator("first", config=AggregationConfig(group_aggregator=merge))
    first.add_task(Task("x", 1, "ann", flush=True))
    assert len(redisagg_kit.flush_due()) == 20


def test_large_and_many_groups(make: Any, clock: Clock, flush_due: Flush) -> None:
    agg = make(joined, group_max_size=5_000)
    agg.add_tasks([Task("x", n, "large") for n in range(3_000)])
    agg.add_tasks([Task("x", n, f"group {n}") for n in range(300)])
    clock.advance(minutes=1)
    assert_batched(
        flush_due(), {"large": [list(range(3_000))]} | {f"group {n}": [[n]] for n in range(300)}
    )


def test_attempts_wait_for_the_clock_and_end_in_a_dead_letter(
    make: Any, clock: Clock, flush_due: Flush
) -> None:
    calls: list[int] = []

    def merge(group: str, tasks: list[Task]) -> Task:
        calls.append(clock.now_ms())
        raise ValueError("no such user")

    agg = make(merge, max_attempts=3, retry_delay=10, retry_max_delay=10)
    agg.add_task(Task("x", 1, "ann"))
    clock.advance(minutes=1)
    [failure] = flush_due().failures
    assert (failure.error, failure.attempt, failure.buried) == (
        "ValueError: no such user",
        1,
        False,
    )
    assert "no such user" in failure.traceback
    assert failure.delay == 10
    assert flush_due() == []
    assert len(calls) == 1
    clock.advance(seconds=9, milliseconds=999)
    assert flush_due().failures == []
    clock.advance(milliseconds=1)
    assert [each.attempt for each in flush_due().failures] == [2]
    clock.advance(seconds=10)
    assert [each.buried for each in flush_due().failures] == [True]
    [letter] = agg.dead_letters()
    assert letter.error == "ValueError: no such user"
    assert flush_due().next_due is None


def test_a_batch_is_flushed_in_a_later_attempt(make: Any, clock: Clock, flush_due: Flush) -> None:
    errors: list[Exception] = [RetryAfter(30), Unavailable("the database is away")]

    def merge(group: str, tasks: list[Task]) -> Task:
        if errors:
            raise errors.pop(0)
        return joined(group, tasks)

    agg = make(merge)
    agg.add_task(Task("x", 1, "ann"))
    clock.advance(minutes=1)
    assert [each.traceback for each in flush_due().failures] == [""]  # not counted
    clock.advance(seconds=29)
    assert flush_due().failures == []
    clock.advance(seconds=1)
    assert len(flush_due().failures) == 1
    clock.advance(seconds=40)
    assert_batched(flush_due(), {"ann": [[1]]})


def test_tasks_that_fail_alone(make: Any, clock: Clock, flush_due: Flush) -> None:
    def merge(group: str, tasks: list[Task]) -> Partial:
        return Partial(joined(group, tasks[1:]), failed={tasks[0].id: "no address"})

    agg = make(merge)
    agg.add_tasks([Task("x", n, "ann") for n in range(3)])
    clock.advance(minutes=1)
    assert_batched(flush_due(), {"ann": [[1, 2]]})
    assert [each.error for each in agg.dead_letters()] == ["no address"]


def test_a_batch_is_halved_until_the_bad_task_is_alone(
    make: Any, clock: Clock, flush_due: Flush
) -> None:
    def merge(group: str, tasks: list[Task]) -> Task:
        if any(task.payload == 2 for task in tasks):
            raise ValueError("a bad task")
        return joined(group, tasks)

    agg = make(merge, isolate_failures=True, max_attempts=1)
    agg.add_tasks([Task("x", n, "ann") for n in range(4)])
    clock.advance(minutes=1)
    flushed = flush_due()
    while flushed.next_due is not None:
        clock.advance(seconds=flushed.next_due)
        later = flush_due()
        flushed.add(later)
        flushed.next_due = later.next_due
    assert_batched(flushed, {"ann": [[0, 1], [3]]})
    assert len(agg.dead_letters()) == 1


def test_receipts(make: Any, clock: Clock, flush_due: Flush) -> None:
    def merge(group: str, tasks: list[Task]) -> Results:
        return Results({task.id: task.payload * 2 for task in tasks if task.payload})

    agg = make(merge)
    receipts = [agg.submit(Task("x", n, "ann")) for n in range(1, 3)]
    clock.advance(minutes=1)
    flush_due()
    assert [each.result(5) for each in receipts] == [2, 4]


def test_a_failed_receipt(make: Any, clock: Clock, drain: Flush) -> None:
    def merge(group: str, tasks: list[Task]) -> Results:
        raise ValueError("no")

    agg = make(merge, max_attempts=2)
    receipt = agg.submit(Task("x", 1, "ann"))
    assert len(drain().failures) == 2
    with pytest.raises(TaskFailed, match="no"):
        receipt.result(5)


def test_policies(make: Any, clock: Clock, flush_due: Flush) -> None:
    agg = make(joined)
    agg.set_policy("vip-*", Policy(grace_period=5))
    agg.add_task(Task("x", 1, "vip-ann"))
    agg.add_task(Task("x", 2, "ben"))
    clock.advance(seconds=5)
    assert_batched(flush_due(), {"vip-ann": [[1]]})


@pytest.mark.parametrize("of", ["batches", "tasks"])
def test_a_rate_limit_follows_the_clock(make: Any, clock: Clock, flush_due: Flush, of: Any) -> None:
    agg = make(joined, group_max_size=2, rate_limit=RateLimit(2, per=3600, of=of))
    agg.add_tasks([Task("x", n, f"group {n}") for n in range(5)])
    clock.advance(minutes=1)
    for count in (2, 2, 1):
        flushed = flush_due()
        assert len(flushed) == count
        if count == 2:  # the next window, and up to a hundredth of it
            assert flushed.next_due == pytest.approx(3600, rel=0.01)
        clock.advance(hours=1, seconds=36)
    assert flush_due().next_due is None


def test_a_batch_that_no_window_has_room_for_waits_its_turn(
    make: Any, clock: Clock, flush_due: Flush
) -> None:
    agg = make(joined, group_max_size=10, rate_limit=RateLimit(10, per=3600, of="tasks"))
    agg.add_tasks([Task("x", n, "ann") for n in range(8)])
    agg.add_tasks([Task("x", n, "ben") for n in range(8)])
    clock.advance(minutes=1)
    assert len(flush_due()) == 1
    assert flush_due() == []
    clock.advance(hours=1, seconds=36)
    assert len(flush_due()) == 1


def test_a_rate_limit_of_groups(make: Any, clock: Clock, flush_due: Flush) -> None:
    agg = make(joined, group_max_size=1, group_rate_limit=RateLimit(1, per=600))
    agg.add_tasks([Task("x", n, group) for n in range(2) for group in ("ann", "ben")])
    assert_batched(flush_due(), {"ann": [[0]], "ben": [[0]]})
    assert flush_due().next_due == pytest.approx(600, rel=0.01)
    clock.advance(minutes=10, seconds=6)
    assert_batched(flush_due(), {"ann": [[1]], "ben": [[1]]})


def test_a_paused_namespace(make: Any, clock: Clock, flush_due: Flush, drain: Flush) -> None:
    agg = make(joined)
    agg.add_task(Task("x", 1, "ann"))
    agg.pause()
    clock.advance(days=1)
    assert flush_due() == []
    assert drain() == []
    agg.resume()
    assert len(flush_due()) == 1


def test_drain_moves_the_clock_to_all_that_waits(make: Any, clock: Clock, drain: Flush) -> None:
    errors = [ValueError("once"), ValueError("twice")]

    def merge(group: str, tasks: list[Task]) -> Task:
        if group == "ann" and errors:
            raise errors.pop()
        return joined(group, tasks)

    agg = make(merge, group_grace_period=86_400)
    began = clock.now()
    agg.add_task(Task("x", 1, "ann"))
    agg.add_task(Task("x", 2, "ben", not_before=began + dt.timedelta(hours=5)))
    assert_batched(drain(), {"ann": [[1]], "ben": [[2]]})
    assert dt.timedelta(seconds=20) < clock.now() - began < dt.timedelta(hours=5, seconds=1)
    assert drain() == []


def test_drain_ends_if_something_never_ends(
    make: Any, drain: Flush, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("redisagg.testing.kit._MOST_ROUNDS", 3)

    def merge(group: str, tasks: list[Task]) -> Task:
        raise RetryAfter(60)

    make(merge).add_task(Task("x", 1, "ann"))
    with pytest.raises(AssertionError, match="moved the clock 3 times"):
        drain()


def test_what_ends_a_test_ends_it_from_a_merge_too(
    make: Any, clock: Clock, flush_due: Flush
) -> None:
    asked: list[bool] = [True]

    def merge(group: str, tasks: list[Task]) -> Task:
        if asked.pop():
            pytest.fail("as a test says it")
        return joined(group, tasks)

    agg = make(merge)
    agg.add_task(Task("x", 1, "ann"))
    clock.advance(minutes=1)
    with pytest.raises(pytest.fail.Exception, match="as a test says it"):
        flush_due()
    asked.append(False)
    clock.advance(minutes=1)
    assert_batched(flush_due(), {"ann": [[1]]})  # the kit goes on


def test_a_flusher_of_the_test_can_run_too(redisagg_kit: Kit, clock: Clock) -> None:
    agg = redisagg_kit.aggregator(config=AggregationConfig(group_grace_period=3600))
    agg.start()
    await_led(agg)
    agg.add_task(Task("x", 1, "ann"))
    with pytest.raises(FlusherFailed, match="stop it before flush_due"):
        redisagg_kit.flush_due()
    clock.advance(hours=1)  # wakes it
    assert agg.wait_until_idle(10)
    agg.stop()
    assert len(redisagg_kit.sink.batches) == 1
    assert redisagg_kit.flush_due() == []


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_crash_in_a_merge(
    make: Any, redisagg_kit: Kit, clock: Clock, flush_due: Flush, kind: str
) -> None:
    crashes: list[None] = [None]

    def merge(group: str, tasks: list[Task]) -> Task:
        if crashes:
            crashes.pop()
            raise Crash
        return joined(group, tasks)

    async def amerge(group: str, tasks: list[Task]) -> Task:
        return merge(group, tasks)

    agg = make(merge if kind == "plain" else amerge, lease_time=10, max_concurrency=3)
    agg.add_tasks([Task("x", n, f"group {n}") for n in range(3)])
    clock.advance(minutes=1)
    with pytest.raises(Crash):
        flush_due()
    assert not asyncio.all_tasks(redisagg_kit._thread._loop)
    in_hand = len(agg.get_batches())
    assert 0 < in_hand <= 3
    with pytest.raises(FlusherFailed, match="clock by 10 seconds"):
        flush_due()
    clock.advance(seconds=10)
    flushed = flush_due()
    clock.advance(hours=1)  # the permits of the dead end too
    flushed.add(flush_due())
    assert sorted(each.task.payload[0] for each in flushed) == [0, 1, 2]
    assert flushed.failures == []  # it was no attempt


@pytest.mark.parametrize("own", [False, True])
def test_a_crash_between_a_delivery_and_its_commit(
    make: Any, clock: Clock, flush_due: Flush, recording_sink: RecordingSink, own: bool
) -> None:
    delivered: list[str] = []

    def deliver(task: Task, batch_id: str) -> None:
        delivered.append(batch_id)
        if len(delivered) == 1:
            raise Crash

    agg = make(joined, sink=CallableSink(deliver) if own else None)
    agg.add_task(Task("x", 1, "ann"))
    clock.advance(minutes=1)
    if not own:
        recording_sink.crash_after_next()
    with pytest.raises(Crash):
        flush_due()
    clock.advance(minutes=1)
    assert_batched(flush_due(), {"ann": [[1]]})
    first, second = delivered or [each.batch_id for each in recording_sink.batches]
    assert first == second


async def test_both_kinds_of_aggregators_have_one_namespace(
    aggregator: Aggregator, async_aggregator: AsyncAggregator, adrain: Any
) -> None:
    aggregator.add_task(Task("x", 1, "ann"))
    await async_aggregator.add_task(Task("x", 2, "ann"))
    [merged] = await adrain(async_aggregator)
    assert merged.count == 2


async def test_a_crash_on_the_event_loop_of_the_test(
    redisagg_kit: Kit, clock: Clock, recording_sink: RecordingSink
) -> None:
    agg = AsyncAggregator("a", NOWHERE, config=AggregationConfig(group_max_size=1))
    redisagg_kit.redirect(agg)
    await agg.add_task(Task("x", 1, "ann"))
    recording_sink.crash_after_next()
    with pytest.raises(Crash):
        await redisagg_kit.aflush_due()
    clock.advance(minutes=1)
    assert len(await redisagg_kit.aflush_due()) == 1
    assert len({each.batch_id for each in recording_sink.batches}) == 1
    await agg.close()


# --- sinks ---------------------------------------------------------------------------------------


def test_the_sink_fails_as_it_is_told(
    make: Any, clock: Clock, flush_due: Flush, recording_sink: RecordingSink
) -> None:
    calls: list[str] = []

    def merge(group: str, tasks: list[Task]) -> Task:
        calls.append(group)
        return joined(group, tasks)

    agg = make(merge)
    agg.add_task(Task("x", 1, "ann"))
    clock.advance(minutes=1)
    recording_sink.fail(ConnectionError("the queue is down"))
    flushed = flush_due()
    assert [each.error for each in flushed.failures] == ["ConnectionError: the queue is down"]
    assert recording_sink.batches == []
    clock.advance(minutes=1)
    assert flush_due() == recording_sink.batches
    assert recording_sink.payloads == [[1]]
    assert calls == ["ann"]  # the result of the merge was stored
    recording_sink.clear()
    assert recording_sink.tasks == []


def test_a_sink_that_is_down_for_all_is_left_alone_until_the_clock_moves(
    make: Any, clock: Clock, flush_due: Flush, recording_sink: RecordingSink
) -> None:
    agg = make(joined, retry_delay=20, retry_max_delay=20)
    recording_sink.fail(ConnectionError("down"), times=5)
    agg.add_tasks([Task("x", n, f"group {n}") for n in range(12)])
    clock.advance(minutes=1)
    assert flush_due() == []
    assert flush_due() == []
    clock.advance(minutes=2)
    flushed = flush_due()
    for _ in range(10):  # a few at a time find out that it works again
        clock.advance(minutes=1)
        flushed.add(flush_due())
    assert sorted(each.group for each in flushed) == sorted(f"group {n}" for n in range(12))


def test_several_merged_tasks_of_which_one_is_refused_at_first(
    make: Any, clock: Clock, flush_due: Flush, recording_sink: RecordingSink
) -> None:
    def merge(group: str, tasks: list[Task]) -> list[Task]:
        return [Task("x", task.payload, group) for task in tasks]

    agg = make(merge)
    agg.add_tasks([Task("x", n, "ann") for n in (1, 2, 3)])
    clock.advance(minutes=1)
    recording_sink.fail(ConnectionError("down"))
    assert flush_due() == []
    clock.advance(minutes=1)
    assert_batched(flush_due(), {"ann": [1, 2, 3]})


def test_sinks_in_redis_are_those_of_the_database(
    make: Any, clock: Clock, flush_due: Flush
) -> None:
    agg = make(joined, sink=ListSink("merged"))
    agg.add_task(Task("x", 1, "ann"))
    clock.advance(minutes=1)
    assert_batched(flush_due(), {"ann": [[1]]})
    assert len(agg.read_sink().batches) == 1


def test_the_sink_refuses_what_the_real_one_would(redisagg_kit: Kit) -> None:
    agg = Aggregator("json", NOWHERE, sink=StreamSink("merged", format="json"))
    redisagg_kit.redirect(agg)
    with pytest.raises(PayloadError):
        agg.add_task(Task("x", float("nan"), "ann"))


def test_a_merged_task_that_the_real_sink_refuses(
    redisagg_kit: Kit, clock: Clock, flush_due: Flush
) -> None:
    def merge(group: str, tasks: list[Task]) -> Task:
        return Task("x", float("nan"), group)

    config = AggregationConfig(group_aggregator=merge, group_max_size=1, max_attempts=1)
    sinks: dict[str, Any] = {
        "script": StreamSink("merged", format="json"),
        "outside": WebhookSink("https://nowhere.invalid/"),
        "chosen": lambda task: StreamSink("merged", format="json"),
    }
    for name, sink in sinks.items():
        agg = Aggregator(name, NOWHERE, config=config, sink=sink)
        redisagg_kit.redirect(agg)
        agg.add_task(Task("x", 1, "ann"))
        [failure] = flush_due(agg).failures
        assert failure.error.startswith("PayloadError")
        assert failure.buried


def test_a_function_that_chooses_sinks_is_called(redisagg_kit: Kit, clock: Clock) -> None:
    sinks = {"a": StreamSink("a"), "b": StreamSink("b")}
    agg = Aggregator("routed", NOWHERE, sink=lambda task: sinks[task.type[0]])
    redisagg_kit.redirect(agg)
    agg.add_task(Task("b", 1, "ann", flush=True))
    assert len(redisagg_kit.flush_due()) == 1
    assert redisagg_kit.sink.sinks == [sinks["b"]]


# --- redirecting ---------------------------------------------------------------------------------


def test_an_app_of_the_code_under_test(redisagg_kit: Kit, clock: Clock, flush_due: Flush) -> None:
    redisagg_kit.redirect(emails)
    for number in range(5):
        digest.add(number, group_key=("user", 42))
    assert_batched(flush_due(), {("user", 42): [[0, 1, 2]]})
    clock.advance(minutes=1)
    assert_batched(flush_due(emails), {("user", 42): [[3, 4]]})

    @emails.aggregator("later", group_max_size=1)
    def later(group: str, tasks: list[Task]) -> Task:
        return joined(group, tasks)

    later.add(1, group_key="x")
    assert_batched(flush_due(later), {"x": [[1]]})
    emails._aggregators.pop("later")


def test_an_app_that_is_configured_in_the_test(redisagg_kit: Kit, clock: Clock) -> None:
    """As an application factory does it, behind the fixture that redirects the app."""

    shop = App(NOWHERE)

    @shop.aggregator("configured")
    def joined_(group: str, tasks: list[Task]) -> Task:
        return joined(group, tasks)

    redisagg_kit.redirect(shop)
    shop.configure(Settings(url=NOWHERE, config=AggregationConfig(group_max_size=1)))
    joined_.add_task(Task("x", 1, "ann"))
    assert len(redisagg_kit.flush_due()) == 1
    redisagg_kit.close()
    assert "configure" not in vars(shop)
    assert joined_._namespace.endpoint.options["host"] == "nowhere.invalid"


def test_all_is_as_before_behind_the_kit(redisagg_server: EmbeddedRedis) -> None:
    before = [dict(vars(each)) for each in (digest, plain, held_twin, emails)]
    with Kit(redisagg_server) as kit:
        kit.redirect(emails)
        kit.redirect(plain)
        assert plain.add_task(Task("x", 1, "ann"))
        assert dict(vars(digest)) != before[0]
    assert [dict(vars(each)) for each in (digest, plain, held_twin, emails)] == before
    assert digest._namespace.endpoint.options["host"] == "nowhere.invalid"
    assert digest.asyncio is held_twin
    with pytest.raises(InvalidConfig, match="closed"):
        kit.flush_due()


async def test_an_aggregator_for_asyncio_that_somebody_holds(
    redisagg_kit: Kit, clock: Clock, aflush_due: Any
) -> None:
    redisagg_kit.redirect(digest)
    await held_twin.add_task(Task("x", 1, "ann"))
    await digest.aadd(2, group_key="ann")
    clock.advance(minutes=2)
    assert_batched(await aflush_due(), {"ann": [[1, 2]]})
    await held_twin.close()


async def test_async_merges_and_aggregators(redisagg_kit: Kit, clock: Clock, adrain: Any) -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    async def merge(group: str, tasks: list[Task]) -> Task:
        await asyncio.sleep(0.001)
        loops.append(asyncio.get_running_loop())
        return joined(group, tasks)

    agg = AsyncAggregator("a", NOWHERE, config=AggregationConfig(group_aggregator=merge))
    redisagg_kit.redirect(agg)
    await agg.add_task(Task("x", 1, "ann"))
    with pytest.raises(FlusherFailed, match="await aflush_due"):
        redisagg_kit.flush_due()
    assert await redisagg_kit.aflush_due() == []
    clock.advance(hours=1)
    assert_batched(await redisagg_kit.aflush_due(agg), {"ann": [[1]]})
    assert loops == [asyncio.get_running_loop()]
    await agg.add_task(Task("x", 2, "ann"))
    assert_batched(await adrain(), {"ann": [[2]]})
    await agg.close()


def test_async_merges_from_a_plain_test(make: Any, clock: Clock, flush_due: Flush) -> None:
    async def merge(group: str, tasks: list[Task]) -> Task:
        await asyncio.sleep(0.001)
        return joined(group, tasks)

    agg = make(merge)
    agg.add_tasks([Task("x", n, f"group {n}") for n in range(30)])
    clock.advance(minutes=1)
    assert len(flush_due()) == 30


def test_batched_functions(redisagg_kit: Kit, clock: Clock) -> None:
    redisagg_kit.redirect(squares)
    agg = squares.aggregator
    receipt = agg.submit(squares._task(7))
    clock.advance(seconds=1)
    redisagg_kit.flush_due(squares)
    assert receipt.result(5) == 49


def test_adds_do_not_wait_for_replicas_that_a_test_has_not(redisagg_kit: Kit) -> None:
    config = AggregationConfig(min_replicas=2, wait_for_fsync=True, executor="process")
    agg = redisagg_kit.redirect(Aggregator("replicated", NOWHERE, config=config))
    agg.add_task(Task("x", 1, "ann", flush=True))
    assert len(redisagg_kit.flush_due()) == 1


def test_an_aggregator_that_is_running(redisagg_kit: Kit, redis_url: str) -> None:
    with Aggregator("running", redis_url) as agg, pytest.raises(InvalidConfig, match="stop it"):
        redisagg_kit.redirect(agg)


def test_targets_that_are_none(redisagg_kit: Kit) -> None:
    with pytest.raises(InvalidConfig, match="redirect takes"):
        redisagg_kit.redirect("emails")  # type: ignore[type-var]
    with pytest.raises(InvalidConfig, match="call its method redirect"):
        redisagg_kit.flush_due(plain)


def test_two_kits_have_nothing_in_common(redisagg_kit: Kit, redisagg_server: EmbeddedRedis) -> None:
    with Kit(redisagg_server) as other:
        other.clock.advance(days=1)
        one, two = redisagg_kit.aggregator(), other.aggregator()
        one.add_task(Task("x", 1, "ann"))
        two.add_task(Task("x", 2, "ben"))
        assert list(one.get_groups()) == ["ann"]
        assert other.drain()[0].group == "ben"
        assert list(one.get_groups()) == ["ann"]


def test_a_server_that_is_down_is_an_error(server_binary: Any) -> None:
    with EmbeddedRedis(server_binary) as server, Kit(server) as kit:
        agg = kit.aggregator(config=AggregationConfig(add_timeout=0.3))
        agg.add_task(Task("x", 1, "ann"))
        server.kill()
        with pytest.raises(RedisUnavailable):
            kit.flush_due()
        server.start()
        kit.redis.ping()


# --- differences ---------------------------------------------------------------------------------


def test_a_difference_is_readable(make: Any, clock: Clock, flush_due: Flush) -> None:
    def merge(group: str, tasks: list[Task]) -> Task:
        if group == "ben":
            raise ValueError("no such user")
        return joined(group, tasks)

    agg = make(merge, max_attempts=1)
    for group in ("ann", "ben"):
        agg.add_tasks([Task("x", {"to": group, "text": "x" * 60, "n": n}, group) for n in range(2)])
    clock.advance(minutes=1)
    agg.add_task(Task("x", 1, "cid"))
    wanted = {"to": "ann", "text": "x" * 60, "n": 0}
    with pytest.raises(AssertionError) as raised:
        assert_batched(flush_due(), {"ann": [[wanted, wanted]]})
    lines = str(raised.value).splitlines()
    assert lines[0] == "what was flushed differs from what is expected:"
    changed = [line for line in lines if line.startswith(("+", "-"))]
    assert changed[2:] == ["-                'n': 0,", "+                'n': 1,"]
    assert "a batch of group 'ben' failed in attempt 1 and is a dead letter: ValueError" in str(
        raised.value
    )
    assert "Traceback" in str(raised.value)
    assert "more is due in 60 seconds" in str(raised.value)


def test_all_payloads_in_order_or_something_else_of_them(make: Any, flush_due: Flush) -> None:
    agg = make(joined, group_max_size=1)
    agg.add_task(Task("x", 1, "ann"))
    flushed = flush_due()
    assert_batched(flushed, [[1]])
    assert_batched(flushed, {"ann": ["joined"]}, by=lambda merged: merged.task.type)
    assert_batched(Flushed(), {"ann": []})
    with pytest.raises(AssertionError, match="differs"):
        assert_batched(Flushed(), [1])
