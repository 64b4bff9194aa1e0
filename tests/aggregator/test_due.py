"""When groups are due: by grace period, max delay, max size and flush; pause and priority."""

from __future__ import annotations

import datetime as dt
import time
from typing import Any

import pytest
import redis

from redisagg import AggregationConfig, Aggregator, Task
from tests.support.aggregators import Make
from tests.support.tasks import (
    await_asleep,
    await_batches,
    await_led,
    await_server_ms,
    enqueued,
    numbered,
    payloads,
    server_ms,
)

# A batch that is late by more seconds than this is a fault; the machine may be busy.
LATE = 1.5


def entry_times(client: redis.Redis) -> list[int]:
    """When each batch was enqueued, ms by the clock of Redis."""
    entries: Any = client.xrange("tests-batches")
    return [int(entry_id.split(b"-")[0]) for entry_id, _ in entries]


def test_a_full_group_goes_at_once_and_holds_no_more_than_max_size(make: Make) -> None:
    agg = make(group_max_size=3)
    with agg:
        agg.add_tasks(numbered("a", 7))
        await_batches(agg, 2, timeout=LATE)
        assert [batch.payload["payloads"] for batch in enqueued(agg)] == [[0, 1, 2], [3, 4, 5]]
        state = agg.get_entries()["a"]
        assert (state.size, state.in_flight) == (1, 0)


def test_the_grace_period_starts_anew_with_each_task(make: Make, sync_redis: redis.Redis) -> None:
    agg = make(group_grace_period=0.6)
    with agg:
        for task in numbered("a", 6):
            before = server_ms(sync_redis)
            agg.add_task(task)
            after = server_ms(sync_redis)
            time.sleep(0.15)  # shorter than the grace period; five of these are longer
        await_batches(agg, 1)
    [batch], [at] = enqueued(agg), entry_times(sync_redis)
    assert batch.payload["payloads"] == [0, 1, 2, 3, 4, 5]
    assert before + 600 <= at <= after + 600 + LATE * 1000


def test_no_task_waits_longer_than_max_delay_however_many_come(
    make: Make, sync_redis: redis.Redis
) -> None:
    agg = make(group_grace_period=5, group_max_delay=0.8)
    with agg:
        before = server_ms(sync_redis)
        agg.add_task(Task("test", 0, "a"))
        after = server_ms(sync_redis)
        number = 0
        while server_ms(sync_redis) < after + 1_100:
            number += 1
            agg.add_task(Task("test", number, "a"))
            time.sleep(0.05)  # shorter than the grace period
        await_batches(agg, 1, timeout=LATE)
        first = enqueued(agg)[0]
        assert before + 800 <= entry_times(sync_redis)[0] <= after + 800 + LATE * 1000
        assert first.payload["payloads"] == list(range(first.count))
        # What came after the first batch was cut has a max delay of its own.
        await_batches(agg, 2, timeout=0.8 + LATE)
        assert payloads(enqueued(agg)) == list(range(number + 1))


def test_a_grace_period_beyond_the_max_delay_is_no_error(
    make: Make, sync_redis: redis.Redis
) -> None:
    agg = make(group_grace_period=900, group_max_delay=0.3)
    with agg:
        before = server_ms(sync_redis)
        agg.add_task(Task("test", 0, "a"))
        await_batches(agg, 1, timeout=0.3 + LATE)
    assert before + 300 <= entry_times(sync_redis)[0]


def test_the_defaults_are_two_minutes_ten_minutes_and_twenty_tasks(
    make: Make, redis_url: str
) -> None:
    config = AggregationConfig()
    assert (config.group_grace_period, config.group_max_delay) == (120, 600)
    assert config.group_max_size == 20
    with Aggregator("tests", redis_url) as agg:
        agg.add_tasks(numbered("a", 19))
        state = agg.get_entries()["a"]
        assert state.last_task_at is not None
        assert state.due_at == pytest.approx(state.last_task_at + 120, abs=0.01)
        agg.add_task(Task("test", 19, "a"))
        await_batches(agg, 1, timeout=LATE)
        assert agg.get_entries() == {}
    [batch] = enqueued(agg)
    assert batch.type == "test:aggregated"
    assert batch.payload == {"group": "a", "count": 20, "payloads": list(range(20))}


def test_limits_may_be_timedeltas(make: Make) -> None:
    agg = make(
        group_grace_period=dt.timedelta(milliseconds=50), group_max_delay=dt.timedelta(hours=1)
    )
    with agg:
        agg.add_task(Task("test", 0, "a"))
        await_batches(agg, 1, timeout=LATE)
    assert payloads(enqueued(agg)) == [0]


def test_a_task_overrides_each_limit(make: Make) -> None:
    agg = make()

    def due_in(group: str, *tasks: Task) -> tuple[float, float]:
        """Seconds from the first and from the last task until the group is due."""
        agg.add_tasks(tasks)
        state = agg.get_entries()[group]
        assert state.due_at is not None
        assert state.first_task_at is not None
        assert state.last_task_at is not None
        return state.due_at - state.first_task_at, state.due_at - state.last_task_at

    # The newest task's grace period counts, be it shorter or longer.
    newest = [Task("test", 0, "g", grace_period=9), Task("test", 1, "g", grace_period=50)]
    assert due_in("g", *newest)[1] == pytest.approx(50, abs=0.01)
    assert due_in("g", Task("test", 2, "g", grace_period=7))[1] == pytest.approx(7, abs=0.01)
    # No task waits longer than its own max delay.
    shortest = [Task("test", 0, "d", max_delay=30), Task("test", 1, "d", max_delay=500)]
    assert due_in("d", *shortest)[0] == pytest.approx(30, abs=0.1)
    assert due_in("d", Task("test", 2, "d", max_delay=20))[1] == pytest.approx(20, abs=0.1)
    # The smallest max size that a waiting task asked for.
    with agg:
        agg.add_tasks([Task("test", 0, "s", max_size=2), Task("test", 1, "s", max_size=9)])
        await_batches(agg, 1, timeout=LATE)
    assert payloads(enqueued(agg)) == [0, 1]


