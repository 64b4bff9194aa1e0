"""What a service gains that lets redisagg group its tasks instead of Asynq itself.

For each row of the table in docs/asynq.md there is what the real Asynq does and what redisagg does.
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections import Counter
from typing import Any

import pytest
import redis

from redisagg import Task
from tests.sinks.asynq.program import Asynq
from tests.support.aggregators import Make
from tests.support.processes import Processes
from tests.support.servers import wait_until
from tests.support.tasks import await_dead, numbered
from tests.support.worker import BEGAN, GATE

pytestmark = pytest.mark.registry

SETS = "asynq:{default}:aggregation_sets"


def grouped(*payloads: str) -> list[dict[str, Any]]:
    """Tasks for a group of Asynq's own."""
    task = {"type": "a", "group": "g", "max_retry": 3, "timeout": 60}
    return [{**task, "payload": base64.b64encode(text.encode()).decode()} for text in payloads]


def payloads_in(task: Any) -> list[str]:
    """The payloads in a task that Asynq's aggregator made."""
    return base64.b64decode(task["payload"]).decode().split(",")


def merged_by_asynq(asynq: Asynq) -> list[set[str]]:
    """The payloads in each task that Asynq's aggregator enqueued, oldest first; in no order."""
    return [set(payloads_in(task)) for task in asynq.inspect()["pending"]]


def time_out(client: redis.Redis) -> None:
    """Has Asynq think that its two minutes for an aggregation are over."""
    sets: Any = client.zrange(SETS, 0, -1)
    assert len(sets) == 1
    client.zadd(SETS, dict.fromkeys(sets, 0))


@pytest.fixture
def paused(sync_redis: redis.Redis) -> None:
    """Keeps Asynq's servers from taking what was merged."""
    sync_redis.set("asynq:{default}:paused", 1)


# --- a crash between enqueue and clean-up ------------------------------------------------------


@pytest.mark.usefixtures("paused")
def test_asynq_enqueues_a_batch_twice_after_a_crash(asynq: Asynq, sync_redis: redis.Redis) -> None:
    asynq.enqueue(*grouped("one", "two"))
    assert asynq.aggregate("default", "die").wait() == 137
    assert merged_by_asynq(asynq) == [{"one", "two"}]
    time_out(sync_redis)
    asynq.enqueue(*grouped("three"))
    asynq.aggregate("default", "merge").await_lines(1)
    wait_until(lambda: len(merged_by_asynq(asynq)) == 2, what="the set is merged again")
    assert merged_by_asynq(asynq)[1] == {"one", "two", "three"}


def test_redisagg_has_no_time_between_enqueue_and_clean_up(
    make: Make, asynq: Asynq, sync_redis: redis.Redis
) -> None:
    """Each script that ran left the batch either in flight or in Asynq's queue."""
    with make(group_max_size=2, partitions=1) as agg:
        for n in range(20):
            agg.add_tasks(numbered(f"g{n}", 2))
            # One look at both, in a transaction.
            for _ in range(20):
                look = sync_redis.pipeline()
                look.llen("asynq:{default}:pending")
                look.hget("redisagg:{tests:0}:state", "flushed")
                enqueued, flushed = look.execute()
                assert enqueued == int(flushed or 0)
        assert agg.wait_until_idle(5)
    assert len(asynq.inspect()["pending"]) == 20


# --- a batch whose process died ----------------------------------------------------------------


@pytest.mark.usefixtures("paused")
@pytest.mark.parametrize("how", ["nil", "panic"])
def test_asynq_strands_a_reclaimed_set(asynq: Asynq, sync_redis: redis.Redis, how: str) -> None:
    """Its tasks are back in their group, which is on no list until another task joins."""
    asynq.enqueue(*grouped("one", "two"))
    first = asynq.aggregate("default", how)
    first.await_lines(1)
    why = {"nil": "task cannot be nil", "panic": "panic: told to panic"}[how]
    wait_until(lambda: why in first.log, what="the aggregation has failed")
    first.kill()
    time_out(sync_redis)
    second = asynq.aggregate("default", "merge")
    wait_until(lambda: sync_redis.zcard("asynq:{default}:g:g") == 2, what="it is reclaimed")
    time.sleep(3)  # three times the grace period
    assert (second.lines, merged_by_asynq(asynq)) == ([], [])
    asynq.enqueue(*grouped("three"))
    second.await_lines(1)
    wait_until(lambda: merged_by_asynq(asynq) == [{"one", "two", "three"}], what="it goes on")


