"""How busy groups affect others, on one partition whose merges take 40 ms each."""

from __future__ import annotations

import time
from typing import Any

import msgpack

from benchmarks.latency import percentile
from benchmarks.measure import Check, Series
from benchmarks.processes import flushers, wait_for_leaders
from benchmarks.workload import client_of, empty, flusher_config
from redisagg import Aggregator, Task

_MERGE_SECONDS = 0.04
_CONCURRENCY = 16  # the default
_SIZE = 10  # of a batch of a hot group
_QUIET_GROUPS = 50
_QUIET_DELAY = 1.0
_STREAM = "bench-batches"


def slow_merge(group: str, merged: list[Task]) -> Task:
    """A merge function that takes 40 ms and returns the first payload."""
    time.sleep(_MERGE_SECONDS)
    return Task("merged", merged[0].payload, group)


SLOW = {"group_aggregator": slow_merge}


def _aggregator(url: str) -> Aggregator:
    empty(url)
    return Aggregator("bench", url, config=flusher_config(_SIZE, partitions=1))


def _fill(aggregator: Aggregator, group: str, seconds: float) -> None:
    """Adds more tasks to a group than can be merged in this time."""
    batches = int(2 * seconds * _CONCURRENCY / _MERGE_SECONDS)
    aggregator.add_tasks((Task("t", 0, group) for _ in range(batches * _SIZE)), ids=False)


def quiet_latencies(url: str, seconds: float) -> list[float]:
    """Seconds from the add of each task of a quiet group to its entry in the queue."""
    aggregator = _aggregator(url)
    _fill(aggregator, "hot", seconds)
    with flushers(url, "bench", _SIZE, partitions=1, changes=SLOW):
        wait_for_leaders(aggregator)
        end = time.monotonic() + seconds
        number = 0
        while time.monotonic() < end:
            group = f"quiet-{number % _QUIET_GROUPS}"
            task = Task("t", time.time(), group, max_delay=_QUIET_DELAY, max_size=1_000)
            aggregator.add_task(task)
            number += 1
            time.sleep(1.5 / _QUIET_GROUPS)
        time.sleep(2 * _QUIET_DELAY)
    hot_left = aggregator.get_group("hot")
    assert hot_left is not None, "the hot group did not outrun its merges"
    # The first part of the id of a stream's entry is the time at which it was written, in ms.
    return [
        int(entry_id.partition(b"-")[0]) / 1000 - msgpack.unpackb(fields[b"payload"])
        for entry_id, fields in client_of(url).xrange(_STREAM)
        if fields[b"group"] != b"hot"
    ]


def share_of_two(url: str, seconds: float) -> float:
    """The share of the group that got fewer batches, divided by that of the other one."""
    aggregator = _aggregator(url)
    for group in ("hot-a", "hot-b"):
        _fill(aggregator, group, seconds)
    with flushers(url, "bench", _SIZE, partitions=1, changes=SLOW):
        wait_for_leaders(aggregator)
        time.sleep(seconds)
    client: Any = client_of(url)
    groups = [fields[b"group"] for _, fields in client.xrange(_STREAM)]
    shares = sorted((groups.count(b"hot-a"), groups.count(b"hot-b")))
    return shares[0] / shares[1]


def measure(url: str, turns: int, scale: float, checks: list[Check]) -> list[Series]:
    """Latency of quiet groups, and shares of hot ones."""
    seconds = 20 * max(scale, 0.25)
    latency = Series("quiet groups with max_delay=1 beside a hot group", "s")
    latencies = quiet_latencies(url, seconds)
    for label, share in (("p50", 0.5), ("p99", 0.99), ("worst", 1.0)):
        latency.values[label] = [percentile(latencies, share)]
    p99 = latency.values["p99"][0]
    what = f"fairness: {len(latencies)} tasks of quiet groups, p99, s"
    checks.append(Check(what, "<= 1.5", f"{p99:.2f}", p99 <= 1.5))
    shares = Series("two hot groups, smaller / larger share", "ratio")
    shares.values["shares"] = [share_of_two(url, seconds / 4) for _ in range(turns)]
    least = min(shares.values["shares"])
    what = "fairness: two hot groups, smaller / larger share"
    checks.append(Check(what, ">= 0.9", f"{least:.2f} at least", least >= 0.9))
    return [latency, shares]
