"""A producer process with a fixed rate, and the maximum rate of one producer and one flusher."""

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
"""Tasks per group."""


def maximum(url: str) -> float:
    """Tasks per second, from the first add until the last batch is in the queue."""
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
    """Runs a process that adds `rate` tasks per second over all groups; yields its pid."""
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
    """Adds in bursts every 10 ms. A late burst is larger, so that the rate stays the same."""
    aggregator = Aggregator("bench", url, config=flusher_config(SIZE))
    # At random: in turn, all groups would fill at the same moment, ten times the requested load.
    groups = Random(1)
    start = time.perf_counter()
    number = 0
    while True:
        due = int((time.perf_counter() - start) * rate)
        # A generator, so that a large burst does not take memory.
        burst = (Task("t", PAYLOAD, f"g{groups.randrange(GROUPS)}") for _ in range(number, due))
        aggregator.add_tasks(burst, ids=False)
        number = due
        time.sleep(0.01)
