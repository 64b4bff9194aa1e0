"""`dedupe_window`: the id of a flushed task is not accepted again for a while."""

from __future__ import annotations

import time
from typing import Any

import pytest
import redis

from redisagg import Task
from redisagg.errors import KeyConflict
from redisagg.protocol.keys import Keyspace
from tests.support.aggregators import Make
from tests.support.servers import wait_until
from tests.support.tasks import await_batches, enqueued, numbered, payloads

P = Keyspace("tests", 1).partitions[0]
SEEN = [P.seen.decode(), P.seen_before.decode()]


def test_an_id_that_was_flushed_is_not_accepted_again(make: Make) -> None:
    agg = make(group_max_size=2, dedupe_window=60)
    agg.start()
    tasks = numbered("a", 2)
    agg.add_tasks(tasks)
    await_batches(agg, 1)
    assert agg.add_tasks(tasks) == [task.id for task in tasks]
    assert agg.add_task(tasks[0]) == tasks[0].id
    assert agg.get_group("a") is None
    other = Task("test", 9, "b", tasks[0].id)  # ids belong to their group
    agg.add_tasks([other, Task("test", 2, "a"), tasks[1], Task("test", 3, "a")])
    await_batches(agg, 2)
    agg.flush_all()
    await_batches(agg, 3)
    found = enqueued(agg)
    assert sorted(payloads(found)) == [0, 1, 2, 3, 9]


def test_an_id_that_was_cancelled_is_accepted_again(make: Make) -> None:
    agg = make(dedupe_window=60)
    task = Task("test", 1, "a")
    agg.add_task(task)
    assert agg.cancel_task("a", task.id)
    agg.add_task(task)
    group = agg.get_group("a")
    assert group is not None
    assert group.size == 1


def test_without_a_window_nothing_is_remembered(make: Make, sync_redis: redis.Redis) -> None:
    agg = make(group_max_size=1, partitions=1)
    sync_redis.config_resetstat()
    agg.start()
    task = Task("test", 1, "a")
    agg.add_task(task)
    await_batches(agg, 1)
    agg.add_task(task)
    await_batches(agg, 2)
    # Not by whether the sets are there: a window of a millisecond would be over.
    commands: Any = sync_redis.info("commandstats")
    sadd = commands["cmdstat_sadd"]  # `acquire` tries whether it may, and fails on purpose
    assert sadd["calls"] == sadd["failed_calls"]


def test_a_window_ends_and_leaves_nothing_behind(make: Make, sync_redis: redis.Redis) -> None:
    window = 0.8
    agg = make(group_max_size=1, partitions=1, dedupe_window=window)
    agg.start()
    first = Task("test", 0, "a")
    agg.add_task(first)
    await_batches(agg, 1)
    flushed = time.monotonic()
    count = 1
    while time.monotonic() - flushed < window / 2:
        agg.add_task(first)
        agg.add_task(Task("test", count, "b"))
        count += 1
        await_batches(agg, count)
    assert payloads(enqueued(agg)).count(0) == 1

    def accepted() -> bool:
        agg.add_task(first)
        agg.add_task(Task("test", -1, "b"))  # each new id may have the two sets change places
        return payloads(enqueued(agg)).count(0) == 2

    wait_until(accepted, timeout=3 * window, what="the id is accepted again")
    assert window <= time.monotonic() - flushed
    wait_until(
        lambda: sync_redis.exists(*SEEN) == 0, timeout=20, what="an idle leader removed both sets"
    )


def test_redis_expires_no_set_by_itself(make: Make, sync_redis: redis.Redis) -> None:
    agg = make(group_max_size=1, partitions=1, dedupe_window=0.3)
    agg.start()
    agg.add_task(Task("test", 0, "a"))
    await_batches(agg, 1)
    kept: Any = sync_redis.ttl(SEEN[0])
    assert kept in (-1, -2)  # no TTL, or removed already
    wait_until(lambda: sync_redis.exists(*SEEN) == 0, timeout=20, what="an idle leader removed it")


def test_an_id_is_forgotten_although_no_flusher_runs(make: Make, sync_redis: redis.Redis) -> None:
    agg = make(group_max_size=1, partitions=1, dedupe_window=60)
    agg.start()
    task = Task("test", 0, "a")
    agg.add_task(task)
    await_batches(agg, 1)
    agg.stop()
    agg.add_task(task)
    assert agg.stats().pending == 0
    sync_redis.hset(P.state.decode(), "seen_until", 1)
    agg.add_task(task)
    assert agg.stats().pending == 1


def test_what_a_remembered_id_costs(make: Make, sync_redis: redis.Redis, measured: Any) -> None:
    agg = make(group_max_size=100, partitions=1, dedupe_window=600)
    agg.start()
    agg.add_tasks((Task("test", None, f"user:{n % 100}") for n in range(10_000)), ids=False)
    wait_until(lambda: agg.stats().flushed == 10_000, timeout=30, what="all are flushed")
    usage: Any = sync_redis.memory_usage(SEEN[0], samples=0)
    assert sync_redis.scard(SEEN[0]) == 10_000
    sample: Any = sync_redis.srandmember(SEEN[0])
    over = usage / 10_000 - len(sample)
    measured(f"an id remembered by dedupe_window: {over:.0f} bytes over id and group key")
    assert over <= 80


@pytest.mark.parametrize("key", SEEN)
def test_a_foreign_type_is_an_error_with_nothing_written(
    make: Make, sync_redis: redis.Redis, key: str
) -> None:
    agg = make(partitions=1, dedupe_window=60)
    sync_redis.set(key, "foreign")
    with pytest.raises(KeyConflict):
        agg.add_task(Task("test", 1, "a"))
    assert agg.get_group("a") is None