def test_redisagg_enqueues_what_a_dead_flusher_held_without_another_task(
    make: Make, processes: Processes, redis_url: str, sync_redis: redis.Redis, asynq: Asynq
) -> None:
    config: dict[str, Any] = {"group_max_size": 2, "partitions": 1, "lease_time": 1}
    agg = make(**config)
    sink = "asynq://default"
    [killed] = processes.flushers(1, redis_url, config=config, merge="gate", sink=sink)
    agg.add_tasks(numbered("a", 2))
    wait_until(lambda: sync_redis.llen(BEGAN) == 1, what="the merge has begun")
    killed.kill()
    sync_redis.set(GATE, 1)
    processes.flushers(1, redis_url, config=config, merge="gate", sink=sink)
    assert agg.wait_until_idle(5)
    [task] = asynq.inspect()["pending"]
    assert json.loads(base64.b64decode(task["payload"]))["payloads"] == [0, 1]


# --- an aggregator that returns nothing, or fails ----------------------------------------------


@pytest.mark.usefixtures("paused")
def test_asynq_keeps_a_set_whose_aggregator_returned_nil(
    asynq: Asynq, sync_redis: redis.Redis
) -> None:
    asynq.enqueue(*grouped("one"))
    server = asynq.aggregate("default", "nil")
    server.await_lines(1)
    wait_until(lambda: "Failed to enqueue" in server.log, what="it could not enqueue nil")
    assert sync_redis.zcard(SETS) == 1
    assert sync_redis.zcard("asynq:{default}:g:g") == 0


def test_redisagg_is_done_with_a_batch_whose_merge_returned_none(make: Make, asynq: Asynq) -> None:
    def merge(group: str, tasks: list[Task]) -> Task | None:
        return None if group == "none" else Task("merged")

    with make(group_max_size=1, group_aggregator=merge) as agg:
        agg.add_tasks([*numbered("none", 1), *numbered("some", 1)])
        assert agg.wait_until_idle(5)
        assert agg.stats().dead == 0
    assert len(asynq.inspect()["pending"]) == 1


@pytest.mark.usefixtures("paused")
def test_asynq_ends_with_the_panic_of_an_aggregator(asynq: Asynq) -> None:
    asynq.enqueue(*grouped("one"))
    server = asynq.aggregate("default", "panic")
    assert server.wait() == 2
    assert "panic: told to panic" in server.log
    assert merged_by_asynq(asynq) == []


@pytest.mark.parametrize("how", ["raise", "exit", "die"])
def test_redisagg_goes_on_after_a_merge_that_fails(make: Make, asynq: Asynq, how: str) -> None:
    """Its batch is tried again, is kept in the end, and delays no other group."""
    failing = {"raise": merge_or_raise, "exit": merge_or_exit, "die": merge_or_die}[how]
    executor = "process" if how == "die" else "thread"
    agg = make(group_max_size=2, group_aggregator=failing, executor=executor, max_attempts=2)
    with agg:
        agg.add_tasks([*numbered("bad", 2), *numbered("good", 4)])
        [letter] = await_dead(agg, timeout=30)
        assert agg.wait_until_idle(10)
    assert (letter.group_key, letter.attempts, letter.size) == ("bad", 2, 2)
    assert Counter(task["type"] for task in asynq.inspect()["pending"]) == {"good": 2}


def merge_or_raise(group: str, tasks: list[Task]) -> Task:
    if group == "bad":
        raise RuntimeError("told to fail")
    return Task(group)


def merge_or_exit(group: str, tasks: list[Task]) -> Task:
    if group == "bad":
        raise SystemExit(3)
    return Task(group)


def merge_or_die(group: str, tasks: list[Task]) -> Task:
    if group == "bad":
        os._exit(3)
    return Task(group)


# --- what becomes of the order and the options of the tasks --------------------------------------


@pytest.mark.usefixtures("paused")
def test_asynq_sorts_the_tasks_of_a_second_by_chance_and_drops_their_options(asynq: Asynq) -> None:
    numbers = [str(n) for n in range(60)]
    asynq.enqueue(*grouped(*numbers))  # within two seconds, at 30 to 60 in one of them
    asynq.aggregate("default", "merge").await_lines(1)
    wait_until(lambda: merged_by_asynq(asynq) != [], what="the group is merged")
    [task] = asynq.inspect()["pending"]
    assert sorted(payloads_in(task), key=int) == numbers
    assert payloads_in(task) != numbers
    assert (task["max_retry"], task["timeout"]) == (25, 1800)


def test_redisagg_keeps_the_order_and_the_options_of_the_tasks(make: Make, asynq: Asynq) -> None:
    options = {"max_retry": 3, "timeout": 60}
    with make(group_max_size=60) as agg:
        agg.add_tasks(Task("a", n, "g", options=options) for n in range(60))
        assert agg.wait_until_idle(5)
    [task] = asynq.inspect()["pending"]
    assert json.loads(base64.b64decode(task["payload"]))["payloads"] == list(range(60))
    assert (task["max_retry"], task["timeout"]) == (3, 60)
