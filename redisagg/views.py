"""Views of a namespace: groups, batches in flight, dead letters, counts.

Times are seconds since the epoch by Redis' clock. Group keys, payloads and error texts come from
outside: escape them wherever they are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

from redisagg.protocol.entries import StoredTask


@dataclass(frozen=True, slots=True)
class GroupState:
    """A group that is paused, or has tasks that wait or are in flight."""

    group_key: str
    """Text form of the group key."""
    size: int
    """Number of tasks that wait: no batch holds them yet."""
    in_flight: int
    """Number of tasks in batches that are being merged or wait for a retry."""
    first_task_at: float | None
    """Arrival of the oldest waiting task; None if no task waits."""
    last_task_at: float | None
    """Arrival of the newest waiting task; None if no task waits."""
    due_at: float | None
    """Time at which the group is due if no further task comes, in the past if it is due already;
    None if no task waits, or if no time makes it due."""
    priority: int
    """Highest priority of the waiting tasks."""
    held: bool
    """Whether a batch in retry holds the group back."""
    paused: bool = False
    """Whether the group is paused by `pause(group_key)`."""
    tasks: Sequence[StoredTask] | None = None
    """Waiting tasks in arrival order; None if they were not asked for or can't be read. `get_group`
    reads a page of them, `size` is the number of all."""


FIRST_SCAN = 16
"""Number of groups in the first page, about; later pages have up to 500."""


class GroupPlace(NamedTuple):
    """A place between two pages of groups."""

    partition: int = 0
    cursor: int = 0
    """Cursor of HSCAN, or number of groups to skip in the indexes."""
    size: int = FIRST_SCAN
    """Number of groups that HSCAN reads, about."""


class GroupPage(NamedTuple):
    """A page of groups."""

    states: list[GroupState]
    next: GroupPlace | None
    """The place of the next page, for `read_groups`; None after the last page."""


class GroupList(NamedTuple):
    """A page of groups that were searched for; see `find_groups`."""

    states: list[GroupState]
    """The groups of this page, in order. There may be none, although further pages have some."""
    cursor: str | None
    """The place of the next page, for `find_groups`; None after the last page."""
    examined: int
    """Number of groups that were looked at for this page, about."""
    exact: bool
    """Whether the order holds across pages. If not, it holds within each page, and what comes first
    of all groups is among what comes first in the pages."""


class AppliedPolicy(NamedTuple):
    """What `set_policy` did to open groups."""

    changed: int
    """Number of groups whose waiting tasks have other limits now."""
    left: int
    """Number of groups that match and stay as they were: more than 200 tasks or 512 KiB wait, or
    they changed whenever they were read."""


@dataclass(frozen=True, slots=True)
class BatchInfo:
    """What a merge function with a third parameter is told about its batch."""

    batch_id: str
    """Id of the batch, the same for all its attempts."""
    group_key: str
    """Text form of the group key."""
    attempt: int
    """Number of this attempt, from 1."""
    reason: str
    """Why the batch was due: ``"size"``, ``"bytes"``, ``"weight"``, ``"grace"``, ``"max_delay"``,
    ``"due_at"``, ``"schedule"``, ``"leading"`` or ``"flush"``."""
    opened_at: float
    """Arrival of its first task."""
    due_at: float
    """Time at which it was due."""
    claimed_at: float
    """Time at which it was first claimed."""
    bytes: int
    """Bytes of its stored tasks; of more than 1,000 tasks or 1 MiB about."""
    weight: int
    """Sum of the weights of its tasks."""
    arrivals: Sequence[float]
    """Time of arrival of each task, in the order of the tasks."""


@dataclass(frozen=True, slots=True)
class BatchState:
    """A batch in flight."""

    batch_id: str
    """Id of the batch, the same for all its attempts."""
    group_key: str
    """Text form of the group key."""
    size: int
    """Number of tasks."""
    attempts: int
    """Number of attempts so far, the present one included."""
    claimed_at: float
    """Time of the first claim."""
    state: Literal["claimed", "retry"]
    """``"claimed"`` while a flusher works on the batch, ``"retry"`` while it waits for a retry."""
    until: float | None
    """Time at which the claim expires or the retry is due; None if the batch has just ended."""
    error: str
    """Error of the last attempt, or empty."""
    tasks: Sequence[StoredTask] | None = None
    """Tasks in arrival order; None if they were not asked for or can't be read."""
    reason: str = ""
    """Why the batch was due, as in `BatchInfo`."""
    opened_at: float = 0.0
    """Arrival of its first task."""
    due_at: float = 0.0
    """Time at which it was due."""
    bytes: int = 0
    """Bytes of its stored tasks, about."""
    weight: int = 0
    """Sum of the weights of its tasks."""
    merged: bool = False
    """Whether its merge result is stored, so that it is not merged again."""
    enqueued: int = 0
    """Number of its merged tasks that were enqueued in slices so far."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A batch whose attempts are used up, or stored entries of a batch that are no tasks."""

    batch_id: str
    """Id of the batch."""
    group_key: str
    """Text form of the group key."""
    size: int
    """Number of tasks."""
    attempts: int
    """Number of attempts."""
    claimed_at: float
    """Time of the first claim."""
    died_at: float
    """Time at which the batch became a dead letter."""
    error: str
    """Error of the last attempt."""
    traceback: str
    """Traceback of that error, or empty."""
    enqueued: int = 0
    """Number of its merged tasks that were enqueued in slices before it failed. Requeued, it is not
    merged again: the others are enqueued."""
    tasks: Sequence[StoredTask] | None = None
    """Tasks in arrival order; None if they were not asked for or can't be read."""
    reason: str = ""
    """Why the batch was due, as in `BatchInfo`."""
    opened_at: float = 0.0
    """Arrival of its first task."""
    due_at: float = 0.0
    """Time at which it was due."""
    bytes: int = 0
    """Bytes of its stored tasks, about."""
    weight: int = 0
    """Sum of the weights of its tasks."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where a task is, or what became of it, as far as Redis knows."""

    state: Literal["waiting", "in_batch", "flushed", "failed", "cancelled", "unknown"]
    """``"waiting"``: in its group. ``"in_batch"``: in a batch that is being merged or waits for a
    retry. ``"flushed"`` and ``"cancelled"``: known of submitted tasks, for `result_ttl` seconds.
    ``"failed"``: a dead letter; of a submitted task also that its result is an exception.
    ``"unknown"``: none of these, so it was never added, or is gone and was not submitted."""
    group_key: str
    """Text form of the group key."""
    task_id: str
    """Id of the task."""
    place: int | None = None
    """Number of waiting tasks before it in its group; None unless it waits."""
    due_at: float | None = None
    """Time at which its group is due, as in `GroupState`; None unless it waits."""
    batch_id: str | None = None
    """Id of the batch that holds it, that flushed it, or with which it failed."""
    attempt: int | None = None
    """Number of attempts of that batch so far, the present one included; None unless it is in
    one."""
    batch_state: Literal["claimed", "retry"] | None = None
    """What that batch does, as in `BatchState`; None unless the task is in one."""
    dead_letter: str | None = None
    """Id of the dead letter that holds it or held it; None if there is none."""
    error: str = ""
    """Why it failed, or error of the last attempt of its batch."""


