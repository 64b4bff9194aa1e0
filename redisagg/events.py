"""What happens in a flusher, as values: the argument of the function that is given as `on_event`.

Group keys, errors and tracebacks come from outside: escape them wherever they are shown. Times
with a name that ends with ``_at`` in `EventBatch` are by Redis' clock, `Event.at` is by that of the
machine; both are seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform

    T = TypeVar("T")

    @dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field,))
    def _value(cls: type[T]) -> type[T]: ...

else:
    # Frozen for type checkers only: each field of a frozen dataclass takes three times as long to
    # set, and a flusher makes three events of each batch.
    _value = dataclass(slots=True, kw_only=True)


@_value
class Event:
    """The base class of all events."""

    at: float
    """Time at which it happened."""
    namespace: str
    """Name of the namespace."""
    flusher: str
    """Id of the flusher, with the names of its host and process."""


OnEvent: TypeAlias = "Callable[[Event], object] | Callable[[Event], Awaitable[object]]"
"""A function that is called with each event, plain or ``async``."""


# --- the flusher and its leases ------------------------------------------------------------------


@_value
class FlusherStarted(Event):
    """A flusher runs."""

    partitions: int
    """Number of partitions of the namespace."""
    concurrency: int
    """Number of batches that it merges at the same time."""


@_value
class FlusherStopped(Event):
    """A flusher has ended."""

    seconds: float
    """How long it ran."""
    error: str
    """What ended it; empty if it was told to stop."""


@_value
class LeaseTaken(Event):
    """The flusher leads a partition: it flushes the groups in it."""

    partition: int
    """Number of the partition, from 0."""
    token: int
    """Fencing token of the lease; each lease of a partition has a higher one."""


@_value
class LeaseReleased(Event):
    """The flusher has given a lease back: it stops, or another flusher has a share now."""

    partition: int
    """Number of the partition, from 0."""
    token: int
    """Fencing token of the lease."""


@_value
class LeaseLost(Event):
    """The flusher does not lead a partition any more, and did not give the lease back.

    Batches that it had in flight there are void; the next leader takes them over.
    """

    partition: int
    """Number of the partition, from 0."""
    token: int
    """Fencing token of the lease."""
    error: str
    """Why."""


# --- batches -------------------------------------------------------------------------------------


@_value
class EventBatch:
    """The batch of an event, as it was claimed."""

    batch_id: str
    """Id of the batch, the same for all its attempts."""
    group_key: str
    """Text form of the group key."""
    partition: int
    """Number of the partition, from 0."""
    attempt: int
    """Number of this attempt, from 1: to merge it or, if an earlier one did, to enqueue it."""
    size: int
    """Number of tasks."""
    bytes: int
    """Bytes of the stored tasks, about."""
    weight: int
    """Sum of the weights of the tasks."""
    reason: str
    """Why it was due, as in `BatchInfo`."""
    opened_at: float
    """Arrival of its first task."""
    due_at: float
    """Time at which it was due."""
    claimed_at: float
    """Time at which it was first claimed."""


@_value
class BatchEvent(Event):
    """The base class of events of a batch."""

    batch: EventBatch
    """The batch."""


@_value
class BatchClaimed(BatchEvent):
    """The flusher has taken a batch."""


@_value
class BatchMerged(BatchEvent):
    """A call of the merge function has ended."""

    seconds: float
    """How long it took."""
    tasks: int
    """Number of merged tasks that it returned."""
    bytes: int
    """Bytes of these, as they are serialized."""
    failed: int
    """Number of the batch's tasks that failed alone, by a `Partial`."""
    error: str
    """Why it failed, or empty."""


@_value
class BatchDelivered(BatchEvent):
    """A call of a sink outside Redis has ended, for one merged task of a batch.

    Or a queue in Redis has refused a batch, which is then not enqueued.
    """

    sink: str
    """Class name of the sink."""
    seconds: float
    """How long the call took."""
    error: str
    """Why it failed, or empty."""


@_value
class BatchEnqueued(BatchEvent):
    """A batch is done: its merged tasks are in the sink, and it has left the namespace."""

    sink: str
    """Class name of the sink; of the last one if its merged tasks went to several. Empty if the
    merge function returned no task."""
    tasks: int
    """Number of merged tasks."""
    failed: int
    """Number of the batch's tasks that failed alone; see `on_task_failure`."""
    lag: float
    """Seconds since it was due."""
    merge_seconds: float
    """How long its merge took; 0 if an earlier attempt merged it."""
    sink_seconds: float
    """How long the call of Redis took that enqueued it, together with others; 0 if its sinks are
    outside Redis."""


@_value
class BatchRetried(BatchEvent):
    """A batch was given back, and is claimed again later, by this flusher or another one."""

    delay: float
    """Seconds until it can be claimed."""
    error: str
    """Why its attempt failed. Empty if none did: its sink is down, an older batch of its group has
    failed, or the flusher stops."""
    counts: bool
    """Whether the attempt counts."""


@_value
class BatchSplit(BatchEvent):
    """A batch has failed and was replaced by its halves, by `isolate_failures`."""

    delay: float
    """Seconds until these can be claimed."""
    error: str
    """Why it failed."""


@_value
class BatchBuried(BatchEvent):
    """A batch has become a dead letter."""

    attempts: int
    """Number of attempts."""
    error: str
    """Why the last one failed."""
    traceback: str = field(repr=False)
    """Traceback of that error, or empty."""


# --- sinks ---------------------------------------------------------------------------------------


@_value
class BreakerEvent(Event):
    """The base class of events of a circuit breaker."""

    sink: str
    """Class name of the sink, or ``the merge function``, which has a breaker too."""
    queue: str
    """Tells sinks of the same class apart: the key of a queue in Redis, else a number."""


@_value
class BreakerOpened(BreakerEvent):
    """A sink is left alone for a while."""

    seconds: float
    """How long."""
    reason: Literal["failures", "busy"]
    """``"failures"``: all batches failed there lately. ``"busy"``: it raised `RetryAfter`."""


@_value
class BreakerHalfOpened(BreakerEvent):
    """A sink is tried again, with a few batches."""


@_value
class BreakerClosed(BreakerEvent):
    """A sink works again."""

    seconds: float
    """Time since its breaker opened."""


# --- the events themselves -----------------------------------------------------------------------


@_value
class EventsDropped(Event):
    """Events are missing before this one, since the function took longer than they came."""

    count: int
    """Number of the missing events."""
