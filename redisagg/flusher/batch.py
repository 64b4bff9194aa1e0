"""A claimed batch: its state, the outcome of its merge, and why an attempt failed.

The states of a batch, in the order in which a batch that succeeds goes through them::

    CLAIMED -> MERGING -> MERGED -> (DELIVERING) -> READY -> COMMITTING -> GONE

A batch can become ``FAILED`` in each of them: its merge, its sink or the breaker of its sink says
so. It is ``ABANDONED`` when its result is no longer wanted: it is being given back, or the lease is
lost.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

from redisagg.errors import MergedTaskTooLarge, RetryAfter, Unavailable, Unrecoverable, wait_of
from redisagg.observers import MergeSpan
from redisagg.protocol.answers import Answered
from redisagg.sinks.base import MergedTask, RedisQueue
from redisagg.texts import summary_of, traceback_of


class State(Enum):
    """How far a batch has come."""

    CLAIMED = "claimed"
    """Its merge has not begun."""
    MERGING = "merging"
    MERGED = "merged"
    """Its merge has ended, with a result or a failure. It waits for older batches of its group."""
    DELIVERING = "delivering"
    """A sink outside Redis is taking its merged tasks."""
    READY = "ready"
    """Only the commit is left."""
    COMMITTING = "committing"
    """It is part of a commit whose reply has not come."""
    FAILED = "failed"
    """Redis has to be told, after all older batches of its group have left."""
    ABANDONED = "abandoned"
    """Its result is not wanted any more."""
    GONE = "gone"
    """Redis has been told what became of it."""


# Seconds; what asks to be tried again at once must not become a busy loop.
_SHORTEST_PAUSE = 0.1


class Blame(Enum):
    """What is to blame for a failure, as far as the raised exception tells."""

    BATCH = "batch"
    """The batch, or it is unknown."""
    AWAY = "away"
    """What the function calls can't be reached: `Unavailable`."""
    BUSY = "busy"
    """It takes nothing for a time: `RetryAfter` with the scope of the aggregator."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed."""

    error: str
    traceback: str
    """Empty if the attempt does not count."""
    pause: float | None = None
    """Seconds until the next attempt if the batch is not to blame. None: the attempt counts."""
    permanent: bool = False
    """Whether each further attempt would fail too."""
    blames: Blame = Blame.BATCH
    """What else has to wait."""
    splits: bool = False
    """Whether its halves are tried at once, since the batch is too large."""

    @property
    def counts(self) -> bool:
        """Whether the attempt counts: the batch may be to blame."""
        return self.pause is None

    @classmethod
    def of(cls, error: BaseException, pause: float | None = None) -> Failure:
        """The failure that an exception stands for; raises nothing, whatever the exception does."""
        try:
            return cls._of(error, pause)
        except BaseException as other:
            name = type(error).__name__
            return cls(f"{name}: <can't be read: {type(other).__name__}>", "", pause)

    @classmethod
    def _of(cls, error: BaseException, pause: float | None) -> Failure:
        permanent = isinstance(error, MergedTaskTooLarge | Unrecoverable)
        blames = Blame.BATCH
        if isinstance(error, RetryAfter):
            pause = max(wait_of(error), _SHORTEST_PAUSE)
            blames = Blame.BUSY if error.scope == "aggregator" else Blame.BATCH
        elif isinstance(error, Unavailable):
            pause, blames = pause or _SHORTEST_PAUSE, Blame.AWAY
        # Only a failure that counts can make the batch a dead letter, which shows the traceback.
        text = traceback_of(error) if pause is None else ""
        return cls(summary_of(error), text, pause, permanent, blames)

    @classmethod
    def of_sink_down(cls, pause: float) -> Failure:
        """No attempt was made, since the breaker of the sink is open for `pause` seconds."""
        return cls("", "", pause)


@dataclass(slots=True)
class Enqueue:
    """What a commit script enqueues for one batch."""

    queue: RedisQueue
    entry_keys: list[bytes] = field(default_factory=list)
    arguments: list[bytes] = field(default_factory=list)
    size: int = 0
    """The bytes of the arguments."""


