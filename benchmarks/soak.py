"""Memory of each process and of Redis under a steady load for minutes; it must not grow."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.load import SIZE, maximum, producer
from benchmarks.measure import Check, Series
from benchmarks.processes import flushers, resident_bytes, wait_for_leaders
from benchmarks.workload import client_of, empty, flusher_config
from redisagg import Aggregator

_MIB = 1024 * 1024


def measure(url: str, turns: int, minutes: float, checks: list[Check]) -> list[Series]:
    """Adds, flushes and trims for `minutes` at 80% of the maximum rate, and samples memory."""
    rate = 0.8 * maximum(url)
    print(f"  soak: {rate:,.0f} tasks/s", flush=True)
    empty(url)
    client: Any = client_of(url)
    aggregator = Aggregator("bench", url, config=flusher_config(SIZE))
    aggregator.stats()
    series = Series("soak", "MiB")
    with flushers(url, "bench", SIZE) as [flusher]:
        wait_for_leaders(aggregator)
        with producer(url, rate) as adding:
            end = time.monotonic() + minutes * 60
            while time.monotonic() < end:
                time.sleep(min(5.0, minutes * 3))
                # Stands for a consumer. An approximate trim would remove at most 10,000 entries.
                client.xtrim("bench-batches", maxlen=1_000, approximate=False)
                sample = {
                    "Redis": client.info("memory")["used_memory"],
                    "flusher": resident_bytes(flusher),
                    "producer": resident_bytes(adding),
                }
                for name, value in sample.items():
                    series.values.setdefault(name, []).append(value / _MIB)
                stats = aggregator.stats()
                print(
                    f"  soak: {stats.flushed:,} flushed, {stats.pending:,} pending, {sample}",
                    flush=True,
                )
    kept_up = stats.flushed / (rate * minutes * 60)
    checks.append(
        Check(
            "soak: share of the load that was flushed", ">= 0.98", f"{kept_up:.3f}", kept_up >= 0.98
        )
    )
    for name, values in series.values.items():
        quarter = max(1, len(values) // 4)
        second = sum(values[quarter : 2 * quarter]) / quarter
        last = sum(values[-quarter:]) / quarter
        what = f"soak: memory of {name}, last quarter / second quarter"
        checks.append(Check(what, "<= 1.1", f"{last / second:.3f}", last / second <= 1.1))
    return [series]
