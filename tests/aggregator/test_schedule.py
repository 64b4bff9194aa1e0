"""Groups that are due at the times of a schedule, by the clock of Redis."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import redis

from redisagg import AggregationConfig, Aggregator, AsyncAggregator, Cron, Task
from redisagg.errors import InvalidConfig, InvalidTask, RedisUnavailable
from redisagg.protocol.clock import ClockUnread, RedisClock
from redisagg.protocol.keys import Keyspace
from tests.support.aggregators import Make
from tests.support.tasks import await_batches, enqueued, numbered, server_ms

NIGHTLY = Cron("30 2 * * *", tz="Europe/Berlin")
UTC = timezone.utc


def due_at(agg: Aggregator, group: str = "g") -> datetime:
    found = agg.get_entries()[group].due_at
    assert found is not None
    return datetime.fromtimestamp(found, UTC)


def scheduled(make: Make, **changes: Any) -> Aggregator:
    spans: dict[str, Any] = {"group_grace_period": None, "group_max_delay": None}
    return make(**{**spans, "group_schedule": NIGHTLY, **changes})


@pytest.mark.parametrize(
    ("now", "due"),
    [
        # The clocks go forward at 1:00 UTC, from 2:00 to 3:00: there is no 2:30.
        (datetime(2026, 3, 28, 12, tzinfo=UTC), datetime(2026, 3, 29, 1, tzinfo=UTC)),
        (datetime(2026, 3, 29, 1, 1, tzinfo=UTC), datetime(2026, 3, 30, 0, 30, tzinfo=UTC)),
        # They go back at 1:00 UTC, from 3:00 to 2:00: 2:30 comes twice, and counts once.
        (datetime(2026, 10, 24, 12, tzinfo=UTC), datetime(2026, 10, 25, 0, 30, tzinfo=UTC)),
        (datetime(2026, 10, 25, 0, 45, tzinfo=UTC), datetime(2026, 10, 26, 1, 30, tzinfo=UTC)),
    ],
)
def test_a_group_is_due_at_the_next_occurrence(
    make: Make, redis_at: Callable[[datetime], Any], now: datetime, due: datetime
) -> None:
    with redis_at(now):
        agg = scheduled(make)
        agg.add_task(Task("t", 1, "g"))
        assert due_at(agg) == due
        agg.add_tasks(iter(numbered("many", 3)))
        assert due_at(agg, "many") == due


def test_later_tasks_do_not_move_the_time(make: Make, redis_at: Callable[[datetime], Any]) -> None:
    with redis_at(datetime(2026, 5, 1, 0, 29, 58, tzinfo=UTC)):  # time for a slow machine
        agg = scheduled(make)
        agg.add_task(Task("t", 1, "g"))
        assert due_at(agg) == datetime(2026, 5, 1, 0, 30, tzinfo=UTC)
        later = Task("t", 2, "g", schedule=Cron("0 12 * * *"))
        agg.add_task(later)
        assert due_at(agg) == datetime(2026, 5, 1, 0, 30, tzinfo=UTC)
        with agg:
            await_batches(agg, 1, timeout=20)
        [batch] = enqueued(agg)
        assert batch.payload["payloads"] == [1, 2]
        agg.add_task(Task("t", 3, "g"))
        assert due_at(agg) == datetime(2026, 5, 2, 0, 30, tzinfo=UTC)


def test_a_task_has_a_schedule_of_its_own(make: Make, sync_redis: redis.Redis) -> None:
    agg = make(group_grace_period=3600, group_max_delay=3600)
    agg.add_task(Task("t", 1, "g", schedule=Cron("* * * * *")))
    now = datetime.fromtimestamp(server_ms(sync_redis) / 1000, UTC)
    assert timedelta(0) <= due_at(agg) - now <= timedelta(minutes=1)
    assert due_at(agg).second == 0


def test_the_reason_is_the_schedule(make: Make, redis_at: Callable[[datetime], Any]) -> None:
    def merge(group: str, tasks: list[Task], info: Any) -> Task:
        return Task("merged", info.reason)

    with redis_at(datetime(2026, 5, 1, 0, 29, 58, tzinfo=UTC)):  # time for a slow machine
        agg = scheduled(make, group_aggregator=merge)
        agg.add_task(Task("t", 1, "g"))
        with agg:
            await_batches(agg, 1, timeout=20)
        [batch] = enqueued(agg)
        assert batch.payload == "schedule"


def test_the_clock_of_redis_is_read_again(make: Make, redis_at: Callable[[datetime], Any]) -> None:
    """A producer that lives for long follows a clock that is set."""
    agg = scheduled(make)
    clock: Any = agg._namespace.clock
    with redis_at(datetime(2026, 5, 1, tzinfo=UTC)):
        agg.add_task(Task("t", 1, "a"))
        assert due_at(agg, "a") == datetime(2026, 5, 1, 0, 30, tzinfo=UTC)
    with redis_at(datetime(2026, 5, 7, tzinfo=UTC)):
        clock._trusted_until = 0  # as if more than ten seconds had passed
        agg.add_task(Task("t", 1, "b"))
        assert due_at(agg, "b") == datetime(2026, 5, 7, 0, 30, tzinfo=UTC)


def test_a_clock_counts_on_from_what_redis_told() -> None:
    now = 50.0
    clock = RedisClock(Keyspace("tests", 1), monotonic=lambda: now)
    for _ in range(2):
        with pytest.raises(ClockUnread):
            clock.now_ms()
    reading = clock.read()
    next(reading)
    now = 52.0
    with pytest.raises(StopIteration):
        reading.send([1_000_000])  # told between 50 and 52, as far as the producer can know
    assert clock.now_ms() == 1_001_000
    now = 62.0
    assert clock.now_ms() == 1_011_000
    now = 62.5
    with pytest.raises(ClockUnread):
        clock.now_ms()
    assert clock.now_ms() == 1_011_500  # one caller reads it, the others need not wait
    now = 72.6
    with pytest.raises(ClockUnread):
        clock.now_ms()
    clock.keep()
    now = 82.0
    assert clock.now_ms() == 1_031_000


def test_no_add_uses_the_clock_of_the_machine(
    make: Make, redis_at: Callable[[datetime], Any]
) -> None:
    """Another thread reads the clock between the steps of an add."""
    agg: Any = scheduled(make)
    register = agg._register

    def register_after_another_add() -> None:
        agg._register = register
        agg.add_task(Task("t", 1, "other"))
        register()

    with redis_at(datetime(2026, 5, 1, tzinfo=UTC)):
        agg._register = register_after_another_add
        agg.add_task(Task("t", 1, "g"))
        assert agg._register is register
        for group in ("g", "other"):
            assert due_at(agg, group) == datetime(2026, 5, 1, 0, 30, tzinfo=UTC)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Exception | None]:
    """The outcomes of the attempts to read Redis' clock: they succeed until an error is put in."""
    outcomes: list[Exception | None] = [None]
    original = RedisClock.read

    def read(self: RedisClock) -> Any:
        outcomes.append(outcomes[-1])
        if isinstance(outcomes[-1], Exception):
            raise outcomes[-1]
        return (yield from original(self))

    monkeypatch.setattr(RedisClock, "read", read)
    return outcomes