@dataclass(frozen=True, slots=True)
class DeadReason:
    """Dead letters with the same error, up to the numbers in it."""

    error: str
    """First line of the error of the newest one, with ``#`` in place of numbers."""
    batches: int
    """Number of dead letters."""
    tasks: int
    """Number of their tasks."""
    first_died_at: float
    """Time at which the first one became a dead letter."""
    last_died_at: float
    """Time at which the last one did."""


@dataclass(frozen=True, slots=True)
class Counts:
    """The counts that each partition has and that add up over partitions."""

    pending: int
    """Tasks that wait in groups."""
    in_flight: int
    """Tasks in batches that are being merged or wait for a retry."""
    stored_bytes: int
    """Bytes of these tasks, pending and in flight, as `max_pending_bytes` counts them."""
    dead: int
    """Tasks in dead letters."""
    flushed: int
    """Tasks in completed batches since the namespace was created."""
    groups: int
    """Groups with a task that waits or is in flight."""
    batches_in_flight: int
    """Batches that are being merged or wait for a retry."""
    batches_in_retry: int
    """Batches that wait for a retry."""
    batches_dead: int
    """Dead letters."""
    batches_flushed: int
    """Completed batches since the namespace was created."""


@dataclass(frozen=True, slots=True)
class HistoryPoint:
    """What happened in a namespace within one step of its history."""

    at: float
    """Start of the step."""
    tasks_in: int
    """Tasks that were added."""
    tasks_out: int
    """Tasks in completed batches."""
    batches: int
    """Completed batches."""
    failures: int
    """Attempts at batches that failed, dead letters included."""
    pending: int
    """Largest number of tasks that waited or were in flight."""
    dead: int
    """Largest number of tasks in dead letters."""
    oldest_overdue: float
    """Seconds for which the group or batch had been due that was due for the longest time."""

    @property
    def tasks_per_batch(self) -> float | None:
        """Tasks in a completed batch, on average; None if there was none."""
        return self.tasks_out / self.batches if self.batches else None


