"""Aggregators for asyncio on event loops that are shut down, and on several of them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import redis

from redisagg import AggregationConfig, Aggregator, AsyncAggregator, Task
from redisagg.errors import FlusherFailed
from tests.support.aggregators import LoopThread


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


def waiting_ids(url: str) -> list[str]:
    with Aggregator("tests", url) as agg:
        agg.stop()
        state = agg.get_group("g")
        assert state is not None
        assert state.tasks is not None
        return [each.task.id for each in state.tasks if each.task]


@pytest.mark.parametrize("client", ["made from a URL", "of the caller"])
def test_an_aggregator_is_used_on_one_event_loop_after_the_other(
    redis_url: str, sync_redis: redis.Redis, client: str
) -> None:
    source = redis_url if client == "made from a URL" else redis.asyncio.Redis.from_url(redis_url)
    # Never due, so that no flusher that an earlier test left behind takes them.
    config = AggregationConfig(group_max_size=1_000)
    agg = AsyncAggregator("tests", source, config=config)

    async def use(n: int) -> None:
        await asyncio.gather(*(agg.add_task(Task("t", 0, "g", id=f"{n}-{i}")) for i in range(20)))
        await agg.add_tasks([Task("t", 0, "g", id=f"{n}-stream")])
        assert (await agg.stats()).pending == 21 * (n + 1)

    for n in range(4):
        asyncio.run(use(n))
    assert len(agg._on_loops) == 1  # closed loops are forgotten
    calls = len(list(sync_redis.scan_iter("redisagg:*:call:*")))
    assert calls <= 3 * 16  # a call sequence serves one loop after the other
    asyncio.run(agg.close())
    ids = waiting_ids(redis_url)
    assert len(ids) == len(set(ids)) == 84


def test_an_aggregator_is_used_on_loops_of_several_threads(redis_url: str) -> None:
    agg = AsyncAggregator("tests", redis_url)
    errors: list[BaseException] = []

    async def add(k: int) -> None:
        for n in range(30):
            await agg.add_task(Task("t", 0, "g", id=f"{k}-{n}"))

    def run(k: int) -> None:
        try:
            asyncio.run(add(k))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []
    assert len(set(waiting_ids(redis_url))) == 120


def test_an_add_works_after_a_loop_that_ended_during_one(
    redis_url: str, sync_redis: redis.Redis
) -> None:
    agg = AsyncAggregator("tests", redis_url)

    async def leave_adds_behind() -> None:
        await agg.add_task(Task("t", 0, "g"))
        sync_redis.client_pause(300, all=False)  # milliseconds
        for _ in range(3):
            asyncio.get_running_loop().create_task(agg.add_task(Task("t", 0, "g")))
        await asyncio.sleep(0.05)

    asyncio.run(leave_adds_behind())
    asyncio.run(asyncio.wait_for(agg.add_task(Task("t", 0, "g", id="later")), 10))
    assert "later" in waiting_ids(redis_url)


async def test_a_flusher_on_a_loop_of_another_thread_goes_on_and_is_stopped_there(
    redis_url: str,
) -> None:
    agg = AsyncAggregator("tests", redis_url)
    other = LoopThread()
    try:
        other.run(agg.start())
        flusher = agg._flusher
        await agg.start()
        assert agg._flusher is flusher  # it runs there
        assert agg.is_running
        await agg.stop()
        assert not agg.is_running
        assert flusher is not None
        assert not flusher.is_running
    finally:
        await agg.close()
        other.run(agg.close())
        other.close()


def test_a_flusher_ends_with_its_loop_and_is_not_forgotten_on_one_that_is_stopped(
    redis_url: str,
) -> None:
    agg = AsyncAggregator("tests", redis_url)
    asyncio.run(agg.start())  # cancels the flusher at the end
    assert not agg.is_running
    loop = asyncio.new_event_loop()
    loop.run_until_complete(agg.start())
    assert agg.is_running
    for call in (agg.start, agg.stop):
        with pytest.raises(FlusherFailed, match="another event loop"):
            asyncio.run(call())
    loop.run_until_complete(agg.close())
    assert not agg.is_running
    loop.close()