def test_flush_makes_one_group_due_and_says_how_many_tasks_wait(
    make: Make, sync_redis: redis.Redis
) -> None:
    agg = make(partitions=1)
    with agg:
        agg.add_tasks([*numbered("a", 3), *numbered("b", 2)])
        assert agg.flush("a") == 3
        await_batches(agg, 1, timeout=LATE)
        assert agg.flush("a") == 0
        assert agg.flush("nobody") == 0
        # A task that is added after the flush has a grace period of its own.
        agg.add_task(Task("test", 9, "a"))
        await_asleep(sync_redis, partitions=1)
        assert payloads(enqueued(agg)) == [0, 1, 2]
        assert {key: state.size for key, state in agg.get_entries().items()} == {"a": 1, "b": 2}


def test_flush_makes_only_the_tasks_due_that_wait_at_that_time(make: Make) -> None:
    """Without a flusher the flushed tasks wait; a later task is not due with them."""
    agg = make(group_max_size=10)
    agg.add_tasks(numbered("a", 12, start=0))
    agg.pause()
    assert agg.flush("a") == 12
    agg.add_task(Task("test", 12, "a"))
    with agg:
        agg.resume()
        # 13 tasks wait and 12 of them were flushed: a batch of ten and one of the rest that is due.
        await_batches(agg, 2, timeout=LATE)
        assert payloads(enqueued(agg))[:12] == list(range(12))


def test_flush_all_takes_every_group_of_every_partition(make: Make) -> None:
    agg = make(partitions=4)
    groups = [f"g{n}" for n in range(1_200)]  # more than one script call takes
    agg.add_tasks([Task("test", group, group) for group in groups])
    agg.add_task(Task("test", "second", "g0"))
    assert agg.flush_all() == 1_201
    assert agg.flush_all() == 0
    with agg:
        assert agg.wait_until_idle(20)
    assert sorted(payloads(enqueued(agg))) == sorted([*groups, "second"])


def test_flush_all_takes_the_rest_of_full_groups_too(make: Make) -> None:
    agg = make(group_max_size=3)
    agg.add_tasks([*numbered("a", 7), *numbered("b", 2)])
    agg.flush_all()
    with agg:
        assert agg.wait_until_idle(2)
    assert sorted(payloads(enqueued(agg))) == sorted([*range(7), *range(2)])


def test_a_pause_stops_flushing_on_all_nodes_while_adding_goes_on(
    make: Make, sync_redis: redis.Redis
) -> None:
    agg, other = make(group_max_size=2), make(group_max_size=2)
    with agg:
        agg.add_tasks(numbered("a", 2))
        await_batches(agg, 1, timeout=LATE)
        other.pause()
        assert agg.stats().paused
        agg.add_tasks(numbered("a", 3, start=2))
        assert agg.flush("a") == 3
        await_asleep(sync_redis)
        stats = agg.stats()
        assert (stats.pending, stats.in_flight) == (3, 0)
        other.resume()
        assert not agg.stats().paused
        # The resume wakes the leaders, which would else sleep until their next poll.
        await_batches(agg, 3, timeout=LATE)
        assert payloads(enqueued(agg)) == [0, 1, 2, 3, 4]


def test_a_pause_holds_for_flushers_that_start_later(make: Make, sync_redis: redis.Redis) -> None:
    agg = make(group_max_size=1)
    agg.pause()
    agg.add_task(Task("test", 0, "a"))
    with agg:
        await_led(agg)
        await_asleep(sync_redis)
        assert agg.stats().pending == 1
        agg.resume()
        await_batches(agg, 1, timeout=LATE)


def test_higher_priority_goes_first_among_due_groups(make: Make) -> None:
    agg = make(partitions=1, concurrency=1, group_max_size=2)
    agg.pause()
    order = [5, -1000, 0, 1000, 7, -3]
    agg.add_tasks([Task("test", p, f"p{p}", priority=p) for p in order])
    # A group has the highest priority that a waiting task asked for.
    agg.add_tasks([Task("test", 500, "raised"), Task("test", 500, "raised", priority=500)])
    agg.flush_all()
    with agg:
        agg.resume()
        assert agg.wait_until_idle(10)
    assert [batch.group for batch in enqueued(agg)] == [
        *("p1000", "raised", "p7", "p5", "p0", "p-3", "p-1000")
    ]


def test_priority_beats_age_and_age_decides_among_equals(
    make: Make, sync_redis: redis.Redis
) -> None:
    agg = make(partitions=1, concurrency=1, group_grace_period=0.01)
    agg.pause()
    for group, priority in [("old", 0), ("young", 0), ("urgent", 1)]:
        agg.add_task(Task("test", group, group, priority=priority))
        await_server_ms(sync_redis, server_ms(sync_redis) + 10)  # the grace period
    with agg:
        agg.resume()
        assert agg.wait_until_idle(10)
    assert [batch.group for batch in enqueued(agg)] == ["urgent", "old", "young"]
