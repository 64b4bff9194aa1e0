"""Flushers in processes of their own, and the resources that processes use (Linux)."""

from __future__ import annotations

import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from benchmarks.workload import flusher_config
from redisagg import Aggregator

_TICK = os.sysconf("SC_CLK_TCK")


def _serve(
    url: str,
    name: str,
    size: int,
    partitions: int,
    changes: Mapping[str, Any],
    watch: Callable[[Aggregator], object] | None,
) -> None:
    aggregator = Aggregator(
        name, url, config=flusher_config(size, partitions=partitions, **changes)
    )
    if watch is not None:
        watch(aggregator)
    aggregator.run()


@contextmanager
def flushers(
    url: str,
    name: str,
    size: int,
    count: int = 1,
    partitions: int = 16,
    changes: Mapping[str, Any] | None = None,
    watch: Callable[[Aggregator], object] | None = None,
) -> Iterator[list[int]]:
    """Runs `count` flusher processes for groups of `size`; yields their pids.

    Args:
        changes: settings; functions among them are those of a module.
        watch: is called with the aggregator before it runs, a function of a module.
    """
    context = multiprocessing.get_context("spawn")
    running = [
        context.Process(
            target=_serve, args=(url, name, size, partitions, changes or {}, watch), daemon=True
        )
        for _ in range(count)
    ]
    for process in running:
        process.start()
    try:
        yield [process.pid or 0 for process in running]
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.join(10)
            process.kill()


def wait_for_leaders(aggregator: Aggregator, flushers: int = 1) -> None:
    """Waits until every partition has a leader and every flusher leads a partition."""
    while True:
        leaders = [partition.leader for partition in aggregator.stats().partitions]
        if all(leaders) and len(set(leaders)) == flushers:
            return
        time.sleep(0.05)


def cpu_seconds(pid: int) -> float:
    """Seconds of CPU time that a process has used, in user and system mode."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


class Machine:
    """Describes this machine, and the CPU time that other guests took since construction."""

    def __init__(self) -> None:
        self._before = self._cpu_ticks()

    def __str__(self) -> str:
        ticks = [now - then for now, then in zip(self._cpu_ticks(), self._before, strict=True)]
        stolen = 100 * ticks[7] / max(1, sum(ticks[:8]))
        python = platform.python_version()
        return (
            f"{os.cpu_count()} cores, Python {python}; {stolen:.0f}% of the CPU time was taken by "
            "other guests of the host"
        )

    @staticmethod
    def _cpu_ticks() -> list[int]:
        """Ticks of user, nice, system, idle, iowait, irq, softirq, steal, ...: see proc(5)."""
        with open("/proc/stat") as file:
            return [int(number) for number in file.readline().split()[1:]]


def resident_bytes(pid: int) -> int:
    """Bytes of resident memory of a process."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
