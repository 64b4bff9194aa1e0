"""`pause(group_key)` and `resume(group_key)`: no batch of one group, while others go on."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
import redis

from redisagg import Aggregator, Task
from redisagg.errors import InvalidGroupKey
from redisagg.protocol.keys import Keyspace
from redisagg.protocol.records import group_record
from tests.support.aggregators import Make
from tests.support.cli import Run
from tests.support.servers import wait_until
from tests.support.tasks import (
    await_asleep,
    await_batches,
    await_dead,
    enqueued,
    numbered,
)

SPACE = Keyspace("tests", 2)


def batches(agg: Aggregator) -> list[tuple[str, list[Any]]]:
    """The group and the payloads of each batch."""
    return [(batch.group, batch.payload["payloads"]) for batch in enqueued(agg)]


def record(client: redis.Redis, group: str) -> Any:
    """The stored record of a group, or None."""
    key = group.encode()
    packed: Any = client.hget(SPACE.partition_of(key).groups.decode(), group)
    return group_record(packed) if packed else None


def test_other_groups_go_on(make: Make, sync_redis: redis.Redis) -> None:
    agg = make(group_max_size=2)
    with agg:
        agg.add_tasks(numbered("paused", 1))
        agg.pause("paused")
        agg.pause("paused")
        agg.add_tasks([*numbered("paused", 4, start=1), *numbered("other", 2)])
        assert agg.flush("paused") == 5
        await_batches(agg, 1)
        await_asleep(sync_redis)
        assert batches(agg) == [("other", [0, 1])]
        shown = agg.get_entries()
        assert (shown["paused"].paused, shown["paused"].size) == (True, 5)
        agg.resume("paused")
        await_batches(agg, 4)
    groups = [each for each in batches(agg) if each[0] == "paused"]
    assert groups == [("paused", [0, 1]), ("paused", [2, 3]), ("paused", [4])]
    assert record(sync_redis, "paused") is None


def test_a_group_that_does_not_exist_yet(make: Make, sync_redis: redis.Redis) -> None:
    agg = make(group_max_size=2)
    agg.pause("later")
    agg.resume("nobody")
    assert set(agg.get_groups()) == set(agg.get_groups(limit=9)) == {"later"}
    state = agg.get_group("later")
    assert state is not None
    assert (state.paused, state.size, state.due_at) == (True, 0, None)
    with agg:
        agg.add_tasks(numbered("later", 3))
        assert agg.cancel_task("later", "unknown") is False
        assert agg.cancel_group("later") == 3
        agg.add_tasks(numbered("later", 2, start=3))
        await_asleep(sync_redis)
        assert batches(agg) == []
        agg.resume("later")
        await_batches(agg, 1)
    assert batches(agg) == [("later", [3, 4])]
    agg.pause("empty")
    agg.resume("empty")
    assert record(sync_redis, "empty") is None
    with pytest.raises(InvalidGroupKey):
        agg.pause("")
    with pytest.raises(InvalidGroupKey):
        agg.resume("x" * 600)


def test_a_group_is_due_on_time_after_it_was_resumed(make: Make, sync_redis: redis.Redis) -> None:
    agg = make(group_grace_period=0.4, group_max_delay=None, group_min_interval=0.2)
    with agg:
        agg.pause("g")
        agg.add_tasks(numbered("g", 1))
        agg.resume("g")
        await_batches(agg, 1, timeout=2)
        agg.pause("g")  # while it is in its min interval
        wait_until(
            lambda: record(sync_redis, "g").rules_in_force.cool_until == 0, what="that is over"
        )
        agg.add_tasks(numbered("g", 1))
        await_asleep(sync_redis)
        assert record(sync_redis, "g").rules_in_force.paused
        agg.resume("g")
        await_batches(agg, 2, timeout=2)


def test_batches_in_flight_end_and_those_in_retry_wait(make: Make, sync_redis: redis.Redis) -> None:
    calls: list[str] = []
    begun, go = threading.Event(), threading.Event()

    def merge(group: str, tasks: list[Task]) -> None:
        calls.append(group)
        begun.set()
        go.wait(10)
        if calls.count("bad") == 1 and group == "bad":
            raise ValueError("the first attempt")

    agg = make(group_aggregator=merge, group_max_size=1)
    try:
        with agg:
            agg.add_tasks(numbered("bad", 1))
            assert begun.wait(10)
            agg.pause("bad")
            go.set()
            wait_until(lambda: agg.stats().batches_in_retry == 1, what="it failed")
            agg.add_tasks([*numbered("bad", 1, start=1), *numbered("good", 1)])
            wait_until(lambda: "good" in calls, what="the other group is merged")
            await_asleep(sync_redis)
            assert calls == ["bad", "good"]
            agg.resume("bad")
            wait_until(lambda: calls.count("bad") == 3, what="all is merged")
            assert agg.wait_until_idle(10)
    finally:
        go.set()


def test_a_dead_letter_of_a_paused_group_waits(make: Make, sync_redis: redis.Redis) -> None:
    fails = [True]

    def merge(group: str, tasks: list[Task]) -> None:
        if fails:
            raise ValueError("no")

    agg = make(group_aggregator=merge, group_max_size=1, max_attempts=1)
    with agg:
        agg.add_tasks(numbered("g", 1))
        [letter] = await_dead(agg)
        fails.clear()
        agg.pause("g")
        agg.requeue_dead_letter(letter.batch_id)
        await_asleep(sync_redis)
        assert agg.stats().batches_in_retry == 1
        agg.resume("g")
        assert agg.wait_until_idle(10)
        assert agg.stats().batches_dead == 0


def test_the_command_line(make: Make, run: Run) -> None:
    def command(*words: str) -> Any:
        return run(*words, "--name", "tests")

    make().pause("a")
    assert json.loads(command("pause", "b", "--json").stdout) == {"paused": True}
    table = command("groups").stdout.splitlines()
    assert "paused" in table[0]
    assert all(line.rstrip().endswith("yes") for line in table[-2:])
    assert json.loads(command("resume", "b", "--json").stdout) == {"paused": False}
    shown = [json.loads(line) for line in command("groups", "--json").stdout.splitlines()]
    assert [(each["group_key"], each["paused"]) for each in shown] == [("a", True)]