@dataclass(slots=True)
class MergeOutcome:
    """How a merge ended."""

    failure: Failure | None = None
    enqueue: Enqueue | None = None
    """What the commit enqueues, if anything."""
    deliveries: list[MergedTask] = field(default_factory=list)
    """What is delivered to sinks outside Redis before the commit, the last one first."""
    undecodable: list[tuple[int, str]] = field(default_factory=list)
    """Positions of stored entries that are no tasks, each with the reason."""
    failed: list[tuple[int, str]] = field(default_factory=list)
    """Positions of stored tasks that failed alone, each with the reason."""
    enqueued: int = 0
    """How many merged tasks were enqueued in slices before those in `merged`."""
    submitted: dict[str, int] | None = None
    """The ids of tasks that were submitted, each with the ms for which its outcome is kept."""
    answers: list[Answered] | None = None
    """What became of each of them, if the merge did not fail."""
    merged: dict[str, bytes] = field(default_factory=dict)
    """Serialized merged tasks that have not been enqueued yet, by their batch id. If there are
    any, a failure is one of the sink; if there are none, it is one of the merge."""


class Permit(Protocol):
    """What a batch tells its permit; see `redisagg.flusher.permits`."""

    def begin(self) -> None:
        """The merge begins."""

    def merge_over(self, outcome: MergeOutcome | None) -> None:
        """The merge is over; None if nothing is delivered."""

    def may_deliver(self, timeout: float, *, last: bool) -> bool:
        """Whether a delivery may begin that takes at most so many seconds; notes that it does."""
        ...

    def end(self) -> None:
        """No call of the batch runs any more."""


class Trace(Protocol):
    """What reports a batch; see `redisagg.flusher.batch_reports`."""

    def begin(self) -> None:
        """The merge, a delivery or the commit begins; in any thread."""

    def merging(self, claim: Claim) -> Claim:
        """The merge has begun, in any thread; returns the claim with its span, if it has one."""
        ...

    def delivering(self, sink: str, merged: MergedTask) -> None:
        """A delivery begins, in this asyncio task."""

    def merged(self, claim: Claim, outcome: MergeOutcome) -> None:
        """The merge has ended."""

    def delivered(self, sink: str, error: BaseException | None = None) -> None:
        """A delivery has ended, or the queue in Redis has refused the batch."""

    def enqueued(self, claim: Claim, outcome: MergeOutcome) -> None:
        """The batch has left."""

    def given_back(self, delay: float, failure: Failure | None) -> None:
        """The batch waits for another attempt."""

    def split(self, delay: float, failure: Failure) -> None:
        """Halves have taken the place of the batch."""

    def buried(self, attempts: int, failure: Failure) -> None:
        """The batch is among the dead letters."""


class Claim(NamedTuple):
    """A batch as the script `claim` hands it out; all that a merge needs. Can be pickled."""

    batch_id: bytes
    group: bytes
    attempt: int
    """The number of this attempt, from 1: to merge it or, if it has a result, to enqueue it."""
    error: bytes
    """Why the last attempt failed, or empty."""
    stored_result: bytes
    """The serialized merge result that an earlier attempt stored, or empty. One that is stored
    apart is read after the claim."""
    entries: Sequence[bytes]
    """The stored tasks. None if there is a result, or before those of a large batch are read."""
    task_count: int
    """The number of the stored tasks."""
    length: int
    """The bytes of the stored tasks, about."""
    suspect: int
    """1 if flushers died with this batch, so that it is the only suspect in flight; else 0."""
    slot: str | None
    """The hash tag of its partition on a cluster, else None."""
    reason: bytes = b""
    """Why it was due, as in `BatchInfo`."""
    result: bytes = b""
    """The label of the merge result that is stored apart, or empty; see lua/includes/result.lua."""
    enqueued: int = 0
    """How many merged tasks of that result have been enqueued in slices."""
    opened: int = 0
    """When its first task arrived, ms; this and what follows is left out where nobody needs it."""
    due_at: int = 0
    """When it was due, ms."""
    weight: int = 0
    """The weight of its tasks."""
    created: int = 0
    """When it was first claimed, ms."""
    begin_by: float = 0.0
    """The time by `time.monotonic` until which its merge may begin, if it has a permit; else 0."""
    span: MergeSpan | None = None
    """The span of its merge, if that is traced."""

    @property
    def has_result(self) -> bool:
        """Whether a whole merge result is stored apart."""
        return self.result not in (b"", b"-")


