"""All settings of an aggregator, checked when they are made."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from redisagg.durations import Duration, seconds, to_seconds
from redisagg.errors import InvalidConfig, InvalidTask
from redisagg.task import Task, check_size

Merged: TypeAlias = "Task | Sequence[Task] | None"
"""What a merge function may return: one task, several (a list or tuple), or none."""

GroupAggregator: TypeAlias = Callable[[str, list[Task]], "Merged | Awaitable[Merged]"]
"""A merge function: the group key and its tasks in arrival order to what is enqueued."""


def default_aggregator(group: str, tasks: list[Task]) -> Task:
    """The merge function used when none is given: all payloads in one task.

    Its type is that of the first task with ``:aggregated`` behind it, its payload
    ``{"group": group, "count": len(tasks), "payloads": [...]}`` in arrival order.
    """
    return Task(
        type=f"{tasks[0].type}:aggregated",
        payload={"group": group, "count": len(tasks), "payloads": [t.payload for t in tasks]},
        group_key=group,
    )


_ENTRY_HEAD_BYTES = 7 + 128  # what a stored task has beside its body, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationConfig:
    """When groups are due, how they are merged, and how much is done at a time.

    Durations are seconds or `timedelta`; they are kept as seconds.

    Args:
        group_grace_period: a group is due when no task came for so long.
        group_max_delay: a group is due when its oldest task has waited so long. The earlier of
            the two wins.
        group_max_size: a group is due at once when it holds so many tasks; no batch holds more.
        group_aggregator: the merge function, plain or `async`. A plain one runs in a thread.
        partitions: into how many parts the groups are split. Fixed for the life of a namespace.
        concurrency: how many batches a flusher merges at the same time.
        executor: where a plain merge function runs: ``"thread"``, or ``"process"`` for merges that
            are heavy on the CPU; it and the sink have to be importable then (pickle).
        merge_timeout: a merge that takes longer has failed. A thread can't be stopped: a plain
            function should end by itself.
        max_attempts: so many times a batch is merged, and so many times what came of it is handed
            to the sink, before it goes to the dead letters. Attempts do not count while the sink
            fails for all batches.
        retry_delay: before the second attempt; doubled for each further one, with jitter. Also how
            long a sink that fails for all batches is left alone at first.
        retry_max_delay: no wait between two attempts is longer.
        lease_time: how long a flusher leads a partition without renewing. What a dead one leaves
            behind is taken over after at most so long.
        max_task_bytes: the largest packed task that is accepted.
        linger: how long an add waits for others to share its round trip. 0 for not at all: what
            comes while a call is on the wire shares the next one anyway.
        add_timeout: how long a producer rides out a lost connection before it raises.
        max_pending_tasks: so many tasks may wait or be in flight, and no more are accepted
            (`AggregatorFull`); None for any number. A script sees one partition only, so each
            has an equal share: a few large groups can fill theirs while others have room. What
            waits for its time counts too: allow well more than open groups hold.
        max_pending_bytes: likewise for the bytes of packed tasks, with their ids and 7 bytes each.
        full_timeout: how long an add waits for room before it raises `AggregatorFull`, also if it
            is Redis that is out of memory; 0 for not at all.
        dedupe_window: for so long after a task was flushed its id is not accepted again in its
            group: adding it changes nothing. Remembered for up to twice as long, in some 60 bytes
            and the lengths of id and group key for each task. 0 for none. Set the same for
            producers and flushers: flushers remember, producers ask.
        min_replicas: an add returns only when so many replicas have what it wrote (WAIT), so that
            a failover to one of them loses nothing; see docs/replication.md.
        wait_for_fsync: an add returns only when the server and `min_replicas` replicas have it on
            disk (WAITAOF); needs Redis 7.2 with ``appendonly yes``.
        replica_timeout: how long one attempt waits for either. Adds try again until `add_timeout`
            and then raise `NotReplicated`.
        shutdown_timeout: how long `stop` waits for merges in hand.

    Raises:
        InvalidConfig: a setting is out of range or of the wrong type.
    """

    group_grace_period: Duration = 120.0
    group_max_delay: Duration = 600.0
    group_max_size: int = 20
    group_aggregator: GroupAggregator = default_aggregator
    partitions: int = 16
    concurrency: int = 16
    executor: Literal["thread", "process"] = "thread"
    merge_timeout: Duration = 60.0
    max_attempts: int = 10
    retry_delay: Duration = 1.0
    retry_max_delay: Duration = 300.0
    lease_time: Duration = 10.0
    max_task_bytes: int = 1024 * 1024
    linger: Duration = 0.0
    add_timeout: Duration = 30.0
    max_pending_tasks: int | None = None
    max_pending_bytes: int | None = None
    full_timeout: Duration = 0.0
    dedupe_window: Duration = 0.0
    min_replicas: int = 0
    wait_for_fsync: bool = False
    replica_timeout: Duration = 1.0
    shutdown_timeout: Duration = 30.0

    def __post_init__(self) -> None:
        for name in (
            "group_grace_period",
            "group_max_delay",
            "merge_timeout",
            "retry_delay",
            "retry_max_delay",
            "lease_time",
            "add_timeout",
            "replica_timeout",
            "shutdown_timeout",
        ):
            object.__setattr__(self, name, to_seconds(getattr(self, name), name, InvalidConfig))
        try:
            for name in ("linger", "full_timeout", "dedupe_window"):
                if (given := getattr(self, name)) != 0.0:
                    object.__setattr__(self, name, to_seconds(given, name, InvalidConfig))
            check_size(self.group_max_size, "group_max_size")
        except InvalidTask as error:
            raise InvalidConfig(str(error)) from None
        _check_range("partitions", self.partitions, 1, 4096)
        _check_range("concurrency", self.concurrency, 1, 10_000)
        _check_range("max_attempts", self.max_attempts, 1, 1_000_000)
        _check_range("min_replicas", self.min_replicas, 0, 1_000)
        _check_range("max_task_bytes", self.max_task_bytes, 1, 512 * 1024 * 1024)
        for name in ("max_pending_tasks", "max_pending_bytes"):
            if (limit := getattr(self, name)) is not None:
                _check_range(name, limit, self.partitions, 2**53)  # at least 1 for each
        share = (self.max_pending_bytes or math.inf) // self.partitions
        if share < self.max_task_bytes + _ENTRY_HEAD_BYTES:
            raise InvalidConfig(
                f"each of the {self.partitions} partitions has {share:,.0f} bytes of "
                f"max_pending_bytes, and one task may have {self.max_task_bytes:,} "
                "(max_task_bytes): allow more pending bytes, or smaller tasks"
            )
        if seconds(self.lease_time) < 0.1:
            raise InvalidConfig("lease_time is at least 0.1 seconds")
        if not isinstance(self.wait_for_fsync, bool):
            raise InvalidConfig(f"wait_for_fsync is True or False, not {self.wait_for_fsync!r}")
        if self.waits_for_replicas and seconds(self.replica_timeout) > seconds(self.add_timeout):
            raise InvalidConfig("replica_timeout is at most add_timeout")
        if self.executor not in ("thread", "process"):
            raise InvalidConfig(f"executor is 'thread' or 'process', not {self.executor!r}")
        if not callable(self.group_aggregator):
            raise InvalidConfig("group_aggregator is a function of (group, tasks)")

    @property
    def waits_for_replicas(self) -> bool:
        """Whether adds wait for more than the primary's reply."""
        return self.min_replicas > 0 or self.wait_for_fsync


def _check_range(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidConfig(f"{name} is a whole number from {least:,} to {most:,}, not {value!r}")


def default_aggregation_config(**changes: Any) -> AggregationConfig:
    """The defaults: grace period 2 minutes, max delay 10 minutes, max size 20, with `changes`.

    Raises:
        InvalidConfig: a change is out of range or of the wrong type.
    """
    return AggregationConfig(**changes)
