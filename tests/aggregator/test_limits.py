"""What one batch may hold and when its group is due, by limits of tasks and settings."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import redis

from redisagg import Aggregator, BatchInfo, Task
from redisagg.errors import InvalidConfig, InvalidTask
from redisagg.events import BatchClaimed
from tests.support.aggregators import Make
from tests.support.servers import wait_until
from tests.support.tasks import (
    await_asleep,
    await_batches,
    await_dead,
    await_server_ms,
    enqueued,
    numbered,
    payloads,
    quick_config,
    server_ms,
)

LATE = 1.5


def batches(agg: Aggregator) -> list[list[Any]]:
    """The payloads of each batch."""
    return [batch.payload["payloads"] for batch in enqueued(agg)]


def in_ms(client: redis.Redis, ms: int) -> datetime:
    """A moment by the clock of Redis."""
    return datetime.fromtimestamp((server_ms(client) + ms) / 1000, timezone.utc)


# --- overrides die with their task ----------------------------------------------------------------


def test_the_limits_of_a_task_end_with_it(make: Make, sync_redis: redis.Redis) -> None:
    agg = make(group_max_size=50)
    agg.add_task(Task("test", "now", "g", max_size=1, priority=9))
    agg.add_tasks(numbered("g", 6))
    with agg:
        await_batches(agg, 1, timeout=LATE)
        await_asleep(sync_redis)
        state = agg.get_entries()["g"]
        assert (state.size, state.priority) == (6, 0)
        agg.flush("g")
        await_batches(agg, 2, timeout=LATE)
    assert batches(agg) == [["now"], [0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("plain_first", [True, False])
def test_the_limits_of_a_cancelled_task_end_with_it(make: Make, plain_first: bool) -> None:
    agg = make()
    special = Task("test", 0, "g", id="x", max_delay=5, grace_period=2, priority=7, max_size=3)
    added = [*numbered("g", 1), special] if plain_first else [special, *numbered("g", 1)]
    agg.add_tasks(added)
    before = agg.get_entries()["g"]
    assert before.due_at is not None
    assert before.first_task_at is not None
    assert before.due_at <= before.first_task_at + 5
    assert before.priority == 7
    assert agg.cancel_task("g", "x")
    after = agg.get_entries()["g"]
    assert after.due_at is not None
    assert after.first_task_at is not None
    assert after.due_at == pytest.approx(after.first_task_at + 600)
    assert after.priority == 0
    agg.add_tasks(numbered("g", 3, start=1))  # the max size of 3 has ended too
    assert agg.get_entries()["g"].due_at != after.last_task_at


# --- what a batch may hold ------------------------------------------------------------------------


def test_max_bytes(make: Make) -> None:
    agg = make(group_max_bytes=1_000)
    texts = ["a" * 300, "b" * 300, "c" * 300, "d" * 2_000, "e" * 10]
    agg.add_tasks([Task("test", text, "g") for text in texts])
    with agg:
        await_batches(agg, 2, timeout=LATE)
        assert agg.get_entries()["g"].size == 1
    # The third would exceed 1,000 bytes with its id; the fourth is too large and goes alone.
    assert batches(agg) == [texts[:2], texts[2:3], texts[3:4]][: len(batches(agg))]
    assert len(batches(agg)) == 3


def test_a_task_with_max_bytes_of_its_own(make: Make) -> None:
    agg = make()
    agg.add_tasks([Task("test", "x" * 300, "g"), Task("test", "y" * 300, "g", max_bytes=500)])
    with agg:
        await_batches(agg, 1, timeout=LATE)
        assert batches(agg) == [["x" * 300]]


def test_max_weight(make: Make, sync_redis: redis.Redis) -> None:
    agg = make(group_max_weight=10)
    weights = [3, 3, 3, 3, 20, 1, 0, 1]
    agg.add_tasks([Task("test", n, "g", weight=w) for n, w in enumerate(weights)])
    with agg:
        await_batches(agg, 3, timeout=LATE)
        await_asleep(sync_redis)
        assert batches(agg) == [[0, 1, 2], [3], [4]]
        agg.add_task(Task("test", 8, "g", weight=8))
        await_batches(agg, 4, timeout=LATE)
    assert batches(agg)[3] == [5, 6, 7, 8]


# --- when -----------------------------------------------------------------------------------------


def test_without_a_grace_period_the_max_delay_decides(make: Make, sync_redis: redis.Redis) -> None:
    agg = make(group_grace_period=None, group_max_delay=20)
    agg.add_task(Task("test", 0, "g"))
    state = agg.get_entries()["g"]
    assert state.due_at is not None
    assert state.first_task_at is not None
    assert state.due_at == pytest.approx(state.first_task_at + 20)


def test_without_a_max_delay_the_grace_period_decides(make: Make) -> None:
    agg = make(group_grace_period=30, group_max_delay=None)
    agg.add_task(Task("test", 0, "g"))
    state = agg.get_entries()["g"]
    assert state.due_at is not None
    assert state.last_task_at is not None
    assert state.due_at == pytest.approx(state.last_task_at + 30)


def test_one_of_both_is_needed() -> None:
    with pytest.raises(InvalidConfig, match="both None"):
        quick_config(group_grace_period=None, group_max_delay=None)


def test_due_at(make: Make, sync_redis: redis.Redis) -> None:
    agg = make()
    with agg:
        moment = in_ms(sync_redis, 400)
        agg.add_tasks([*numbered("g", 1), Task("test", 1, "g", due_at=moment)])
        due = agg.get_entries()["g"].due_at
        assert due == pytest.approx(moment.timestamp(), abs=0.002)
        await_batches(agg, 1, timeout=0.4 + LATE)
        assert server_ms(sync_redis) >= moment.timestamp() * 1000 - 1
    assert batches(agg) == [[0, 1]]


def test_not_before_holds_a_full_group_back(make: Make, sync_redis: redis.Redis) -> None:
    agg = make(group_max_size=2)
    with agg:
        moment = in_ms(sync_redis, 500)
        agg.add_tasks([Task("test", 0, "g", not_before=moment), *numbered("g", 2, start=1)])
        await_batches(agg, 1, timeout=0.5 + LATE)
        entries: Any = sync_redis.xrange("tests-batches")
        assert int(entries[0][0].split(b"-")[0]) >= moment.timestamp() * 1000 - 1
    assert batches(agg)[0] == [0, 1]


def test_a_flush_overrides_not_before(make: Make, sync_redis: redis.Redis) -> None:
    agg = make(group_max_size=2)
    with agg:
        agg.add_tasks(numbered("g", 2, not_before=in_ms(sync_redis, 60_000)))
        await_asleep(sync_redis)
        assert agg.get_entries()["g"].size == 2
        agg.flush("g")
        await_batches(agg, 1, timeout=LATE)


def test_a_closing_message_flushes_its_group(make: Make) -> None:
    agg = make()
    with agg:
        agg.add_tasks([*numbered("g", 2), Task("test", "end", "g", flush=True)])
        await_batches(agg, 1, timeout=LATE)
    assert payloads(enqueued(agg)) == [0, 1, "end"]


NAIVE = datetime(2030, 1, 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_bytes", 0),
        ("max_bytes", True),
        ("weight", -1),
        ("weight", 2**31 + 1),
        ("weight", 1.5),
        ("due_at", NAIVE),
        ("due_at", 12),
        ("not_before", NAIVE),
        ("not_before", datetime(2300, 1, 1, tzinfo=timezone.utc)),
        ("flush", 1),
        ("on_conflict", "merge"),
    ],
)
def test_limits_out_of_range_are_refused(field: str, value: Any) -> None:
    with pytest.raises(InvalidTask, match=field):
        Task("t", 1, "g", **{field: value})


def test_a_merge_function_sees_the_limits_of_a_task(make: Make, sync_redis: redis.Redis) -> None:
    seen: list[Task] = []

    def merge(group: str, tasks: list[Task]) -> None:
        seen.extend(tasks)

    agg = make(group_aggregator=merge)
    moment = in_ms(sync_redis, -1_000)
    task = Task("t", 1, "g", max_bytes=9, weight=0, due_at=moment, not_before=moment, flush=True)
    later = Task("t", 2, "g", weight=5, due_at=moment + timedelta(seconds=0.5))
    with agg:
        agg.add_tasks([task, later])
        assert agg.wait_until_idle(10)
    assert seen == [task, later]


# --- an id that waits --------------------------------------------------------------------------


def test_a_task_replaces_the_one_that_waits(make: Make, sync_redis: redis.Redis) -> None:
    agg = make(group_grace_period=60, group_max_delay=300)
    agg.add_tasks([Task("test", "old", "g", id="x", priority=5), Task("test", "other", "g")])
    before = agg.get_entries()["g"]
    await_server_ms(sync_redis, server_ms(sync_redis) + 20)
    changed = Task("test", "new", "g", id="x", headers={"a": "b"}, on_conflict="replace")
    assert agg.add_task(changed) == "x"
    agg.add_task(Task("test", "kept out", "g", id="x"))
    after = agg.get_group("g")
    assert after is not None
    assert (after.size, after.priority) == (2, 0)
    assert after.first_task_at == before.first_task_at
    assert after.due_at is not None
    assert before.due_at is not None
    assert after.due_at > before.due_at + 0.015  # the grace period began anew
    [first, second] = after.tasks or ()
    assert first.task is not None
    assert second.task is not None
    assert (first.task.payload, first.task.headers) == ("new", {"a": "b"})
    assert second.task.payload == "other"
    agg.flush("g")
    with agg:
        await_batches(agg, 1, timeout=LATE)
        agg.add_task(changed)  # no task with this id waits: it is new
        assert agg.get_entries()["g"].size == 1
    assert batches(agg)[0] == ["new", "other"]


def test_the_limits_of_a_replaced_task_end(make: Make) -> None:
    agg = make()
    agg.add_tasks([*numbered("g", 3), Task("test", "x", "g", id="x", max_delay=5, weight=7)])
    agg.add_task(Task("test", "y", "g", id="x", on_conflict="replace", max_size=9))
    state = agg.get_entries()["g"]
    assert state.first_task_at is not None
    assert state.due_at is not None
    assert state.due_at >= state.first_task_at + 600


# --- why a batch was due --------------------------------------------------------------------------


def test_a_merge_function_is_told_why_its_batch_was_due(
    make: Make, sync_redis: redis.Redis
) -> None:
    told: list[BatchInfo] = []

    def merge(group: str, tasks: list[Task], info: BatchInfo) -> None:
        assert len(info.arrivals) == len(tasks)
        told.append(info)

    agg = make(group_aggregator=merge, group_max_weight=50)
    before = server_ms(sync_redis) / 1000
    agg.add_tasks(numbered("flush", 2, weight=3))
    agg.flush("flush")
    agg.add_tasks(numbered("size", 20))
    agg.add_tasks(numbered("weight", 1, weight=60))
    agg.add_tasks(numbered("bytes", 1, max_bytes=1))
    agg.add_tasks(numbered("grace", 1, grace_period=0.01))
    agg.add_tasks(numbered("max_delay", 1, max_delay=0.01))
    agg.add_tasks(numbered("due_at", 1, due_at=in_ms(sync_redis, -5)))
    with agg:
        assert agg.wait_until_idle(10)
    assert {info.group_key: info.reason for info in told} == {
        each: each for each in ("flush", "size", "weight", "bytes", "grace", "max_delay", "due_at")
    }
    [flushed] = [info for info in told if info.group_key == "flush"]
    assert (flushed.weight, flushed.attempt) == (6, 1)
    assert flushed.bytes > 0
    assert before <= flushed.opened_at <= flushed.due_at <= flushed.claimed_at
    assert flushed.arrivals[0] == flushed.opened_at


def test_an_async_merge_function_is_told_too(make: Make) -> None:
    told: list[str] = []

    async def merge(group: str, tasks: list[Task], info: BatchInfo) -> None:
        told.append(info.reason)

    agg = make(group_aggregator=merge, group_max_size=1)
    with agg:
        agg.add_tasks(numbered("g", 1))
        assert agg.wait_until_idle(10)
    assert told == ["size"]


def test_batches_and_dead_letters_say_why_they_were_due(make: Make) -> None:
    states: list[Any] = []

    def merge(group: str, tasks: list[Task]) -> None:
        states.extend(agg.get_batches())
        raise ValueError("no")

    agg = make(group_aggregator=merge, group_max_size=2, max_attempts=1)
    with agg:
        agg.add_tasks(numbered("g", 2, weight=4))
        [letter] = await_dead(agg)
    for found in (states[0], letter):
        assert (found.reason, found.weight) == ("size", 8)
        assert found.opened_at <= found.due_at <= found.claimed_at
        assert found.bytes > 0


def test_an_operator_postpones_a_group(make: Make, sync_redis: redis.Redis) -> None:
    agg = make(group_max_size=2)
    agg.pause()
    agg.add_tasks(numbered("g", 2))
    moment = in_ms(sync_redis, 500)
    assert agg.postpone("g", moment) == 2
    assert agg.postpone("nobody", moment) == 0
    due = agg.get_entries()["g"].due_at
    assert due == pytest.approx(moment.timestamp(), abs=0.002)
    with agg:
        agg.resume()
        await_batches(agg, 1, timeout=0.5 + LATE)
        entries: Any = sync_redis.xrange("tests-batches")
        assert int(entries[0][0].split(b"-")[0]) >= moment.timestamp() * 1000 - 1
        agg.add_tasks(numbered("g", 1))
        agg.postpone("g", in_ms(sync_redis, 60_000))
        agg.flush("g")
        await_batches(agg, 2, timeout=LATE)
    with pytest.raises(InvalidTask, match="until"):
        agg.postpone("g", NAIVE)


def test_an_interval_between_batches(make: Make, sync_redis: redis.Redis) -> None:
    agg = make(group_leading=True, group_min_interval=0.5)
    with agg:
        agg.add_tasks(numbered("g", 1))
        await_batches(agg, 1, timeout=LATE)
        agg.add_tasks(numbered("g", 2, start=1))
        await_batches(agg, 2, timeout=0.5 + LATE)
        first, second = (int(entry_id.split(b"-")[0]) for entry_id, _ in stream(sync_redis))
        assert second - first >= 450
        assert batches(agg) == [[0], [1, 2]]
        wait_until(lambda: agg.stats().groups == 0, what="the group has cooled down")


def test_a_group_is_not_cut_more_often_than_its_interval_says(make: Make) -> None:
    cuts: list[float] = []

    def note(event: BatchClaimed) -> None:
        cuts.append(event.batch.claimed_at)

    settings: dict[str, Any] = {"on_event": note, "event_kinds": [BatchClaimed]}
    agg = make(group_min_interval=0.5, group_max_size=2, **settings)
    with agg:
        agg.add_tasks(numbered("g", 2))
        await_batches(agg, 1, timeout=LATE)
        agg.add_tasks(numbered("g", 2, start=2))  # full, and held back
        await_batches(agg, 2, timeout=0.5 + LATE)
        agg.add_tasks(numbered("g", 1, start=4))
        agg.flush("g")
        await_batches(agg, 3, timeout=LATE)
    first, second, third = cuts
    assert second - first >= 0.5
    assert third - second < 0.45
    assert batches(agg) == [[0, 1], [2, 3], [4]]


def test_the_reason_of_a_first_task_is_leading(make: Make) -> None:
    told: list[str] = []

    def merge(group: str, tasks: list[Task], info: BatchInfo) -> None:
        told.append(info.reason)

    agg = make(group_leading=True, group_min_interval=600, group_aggregator=merge)
    with agg:
        agg.add_tasks(numbered("g", 1))
        assert agg.wait_until_idle(10)
    assert told == ["leading"]


def stream(client: redis.Redis) -> Any:
    return client.xrange("tests-batches")
