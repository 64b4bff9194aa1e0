"""What metrics, events and history cost: a drain and adds with each of them, and without any.

The CPU time is that of the flusher or producer. It suffers less than the wall time from other
processes of the machine. Prometheus does not ask for the metrics meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from benchmarks.measure import Check, Series, take_turns
from benchmarks.processes import cpu_seconds, flushers, wait_for_leaders
from benchmarks.workload import PAYLOAD, empty, fill, group_of
from redisagg import Aggregator, Task
from redisagg.events import BatchBuried, BreakerEvent, Event
from redisagg.metrics import Metrics


def _count(aggregator: Aggregator) -> object:
    return Metrics().watch(aggregator)


def _take(event: Event) -> None:
    """A function for events that does nothing."""


_ALERTS = (BatchBuried, BreakerEvent)


class Watched(NamedTuple):
    """How a flusher is watched."""

    changes: Mapping[str, Any] = {"history": False}
    watch: Callable[[Aggregator], object] | None = None


NOTHING = "nothing"
WATCHED = {
    NOTHING: Watched(),
    "history (the default)": Watched({"history": True}),
    "metrics": Watched(watch=_count),
    "on_event": Watched({"history": False, "on_event": _take}),
    "on_event, for alerts": Watched({"history": False, "on_event": _take, "event_kinds": _ALERTS}),
    "history and metrics": Watched({"history": True}, _count),
}


class Drain(NamedTuple):
    """The costs of one drain."""

    rate: float
    """Tasks per second."""
    cpu: float
    """CPU time of the flusher for each task, in us."""


def drain(url: str, watched: Watched, count: int, size: int) -> Drain:
    """A flusher process, from the end of a pause until all tasks are flushed."""
    empty(url)
    aggregator = fill(url, "bench", count, size)
    aggregator.pause()
    with flushers(url, "bench", size, changes=watched.changes, watch=watched.watch) as [pid]:
        wait_for_leaders(aggregator)
        before, start = cpu_seconds(pid), time.perf_counter()
        aggregator.resume()
        while aggregator.stats().flushed < count:
            time.sleep(0.02)
        took, used = time.perf_counter() - start, cpu_seconds(pid) - before
    aggregator.close()
    return Drain(count / took, 1e6 * used / count)


def _drain_cost(url: str, watched: Watched, count: int, size: int, rates: list[float]) -> float:
    cost = drain(url, watched, count, size)
    rates.append(cost.rate)
    return cost.cpu


def adds(url: str, *, counted: bool, count: int) -> float:
    """CPU time of the producer for an add, in us."""
    empty(url)
    aggregator = Aggregator("bench", url)
    aggregator.stats()
    if counted:
        _count(aggregator)
    before = time.process_time()
    for n in range(count):
        aggregator.add_task(Task("t", PAYLOAD, group_of(n)))
    used = time.process_time() - before
    aggregator.close()
    return 1e6 * used / count


def measure(url: str, turns: int, scale: float, checks: list[Check]) -> list[Series]:
    """Drains of groups of 10 and of 100, and adds one at a time."""
    found = []
    for size, tasks in ((10, 100_000), (100, 300_000)):
        count = max(10 * size, int(tasks * scale) // size * size)
        rates = Series(f"drain, groups of {size}, by who watches", "tasks/s")
        contenders = {
            name: partial(_drain_cost, url, watched, count, size, rates.values.setdefault(name, []))
            for name, watched in WATCHED.items()
        }
        title = f"CPU time of the flusher, groups of {size}, by who watches"
        found += [take_turns(title, "us/task", contenders, turns), rates]
    count = max(1_000, int(10_000 * scale))
    kinds = {
        name: partial(adds, url, counted=counted, count=count)
        for name, counted in ((NOTHING, False), ("metrics", True))
    }
    found.append(take_turns("CPU time of lone adds, by who watches", "us", kinds, turns))
    for series in found:
        for name in series.values:
            median, low, high = series.ratio(name, NOTHING)
            print(f"  {series.title}: {name}: {median:.3f} ({low:.3f} to {high:.3f})", flush=True)
    return found
