"""Delivers merged tasks to sinks outside Redis, before their batch is committed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from redisagg.errors import InvalidTask
from redisagg.flusher.batch import Batch, Failure, MergeOutcome, Permit, State
from redisagg.flusher.leader.inflight import Deliver, InFlight
from redisagg.flusher.leader.session import LeaseSession
from redisagg.flusher.leader.sink_health import SinkHealth, failure_at
from redisagg.flusher.leader.task_reader import read_slices
from redisagg.flusher.merging.answering import answer_failed
from redisagg.flusher.merging.steps import positions_of
from redisagg.merge_function import Partial
from redisagg.sinks.base import MergedTask, timeout_of
from redisagg.sinks.routing import Deliveries


class _PermitEnds(Exception):
    """The permit of the batch may end before a delivery is over."""


def _begin(permit: Permit, timeout: float, *, last: bool) -> None:
    if not permit.may_deliver(timeout, last=last):
        raise _PermitEnds


class Deliverer:
    """Runs the deliveries of one leader, each batch in a task of its own.

    Args:
        on_delivered: called when the delivery of a batch has ended.
    """

    def __init__(
        self,
        deliveries: Deliveries,
        session: LeaseSession,
        inflight: InFlight,
        sinks: SinkHealth,
        on_delivered: Callable[[], None],
    ) -> None:
        self._deliveries = deliveries
        self._session = session
        self._inflight = inflight
        self._sinks = sinks
        self._on_delivered = on_delivered
        self._running: set[asyncio.Task[None]] = set()
        self._longest = 0.0
        """Seconds that a delivery of a batch with a permit takes at most."""

    def start(self, action: Deliver | None) -> None:
        """Starts the delivery that an event asked for, if it did."""
        if action is not None:
            delivery = asyncio.create_task(self._deliver(action.batch))
            self._running.add(delivery)
            delivery.add_done_callback(partial(self._ended, action.batch))

    def cancel(self) -> None:
        """Cancels all deliveries; their batches have been abandoned."""
        for delivery in self._running:
            delivery.cancel()

    def _ended(self, batch: Batch, delivery: asyncio.Task[None]) -> None:
        self._running.discard(delivery)
        if delivery.cancelled() and batch.permit is not None:  # it may not even have begun
            self._end_permit(batch.permit, batch)

    async def _deliver(self, batch: Batch) -> None:
        outcome = batch.outcome
        assert outcome is not None  # it has been merged
        try:
            await self._deliver_all(batch, outcome)
        except BaseException as error:  # a sink may raise CancelledError or SystemExit too
            if batch.state is not State.DELIVERING:
                raise  # this delivery was cancelled
            outcome.failure = Failure.of(error)
        finally:
            if batch.permit is not None:
                self._end_permit(batch.permit, batch)
        if batch.state is State.DELIVERING:
            self.start(self._inflight.delivered(batch))
            self._on_delivered()

    def _end_permit(self, permit: Permit, batch: Batch) -> None:
        """Gives the permit of a batch back; if its delivery was cancelled, when it is over."""
        if batch.state is State.DELIVERING:
            permit.end()
        else:  # a thread may go on
            asyncio.get_running_loop().call_later(self._longest, permit.end)

    async def _deliver_all(self, batch: Batch, outcome: MergeOutcome) -> None:
        # A sink may have ignored that this delivery was cancelled.
        while outcome.deliveries and not outcome.failure and batch.state is State.DELIVERING:
            merged = outcome.deliveries[-1]
            outcome.failure = await self._deliver_one(batch, merged)
            if outcome.failure is None:  # it is not sent again if a later one fails
                outcome.deliveries.pop()
                del outcome.merged[merged.batch_id]

    async def _deliver_one(self, batch: Batch, merged: MergedTask) -> Failure | None:
        """Delivers a merged task; returns why that failed, or None."""
        sink = self._deliveries.sink_of(merged.task)
        breaker = self._sinks.breaker_of(sink)
        admitted = breaker.admit(reserved=batch.probing)
        if admitted is None:
            return Failure.of_sink_down(breaker.pause())
        begins = None
        if (permit := batch.permit) is not None:
            timeout = timeout_of(sink)
            self._longest = max(self._longest, timeout)
            last = batch.outcome is not None and len(batch.outcome.deliveries) == 1
            begins = partial(_begin, permit, timeout, last=last)
        if batch.trace is not None:
            batch.trace.delivering(type(sink).__name__, merged)
        try:
            returned = await self._deliveries.deliver(sink, merged, begins)
        except _PermitEnds:
            return Failure("", "", pause=0.0)  # the next claim has another permit
        except InvalidTask:  # it says nothing about the queue
            raise
        except BaseException as error:
            if batch.state is not State.DELIVERING:
                raise
            if batch.trace is not None:
                batch.trace.delivered(type(sink).__name__, error)
            return failure_at(breaker, batch.batch_id, admitted, error)
        breaker.succeeded()
        if batch.trace is not None:
            batch.trace.delivered(type(sink).__name__)
        if returned is not None:
            await self._take_failed(batch, returned)
        return None

    async def _take_failed(self, batch: Batch, returned: Partial) -> None:
        """Notes the tasks that failed alone, as the sink says.

        Raises:
            MergeError: the batch has none of these tasks, or no others.
        """
        outcome = batch.outcome
        assert outcome is not None  # it has been merged
        entries = batch.claim.entries or [
            entry async for entries in read_slices(self._session, batch) for entry in entries
        ]
        no_tasks = {position for position, _ in outcome.undecodable}
        places = {
            entry[7 : 7 + entry[6]].decode(): position
            for position, entry in enumerate(entries)
            if position not in no_tasks
        }
        known = dict(outcome.failed)
        known.update(positions_of(returned.failed, places))
        outcome.failed = sorted(known.items())
        answer_failed(batch.claim, outcome, entries)
