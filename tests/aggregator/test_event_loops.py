"""Aggregators for asyncio on event loops that are shut down, and on several of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import redis

from redisagg import AggregationConfig, AsyncAggregator, Task


@pytest.mark.parametrize("how", ["add_task", "add_tasks", "the first add"])
async def test_callers_go_on_when_all_other_tasks_of_the_loop_are_cancelled(
    redis_url: str, sync_redis: redis.Redis, how: str
) -> None:
    """As a shutdown handler does by `asyncio.all_tasks`, which knows tasks of redisagg too."""
    config = AggregationConfig(partitions=4, add_timeout=10)
    agg = AsyncAggregator("tests", redis_url, config=config)
    if how != "the first add":
        await agg.add_task(Task("t", 0, "g"))

    async def add_tasks() -> None:
        await agg.add_tasks([Task("t", 1, "g")])

    async def add_task() -> None:
        await agg.add_task(Task("t", 1, "g"))

    calls: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {"add_tasks": add_tasks}
    sync_redis.client_pause(500, all=False)  # milliseconds
    ours = [asyncio.create_task(calls.get(how, add_task)()) for _ in range(3)]
    for wait in (0, 0.1):  # before the first step, and with calls on the wire
        await asyncio.sleep(wait)
        me = asyncio.current_task()
        internal = asyncio.all_tasks() - {*ours, me}
        assert internal
        for each in internal:
            each.cancel()
    await asyncio.wait_for(asyncio.gather(*ours), 10)
    await asyncio.wait_for(agg.add_task(Task("t", 2, "g")), 10)
    assert (await agg.stats()).pending == 4 + (how != "the first add")
    await agg.close()
