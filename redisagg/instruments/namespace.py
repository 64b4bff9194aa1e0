"""What is in Redis: read each time the metrics are collected."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from redisagg.aggregator import Aggregator
from redisagg.instruments.definitions import NAMESPACE, Labels
from redisagg.views import Cause, Overview, PartitionStats, Stats

CAUSES: Sequence[Cause] = (
    *("partition_away", "redis_full", "wrong_partitions", "clock", "no_flusher", "paused"),
    *("no_leader", "sink_down", "concurrency", "rate_limit", "moving"),
)
"""The causes that concern a namespace, not a single group."""


class NamespaceReader:
    """Reads what the namespaces of some aggregators have in Redis.

    Args:
        aggregators: their connections are used; they need not run a flusher.
    """

    def __init__(self, aggregators: Sequence[Aggregator]) -> None:
        self._aggregators = aggregators
        self._lock = threading.Lock()
        self._tokens: dict[tuple[str, int], int] = {}
        """By namespace and partition, the fencing tokens at the last look."""
        self._changes = dict.fromkeys((each.name for each in aggregators), 0)

    def read(self) -> dict[str, dict[Labels, float]]:
        """Asks Redis; returns the values of all metrics in `NAMESPACE`, by their names.

        While a master of a cluster does not answer, only the troubles and the number of partitions
        have a value.

        Raises:
            RedisAggError: Redis can't be asked.
        """
        found: dict[str, dict[Labels, float]] = {name: {} for name in NAMESPACE}
        for each in self._aggregators:
            for (metric, *state), value in self._values(each).items():
                labels = (each.name, *state)
                found[metric][labels] = value
        return found

    def _values(self, aggregator: Aggregator) -> dict[tuple[str, ...], float]:
        found = aggregator.overview()
        causes: dict[str, float] = dict.fromkeys(CAUSES, 0)
        causes.update((each.cause, 1) for each in found.troubles)
        values: dict[tuple[str, ...], float] = {
            ("redisagg_partitions",): aggregator.config.partitions,
            **{("redisagg_troubles", cause): value for cause, value in causes.items()},
        }
        if found.stats is not None:
            values.update(self._counts(aggregator.name, found, found.stats))
        return values

    def _counts(self, name: str, found: Overview, stats: Stats) -> dict[tuple[str, ...], float]:
        partitions = stats.partitions
        return {
            ("redisagg_tasks", "waiting"): stats.pending,
            ("redisagg_tasks", "in_flight"): stats.in_flight,
            ("redisagg_tasks", "dead"): stats.dead,
            ("redisagg_groups", "waiting"): found.groups_waiting or 0,
            ("redisagg_groups", "due"): found.groups_due or 0,
            ("redisagg_groups", "held"): found.groups_held or 0,
            ("redisagg_oldest_overdue_seconds",): found.oldest_overdue or 0,
            ("redisagg_dead_batches",): stats.batches_dead,
            ("redisagg_leases",): sum(each.leader is not None for each in partitions),
            ("redisagg_lease_changes",): self._count_changes(name, stats),
            ("redisagg_flushers",): len(stats.flushers),
            ("redisagg_paused_partitions",): sum(each.paused for each in partitions),
            ("redisagg_fullest_partition_tasks",): max(map(_pending, partitions), default=0),
            ("redisagg_fullest_partition_bytes",): max(
                (each.stored_bytes for each in partitions), default=0
            ),
        }

    def _count_changes(self, name: str, stats: Stats) -> int:
        with self._lock:
            for each in stats.partitions:
                before = self._tokens.setdefault((name, each.partition), each.token)
                if each.token != before:
                    self._tokens[(name, each.partition)] = each.token
                    self._changes[name] += 1
            return self._changes[name]


def _pending(partition: PartitionStats) -> int:
    return partition.pending + partition.in_flight
