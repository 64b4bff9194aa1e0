"""Adds per second: one at a time, from threads, from coroutines, in bulk.

Each function returns adds per second.
"""

from __future__ import annotations

import asyncio
import threading
import time

from benchmarks import asynq_side, bare
from benchmarks.measure import Check, Series, ratio_check, take_turns
from benchmarks.workload import NEVER_FULL, PAYLOAD, empty, group_of, tasks
from redisagg import AggregationConfig, Aggregator, AsyncAggregator, Task


def lone(url: str, count: int, config: AggregationConfig = NEVER_FULL) -> float:
    """`Aggregator.add_task`, one call at a time."""
    empty(url)
    aggregator = Aggregator("bench", url, config=config)
    start = time.perf_counter()
    for task in tasks(count):
        aggregator.add_task(task)
    return count / (time.perf_counter() - start)


def threads(url: str, count: int, number: int, config: AggregationConfig = NEVER_FULL) -> float:
    """`Aggregator.add_task` from `number` threads."""
    empty(url)
    aggregator = Aggregator("bench", url, config=config)
    aggregator.stats()

    def work(first: int) -> None:
        for n in range(first, count, number):
            aggregator.add_task(Task("t", PAYLOAD, group_of(n)))

    running = [threading.Thread(target=work, args=(n,)) for n in range(number)]
    start = time.perf_counter()
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return count / (time.perf_counter() - start)


def coroutines(url: str, count: int, number: int, config: AggregationConfig = NEVER_FULL) -> float:
    """`AsyncAggregator.add_task` from `number` coroutines."""
    empty(url)
    return asyncio.run(_coroutines(url, count, number, config))


async def _coroutines(url: str, count: int, number: int, config: AggregationConfig) -> float:
    aggregator = AsyncAggregator("bench", url, config=config)
    await aggregator.stats()

    async def work(first: int) -> None:
        for n in range(first, count, number):
            await aggregator.add_task(Task("t", PAYLOAD, group_of(n)))

    start = time.perf_counter()
    await asyncio.gather(*map(work, range(number)))
    took = time.perf_counter() - start
    await aggregator.close()
    return count / took


def bulk(url: str, count: int, config: AggregationConfig = NEVER_FULL) -> float:
    """`Aggregator.add_tasks`."""
    empty(url)
    aggregator = Aggregator("bench", url, config=config)
    aggregator.stats()
    start = time.perf_counter()
    aggregator.add_tasks(tasks(count), ids=False)
    return count / (time.perf_counter() - start)


def asynq(url: str, count: int, goroutines: int) -> float | None:
    """Asynq's client with `asynq.Group`; None where Asynq cannot run."""
    empty(url)
    numbers = asynq_side.run(url, "add", n=count, c=goroutines)
    return numbers[0] if numbers else None


def measure(url: str, turns: int, scale: float, checks: list[Check]) -> list[Series]:
    """Adds: one table, and the ratios that are required."""

    def n(count: int) -> int:
        return max(1_000, int(count * scale))

    contenders = {
        "redisagg, lone": lambda: lone(url, n(5_000)),
        "bare script, lone": lambda: bare.lone_adds(url, n(5_000)),
        "bare RPUSH, lone": lambda: bare.pushes(url, n(5_000)),
        "Asynq, 1 goroutine": lambda: asynq(url, n(20_000), 1),
        "redisagg, 32 threads": lambda: threads(url, n(40_000), 32),
        "bare script, 32 threads": lambda: bare.threaded_adds(url, n(15_000), 32),
        "redisagg, 256 coroutines": lambda: coroutines(url, n(60_000), 256),
        "bare group commit, 256": lambda: bare.group_commit(url, n(60_000), 256),
        "Asynq, 32 goroutines": lambda: asynq(url, n(60_000), 32),
        "redisagg, 2,048 coroutines": lambda: coroutines(url, n(120_000), 2_048),
        "bare group commit, 2,048": lambda: bare.group_commit(url, n(120_000), 2_048),
        "redisagg, add_tasks": lambda: bulk(url, n(120_000)),
        "bare script in bulk": lambda: bare.bulk_adds(url, n(120_000)),
    }
    series = take_turns("adds", "adds/s", contenders, turns)
    for what, name, reference, least in (
        ("adds: 256 coroutines / Asynq with 32 goroutines", "redisagg, 256 coroutines", "Asynq, 32 goroutines", 1.0),
        ("adds: 2,048 coroutines / Asynq with 32 goroutines", "redisagg, 2,048 coroutines", "Asynq, 32 goroutines", 1.5),
        ("adds: 256 coroutines / bare group commit", "redisagg, 256 coroutines", "bare group commit, 256", 0.7),
        ("adds: 2,048 coroutines / bare group commit", "redisagg, 2,048 coroutines", "bare group commit, 2,048", 0.7),
        ("adds: 32 threads / bare script from 32 threads", "redisagg, 32 threads", "bare script, 32 threads", 3.0),
        ("adds: add_tasks / bare script in bulk", "redisagg, add_tasks", "bare script in bulk", 0.8),
        ("adds: add_tasks / Asynq with 32 goroutines", "redisagg, add_tasks", "Asynq, 32 goroutines", 1.7),
    ):  # fmt: skip
        ratio_check(series, what, name, reference, least, checks)
    return [series]
