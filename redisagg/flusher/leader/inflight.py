"""The batches that a leader has in flight, and what may happen to them next.

This module is pure: it knows neither Redis nor asyncio. The other modules of the leader report
events to `InFlight` and carry out the actions that it returns. The rules of order are here alone:

- **Order in a group.** Batches of a group are merged side by side, but they are delivered and
  committed in the order of their claims.
- **Holding back.** When a batch has failed, no younger batch of its group is delivered or committed
  until Redis has been told. If the failed batch is to be tried again, the younger ones go back with
  it.
- **Postponing.** A failed batch is not given back while merges or deliveries of younger batches of
  its group run: their results go back with it, so that nothing is merged twice. Merges that have
  not begun are abandoned.
- **Sinks that are down.** While no sink works, no merge begins but those of batches that test one.
  What has not begun counts as merged and failed, which is no attempt, and so goes back in its turn.
- **Fair shares.** No group takes all places. A group is closed, and no further batch of it is
  claimed, while it has many batches or bytes in flight, while many of its batches are stalled
  (merged, but waiting for a slow sink), or while one has failed. Stalled batches take no place of
  others.
- **No claim during a report.** A claim could bring younger batches of the group that is being given
  back. So a batch is given back only while no claim is under way, and no claim begins meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeAlias

from redisagg.flusher.batch import Batch, Failure, State, is_half
from redisagg.flusher.budget import MemoryBudget

# Access to a member of an enum takes longer than most steps here.
_MERGED, _DELIVERING, _READY, _GONE = State.MERGED, State.DELIVERING, State.READY, State.GONE
_WORKING = (State.CLAIMED, State.MERGING, _DELIVERING)
_COMMITTING, _FAILED, _UNDER_WAY = State.COMMITTING, State.FAILED, (State.MERGING, _DELIVERING)

# Bytes of tasks that one group may have in flight, about.
_GROUP_BYTES = 8 * 1024 * 1024


@dataclass(slots=True, eq=False)
class Deliver:
    """Deliver the merged tasks of this batch to sinks outside Redis."""

    batch: Batch


@dataclass(slots=True, eq=False)
class Commit:
    """Commit as many of these batches as fit into one call, from the first on."""

    batches: list[Batch]


@dataclass(slots=True, eq=False)
class GiveBack:
    """Give these batches back, in one step, to be claimed again later."""

    batches: list[Batch]
    failure: Failure | None = None
    """Why the first of them failed; None if none has failed."""
    split: bool = False
    """Whether the first of them is to be split in halves."""


@dataclass(slots=True, eq=False)
class Bury:
    """Move this batch to the dead letters: its attempts are used up, or each would fail."""

    batch: Batch


NextAction: TypeAlias = "Commit | GiveBack | Bury"
"""What a leader tells Redis next."""


class _Group:
    """The batches of one group that are in flight, oldest first: `leaving`, then `merging`."""

    __slots__ = ("bytes", "failed", "leaving", "merging", "postponed", "stalled")

    def __init__(self) -> None:
        self.bytes = 0
        """The bytes of their tasks."""
        self.stalled = 0
        """How many of them are stalled."""
        self.leaving: list[Batch] = []
        """Batches about which Redis has to be told: READY, COMMITTING or FAILED."""
        self.merging: list[Batch] = []
        """Batches that are merged or delivered, or wait for that."""
        self.failed = 0
        """How many of them are FAILED."""
        self.postponed = False
        """Whether a failed batch waits for merges or deliveries of younger ones."""

    @property
    def oldest(self) -> Batch:
        return self.leaving[0] if self.leaving else self.merging[0]

    def younger_than_oldest(self) -> list[Batch]:
        return [*self.leaving, *self.merging][1:]


class InFlight:
    """The batches of one leader between their claim and the reply that ends them.

    Args:
        limit: the number of batches that may be in flight, and four times as many with those that
            are stalled. A group may have half of it in flight.
        max_stalled: the number of stalled batches with which a group is closed.
        max_attempts: the number of attempts after which a batch is buried.
        budget: the bytes that all leaders of the flusher may have in flight.
        max_of_group: the number of batches that a group may have in flight; None for half of
            `limit`.
        isolate: whether a batch whose merge failed is split, until the bad tasks are alone.
    """

    def __init__(
        self,
        limit: int,
        *,
        max_stalled: int,
        max_attempts: int,
        budget: MemoryBudget,
        max_of_group: int | None = None,
        isolate: bool = False,
    ) -> None:
        self._limit = limit
        self._max_of_group = min(limit // 2, max_of_group or limit)
        self._max_stalled = max_stalled
        self._max_attempts = max_attempts
        self._budget = budget
        self._isolate = isolate
        self._bytes = 0
        self._stalled = 0
        self._closed: set[bytes] = set()
        """The groups of which no further batch is claimed."""
        self._batches: dict[bytes, Batch] = {}
        self._groups: dict[bytes, _Group] = {}
        self._ready: dict[bytes, Batch] = {}
        """Batches whose commit is left, in the order in which they became READY."""
        self._failed = 0
        """How many batches are FAILED."""
        self._reports: deque[Batch] = deque()
        """FAILED batches that are the oldest of their group."""
        self._reported_last = False
        self._claiming = False
        self._report_waits = False
        self._reporting: GiveBack | None = None

    # --- what is in flight ---------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._batches)

    def __contains__(self, batch_id: bytes) -> bool:
        return batch_id in self._batches

    @property
    def ids(self) -> Collection[bytes]:
        """The ids of all batches in flight."""
        return self._batches.keys()

    @property
    def working(self) -> int:
        """How many batches wait for their merge, are merged or are delivered."""
        return sum(batch.state in _WORKING for batch in self._batches.values())

    @property
    def room(self) -> int:
        """How many more batches may be claimed."""
        if self.bytes_left <= 0:
            return 0
        count = len(self._batches)
        return max(0, min(self._limit + self._stalled, 4 * self._limit) - count)

    @property
    def bytes_left(self) -> int:
        """How many more bytes of tasks may be claimed."""
        return self._budget.left(self._bytes)

    @property
    def closed(self) -> Collection[bytes]:
        """The groups of which no further batch is to be claimed now."""
        return self._closed

    # --- claims --------------------------------------------------------------------------------

    def may_claim(self) -> bool:
        """Whether a claim may begin: no failed batch is being given back, or waits to be."""
        return self._reporting is None and not self._report_waits

    def claim_begun(self) -> None:
        """A claim is under way."""
        self._claiming = True

    def claim_ended(self) -> bool:
        """The claim has ended, and `claimed` was called for each of its batches.

        Returns:
            Whether a failed batch is to be reported.
        """
        self._claiming = False
        return bool(self._reports)

    def claimed(self, batch: Batch, pause: float | None = None) -> bool:
        """A batch has been claimed, after all older ones of its group.

        Args:
            pause: seconds for which no sink works, as in `sinks_down`; None if one does.

        Returns:
            Whether it is to be merged.
        """
        claim = batch.claim
        group = self._groups.get(batch.group)
        if group is None:
            group = self._groups[batch.group] = _Group()
        self._batches[batch.batch_id] = batch
        group.merging.append(batch)
        length = batch.charged = claim.length + len(claim.stored_result)
        group.bytes += length
        self._bytes += length
        self._budget.used += length
        if group.bytes >= _GROUP_BYTES or len(group.merging) >= self._max_of_group:
            self._closed.add(batch.group)
        if group.postponed:
            batch.abandon()  # it goes back with the failed batch
        elif claim.attempt > self._max_attempts:
            # Its last attempts did not end with a report, or it would be among the dead letters.
            error = claim.error.decode(errors="replace")
            failure = Failure(error or "its flusher died in each attempt", "")
            self._fail_unless_begun(group, batch, failure)
        elif pause is not None and not batch.probing:
            self._fail_unless_begun(group, batch, Failure.of_sink_down(pause))
        else:
            return True
        return False

    def result_stored(self, batch: Batch) -> None:
        """The merge result of a batch that has been claimed is in memory in its stored form."""
        if not self._holds(batch):
            return
        claim, group = batch.claim, self._groups[batch.group]
        more = claim.length + len(claim.stored_result) - batch.charged
        batch.charged += more
        group.bytes += more
        self._bytes += more
        if more < 0:
            self._budget.give_back(-more)
        else:
            self._budget.used += more
        if group.bytes >= _GROUP_BYTES:
            self._closed.add(batch.group)

    # --- merges and deliveries -----------------------------------------------------------------

    def merged(self, batch: Batch) -> Deliver | None:
        """The merge of a batch has ended; its outcome may be a failure."""
        if not self._holds(batch):
            return None
        group = self._groups[batch.group]
        if group.postponed:
            group.postponed = False
            self._reports.append(group.oldest)
        deliver = self._advance(group)
        if batch.state is _MERGED or batch.state is _DELIVERING:
            self._stall(group, batch)
        return deliver

    def delivered(self, batch: Batch) -> Deliver | None:
        """The delivery of a batch has ended; its outcome may have become a failure."""
        if batch.state is _DELIVERING:
            batch.state = _MERGED
        return self.merged(batch)

    def sinks_down(self, pause: float) -> bool:
        """No sink works for the next `pause` seconds: no merge begins, but for those of probes.

        Returns:
            Whether a failed batch is to be reported.
        """
        failure = Failure.of_sink_down(pause)
        for group in self._groups.values():
            for batch in list(group.merging):
                if not batch.probing:
                    self._fail_unless_begun(group, batch, failure)
        return bool(self._reports)

    # --- what Redis is told --------------------------------------------------------------------

    def next_action(self) -> NextAction | None:
        """What Redis is to be told next. The caller reports the result before it asks again.

        Commits and failures take turns, so that neither delays the other for long.
        """
        ready = self._committable()
        if self._reports and not (ready and self._reported_last):
            action = self._next_report()
            if action is not None:
                self._reported_last = True
                return action
        self._reported_last = False
        return Commit(ready) if ready else None

    def committing(self, batches: list[Batch]) -> None:
        """A commit of these batches is under way."""
        for batch in batches:
            batch.state = _COMMITTING

    def committed(self, batch: Batch) -> Deliver | None:
        """The commit removed the batch, or an earlier one had."""
        return self._remove(batch)

    def failed(self, batch: Batch, failure: Failure) -> None:
        """The queue refused a batch, or its breaker is open."""
        if self._holds(batch):
            del self._ready[batch.batch_id]
            self._mark_failed(self._groups[batch.group], batch, failure)

    def out_of_order(self, batch: Batch) -> GiveBack | None:
        """Redis has an older batch of the same group.

        Either that one has just been refused in the same call: then this batch waits with it. Or
        it is not in flight here: then this batch is given back.
        """
        if not self._holds(batch):
            return None
        if self._is_behind_failed(batch):
            batch.state = _READY
            return None
        return self.give_back(batch)

    def give_back(self, batch: Batch) -> GiveBack:
        """The action that gives back one batch that has not failed."""
        batch.abandon()
        return GiveBack([batch])

    def give_back_all(self) -> GiveBack:
        """The action that gives back everything, whatever its state is."""
        self.abandon_all()
        return GiveBack(list(self._batches.values()))

    def given_back(self, action: GiveBack) -> list[Deliver]:
        """Redis has been told; batches that are older or of other groups go on."""
        if action is self._reporting:
            self._reporting = None
        return [each for each in map(self._remove, action.batches) if each is not None]

    def buried(self, batch: Batch) -> Deliver | None:
        """The batch is among the dead letters; younger ones of its group go on."""
        return self._remove(batch)

    def abandon_all(self) -> None:
        """The lease is lost, or the leader ends: no result is wanted any more."""
        for batch in self._batches.values():
            batch.abandon()

    def close(self) -> None:
        """The leader has ended: all batches are abandoned, and their memory is given back."""
        self.abandon_all()
        self._budget.give_back(self._bytes)
        self._bytes = 0

    # --- the rules -----------------------------------------------------------------------------

    def _holds(self, batch: Batch) -> bool:
        """Whether the batch is in flight; a drain may give it back during its commit."""
        return self._batches.get(batch.batch_id) is batch

    def _fail_unless_begun(self, group: _Group, batch: Batch, failure: Failure) -> None:
        """Treats a batch as merged and failed, unless its merge has begun."""
        if batch.fail_unless_begun(failure):
            self._stall(group, batch)
            if group.merging[0] is batch:  # else the event of an older one moves it on
                self._advance(group)

    def _advance(self, group: _Group) -> Deliver | None:
        """Moves on the oldest batches of a group that have been merged."""
        merging = group.merging
        while merging and not group.failed and merging[0].state is _MERGED:
            batch = merging[0]
            outcome = batch.outcome
            assert outcome is not None  # a batch that is MERGED has one
            if outcome.failure is not None:
                self._fail_next(group, outcome.failure)
            elif outcome.deliveries:
                batch.state = _DELIVERING
                return Deliver(batch)
            else:
                del merging[0]
                group.leaving.append(batch)
                batch.state = _READY
                self._ready[batch.batch_id] = batch
                if batch.stalled:
                    self._end_stall(group, batch)
        return None

    def _fail_next(self, group: _Group, failure: Failure) -> None:
        """Marks the oldest batch that is not leaving as failed."""
        batch = group.merging.pop(0)
        group.leaving.append(batch)
        if batch.stalled:
            self._end_stall(group, batch)
        self._mark_failed(group, batch, failure)

    def _mark_failed(self, group: _Group, batch: Batch, failure: Failure) -> None:
        batch.state = _FAILED
        batch.failure = failure
        group.failed += 1
        self._failed += 1
        self._closed.add(batch.group)
        if group.oldest is batch:
            self._reports.append(batch)

    def _is_closed(self, group: _Group) -> bool:
        return (
            len(group.merging) >= self._max_of_group
            or len(group.leaving) >= self._max_of_group
            or group.bytes >= _GROUP_BYTES
            or group.stalled >= self._max_stalled
            or group.failed > 0
        )

    def _stall(self, group: _Group, batch: Batch) -> None:
        if batch.stalled:
            return
        batch.stalled = True
        group.stalled += 1
        self._stalled += 1
        if group.stalled >= self._max_stalled:
            self._closed.add(batch.group)

    def _end_stall(self, group: _Group, batch: Batch) -> None:
        batch.stalled = False
        group.stalled -= 1
        self._stalled -= 1
        if self._closed and not self._is_closed(group):
            self._closed.discard(batch.group)

    def _committable(self) -> list[Batch]:
        """READY batches that are not behind a failed one of their group, in order."""
        if not self._failed:
            return list(self._ready.values())
        return [each for each in self._ready.values() if not self._is_behind_failed(each)]

    def _is_behind_failed(self, batch: Batch) -> bool:
        group = self._groups[batch.group]
        return group.failed > 0 and group.oldest.state is _FAILED

    def _next_report(self) -> Bury | GiveBack | None:
        while self._reports:
            batch = self._reports[0]
            failure = batch.failure
            assert failure is not None  # a batch that is FAILED has one
            isolate = self._isolate and failure.counts and self._can_be_isolated(batch)
            split = isolate or failure.splits
            if split:
                hopeless = batch.claim.task_count < 2
            else:
                hopeless = failure.permanent or batch.attempt >= self._max_attempts
            if failure.counts and hopeless:
                self._reports.popleft()
                return Bury(batch)
            if self._claiming:
                self._report_waits = True
                return None
            self._report_waits = False
            self._reports.popleft()
            group = self._groups[batch.group]
            # Those that failed themselves are reported next.
            followers = [each for each in group.younger_than_oldest() if each.state is not _FAILED]
            for follower in followers:
                follower.abandon_unless_begun()
            if any(each.state in _UNDER_WAY for each in followers):
                group.postponed = True
                continue
            for follower in followers:
                follower.abandon()
                self._ready.pop(follower.batch_id, None)
            self._reporting = GiveBack([batch, *followers], failure, split)
            return self._reporting
        return None

    def _can_be_isolated(self, batch: Batch) -> bool:
        """Whether the merge of a batch failed that can be split, or was split before."""
        claim, outcome = batch.claim, batch.outcome
        if claim.attempt > self._max_attempts or claim.stored_result or claim.has_result:
            return False  # nothing was merged, or not now
        if outcome is None or outcome.merged:
            return False  # the failure is one of the sink
        return claim.task_count > 1 or is_half(claim.batch_id)

    def _remove(self, batch: Batch) -> Deliver | None:
        """Forgets a batch and moves on what is behind it."""
        batch_id = batch.batch_id
        if self._batches.get(batch_id) is not batch:  # as `_holds`
            return None
        del self._batches[batch_id]
        self._ready.pop(batch_id, None)
        group = self._groups[batch.group]
        length = batch.charged
        group.bytes -= length
        self._bytes -= length
        self._budget.give_back(length)
        if batch.failure is not None:
            group.failed -= 1
            self._failed -= 1
        if batch.stalled:
            self._end_stall(group, batch)
        batch.state = _GONE
        leaving, merging = group.leaving, group.merging
        if leaving and leaving[0] is batch:
            del leaving[0]
        else:
            (leaving if batch in leaving else merging).remove(batch)
        if not leaving and not merging:
            del self._groups[batch.group]
            if self._closed:
                self._closed.discard(batch.group)
            return None
        if self._closed and not self._is_closed(group):
            self._closed.discard(batch.group)
        if not group.failed:
            return self._advance(group)
        oldest = group.oldest
        if oldest.state is _FAILED and oldest not in self._reports and not group.postponed:
            self._reports.append(oldest)
        return None
