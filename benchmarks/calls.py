"""Calls of a batched function that does nothing: latency beyond its grace, and calls per second."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier

from benchmarks.latency import percentile
from benchmarks.measure import Check, Series, take_turns
from benchmarks.processes import wait_for_leaders
from benchmarks.workload import empty
from redisagg import App
from redisagg.app.batched import Batched

_GRACE = 0.005  # seconds
_CALLERS = 500  # coroutines of each process
_PROCESSES = 2
_LEAST_CALLS = 20_000  # a second


def _embed(url: str) -> tuple[App, Batched[int, int]]:
    app = App(url)

    @app.batched("bench", max_size=64, grace=_GRACE)
    def embed(items: list[int]) -> list[int]:
        return items

    return app, embed


def _work(url: str) -> None:
    _embed(url)[0].run()


@contextmanager
def _worker(url: str) -> Iterator[None]:
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(url,), daemon=True)
    process.start()
    try:
        wait_for_leaders(_embed(url)[1].aggregator)
        yield
    finally:
        process.terminate()
        process.join(10)
        process.kill()


def latencies(url: str, rounds: int) -> list[float]:
    """Ms from call to result beyond the grace, one call after the other."""
    empty(url)

    async def call_all() -> list[float]:
        app, embed = _embed(url)
        await embed(0)  # subscribes
        found = []
        for number in range(rounds):
            start = time.perf_counter()
            await embed(number)
            found.append((time.perf_counter() - start - _GRACE) * 1000)
        await app.aclose()
        return found

    with _worker(url):
        return asyncio.run(call_all())


def _call(url: str, count: int, ready: Barrier) -> None:
    async def call_all() -> None:
        app, embed = _embed(url)
        await embed(0)
        ready.wait()

        async def caller(number: int) -> None:
            for item in range(number, count, _CALLERS):
                assert await embed(item) == item

        await asyncio.gather(*map(caller, range(_CALLERS)))
        await app.aclose()

    asyncio.run(call_all())
    ready.wait()


def calls(url: str, count: int) -> float:
    """Calls per second from all processes together."""
    empty(url)
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(_PROCESSES + 1)
    with _worker(url):
        callers = [
            context.Process(target=_call, args=(url, count // _PROCESSES, ready), daemon=True)
            for _ in range(_PROCESSES)
        ]
        for each in callers:
            each.start()
        ready.wait()
        start = time.perf_counter()
        ready.wait()
        seconds = time.perf_counter() - start
        for each in callers:
            each.join()
    return count / seconds


def measure(url: str, turns: int, scale: float, checks: list[Check]) -> list[Series]:
    """Latency of single calls, and the calls per second of two processes."""
    latency = Series("latency of a batched call beyond its grace", "ms")
    values = latencies(url, max(200, int(2_000 * scale)))
    for label, share, most in (("p50", 0.5, 3.0), ("p99", 0.99, 10.0)):
        value = percentile(values, share)
        latency.values[f"redisagg, {label}"] = [value]
        checks.append(
            Check(
                f"batched calls: call to result beyond the grace, {label}, ms",
                f"<= {most:g}",
                f"{value:.2f}",
                value <= most,
            )
        )
    count = max(10_000, int(200_000 * scale))
    name = f"redisagg, {_PROCESSES} processes"
    speed = take_turns("batched calls", "calls/s", {name: lambda: calls(url, count)}, turns)
    median = speed.median(name)
    checks.append(
        Check(
            f"batched calls from {_PROCESSES} processes, a second",
            f">= {_LEAST_CALLS:,}",
            f"{median:,.0f}",
            median >= _LEAST_CALLS,
        )
    )
    return [latency, speed]
