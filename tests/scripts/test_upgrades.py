"""The present code reads the data of each released schema and refuses that of a newer one."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, cast

import pytest
import redis

from redisagg import Aggregator, Policy, Task
from redisagg.errors import NamespaceMismatch
from redisagg.protocol.keys import SCHEMA, Keyspace
from redisagg.protocol.scripts import load
from tests.support.servers import wait_until
from tests.support.tasks import enqueued
from tests.upgrades.dump import NAME, PARTITIONS, POLICIES, path, settings, tasks, write

SCHEMAS = range(1, SCHEMA + 1)


@pytest.fixture(params=SCHEMAS)
def namespace(request: pytest.FixtureRequest, redis_url: str, sync_redis: redis.Redis) -> str:
    """The URL of a server with the dump of a schema."""
    write(sync_redis, json.loads(path(request.param).read_text("utf-8")))
    return redis_url


def by_id(*tasks: Task) -> dict[str, tuple[Any, ...]]:
    return {task.id: (task.type, task.payload, dict(task.headers), task.options) for task in tasks}


def test_all_operations_can_read_it(namespace: str) -> None:
    agg = Aggregator(NAME, namespace, config=settings())
    groups = agg.get_entries(tasks=True)
    assert groups.keys() == tasks().keys() - {"flushed", "dead"}
    waiting = {name: [each.task for each in state.tasks or ()] for name, state in groups.items()}
    for group in ("plain", "rich", "full"):
        assert by_id(*filter(None, waiting[group])) == by_id(*tasks()[group])
    assert groups["rich"].priority == 7
    assert groups["retry"].held
    states = {batch.group_key: batch for batch in agg.get_batches(tasks=True)}
    assert states.keys() == {"retry", "claimed"}
    assert "down" in states["retry"].error
    [letter] = agg.dead_letters(tasks=True)
    assert letter.group_key == "dead"
    assert "down" in letter.error
    stats = agg.stats()
    assert (stats.pending, stats.in_flight, stats.dead, stats.flushed) == (5 + 4 + 7 + 1, 4, 2, 2)
    assert stats.stored_bytes > 100
    assert agg.policies() == POLICIES
    for span in ("hour", "month"):  # empty as soon as the dump is older than that
        assert all(each.pending == 17 + 4 for each in agg.history(span).points)


def test_its_policies_count(namespace: str) -> None:
    agg = Aggregator(NAME, namespace, config=settings())
    agg.add_task(Task("kind", 0, "policed:1"))
    state = agg.get_group("policed:1")
    assert state is not None
    assert (state.priority, "policed:1" in agg.get_groups(due=True)) == (3, True)


def test_every_task_is_enqueued_once_by_the_present_flusher(
    namespace: str, sync_redis: redis.Redis
) -> None:
    def merge(group: str, given: list[Task]) -> Task:
        return Task("merged", {"ids": [task.id for task in given]})

    agg = Aggregator(NAME, namespace, config=settings(group_aggregator=merge, max_attempts=9))
    with agg:
        [letter] = agg.dead_letters()
        assert agg.requeue_dead_letter(letter.batch_id) == 2
        known = Task("kind", 0, "flushed", "flushed-0")
        agg.add_tasks([known, *tasks()["plain"]])  # the first was flushed, the others wait
        for partition in Keyspace(NAME, PARTITIONS).partitions:  # instead of an hour later
            for batch_id in sync_redis.zrange(partition.retry.decode(), 0, -1):
                sync_redis.zadd(partition.retry.decode(), {cast(bytes, batch_id): 1})
        agg.flush_all()
        wait_until(lambda: _idle(agg), timeout=15, what="all is flushed")
    found = Counter(
        task_id
        for batch in enqueued(agg)
        for task_id in (
            batch.payload["ids"] if batch.type == "merged" else _merged_before(batch.payload)
        )
    )
    assert found == Counter(
        task.id for group, each in tasks().items() for task in each if group != "flushed"
    )


def _merged_before(payload: Any) -> list[str]:
    """The ids in a merge result in the dump, which the default merge function returned."""
    return [f"{payload['group']}-{n}" for n in payload["payloads"]]


def _idle(aggregator: Aggregator) -> bool:
    stats = aggregator.stats()
    return not (stats.pending or stats.in_flight)


# --- newer schemas ---------------------------------------------------------------------------

NEWER = SCHEMA + 1

CALLS: dict[str, Callable[[Aggregator], object]] = {
    "add_task": lambda agg: agg.add_task(Task("t", 1, "g")),
    "add_tasks": lambda agg: agg.add_tasks([Task("t", 1, "g")]),
    "flush": lambda agg: agg.flush("g"),
    "flush_all": lambda agg: agg.flush_all(),
    "postpone": lambda agg: agg.postpone("g", datetime.now(timezone.utc)),
    "cancel_task": lambda agg: agg.cancel_task("g", "1"),
    "cancel_group": lambda agg: agg.cancel_group("g"),
    "set_policy": lambda agg: agg.set_policy("g", Policy(max_size=1)),
    "pause": lambda agg: agg.pause(),
    "resume": lambda agg: agg.resume(),
    "pause(group_key)": lambda agg: agg.pause("g"),
    "resume(group_key)": lambda agg: agg.resume("g"),
}
READS: dict[str, Callable[[Aggregator], object]] = {
    "start": lambda agg: agg.start(),
    "stats": lambda agg: agg.stats(),
    "get_entries": lambda agg: agg.get_entries(),
    "dead_letters": lambda agg: agg.dead_letters(),
}


@pytest.mark.parametrize("name", [*CALLS, *READS])
def test_a_newer_namespace_is_refused(redis_url: str, sync_redis: redis.Redis, name: str) -> None:
    meta = Keyspace(NAME, PARTITIONS).meta.decode()
    sync_redis.hset(meta, mapping={"schema": NEWER, "partitions": PARTITIONS})
    agg = Aggregator(NAME, redis_url, config=settings())
    with pytest.raises(NamespaceMismatch, match=f"schema {NEWER}.*version of redisagg"):
        {**CALLS, **READS}[name](agg)
    assert sync_redis.keys() == [meta.encode()]


@pytest.mark.parametrize("name", CALLS)
def test_a_partition_that_was_upgraded_meanwhile_is_left_alone(
    redis_url: str, sync_redis: redis.Redis, name: str
) -> None:
    agg = Aggregator(NAME, redis_url, config=settings())
    agg.add_tasks([Task("t", 1, group, id="1") for group in ("g", "h")])
    states = [each.state.decode() for each in Keyspace(NAME, PARTITIONS).partitions]
    for state in states:
        sync_redis.hset(state, "schema", NEWER)
    before = {key: sync_redis.dump(key) for key in sync_redis.scan_iter("*:state")}
    with pytest.raises(NamespaceMismatch, match=f"schema {NEWER}"):
        CALLS[name](agg)
    assert {key: sync_redis.dump(key) for key in sync_redis.scan_iter("*:state")} == before


def test_a_flusher_of_an_earlier_release_writes_nothing_more(
    redis_url: str, sync_redis: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    agg = Aggregator(NAME, redis_url, config=settings(lease_time=1, shutdown_timeout=1))
    agg.add_task(Task("t", 1, "g"))
    with caplog.at_level(logging.ERROR, "redisagg"), agg:
        wait_until(lambda: all(each.leader for each in agg.stats().partitions), what="it leads")
        for partition in Keyspace(NAME, PARTITIONS).partitions:
            sync_redis.hset(partition.state.decode(), "schema", NEWER)
            sync_redis.hset(partition.state.decode(), "wake", 0)
        wait_until(
            lambda: not any(each.leader for each in agg.stats().partitions),
            what="it leads no more",
        )
        wait_until(lambda: f"schema {NEWER}" in caplog.text, what="it says why")
    assert not enqueued(agg)


def test_every_script_that_writes_asks_for_the_schema() -> None:
    """Except scripts for a whole namespace, a producer's call, Asynq's keys, and what expires.

    What a mover writes asks whether this mover has frozen the partition: the same field says so.
    """
    others = {"join", "leave", "register", "forget_calls", "stats", "enqueue_asynq", "release"}
    others |= {"flushers", "now", "upcoming", "locate", "read_policies", "permits"}
    others |= {"report_status", "server_memory", "plan_move", "unlink", "keep_answer"}
    others |= {"list_groups", "rank_groups", "sample", "record", "forget_answer"}
    scripts = {each.stem for each in path(1).parents[2].glob("lua/*.lua")} - others
    checks = (b"refuse_schema(", b"refuse_mover(", b"~= FROZEN .. mover")
    sources = {name: load(name).source for name in scripts}
    assert {name for name in scripts if not any(map(sources[name].__contains__, checks))} == set()
