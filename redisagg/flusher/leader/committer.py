"""Tells Redis about batches: commits them, gives them back, or buries them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from redisagg.config import AggregationConfig
from redisagg.errors import MergedTaskTooLarge, RedisAggError, RedisUnavailable, TaskTooLarge
from redisagg.flusher.backoff import retry_delay
from redisagg.flusher.batch import Batch, Enqueue, Failure, MergeOutcome
from redisagg.flusher.breaker import Breaker
from redisagg.flusher.leader.deliverer import Deliverer
from redisagg.flusher.leader.inflight import Bury, Commit, GiveBack, InFlight
from redisagg.flusher.leader.requests import MAX_COMMIT_BATCHES, MAX_COMMIT_BYTES, Returned
from redisagg.flusher.leader.session import LeaseSession
from redisagg.flusher.leader.sink_health import SinkHealth, failure_at
from redisagg.flusher.merging.result_codec import pack_result
from redisagg.protocol.scripts import Request
from redisagg.transport.failures import error_from_reply

_log = logging.getLogger("redisagg")

# Seconds until a batch is claimed again that was given back because of its order in the group.
_ORDER_WAIT = 0.2

# Bytes of a call for which Redis may close the connection: proto-max-bulk-len and
# client-query-buffer-limit are 1 MiB at least.
_LARGE_CALL = 512 * 1024
# How often Redis may close the connection at a large call, while it answers others, before the
# batch of the call counts as too large.
_MAX_CLOSED = 3

# Entries that one call copies into a dead letter. A constant: whoever repeats the calls after a
# death has to put the same entries into the same dead letters.
_SET_ASIDE_TASKS = 500


@dataclass(slots=True)
class _Call:
    """The batches of one commit; all go into the same queue."""

    batches: list[Batch] = field(default_factory=list)
    size: int = 0
    """Bytes of their merged tasks."""
    breaker: Breaker | None = None
    """The breaker of the queue; None if nothing is enqueued."""
    admitted: int = 0
    """The number with which the breaker let them through."""


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
            return
        enqueue = _outcome(ready[0]).enqueue
        assert enqueue is not None  # else no breaker would have kept it out
        pause = self._sinks.breaker_for(enqueue).pause()
        self._inflight.failed(ready[0], Failure.of_sink_down(pause))

    def _select(self, ready: list[Batch]) -> _Call:
        """The first batches that fit into one call; none if the breaker of their queue is open."""
        call = _Call()
        common: Enqueue | None = None
        for batch in ready:
            if len(call.batches) == MAX_COMMIT_BATCHES or call.size > MAX_COMMIT_BYTES:
                break
            enqueue = _outcome(batch).enqueue
            if enqueue is not None:
                if common is None or call.breaker is None:
                    common, call.breaker = enqueue, self._sinks.breaker_for(enqueue)
                elif not enqueue.goes_with(common):
                    break
                admitted = call.breaker.admit(reserved=batch.probing)
                if admitted is None:
                    break
                call.admitted = admitted
                call.size += sum(map(len, enqueue.arguments))
            call.batches.append(batch)
        return call

    async def _commit(self, call: _Call) -> None:
        batches, breaker = call.batches, call.breaker
        self._inflight.committing(batches)
        for batch in batches:
            if undecodable := _outcome(batch).undecodable:
                await self._set_aside(batch, undecodable)
                undecodable.clear()
        replies = await self._send_commit(batches, call.size)
        misplaced: list[GiveBack] = []
        for batch, reply in zip(batches, replies, strict=True):
            if reply == b"OK" or reply == b"GONE":  # GONE: the reply to an earlier commit was lost
                if breaker is not None and reply == b"OK" and _outcome(batch).enqueue is not None:
                    breaker.succeeded()
                deliver = self._inflight.committed(batch)
                if deliver is not None:
                    self._deliverer.start(deliver)
            elif isinstance(reply, MergedTaskTooLarge):
                self._inflight.failed(batch, Failure.of(reply))
            elif reply != b"ORDER":
                assert breaker is not None  # else there was nothing to refuse
                error = error_from_reply(reply.decode(errors="replace"))
                failure = failure_at(breaker, batch.batch_id, call.admitted, error)
                self._inflight.failed(batch, failure)
            elif (action := self._inflight.out_of_order(batch)) is not None:
                misplaced.append(action)
        self._on_room()
        for action in misplaced:
            await self.give_back(action, _ORDER_WAIT)

    async def _send_commit(
        self, batches: list[Batch], size: int
    ) -> list[bytes | MergedTaskTooLarge]:
        """Commits batches; returns the reply for each, or why Redis can't take it.

        If Redis can't take all of them in one call, they are committed one by one.

        Args:
            size: bytes of their merged tasks, or more.
        """
        entries = [(each.batch_id, each.group, _outcome(each).enqueue) for each in batches]
        try:
            replies: list[bytes | MergedTaskTooLarge] = await self._send_large(
                self._session.requests.commit(entries), batches, size
            )
            return replies
        except MergedTaskTooLarge as error:
            if len(batches) == 1:
                return [error]
        return [reply for batch in batches for reply in await self._send_commit([batch], size)]

    async def _send_large(self, request: Request, batches: Sequence[Batch], size: int) -> Any:
        """Sends a call that may be larger than Redis accepts.

        Redis closes the connection at such a call, which looks like an outage. It is none if other
        calls succeed in between.

        Args:
            size: bytes of the data in the call, or more.

        Raises:
            MergedTaskTooLarge: Redis refuses the call, or closes the connection each time.
        """
        if size < _LARGE_CALL:
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
        _log.error("group %r: %s", batch.group[:64], error)
        requests = self._session.requests
        for part, start in enumerate(range(0, len(positions), _SET_ASIDE_TASKS), 1):
            some = positions[start : start + _SET_ASIDE_TASKS]
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
        bury = requests.bury(batch.batch_id, batch.group, attempts, failure)
        reply = b"MORE"
        while reply == b"MORE":  # a slice of its tasks was moved
            reply = await self._session.send(bury)
        if reply == b"ORDER":
            return False
        _log.error(
            "batch %s of group %r is among the dead letters after %d attempts: %s",
            batch.batch_id.decode(),
            batch.group[:64],
            attempts,
            failure.error,
        )
        return True

    async def _retry(self, action: GiveBack) -> None:
        """Gives back a failed batch and those that wait with it."""
        batch = action.batches[0]
        failure = _failure(batch)
        delay = failure.pause
        if delay is None:
            delay = retry_delay(self._config, batch.attempt)
            _log.warning(
                "batch %s of group %r failed (attempt %d of %d), next in %.1f s: %s",
                batch.batch_id.decode(),
                batch.group[:64],
                batch.attempt,
                self._config.max_attempts,
                delay,
                failure.error,
            )
        await self.give_back(action, delay)

    async def give_back(self, action: GiveBack, delay: float) -> None:
        """Gives batches back with their merge results.

        Args:
            delay: seconds until they can be claimed again.
        """
        returned = [
            Returned(each.batch_id, delay, False, _new_result(each)) for each in action.batches
        ]
        too_large = None
        if sum(len(each.result) for each in returned) >= _LARGE_CALL:
            # All batches go back in one call, so that their group stays in order.
            too_large = await self._store_results(returned, action.batches)
            returned = [each._replace(result=b"") for each in returned]
        if failure := action.failure:
            returned[0] = returned[0]._replace(counts=failure.counts, error=failure.error)
            if too_large and await self._send_bury(action.batches[0], Failure.of(too_large)):
                del returned[0]
        if returned:
            await self._session.send(self._session.requests.retry(returned))
        for deliver in self._inflight.given_back(action):
            self._deliverer.start(deliver)
        self._on_room()

    async def _store_results(
        self, returned: Sequence[Returned], batches: Sequence[Batch]
    ) -> MergedTaskTooLarge | None:
        """Stores merge results with their batches, which stay claimed.

        A result that Redis can't take is left out: its batch is merged anew.

        Returns:
            Why the result of the first batch was left out, or None.
        """
        too_large: dict[int, MergedTaskTooLarge] = {}
        part: list[int] = []
        for i, each in enumerate(returned):
            part.append(i)
            size = sum(len(returned[n].result) for n in part)
            if size < _LARGE_CALL and each is not returned[-1]:
                continue
            if await self._store(returned, batches, part) is not None:
                for n in part:  # one of them is too large, or all together
                    if (error := await self._store(returned, batches, [n])) is not None:
                        too_large[n] = error
            part = []
        return too_large.get(0)

    async def _store(
        self, returned: Sequence[Returned], batches: Sequence[Batch], part: Sequence[int]
    ) -> MergedTaskTooLarge | None:
        """Stores the results at these places; returns why Redis can't take them, or None."""
        request = self._session.requests.retry([returned[n]._replace(delay=None) for n in part])
        try:
            size = sum(len(returned[n].result) for n in part)
            await self._send_large(request, [batches[n] for n in part], size)
        except MergedTaskTooLarge as error:
            return error
        return None


def _outcome(batch: Batch) -> MergeOutcome:
    """The outcome of a batch that has been merged."""
    assert batch.outcome is not None
    return batch.outcome


def _failure(batch: Batch) -> Failure:
    """The failure of a batch that has failed."""
    assert batch.failure is not None
    return batch.failure


def _new_result(batch: Batch) -> bytes:
    """The serialized merge result, or empty if Redis has it or the merge has none yet."""
    result = pack_result(batch.outcome) if batch.outcome else b""
    return b"" if result == batch.claim.stored_result else result
