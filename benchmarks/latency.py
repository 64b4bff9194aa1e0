"""Milliseconds from the add that fills a group to its entry in the queue."""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from typing import Any

from benchmarks import asynq_side
from benchmarks.load import SIZE, maximum, producer
from benchmarks.measure import Check, Series
from benchmarks.processes import flushers, wait_for_leaders
from benchmarks.workload import PAYLOAD, client_of, empty, flusher_config
from redisagg import Aggregator, Task

_STREAM = "bench-batches"


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values are."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def redisagg_latencies(url: str, rounds: int, load: float = 0.0) -> list[float]:
    """Latencies in ms, while another process adds `load` tasks per second."""
    empty(url)
    aggregator = Aggregator("bench", url, config=flusher_config(SIZE))
    aggregator.stats()
    with ExitStack() as stack:
        stack.enter_context(flushers(url, "bench", SIZE))
        wait_for_leaders(aggregator)
        if load:
            stack.enter_context(producer(url, load))
            time.sleep(1)
        return fill_groups(url, aggregator, rounds)


def fill_groups(url: str, aggregator: Aggregator, rounds: int) -> list[float]:
    """Fills `rounds` groups one after the other; the latency of each in ms."""
    client: Any = client_of(url)
    found = []
    for number in range(rounds):
        group = f"latency-{number}"
        group_tasks = [Task("t", PAYLOAD, group, max_size=SIZE) for _ in range(SIZE)]
        aggregator.add_tasks(group_tasks[1:])
        there = client.exists(_STREAM)
        last = client.xinfo_stream(_STREAM)["last-generated-id"] if there else "0"
        start = time.perf_counter()
        aggregator.add_task(group_tasks[0])
        found.append((_wait_for(client, last, group.encode()) - start) * 1000)
    return found


def _wait_for(client: Any, last: Any, group: bytes) -> float:
    """The time at which the batch of a group is in the stream, after the entry `last`."""
    while True:
        for _, entries in client.xread({_STREAM: last}, block=5_000, count=500):
            now = time.perf_counter()
            last = entries[-1][0]
            if any(fields[b"group"] == group for _, fields in entries):
                return now


def measure(url: str, turns: int, scale: float, checks: list[Check]) -> list[Series]:
    """Latency on an idle flusher, at half of the maximum load, and of Asynq."""
    rounds = max(100, int(1_000 * scale))
    series = Series("latency of a full group", "ms")
    idle = redisagg_latencies(url, rounds)
    half = redisagg_latencies(url, rounds // 2, load=maximum(url) / 2)
    asynq = asynq_side.run(url, "latency", n=6) or []
    for name, values in (("idle", idle), ("half load", half), ("Asynq", asynq)):
        if values:
            for label, share in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)):
                series.values[f"{name}, {label}"] = [percentile(values, share)]
            print(f"  latency: {name}: median {statistics.median(values):.2f} ms", flush=True)
    for what, values, share, most in (
        ("latency: full group to queue, p50, ms", idle, 0.5, 2.0),
        ("latency: full group to queue, p99, ms", idle, 0.99, 10.0),
        ("latency: full group to queue under half load, p99, ms", half, 0.99, 25.0),
    ):
        value = percentile(values, share)
        checks.append(Check(what, f"<= {most:g}", f"{value:.2f}", value <= most))
    return [series]
