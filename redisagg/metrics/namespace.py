"""What is in Redis: read each time the metrics are collected."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.core import GaugeMetricFamily

from redisagg.aggregator import Aggregator
from redisagg.operations.measuring import measure


class NamespaceCollector:
    """A collector of what the namespaces of some aggregators have in Redis.

    One process in each deployment is enough, since all would say the same.

    Args:
        aggregators: their connections are used. A blocking one is needed, since collectors are
            called from a thread; it need not run a flusher.

    Collecting raises `RedisAggError` if Redis can't be asked within `add_timeout`. The scrape then
    fails, so that no old value is taken for a new one.
    """

    def __init__(self, *aggregators: Aggregator) -> None:
        self._aggregators = aggregators

    def describe(self) -> list[Any]:
        """Returns the metrics without values, so that registering does not ask Redis."""
        return list(_families().values())

    def collect(self) -> Iterator[Any]:
        """Asks Redis, and returns all metrics."""
        families = _families()
        for aggregator in self._aggregators:
            name = aggregator.name
            found = aggregator._run(measure(aggregator._keyspace))
            stats = found.stats
            leases = sum(partition.leader is not None for partition in stats.partitions)
            values: dict[tuple[str, ...], float] = {
                ("redisagg_tasks", "waiting"): stats.pending,
                ("redisagg_tasks", "in_flight"): stats.in_flight,
                ("redisagg_tasks", "dead"): stats.dead,
                ("redisagg_groups", "waiting"): found.groups_waiting,
                ("redisagg_groups", "due"): found.groups_due,
                ("redisagg_groups", "held"): found.groups_held,
                ("redisagg_oldest_overdue_seconds",): found.oldest_overdue,
                ("redisagg_dead_batches",): stats.batches_dead,
                ("redisagg_leases",): leases,
                ("redisagg_flushers",): len(stats.flushers),
            }
            for (metric, *state), value in values.items():
                families[metric].add_metric((name, *state), value)
        yield from families.values()


def _families() -> dict[str, Any]:
    texts = {
        "redisagg_tasks": "Tasks that wait, are in batches in flight, or in dead letters.",
        "redisagg_groups": "Groups that wait, are due, or are held: without tasks that wait for a "
        "time.",
        "redisagg_oldest_overdue_seconds": "Time since the earliest group or batch that is not "
        "done was due.",
        "redisagg_dead_batches": "Dead letters.",
        "redisagg_leases": "Partitions that have a leader.",
        "redisagg_flushers": "Flushers that live.",
    }
    with_state = ("redisagg_tasks", "redisagg_groups")
    return {
        name: GaugeMetricFamily(
            name, text, labels=("namespace", "state") if name in with_state else ("namespace",)
        )
        for name, text in texts.items()
    }
