"""What can be seen of an aggregator: groups, batches in flight, dead letters, counts.

Times are seconds since the epoch by Redis' clock. Group keys, payloads and error texts come from
outside: escape them wherever they are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from redisagg.protocol.entries import StoredTask


@dataclass(frozen=True, slots=True)
class GroupState:
    """A group that has tasks waiting or in flight."""

    group_key: str
    size: int
    """Tasks that wait; no batch holds them yet."""
    in_flight: int
    """Tasks that batches hold which are being merged or wait for a retry."""
    first_task_at: float | None
    """When the oldest waiting task came; None if none waits."""
    last_task_at: float | None
    due_at: float | None
    """When the group will be due if no further task comes; in the past if it is due."""
    priority: int
    held: bool
    """Whether a batch in retry holds the group back."""
    tasks: Sequence[StoredTask] | None = None
    """The waiting tasks in arrival order, if they were asked for."""


@dataclass(frozen=True, slots=True)
class BatchState:
    """A batch in flight."""

    batch_id: str
    group_key: str
    size: int
    attempts: int
    claimed_at: float
    """When it was first claimed."""
    state: Literal["claimed", "retry"]
    until: float | None
    """When its claim runs out, or when its retry is due."""
    error: str
    """Why its last attempt failed, or empty."""
    tasks: Sequence[StoredTask] | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A batch whose attempts are used up, or tasks of a batch that could not be decoded."""

    batch_id: str
    group_key: str
    size: int
    attempts: int
    claimed_at: float
    died_at: float
    error: str
    traceback: str
    tasks: Sequence[StoredTask] | None = None


@dataclass(frozen=True, slots=True)
class PartitionStats:
    """The counts of one partition; tasks unless said otherwise."""

    partition: int
    pending: int
    """Waiting in groups."""
    in_flight: int
    """Held by batches that are being merged or wait for a retry."""
    stored_bytes: int
    """Bytes of those that wait or are in flight, as `max_pending_bytes` counts them."""
    dead: int
    """Among the dead letters."""
    flushed: int
    """In batches that are done, since the namespace began."""
    groups: int
    """Groups with a task that waits or is in flight."""
    batches_in_flight: int
    batches_in_retry: int
    batches_dead: int
    batches_flushed: int
    paused: bool
    leader: str | None
    """The flusher that holds the lease, or None."""
    token: int
    """The fencing token of the newest lease."""


@dataclass(frozen=True, slots=True)
class Stats:
    """The counts of all partitions, in total and one by one; tasks unless said otherwise."""

    pending: int
    in_flight: int
    stored_bytes: int
    dead: int
    flushed: int
    groups: int
    batches_in_flight: int
    batches_in_retry: int
    batches_dead: int
    batches_flushed: int
    paused: bool
    flushers: Sequence[str]
    """The ids of the flushers that are alive."""
    partitions: Sequence[PartitionStats] = field(repr=False)