def is_half(batch_id: bytes) -> bool:
    """Whether the batch is a half of one that was split."""
    return b"." in batch_id


# The attributes of an enumeration are slow to look up, and each batch is asked several times.
_CLAIMED, _MERGING = State.CLAIMED, State.MERGING
_MERGED, _ABANDONED = State.MERGED, State.ABANDONED
_IN_USER_CODE = (State.MERGING, State.DELIVERING, State.ABANDONED)

_begin_lock = threading.Lock()
"""A merge begins in a thread while the loop may abandon its batch. One lock for all batches is held
too briefly to matter."""


class Batch:
    """A claimed batch in this process.

    Args:
        claim: the batch as it was claimed.
        on_merged: called on the event loop when the batch has an outcome.
        probing: whether it was claimed to find out if a sink that was down works again.
    """

    __slots__ = (
        *("batch_id", "charged", "claim", "failure", "group", "on_merged"),
        *("outcome", "permit", "probing", "stalled", "state", "trace"),
    )

    def __init__(
        self, claim: Claim, on_merged: Callable[[Batch], None], probing: bool = False
    ) -> None:
        self.claim = claim
        self.charged = 0
        """The bytes of it that count while it is in flight."""
        self.batch_id = claim.batch_id
        self.group = claim.group
        self.on_merged = on_merged
        self.probing = probing
        self.state = _CLAIMED
        self.outcome: MergeOutcome | None = None
        self.failure: Failure | None = None
        """Why it is `State.FAILED`."""
        self.permit: Permit | None = None
        """What allows its merge and its deliveries, if something limits all flushers together."""
        self.stalled = False
        """Whether it has been merged and waits for a sink or for older batches of its group."""
        self.trace: Trace | None = None
        """What reports it, if somebody listens."""

    @property
    def attempt(self) -> int:
        """The number of the present attempt: of those to merge it or of those to enqueue it.

        The first attempt to enqueue a batch is made in the attempt that merged it.
        """
        merged_now = not self.claim.stored_result and self.outcome and self.outcome.merged
        return 1 if merged_now else self.claim.attempt

    def begin(self) -> bool:
        """Marks the start of the merge; a merger calls this in any thread.

        Returns:
            False if the batch has been abandoned: it must not be merged.
        """
        with _begin_lock:
            if self.state is not _CLAIMED:
                return self.state is _MERGING
            self.state = _MERGING
            if self.trace is not None:
                self.trace.begin()
            if self.permit is not None and not self.claim.stored_result:
                self.permit.begin()
        if self.trace is not None:
            self.claim = self.trace.merging(self.claim)
        return True

    def fail_unless_begun(self, failure: Failure) -> bool:
        """Gives the batch an outcome if its merge has not begun, which then never begins.

        Returns:
            Whether the batch has this outcome now.
        """
        with _begin_lock:
            if self.state is not _CLAIMED:
                return False
            self.outcome = MergeOutcome(failure)
            self.state = _MERGED
            if self.permit is not None:
                self.permit.end()
            return True

    def abandon_unless_begun(self) -> bool:
        """Abandons the batch if its merge has not begun.

        Returns:
            Whether the batch is abandoned.
        """
        with _begin_lock:
            if self.state is _CLAIMED:
                self.state = _ABANDONED
                if self.permit is not None:
                    self.permit.end()
            return self.state is _ABANDONED

    def abandon(self) -> None:
        """Abandons the batch, whatever its state is; a merge that runs goes on unheard."""
        with _begin_lock:
            if self.permit is not None and self.state not in _IN_USER_CODE:
                self.permit.end()
            self.state = State.ABANDONED

    def end_merge(self, outcome: MergeOutcome) -> None:
        """Takes the outcome of the merge, on the event loop; ignored if the batch was abandoned."""
        if self.permit is not None:
            self.permit.merge_over(outcome if self.state is _MERGING else None)
        if self.claim.span is not None:
            error = "" if outcome.failure is None else outcome.failure.error
            self.claim.span.end(error, len(outcome.merged))
        if self.state is _MERGING:
            self.outcome = outcome
            self.state = _MERGED
            self.on_merged(self)