async def test_coroutines_share_the_first_look_at_the_clock(
    redis_url: str, redis_at: Callable[[datetime], Any], reads: list[Exception | None]
) -> None:
    config = AggregationConfig(group_schedule=NIGHTLY, partitions=2)
    with redis_at(datetime(2026, 5, 1, tzinfo=UTC)):
        async with AsyncAggregator("tests", redis_url, config=config) as agg:
            await agg.stop()
            await asyncio.gather(*(agg.add_task(Task("t", n, f"g{n}")) for n in range(10)))
            entries = await agg.get_entries()
    assert {each.due_at for each in entries.values()} == {
        datetime(2026, 5, 1, 0, 30, tzinfo=UTC).timestamp()
    }
    assert len(entries) == 10
    assert len(reads) == 2


def test_a_clock_that_can_not_be_read_stops_no_add(
    make_both: Make, reads: list[Exception | None], caplog: pytest.LogCaptureFixture
) -> None:
    agg = scheduled(make_both)
    agg.add_task(Task("t", 1, "g"))
    reads[:] = [RedisUnavailable("the node is down")]
    agg._namespace.clock._trusted_until = 0  # as if more than ten seconds had passed
    for n in range(3):
        agg.add_task(Task("t", n, "g"))
        agg.add_tasks(numbered("g", 2, start=2 * n))
    assert len(reads) == 2  # the next attempt is made ten seconds later
    assert "the node is down" in caplog.text
    assert due_at(agg).astimezone(ZoneInfo("Europe/Berlin")).hour in (2, 3)


def test_an_add_without_any_time_of_redis_is_refused(
    make_both: Make, reads: list[Exception | None]
) -> None:
    agg = scheduled(make_both)
    reads[:] = [RedisUnavailable("the node is down")]
    for _ in range(2):
        with pytest.raises(RedisUnavailable, match="the node is down"):
            agg.add_task(Task("t", 1, "g"))
        with pytest.raises(RedisUnavailable, match="the node is down"):
            agg.add_tasks([Task("t", 1, "g")])
    with pytest.raises(InvalidTask, match="a task must be"):
        agg.add_tasks(["no task"])  # type: ignore[list-item]


def test_tasks_without_schedule_do_not_wait_for_the_clock(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    agg = make()
    agg.add_task(Task("t", 1, "g"))
    reading, over = threading.Event(), threading.Event()

    def read(self: RedisClock) -> Any:
        reading.set()
        over.wait(30)
        raise RedisUnavailable("the node is down")
        yield

    monkeypatch.setattr(RedisClock, "read", read)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(agg.add_task, Task("t", 2, "g", schedule=NIGHTLY))
        try:
            assert reading.wait(30)
            agg.add_task(Task("t", 3, "g"))
            agg.add_tasks(numbered("g", 2))
            assert not waiting.done()
        finally:
            over.set()
        with pytest.raises(RedisUnavailable):
            waiting.result(30)
    assert agg.stats().pending == 4


def test_a_schedule_switches_the_default_rules_off() -> None:
    config = AggregationConfig(group_schedule=NIGHTLY)
    assert (config.group_grace_period, config.group_max_delay) == (None, None)
    config = AggregationConfig(group_schedule=NIGHTLY, group_max_delay=60)
    assert (config.group_grace_period, config.group_max_delay) == (120.0, 60.0)


def test_what_is_no_schedule_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="group_schedule must be a Cron, not str"):
        AggregationConfig(group_schedule="0 9 * * *")  # type: ignore[arg-type]
    with pytest.raises(InvalidTask, match="schedule must be a Cron, not str"):
        Task("t", schedule="0 9 * * *")  # type: ignore[arg-type]
    with pytest.raises(InvalidConfig, match="set one of them, or group_schedule"):
        AggregationConfig(group_grace_period=None, group_max_delay=None)
