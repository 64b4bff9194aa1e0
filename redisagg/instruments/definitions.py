"""The names, texts, labels, units and buckets of all metrics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, TypeAlias

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_WAITS = (0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 21600, 86400)
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10_000, 100_000)
_BYTES = (256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)

Labels: TypeAlias = tuple[str, ...]
"""The values of the labels of one time series, in the order of `Definition.labels`."""


class Definition(NamedTuple):
    """One metric."""

    name: str
    """Its name in Prometheus, of a counter without ``_total``."""
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    """The help text."""
    further_labels: Sequence[str] = ()
    """The names of the labels beside ``namespace``, which all metrics have."""
    bounds: Sequence[float] = ()
    """The upper bounds of the buckets of a histogram, without infinity."""
    unit: str = ""
    """The unit in the notation of UCUM, unless the end of the name has it."""

    @property
    def labels(self) -> Sequence[str]:
        """The names of all labels."""
        return ("namespace", *self.further_labels)


def _by_name(definitions: Iterable[Definition]) -> dict[str, Definition]:
    return {each.name: each for each in definitions}


PROCESS = _by_name(
    (
        Definition(
            "redisagg_tasks_added", "counter", "Tasks that were new in their group.", unit="{task}"
        ),
        Definition(
            "redisagg_tasks_deduplicated",
            "counter",
            "Added tasks whose id was known, so that nothing changed.",
            unit="{task}",
        ),
        Definition(
            "redisagg_tasks_refused",
            "counter",
            "Tasks that were not added, by the reason.",
            ("reason",),
            unit="{task}",
        ),
        Definition(
            "redisagg_batches_flushed",
            "counter",
            "Batches that are done, by the reason why they were due, and the class of their sink.",
            ("reason", "sink"),
            unit="{batch}",
        ),
        Definition(
            "redisagg_batch_size",
            "histogram",
            "Tasks in a flushed batch.",
            bounds=_SIZES,
            unit="{task}",
        ),
        Definition(
            "redisagg_batch_bytes",
            "histogram",
            "Bytes of the stored tasks of a flushed batch.",
            bounds=_BYTES,
        ),
        Definition(
            "redisagg_task_wait_seconds",
            "histogram",
            "Time from the arrival of a task to the end of its batch.",
            bounds=_WAITS,
        ),
        Definition(
            "redisagg_flush_lag_seconds",
            "histogram",
            "Time from the moment at which a batch was due to its end.",
            bounds=_SECONDS,
        ),
        Definition(
            "redisagg_merge_duration_seconds",
            "histogram",
            "Duration of a call of the merge function.",
            ("outcome",),
            _SECONDS,
        ),
        Definition(
            "redisagg_sink_duration_seconds",
            "histogram",
            "Duration of a call of a sink, or of the call of Redis that enqueues batches.",
            ("sink", "outcome"),
            _SECONDS,
        ),
        Definition(
            "redisagg_breaker_state",
            "gauge",
            "State of the breakers of a sink class: 0 closed, 1 half open, 2 open; the highest "
            "of several.",
            ("sink",),
            unit="{state}",
        ),
        Definition(
            "redisagg_partition_limit_tasks",
            "gauge",
            "Pending tasks that a partition may have: its share of max_pending_tasks.",
            unit="{task}",
        ),
        Definition(
            "redisagg_partition_limit_bytes",
            "gauge",
            "Bytes of pending tasks that a partition may have: its share of max_pending_bytes.",
        ),
    )
)
"""Metrics of a process, by name."""

NAMESPACE = _by_name(
    (
        Definition(
            "redisagg_troubles",
            "gauge",
            "1 if something keeps tasks of the namespace from being flushed, by its cause; else 0.",
            ("cause",),
            unit="{trouble}",
        ),
        Definition(
            "redisagg_tasks",
            "gauge",
            "Tasks that wait, are in batches in flight, or in dead letters.",
            ("state",),
            unit="{task}",
        ),
        Definition(
            "redisagg_groups",
            "gauge",
            "Groups that wait, are due, or are held: without tasks that wait for a time.",
            ("state",),
            unit="{group}",
        ),
        Definition(
            "redisagg_oldest_overdue_seconds",
            "gauge",
            "Time since the earliest group or batch that is not done was due.",
        ),
        Definition("redisagg_dead_batches", "gauge", "Dead letters.", unit="{batch}"),
        Definition(
            "redisagg_partitions", "gauge", "Partitions of the namespace.", unit="{partition}"
        ),
        Definition(
            "redisagg_leases", "gauge", "Partitions that have a leader.", unit="{partition}"
        ),
        Definition(
            "redisagg_lease_changes",
            "counter",
            "Partitions that had another leader than at the look before.",
            unit="{partition}",
        ),
        Definition("redisagg_flushers", "gauge", "Flushers that live.", unit="{flusher}"),
        Definition(
            "redisagg_paused_partitions",
            "gauge",
            "Partitions in which flushing is paused.",
            unit="{partition}",
        ),
        Definition(
            "redisagg_fullest_partition_tasks",
            "gauge",
            "Pending tasks, waiting or in flight, of the partition that has most.",
            unit="{task}",
        ),
        Definition(
            "redisagg_fullest_partition_bytes",
            "gauge",
            "Bytes of pending tasks of the partition that has most.",
        ),
    )
)
"""Metrics of what a namespace has in Redis, by name."""
