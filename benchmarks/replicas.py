"""Adds per second with and without `min_replicas`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from urllib.parse import urlsplit

from benchmarks import adds
from benchmarks.measure import Check, Contender, Series, take_turns
from benchmarks.workload import NEVER_FULL, client_of
from redisagg.testing.embedded import EmbeddedRedis

_REPLICAS = 2


@contextmanager
def _replicas(url: str) -> Iterator[None]:
    """Runs replicas of the server on the same machine, and waits until they are in sync."""
    primary = urlsplit(url)
    with ExitStack() as stack:
        for _ in range(_REPLICAS):
            replica = stack.enter_context(EmbeddedRedis())
            with replica.client() as client:
                client.execute_command("REPLICAOF", primary.hostname, primary.port)
        with client_of(url) as client:
            client.config_set("repl-diskless-sync-delay", 0)
            client.set("bench-probe", 1)
            while client.wait(_REPLICAS, 100) < _REPLICAS:
                time.sleep(0.1)
        yield


def measure(url: str, turns: int, scale: float, checks: list[Check]) -> list[Series]:
    """One table: each way to add, waiting for 0, 1 and 2 replicas."""

    def n(count: int) -> int:
        return max(1_000, int(count * scale))

    contenders: dict[str, Contender] = {}
    for count in range(_REPLICAS + 1):
        config = replace(NEVER_FULL, min_replicas=count)
        contenders |= {
            f"lone, min_replicas={count}": partial(adds.lone, url, n(5_000), config),
            f"32 threads, min_replicas={count}": partial(adds.threads, url, n(20_000), 32, config),
            f"256 coroutines, min_replicas={count}": partial(
                adds.coroutines, url, n(40_000), 256, config
            ),
            f"add_tasks, min_replicas={count}": partial(adds.bulk, url, n(80_000), config),
        }
    with _replicas(url):
        series = take_turns("adds that wait for replicas", "adds/s", contenders, turns)
    for name in series.values:
        how, _, waits = name.partition(", ")
        if waits != "min_replicas=0":
            median, low, high = series.ratio(name, f"{how}, min_replicas=0")
            print(f"  {name}: {median:.2f} ({low:.2f} to {high:.2f}) of min_replicas=0", flush=True)
    return [series]
