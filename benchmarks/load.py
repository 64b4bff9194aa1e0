"""A producer in a process of its own, and the most that one producer and one flusher get through."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

from benchmarks.processes import flushers, wait_for_leaders
from benchmarks.workload import GROUPS, PAYLOAD, empty, flusher_config, tasks
from redisagg import Aggregator, Task

SIZE = 10
"""Of the groups."""


def maximum(url: str) -> float:
    """Tasks per second, from the first one added until the last batch is in the queue."""
    count = 150_000
    empty(url)
    aggregator = Aggregator("bench", url, config=flusher_config(SIZE))
    aggregator.stats()
    with flushers(url, "bench", SIZE):
        wait_for_leaders(aggregator)
        start = time.perf_counter()
        aggregator.add_tasks(tasks(count), ids=False)
        while aggregator.stats().flushed < count:
            time.sleep(0.01)
        return count / (time.perf_counter() - start)


@contextmanager
def producer(url: str, rate: float) -> Iterator[int]:
    """Adds `rate` tasks per second over all groups; gives the pid of the process."""
    process = multiprocessing.get_context("spawn").Process(
        target=_produce, args=(url, rate), daemon=True
    )
    process.start()
    try:
        yield process.pid or 0
    finally:
        process.kill()
        process.join()


def _produce(url: str, rate: float) -> None:
    """In bursts of 10 ms. A burst that was late is made up for."""
    aggregator = Aggregator("bench", url, config=flusher_config(SIZE))
    # In turn, all groups would be full at the same moment, ten times the load that is asked for.
    groups = Random(1)
    start = time.perf_counter()
    number = 0
    while True:
        due = int((time.perf_counter() - start) * rate)
        # A stream, so that a late burst does not show as memory.
        burst = (Task("t", PAYLOAD, f"g{groups.randrange(GROUPS)}") for _ in range(number, due))
        aggregator.add_tasks(burst, ids=False)
        number = due
        time.sleep(0.01)