@dataclass(frozen=True, slots=True)
class History:
    """The history of a namespace, as its flushers have recorded it."""

    step: float
    """Seconds from one step to the next."""
    now: float
    """Time of Redis at which it was read."""
    points: Sequence[HistoryPoint] = field(repr=False)
    """The steps, oldest first. A step in which no flusher recorded anything is missing; what
    happened then counts in the next one."""


@dataclass(frozen=True, slots=True)
class PartitionStats(Counts):
    """The counts of one partition, and its leader."""

    partition: int
    """Number of the partition, from 0."""
    paused: bool
    """Whether flushing is paused."""
    leader: str | None
    """Id of the flusher that holds the lease, or None."""
    token: int
    """Fencing token of the newest lease."""


@dataclass(frozen=True, slots=True)
class Stats(Counts):
    """The counts of all partitions together, and of each one."""

    paused: bool
    """Whether flushing is paused in any partition."""
    flushers: Sequence[str]
    """Ids of the live flushers."""
    partitions: Sequence[PartitionStats] = field(repr=False)
    """The partitions by number."""
    unreadable: Sequence[int] = ()
    """Numbers of partitions that are left out of everything above, since their counts can't be
    read: a key holds a value that redisagg did not write."""


Cause: TypeAlias = Literal[
    "unknown",
    "done",
    "not_due",
    "cooling",
    "postponed",
    "redis_full",
    "wrong_partitions",
    "moving",
    "partition_away",
    "clock",
    "no_flusher",
    "paused",
    "group_paused",
    "no_leader",
    "sink_down",
    "retry",
    "suspect",
    "rate_limit",
    "concurrency",
    "in_flight",
    "backlog",
    "dead_letters",
    "foreign",
]
"""What holds the tasks of a group; docs/why.md describes each."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that keeps tasks from being flushed, of one group or of a namespace."""

    cause: Cause
    """What it is."""
    text: str
    """One sentence that says what, since when and until when."""
    advice: str
    """What to do, as one sentence; empty if nothing."""
    since: float | None = None
    """When it began, if that is known."""
    until: float | None = None
    """When it ends by itself, if that is known."""
    partitions: Sequence[int] = ()
    """The partitions that it concerns; empty for all."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why the tasks of a group are not flushed yet."""

    group_key: str
    """Text form of the group key."""
    late: bool
    """Whether a task should have left more than a second ago, or is in a dead letter."""
    overdue: float
    """Seconds since the earliest task of the group that is not done was due; 0 if none is."""
    trouble: Trouble
    """What holds the group; `Trouble.cause` says in one word what."""
    also: Sequence[Trouble] = ()
    """What else would hold it, or is wrong in the namespace."""
    waiting: int = 0
    """Number of its tasks that wait."""
    in_flight: int = 0
    """Number of its tasks in batches."""
    due_at: float | None = None
    """When the waiting tasks are due, as in `GroupState`."""
    partition: int = 0
    """Number of the partition of the group."""
    batch_id: str | None = None
    """Id of the batch that holds the group, if there is one."""

    @property
    def cause(self) -> Cause:
        """What holds the group, in one word."""
        return self.trouble.cause


