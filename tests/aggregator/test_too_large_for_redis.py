"""Merged tasks that Redis can't take: it closes the connection, and their batch alone fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from redisagg import Task
from redisagg.sinks import CallableSink
from redisagg.testing.embedded import EmbeddedRedis
from tests.support.aggregators import Make
from tests.support.servers import wait_until
from tests.support.tasks import await_dead, enqueued, numbered

LARGE = 3_000_000  # bytes, above each of LIMITS
LIMITS = [{"proto-max-bulk-len": "1mb"}, {"client-query-buffer-limit": "1mb"}]


def merge(group: str, tasks: list[Task]) -> Task:
    return Task("merged", b"x" * LARGE if group == "large" else [task.payload for task in tasks])


@pytest.mark.parametrize("limit", LIMITS, ids=[next(iter(limit)) for limit in LIMITS])
def test_a_merged_task_that_redis_cannot_take_is_buried_alone(
    make: Make, server_binary: Path, limit: dict[str, str]
) -> None:
    """The others that shared its commit are enqueued, and those behind it in its group."""
    others = [f"small{n}" for n in range(10)]
    with EmbeddedRedis(server_binary, config=limit) as server:
        agg = make(
            url=server.url,
            group_aggregator=merge,
            group_max_size=1,
            partitions=1,
        )
        for group in ("large", *others):
            agg.add_tasks(numbered(group, 1))
        with agg:
            [letter] = await_dead(agg)
            agg.add_tasks(numbered("later", 1))
            wait_until(lambda: len(enqueued(agg)) == len(others) + 1, what="all others left")
            stats = agg.stats()
        assert letter.group_key == "large"
        assert "MergedTaskTooLarge: Redis does not accept a call" in letter.error
        assert letter.attempts == 1
        assert sorted(batch.group for batch in enqueued(agg)) == sorted([*others, "later"])
        assert (stats.dead, stats.pending, stats.in_flight) == (1, 0, 0)


@pytest.mark.parametrize("limit", LIMITS, ids=[next(iter(limit)) for limit in LIMITS])
def test_a_result_is_stored_that_is_larger_than_one_call_may_be(
    make: Make, server_binary: Path, limit: dict[str, str]
) -> None:
    """Its sink fails, so that the result is stored for the next attempt, in parts."""
    delivered: list[object] = []
    merged: list[str] = []
    tried: list[str] = []

    def merge_large(group: str, tasks: list[Task]) -> Task:
        merged.append(group)
        return merge(group, tasks)

    def deliver(task: Task, batch_id: str) -> None:
        tried.append(batch_id)
        if len(task.payload) == LARGE and tried.count(batch_id) < 3:
            raise ConnectionError("the queue is away")
        delivered.append(task.group_key)

    with EmbeddedRedis(server_binary, config=limit) as server:
        config: dict[str, Any] = {"group_max_size": 1, "partitions": 1, "max_attempts": 5}
        sink = CallableSink(deliver)
        with make(url=server.url, sink=sink, group_aggregator=merge_large, **config) as agg:
            agg.add_tasks(numbered("large", 1))
            agg.add_tasks(numbered("small", 3))
            assert agg.wait_until_idle(10)
            assert agg.stats().dead == 0
    assert sorted(map(str, delivered)) == ["large", "small", "small", "small"]
    assert merged.count("large") == 1
