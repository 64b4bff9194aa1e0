"""Throughput by number of flushers, by number of partitions, and on a Redis Cluster."""

from __future__ import annotations

from functools import partial

from benchmarks.adds import coroutines
from benchmarks.drain import redisagg_drain
from benchmarks.measure import Check, Series, take_turns
from tests.support.servers import ClusterTopology


def measure(url: str, turns: int, scale: float, checks: list[Check]) -> list[Series]:
    """1, 2 and 4 flushers; 1 to 64 partitions; one server and a cluster of three masters."""
    count = max(10_000, int(200_000 * scale))
    by_flushers = take_turns(
        "drain by flushers, groups of 10",
        "tasks/s",
        {f"flushers: {n}": partial(redisagg_drain, url, count, 10, number=n) for n in (1, 2, 4)},
        turns,
    )
    by_partitions = take_turns(
        "drain by partitions, groups of 100",
        "tasks/s",
        {
            f"partitions: {n}": partial(redisagg_drain, url, count, 100, partitions=n)
            for n in (1, 4, 16, 64)
        },
        turns,
    )
    with ClusterTopology() as topology:
        cluster = topology.startup_url.replace("redis://", "redis+cluster://")
        cluster_adds, cluster_drain = (
            take_turns(
                f"{what}, one Redis and three masters",
                "tasks/s",
                {"one Redis": partial(do, url), "three masters": partial(do, cluster)},
                turns,
            )
            for what, do in (
                ("adds by 256 coroutines", lambda where: coroutines(where, count // 4, 256)),
                ("drain of groups of 100", lambda where: redisagg_drain(where, count, 100)),
            )
        )
    return [by_flushers, by_partitions, cluster_adds, cluster_drain]