@dataclass(frozen=True, slots=True)
class SinkState:
    """A sink, or the merge function, that a flusher leaves alone since it does not work."""

    sink: str
    """Class of the sink, or ``"the merge function"``."""
    queue: str
    """What tells it from others of its class; empty for the merge function."""
    state: Literal["open", "half open"]
    """``"open"``: nothing is sent. ``"half open"``: it is tried with a few batches."""
    reason: str
    """``"failures"``, or ``"busy"`` if it has asked for a pause."""
    since: float
    """When it was found down."""
    until: float
    """When it is tried again."""


@dataclass(frozen=True, slots=True)
class FlusherState:
    """A live flusher."""

    flusher_id: str
    """Its id, which begins with host and process."""
    partitions: Sequence[int]
    """The partitions that it leads."""
    started_at: float | None
    """When it started; None if it has not said so yet, as all below."""
    concurrency: int | None
    """Number of batches that it merges at the same time."""
    max_attempts: int | None
    """Number of attempts of a batch before it becomes a dead letter."""
    sinks_down: Sequence[SinkState] = ()
    """The sinks that it leaves alone, 16 at most."""
    sinks_working: int = 0
    """Number of its other sinks."""
    waits_since: float | None = None
    """Since when it waits for a permit, by `max_concurrency` or `rate_limit`; None if it does not.
    """


@dataclass(frozen=True, slots=True)
class Overview:
    """A namespace in one look."""

    at: float
    """The time of Redis."""
    troubles: Sequence[Trouble]
    """What keeps tasks from being flushed, the worst first; empty if all is well."""
    flushers: Sequence[FlusherState]
    """The live flushers."""
    stats: Stats | None
    """The counts; None while a master of a cluster does not answer, as all below."""
    groups_due: int | None
    """Groups that are due and not claimed yet."""
    groups_waiting: int | None
    """Groups that are not due yet."""
    groups_held: int | None
    """Groups all of whose tasks are in batches, or that a retry or a pause holds back."""
    oldest_overdue: float | None
    """Seconds since the earliest of all due groups and batches in flight was due; 0 without any."""
    memory_used: int
    """Bytes of memory that Redis uses; on a cluster those of the fullest master."""
    memory_limit: int
    """Its `maxmemory` in bytes; 0 for none."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that `redisagg doctor` has found."""

    check: Literal["server", "namespace", "rights", "groups", "batches", "keys"]
    """What was looked at."""
    level: Literal["error", "warning", "note"]
    """``"error"``: tasks are lost or stuck, or may be. ``"warning"``: they are after a failure, or
    soon. ``"note"``: good to know."""
    text: str
    """What it is, as one sentence."""
    advice: str = ""
    """What to do, as one sentence; empty if nothing."""
    mendable: bool = False
    """Whether ``--repair`` mends it."""
    mended: bool = False
    """Whether it was mended just now."""


class BatchPage(NamedTuple):
    """A page of batches in flight."""

    states: list[BatchState]
    next: GroupPlace | None
    """The place of the next page, for `read_batches`; None after the last page."""


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a namespace works, for a probe."""

    reachable: bool
    """Whether Redis answered in time and lets the namespace be read. All else is only known if
    so."""
    led: bool
    """Whether each partition has a live flusher. False while no flusher has ever run."""
    overdue: float
    """Seconds since the earliest group or batch that is not done was due; 0 without any."""
    paused: bool = False
    """Whether flushing is paused in any partition, so that `overdue` may grow on purpose."""
    error: str = ""
    """Why Redis could not be asked; empty if it could."""
