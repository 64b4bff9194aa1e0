"""Tasks per second from full groups into the queue.

Each function returns tasks per second.
"""

from __future__ import annotations

import time
from functools import partial

from benchmarks import asynq_side, bare, celery_batches_side
from benchmarks.measure import Check, Contender, Series, ratio_check, take_turns
from benchmarks.processes import flushers, wait_for_leaders
from benchmarks.workload import empty, fill


def redisagg_drain(
    url: str, count: int, size: int, *, hot: bool = False, number: int = 1, partitions: int = 16
) -> float:
    """`number` flusher processes, from the end of a pause until all tasks are flushed."""
    empty(url)
    aggregator = fill(url, "bench", count, size, hot=hot, partitions=partitions)
    aggregator.pause()
    with flushers(url, "bench", size, number, partitions):
        wait_for_leaders(aggregator, number)
        start = time.perf_counter()
        aggregator.resume()
        while aggregator.stats().flushed < count:
            time.sleep(0.02)  # each poll asks 16 partitions: every 5 ms it cost 8% of the speed
        return count / (time.perf_counter() - start)


def bare_scripts(url: str, count: int, size: int) -> float:
    """The bare scripts, one call after the other."""
    empty(url)
    fill(url, "bench", count, size)
    return bare.drain(url, "bench")


def asynq(url: str, count: int, size: int) -> float | None:
    """Asynq's aggregator; None where Asynq cannot run."""
    empty(url)
    numbers = asynq_side.run(url, "drain", n=count, size=size)
    return numbers[0] if numbers else None


def measure(url: str, turns: int, scale: float, checks: list[Check]) -> list[Series]:
    """A table for each group size: Asynq and a hot group for 100, celery-batches from 10 on."""
    found = []
    for size, count in ((1, 30_000), (10, 100_000), (100, 300_000), (1_000, 300_000)):
        n = max(size * 10, int(count * scale))
        n -= n % size
        contenders: dict[str, Contender] = {
            "redisagg": partial(redisagg_drain, url, n, size),
            "bare scripts": partial(bare_scripts, url, n, size),
        }
        if size == 100:
            contenders["redisagg, one hot group"] = partial(redisagg_drain, url, n, 100, hot=True)
            contenders["Asynq"] = partial(asynq, url, 20_000, 100)
        if size > 1:  # it makes no batches of one message
            contenders["celery-batches"] = partial(
                celery_batches_side.drain, url, max(10 * size, 5_000), size
            )
        series = take_turns(f"drain, groups of {size}", "tasks/s", contenders, turns)
        found.append(series)
        if size == 100:
            ratio_check(
                series,
                "drain: groups of 100 / bare scripts",
                "redisagg",
                "bare scripts",
                0.6,
                checks,
            )
            ratio_check(
                series,
                "drain: groups of 100 / Asynq's aggregator",
                "redisagg",
                "Asynq",
                3.0,
                checks,
            )
            what = "drain: one hot group / many groups"
            ratio_check(series, what, "redisagg, one hot group", "redisagg", 0.85, checks)
    return found
