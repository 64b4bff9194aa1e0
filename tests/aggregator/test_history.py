"""The history of a namespace: recorded by flushers, kept over their restarts, and read again."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from redisagg import HistoryPoint, Task
from redisagg.errors import InvalidConfig, KeyConflict
from redisagg.flusher import flusher, recorder
from redisagg.protocol.keys import Keyspace
from tests.support.aggregators import Make
from tests.support.servers import wait_until
from tests.support.tasks import await_dead, await_led, numbered

SPACE = Keyspace("tests", 2)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first samples are recorded right after the start."""
    monkeypatch.setattr(recorder, "_FIRST_WAIT", 0.02)


def total(points: Any, name: str) -> int:
    return sum(getattr(point, name) for point in points)


def await_seen(agg: Any, client: redis.Redis) -> None:
    """Waits until both partitions have a sample: from then on all is counted."""

    def seen() -> bool:
        with agg:
            await_led(agg)
            return client.hlen(SPACE.samples) == 3

    wait_until(seen, timeout=20, what="both partitions are in the history")


def await_recorded(agg: Any, **sums: int) -> None:
    """Waits until the history has these sums; starts the flusher again and again for it."""

    def recorded() -> bool:
        with agg:
            await_led(agg)
            points = agg.history().points
            return all(total(points, name) == value for name, value in sums.items())

    wait_until(recorded, timeout=20, what=f"the history has {sums}")


def fail(group: str, tasks: list[Task]) -> Task:
    raise ValueError("no")


def test_what_happens_is_in_the_history(make_both: Make, sync_redis: redis.Redis) -> None:
    agg = make_both(history=True, group_max_size=2)
    assert agg.history().points == []
    await_seen(agg, sync_redis)
    with agg:
        agg.add_tasks([*numbered("a", 6), *numbered("b", 1)])
        wait_until(lambda: agg.stats().flushed == 6, what="a is flushed")
    await_recorded(agg, tasks_in=7, tasks_out=6, batches=3, failures=0)
    history = agg.history()
    assert history.step == 20
    point = history.points[-1]
    assert history.now - 400 < point.at <= history.now
    assert point.at % 20 == 0
    assert 1 <= point.pending <= 7
    assert point.dead == 0
    month = agg.history("month")
    assert month.step == 3600
    assert total(month.points, "tasks_in") == 7
    assert {each.tasks_per_batch for each in month.points} <= {2.0, None}


def test_flushers_that_end_and_others_that_follow_add_to_the_same_history(
    make: Make, sync_redis: redis.Redis
) -> None:
    first, second = (make(history=True, group_max_size=2) for _ in range(2))
    await_seen(first, sync_redis)
    for n, agg in enumerate((first, second, first, second), 1):
        with first, second:
            agg.add_tasks(numbered(f"g{n}", 10))
            assert agg.wait_until_idle(10)
        await_recorded(agg, tasks_in=10 * n, tasks_out=10 * n, batches=5 * n)


def test_failures_and_what_is_late_are_in_the_history(make: Make, sync_redis: redis.Redis) -> None:
    agg = make(history=True, group_max_size=2, group_aggregator=fail, max_attempts=2)
    await_seen(agg, sync_redis)
    with agg:
        agg.add_tasks(numbered("a", 2))
        await_dead(agg, 1)
    agg.pause()
    agg.add_tasks(numbered("late", 3))
    await_recorded(agg, tasks_in=5, tasks_out=0, failures=2)
    wait_until(lambda: _overdue(agg) > 0, what="a group is late")
    assert max(point.dead for point in agg.history().points) == 2
    assert max(point.pending for point in agg.history().points) == 3


def _overdue(agg: Any) -> float:
    with agg:
        await_led(agg)
    return max((point.oldest_overdue for point in agg.history().points), default=0.0)


def test_cancelled_and_dropped_tasks_are_no_tasks_less(make: Make, sync_redis: redis.Redis) -> None:
    agg = make(history=True, group_max_size=2, group_aggregator=fail, max_attempts=1)
    await_seen(agg, sync_redis)
    with agg:
        agg.add_tasks(numbered("a", 2))
        await_dead(agg, 1)
    await_recorded(agg, tasks_in=2)
    [task_id] = agg.add_tasks(numbered("b", 1))
    agg.cancel_task("b", task_id)
    agg.add_tasks(numbered("c", 1))
    agg.cancel_group("c")
    [letter] = agg.dead_letters()
    agg.drop_dead_letter(letter.batch_id)
    await_recorded(agg, tasks_in=4)
    assert agg.stats().dead == 0


def test_nothing_is_recorded_without_the_setting(
    make: Make, sync_redis: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    class Noted(recorder.Recorder):
        def __init__(self, **given: Any) -> None:
            made.append(given["keyspace"].name)
            super().__init__(**given)

    monkeypatch.setattr(flusher, "Recorder", Noted)
    agg = make(history=False)
    with agg:
        await_led(agg)
    assert made == []
    assert not sync_redis.exists(SPACE.history, SPACE.samples)
    assert agg.history().points == []
    with make(history=True) as other:
        await_led(other)
    assert made == ["tests"]


def test_a_flusher_flushes_although_nothing_can_be_recorded(
    make: Make, sync_redis: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    sync_redis.rpush(SPACE.history, "foreign")
    agg = make(history=True, group_max_size=1)
    with agg:
        await_led(agg)
        wait_until(lambda: "is not recorded" in caplog.text, what="that is logged")
        agg.add_tasks(numbered("a", 1))
        assert agg.wait_until_idle(10)
    with pytest.raises(KeyConflict):
        agg.history()


@pytest.mark.parametrize("span", ["", "day", None, 3600, ["hour"]])
def test_an_unknown_span_is_named(make_both: Make, span: Any) -> None:
    with pytest.raises(InvalidConfig, match="span must be 'hour' or 'month'"):
        make_both().history(span)


def test_tasks_per_batch() -> None:
    point = HistoryPoint(0, 0, 7, 2, 0, 0, 0, 0.0)
    assert point.tasks_per_batch == 3.5
    assert HistoryPoint(0, 7, 0, 0, 0, 0, 0, 0.0).tasks_per_batch is None
