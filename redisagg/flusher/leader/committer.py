"""Tells Redis about batches: commits them, gives them back, or buries them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from redisagg.config import AggregationConfig
from redisagg.errors import (
    KeyConflict,
    MergedTaskTooLarge,
    RedisAggError,
    RedisUnavailable,
    TaskTooLarge,
)
from redisagg.flusher.backoff import retry_delay
from redisagg.flusher.batch import Batch, Failure, MergeOutcome, State
from redisagg.flusher.breaker import Breaker
from redisagg.flusher.event_log import BatchDied, fields_of
from redisagg.flusher.leader.deliverer import Deliverer
from redisagg.flusher.leader.inflight import Bury, Commit, GiveBack, InFlight
from redisagg.flusher.leader.requests import (
    MAX_COMMIT_BATCHES,
    MAX_COMMIT_BYTES,
    CommitEntry,
    Parts,
    Retried,
    Returned,
    max_commit_entries,
)
from redisagg.flusher.leader.session import LeaseSession
from redisagg.flusher.leader.sink_health import SinkHealth, failure_at
from redisagg.flusher.leader.slices import (
    LARGE_CALL,
    MAX_ANSWERS,
    answers_fit,
    fits_one_call,
    is_large,
    most_set_aside,
    parts_of,
    slice_of,
    some_answers,
)
from redisagg.flusher.leader.task_reader import read_slices
from redisagg.flusher.merging.answering import leave_out_failed, size_of
from redisagg.flusher.merging.result_codec import pack_result
from redisagg.protocol.answers import Answered, pack_failure
from redisagg.protocol.entries import entry_id, submitted_ms
from redisagg.protocol.failed_tasks import FailedBatch, failed_batch, group_of
from redisagg.protocol.scripts import Request
from redisagg.sinks.base import RedisQueue
from redisagg.texts import group_text, logger
from redisagg.transport.failures import error_from_reply

_log = logger("batches")

# Seconds until a batch is claimed again that was given back because of its order in the group.
_ORDER_WAIT = 0.2

# How often Redis may close the connection at a large call, while it answers others, before the
# batch of the call counts as too large.
_MAX_CLOSED = 3

# Bytes of the largest merge result that is stored in the record of its batch, which scripts read
# and write as a whole; others are stored apart.
_INLINE_BYTES = 16 * 1024
# Batches whose records get their results in one call.
_STORED_TOGETHER = 16


# The reply of a commit that has moved some of the tasks that failed alone; a number follows.
_PARTED = b"PARTED "


@dataclass(slots=True)
class _Call:
    """The batches of one commit; all go into the same queue."""

    batches: list[Batch] = field(default_factory=list)
    entries: list[CommitEntry] = field(default_factory=list)
    """What each enqueues."""
    undecodable: list[Batch] = field(default_factory=list)
    """Those that have entries which are no tasks."""
    size: int = 0
    """Bytes of their merged tasks."""
    breaker: Breaker | None = None
    """The breaker of the queue; None if nothing is enqueued."""
    admitted: int = 0
    """The number with which the breaker let them through."""
    large: Batch | None = None
    """The first batch that was left out because it is enqueued in slices."""
    answers: dict[bytes, Sequence[Answered]] = field(default_factory=dict)
    """Those to submitted tasks, by the id of the batch."""

    def has_room(self, answers: Sequence[Answered]) -> bool:
        """Whether the call can carry these answers too."""
        if not self.answers:
            return True
        given = [answers, *self.answers.values()]
        return sum(map(len, given)) <= MAX_ANSWERS and sum(map(size_of, given)) <= LARGE_CALL


@dataclass(slots=True)
class _Slices:
    """A batch that is being enqueued in slices."""

    batch: Batch
    breaker: Breaker | None
    admitted: int
    at_once: bool
    """Whether the first call carries all that is left."""
    parted: int = 0
    """How many tasks that failed alone have left."""
    answered: bool = False
    """Whether its answers have been stored ahead of its last slice."""


class Committer:
    """Carries out what `InFlight.next_action` returns, one action after the other.

    Args:
        on_room: called when batches have left, so that there may be room for others.
    """

    def __init__(
        self,
        *,
        config: AggregationConfig,
        session: LeaseSession,
        inflight: InFlight,
        sinks: SinkHealth,
        deliverer: Deliverer,
        on_room: Callable[[], None],
    ) -> None:
        self._config = config
        self._session = session
        self._inflight = inflight
        self._sinks = sinks
        self._deliverer = deliverer
        self._on_room = on_room
        self._woken = asyncio.Event()
        self._slices: _Slices | None = None
        """The batch that is enqueued in slices now; there is one at a time."""

    def wake(self) -> None:
        """There may be a next action."""
        self._woken.set()

    async def run(self) -> None:
        """Works until it is cancelled.

        Raises:
            StaleLease: the partition has another leader.
        """
        while True:
            self._woken.clear()
            action = self._inflight.next_action()
            if action is None:
                await self._woken.wait()
            elif isinstance(action, Commit):
                await self._commit_some(action.batches)
            elif isinstance(action, Bury):
                await self._bury(action.batch)
            else:
                await self._retry(action)

    # --- commits -------------------------------------------------------------------------------

    async def _commit_some(self, ready: list[Batch]) -> None:
        call = self._select(ready)
        if call.batches:
            await self._commit(call)
        if call.large is not None:  # a slice after each call for others
            if call.large.state is State.READY:
                await self._commit_slice(call.large)
            elif not call.batches:  # it is being given back, since the leader ends
                await self._woken.wait()
            return
        if call.batches:
            return
        enqueue = _outcome(ready[0]).enqueue
        assert enqueue is not None  # else no breaker would have kept it out
        pause = self._sinks.breaker_for(enqueue.queue).pause()
        self._inflight.failed(ready[0], Failure.of_sink_down(pause))

    def _select(self, ready: list[Batch]) -> _Call:
        """The first batches that fit into one call; none if the breaker of their queue is open."""
        call = _Call()
        queue: RedisQueue | None = None
        breaker: Breaker | None = None
        size = count_of_all = 0
        behind: set[bytes] = set()  # groups with a batch that is enqueued in slices
        batches = call.batches
        for batch in ready:
            if len(batches) == MAX_COMMIT_BATCHES:
                break
            if behind and batch.group in behind:
                continue
            outcome = batch.outcome
            assert outcome is not None  # it has been merged
            enqueue, count, answers = outcome.enqueue, len(outcome.merged), outcome.answers
            if count > 1 or batch.claim.result or outcome.failed or answers:
                if _needs_slices(batch, outcome):
                    call.large = call.large or batch
                    behind.add(batch.group)
                    continue
                if enqueue and count_of_all + count > max_commit_entries(enqueue.queue.script):
                    break
                if answers and not call.has_room(answers):
                    break
            if enqueue is not None:
                if queue is not enqueue.queue:
                    if queue is None:
                        queue = enqueue.queue
                        breaker = self._sinks.breaker_for(queue)
                    elif queue != enqueue.queue:
                        break
                assert breaker is not None  # it is that of the queue
                length = enqueue.size
                if count_of_all and size + length > MAX_COMMIT_BYTES:
                    break
                admitted = breaker.admit(reserved=batch.probing)
                if admitted is None:
                    break
                call.admitted = admitted
                size += length
                count_of_all += count
            if outcome.undecodable:
                call.undecodable.append(batch)
            if answers:
                call.answers[batch.batch_id] = answers
                size += size_of(answers)
            batches.append(batch)
            call.entries.append((batch.batch_id, batch.group, enqueue))
        call.breaker, call.size = breaker, size
        return call

    async def _commit(self, call: _Call) -> None:
        batches, breaker = call.batches, call.breaker
        self._inflight.committing(batches)
        for batch in call.undecodable:
            undecodable = _outcome(batch).undecodable
            await self._set_aside(batch, undecodable)
            undecodable.clear()
        if batches[0].trace is not None:
            for batch in batches:
                if batch.trace is not None:
                    batch.trace.begin()
        replies = await self._send_commit(batches, call.entries, call.size, call.answers)
        misplaced: list[GiveBack] = []
        succeeded = False  # the breaker knows it; several successes in a row say no more than one
        for batch, reply in zip(batches, replies, strict=True):
            if reply == b"OK" or reply == b"GONE":  # GONE: the reply to an earlier commit was lost
                if not succeeded and reply == b"OK" and _outcome(batch).enqueue is not None:
                    assert breaker is not None  # it let the batch through
                    breaker.succeeded()
                    succeeded = True
                if batch.trace is not None:
                    batch.trace.enqueued(batch.claim, _outcome(batch))
                deliver = self._inflight.committed(batch)
                if deliver is not None:
                    self._deliverer.start(deliver)
                continue
            succeeded = False
            action = self._not_committed(batch, reply, breaker, call.admitted)
            if action is not None:
                misplaced.append(action)
        self._on_room()
        for action in misplaced:
            await self.give_back(action, _ORDER_WAIT)

    def _not_committed(
        self, batch: Batch, reply: Any, breaker: Breaker | None, admitted: int
    ) -> GiveBack | None:
        """Notes that a batch was not committed; returns how it is given back, if it is misplaced.

        Args:
            reply: what Redis said about it, or why it can't take it.
        """
        if reply == b"ORDER" or isinstance(reply, int):  # it is not as this leader claimed it
            return self._inflight.out_of_order(batch)
        if isinstance(reply, MergedTaskTooLarge):
            self._inflight.failed(batch, Failure.of(reply))
            return None
        assert breaker is not None  # else there was nothing to refuse
        error = error_from_reply(reply.decode(errors="replace"))
        if batch.trace is not None:
            batch.trace.delivered(breaker.name, error)
        self._inflight.failed(batch, failure_at(breaker, batch.batch_id, admitted, error))
        return None

    async def _commit_slice(self, batch: Batch) -> None:
        """Enqueues the next slice of a batch, which stays READY until the last one is enqueued."""
        slices = self._slices
        if slices is None or slices.batch is not batch:
            slices = self._slices = await self._begin_slices(batch)
            if slices is None:
                return
        outcome, claim, breaker = _outcome(batch), batch.claim, slices.breaker
        enqueue, count = outcome.enqueue, len(outcome.merged)
        start, end = claim.enqueued - outcome.enqueued, count
        if enqueue is not None and (start > 0 or not slices.at_once):
            enqueue, end = slice_of(enqueue, count, start)
        size = enqueue.size if enqueue is not None else 0
        parts, answers = None, None
        if end == count and outcome.failed:
            parts = self._retried(batch, parts_of(batch.claim, outcome.failed, slices.parted, size))
            size += sum(len(reason.encode()) for _, reason in parts.failed)
        if end == count and outcome.answers:
            if slices.at_once:
                answers = outcome.answers
                size += size_of(answers)
            elif not slices.answered:
                await self._answer(batch, outcome.answers)
                slices.answered = True
        request = self._session.requests.commit_slice(
            batch.batch_id, batch.group, enqueue, claim.enqueued, count - end, parts, answers
        )
        reply: Any
        if batch.trace is not None:
            batch.trace.begin()
        try:
            [reply] = await self._send_large(request, [batch], size)
        except MergedTaskTooLarge as error:
            reply = error
        if isinstance(reply, int) and start < reply - outcome.enqueued <= count:
            batch.claim = batch.claim._replace(enqueued=reply)
            if breaker is not None:
                breaker.succeeded()
            return
        if isinstance(reply, bytes) and reply.startswith(_PARTED):  # all entries are enqueued
            slices.parted = int(reply[len(_PARTED) :])
            batch.claim = batch.claim._replace(enqueued=outcome.enqueued + count)
            return
        self._slices = None
        action = None
        if reply == b"OK" or reply == b"GONE":
            if breaker is not None and reply == b"OK":
                breaker.succeeded()
            if batch.trace is not None:
                batch.trace.enqueued(batch.claim, outcome)
            if (deliver := self._inflight.committed(batch)) is not None:
                self._deliverer.start(deliver)
        else:
            action = self._not_committed(batch, reply, breaker, slices.admitted)
        self._on_room()
        if action is not None:
            await self.give_back(action, _ORDER_WAIT)

    def _retried(self, batch: Batch, parts: Parts) -> Parts:
        """Notes if a batch is to be made of the tasks that failed alone.

        That depends on the batch and the settings only, so a flusher that goes on after a death
        does the same.
        """
        position, reason = parts.failed[0]
        new = failed_batch(batch.batch_id, batch.group, position)
        if not self._is_tried_again(new):
            return parts
        delay = retry_delay(self._config, new.attempts)
        _log.warning(
            "%d tasks of batch %s of group '%s' failed (attempt %d of %d), next in %.1f s: %s",
            *(len(parts.failed), batch.batch_id.decode(), group_text(group_of(batch.group))),
            *(new.attempts, self._config.max_attempts, delay, reason),
        )
        return parts._replace(retried=Retried(new, delay, reason))

    def _is_tried_again(self, new: FailedBatch) -> bool:
        """Whether a batch is made of tasks that failed alone, else they become dead letters."""
        config = self._config
        return config.on_task_failure == "retry" and new.attempts < config.max_attempts

    async def _begin_slices(self, batch: Batch) -> _Slices | None:
        """Stores the merge result of a batch, so that another leader can go on behind a slice.

        Returns:
            None if the batch can't be enqueued now.
        """
        outcome = _outcome(batch)
        breaker, admitted = None, 0
        if outcome.enqueue is not None:
            breaker = self._sinks.breaker_for(outcome.enqueue.queue)
            through = breaker.admit(reserved=batch.probing)
            if through is None:
                self._inflight.failed(batch, Failure.of_sink_down(breaker.pause()))
                return None
            admitted = through
        if undecodable := outcome.undecodable:
            await self._set_aside(batch, undecodable)
            undecodable.clear()
        if outcome.answers and outcome.failed:
            position, _ = outcome.failed[0]
            if self._is_tried_again(failed_batch(batch.batch_id, batch.group, position)):
                leave_out_failed(batch.claim, outcome)
        at_once = fits_one_call(batch.claim, outcome)
        if not at_once:
            result = pack_result(outcome)
            if result != batch.claim.stored_result or not batch.claim.has_result:
                await self._store_apart(batch, result)
        return _Slices(batch, breaker, admitted, at_once)

    async def _send_commit(
        self,
        batches: list[Batch],
        entries: list[CommitEntry],
        size: int,
        answers: Mapping[bytes, Sequence[Answered]],
    ) -> list[bytes | MergedTaskTooLarge]:
        """Commits batches; returns the reply for each, or why Redis can't take it.

        If Redis can't take all of them in one call, they are committed one by one.

        Args:
            entries: what each enqueues.
            size: bytes of their merged tasks, or more.
            answers: those to their submitted tasks, by the id of the batch.
        """
        try:
            replies: list[bytes | MergedTaskTooLarge] = await self._send_large(
                self._session.requests.commit(entries, answers), batches, size
            )
            return replies
        except MergedTaskTooLarge as error:
            if len(batches) == 1:
                return [error]
        one_by_one = zip(batches, entries, strict=True)
        return [
            reply
            for batch, entry in one_by_one
            for reply in await self._send_commit([batch], [entry], size, answers)
        ]

    async def _send_large(self, request: Request, batches: Sequence[Batch], size: int) -> Any:
        """Sends a call that may be larger than Redis accepts.

        Redis closes the connection at such a call, which looks like an outage. It is none if other
        calls succeed in between.

        Args:
            size: bytes of the data in the call, or more.

        Raises:
            MergedTaskTooLarge: Redis refuses the call, or closes the connection each time.
        """
        if size < LARGE_CALL:
            return await self._session.send(request)
        refused: RedisAggError | None = None
        for _ in range(_MAX_CLOSED):
            try:
                [reply] = await self._session.send_all([request], once=True)
                return reply
            except TaskTooLarge as error:
                refused = error
                break
            except RedisUnavailable as error:
                refused = error
                ids = [each.batch_id for each in batches]
                await self._session.send(self._session.requests.extend(ids))
        raise MergedTaskTooLarge(
            f"Redis does not accept a call with the {size:,} bytes of the merged tasks: {refused}; "
            "return less from the merge function, or raise proto-max-bulk-len and "
            "client-query-buffer-limit"
        )

    async def _set_aside(self, batch: Batch, undecodable: list[tuple[int, str]]) -> None:
        """Copies entries that are no tasks into dead letters, a limited number into each.

        The same entries get into the same dead letters if this is repeated after a death.
        """
        positions = [position for position, _ in undecodable]
        error = f"{len(positions)} stored tasks can't be decoded; the first: {undecodable[0][1]}"
        _log.error(
            "group '%s': %s",
            *(group_text(group_of(batch.group)), error),
            extra=fields_of(batch, "TasksSetAside", error=error, tasks=len(positions)),
        )
        requests = self._session.requests
        most = most_set_aside(batch.claim.task_count)
        for part, start in enumerate(range(0, len(positions), most), 1):
            some = positions[start : start + most]
            await self._session.send(
                requests.set_aside(batch.batch_id, batch.group, some, error, part=part)
            )

    # --- failures ------------------------------------------------------------------------------

    async def _bury(self, batch: Batch) -> None:
        if await self._send_bury(batch, _failure(batch)):
            self._deliverer.start(self._inflight.buried(batch))
            self._on_room()
        else:
            await self.give_back(self._inflight.give_back(batch), _ORDER_WAIT)

    async def _send_bury(self, batch: Batch, failure: Failure) -> bool:
        """Moves a batch to the dead letters; returns False if an older one has to leave first."""
        requests = self._session.requests
        attempts = min(batch.attempt, self._config.max_attempts)
        if submitted := await self._submitted(batch):
            begin = requests.bury(batch.batch_id, batch.group, attempts, failure, only_begin=True)
            if await self._session.send(begin) == b"MORE":
                batch_id = batch.batch_id.decode()
                record = pack_failure(batch_id, failure.error, batch_id)
                await self._answer(batch, [(*each, record) for each in submitted])
        bury = requests.bury(batch.batch_id, batch.group, attempts, failure)
        reply = b"MORE"
        while reply == b"MORE":  # a slice of its tasks was moved
            reply = await self._session.send(bury)
        if reply == b"ORDER":
            return False
        _log.error(
            "batch %s of group '%s' is among the dead letters after %d attempts: %s",
            batch.batch_id.decode(),
            group_text(group_of(batch.group)),
            attempts,
            failure.error,
            exc_info=BatchDied.of(failure.error, failure.traceback),
            extra=fields_of(batch, "BatchBuried", attempt=attempts, error=failure.error),
        )
        if batch.trace is not None:
            batch.trace.buried(attempts, failure)
        return True

    async def _answer(self, batch: Batch, answers: Sequence[Answered]) -> None:
        """Stores answers of a batch whose outcome is fixed, a limited number in a call."""
        requests, start = self._session.requests, 0
        while some := some_answers(answers, start):
            await self._session.send(requests.answer(batch.batch_id, batch.group, some))
            start += len(some)

    async def _submitted(self, batch: Batch) -> list[tuple[bytes, int]]:
        """The ids of the submitted tasks of a batch, and for how long their answers are kept, ms.

        If the tasks can't be read, they get no answers.
        """
        if batch.claim.entries:
            return _submitted_of(batch.claim.entries)
        found: list[tuple[bytes, int]] = []
        try:
            async for entries in read_slices(self._session, batch, once=True):
                found += _submitted_of(entries)
        except (RedisUnavailable, KeyConflict) as error:
            _log.warning("tasks of group '%s' get no answers: %s", group_text(batch.group), error)
        return found

    async def _retry(self, action: GiveBack) -> None:
        """Gives back a failed batch and those that wait with it."""
        batch = action.batches[0]
        failure = _failure(batch)
        delay = failure.pause
        if action.split:
            delay = 0.0 if failure.splits else retry_delay(self._config, 1)
            await self._split(batch, failure, delay)
        elif delay is None:
            delay = retry_delay(self._config, batch.attempt)
            _log.warning(
                "batch %s of group '%s' failed (attempt %d of %d), next in %.1f s: %s",
                batch.batch_id.decode(),
                group_text(group_of(batch.group)),
                batch.attempt,
                self._config.max_attempts,
                delay,
                failure.error,
                extra=fields_of(batch, "BatchRetried", delay=delay, error=failure.error),
            )
        await self.give_back(action, delay)

    async def _split(self, batch: Batch, failure: Failure, delay: float) -> None:
        """Replaces a failed batch by its halves, unless it has none or is gone."""
        split = self._session.requests.split(batch.batch_id, delay, failure.error)
        if await self._session.send(split) == 1:
            if batch.trace is not None:
                batch.trace.split(delay, failure)
            _log.warning(
                "batch %s of group '%s' with %d tasks failed and is split, next in %.1f s: %s",
                batch.batch_id.decode(),
                group_text(group_of(batch.group)),
                batch.claim.task_count,
                delay,
                failure.error,
                extra=fields_of(batch, "BatchSplit", delay=delay, error=failure.error),
            )

    async def give_back(self, action: GiveBack, delay: float) -> None:
        """Gives batches back with their merge results.

        Args:
            delay: seconds until they can be claimed again; one whose merge asked for more time
                than that gets it.
        """
        returned: list[Returned] = []
        for each in action.batches:
            result = _new_result(each)
            if result and (len(result) > _INLINE_BYTES or each.claim.result):
                await self._store_apart(each, result)
                result = b""
            returned.append(Returned(each.batch_id, _wait_of(each, delay), False, result))
        requests = self._session.requests
        if len(returned) > _STORED_TOGETHER:
            # All batches go back in one call, so that their group stays in order.
            stored = [each._replace(delay=None) for each in returned if each.result]
            for start in range(0, len(stored), _STORED_TOGETHER):
                some = stored[start : start + _STORED_TOGETHER]
                await self._session.send(requests.retry(some))
            returned = [each._replace(result=b"") for each in returned]
        if failure := action.failure:
            returned[0] = returned[0]._replace(counts=failure.counts, error=failure.error)
        await self._session.send(requests.retry(returned))
        for each in action.batches:
            if each.trace is not None:
                each.trace.given_back(delay, action.failure if each is action.batches[0] else None)
        for deliver in self._inflight.given_back(action):
            self._deliverer.start(deliver)
        self._on_room()

    async def _store_apart(self, batch: Batch, result: bytes) -> None:
        """Stores the merge result of a batch, which stays claimed, apart from its record."""
        label, requests = self._session.requests.store_result(batch.batch_id, result)
        for request in requests:
            if await self._session.send(request) == 0:
                return  # it is not in flight any more: the next call about it says so
        claim = batch.claim
        attempt = claim.attempt if claim.stored_result else 1
        batch.claim = claim._replace(stored_result=result, result=label, attempt=attempt)
        self._inflight.result_stored(batch)


def _submitted_of(entries: Sequence[bytes]) -> list[tuple[bytes, int]]:
    kept = ((entry, submitted_ms(entry)) for entry in entries)
    return [(entry_id(entry), keep_ms) for entry, keep_ms in kept if keep_ms]


def _outcome(batch: Batch) -> MergeOutcome:
    """The outcome of a batch that has been merged."""
    assert batch.outcome is not None
    return batch.outcome


def _needs_slices(batch: Batch, outcome: MergeOutcome) -> bool:
    """Whether a batch is committed by slices: its result is stored apart, or has to be."""
    if batch.claim.result or outcome.failed or is_large(outcome):
        return True
    return outcome.answers is not None and not answers_fit(outcome)


def _wait_of(batch: Batch, delay: float) -> float:
    """Seconds until a batch that is given back can be claimed again, `delay` at least."""
    failure = batch.outcome.failure if batch.outcome is not None else None
    return max(delay, failure.pause or 0.0) if failure is not None else delay


def _failure(batch: Batch) -> Failure:
    """The failure of a batch that has failed."""
    assert batch.failure is not None
    return batch.failure


def _new_result(batch: Batch) -> bytes:
    """The serialized merge result, or empty if Redis has it or the merge has none yet."""
    result = pack_result(batch.outcome) if batch.outcome else b""
    return b"" if result == batch.claim.stored_result else result
