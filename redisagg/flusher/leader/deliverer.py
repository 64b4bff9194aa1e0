"""Takes merged tasks to sinks outside Redis, before their batch is committed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from redisagg.errors import InvalidTask
from redisagg.flusher.leader.sink_health import KnownSinks, failure_at
from redisagg.flusher.merging.merger import Batch, Failure, Outcome
from redisagg.sinks.base import MergedTask
from redisagg.sinks.routing import Deliveries


class Deliverer:
    """Runs the deliveries of one leader, each in a task of its own."""

    def __init__(self, deliveries: Deliveries, sinks: KnownSinks) -> None:
        self._deliveries = deliveries
        self._sinks = sinks
        self._under_way: set[asyncio.Task[None]] = set()

    def start(self, job: Batch, outcome: Outcome, then: Callable[[bytes], None]) -> None:
        """Delivers what is to be delivered of an outcome.

        Args:
            then: called with the group when all of it has been delivered, or its outcome has
                become a failure.
        """
        job.delivering = True
        delivery = asyncio.create_task(self._deliver(job, outcome, then))
        self._under_way.add(delivery)
        delivery.add_done_callback(self._under_way.discard)

    def cancel(self) -> None:
        """Ends all deliveries; their jobs have been abandoned."""
        for delivery in self._under_way:
            delivery.cancel()

    async def _deliver(self, job: Batch, outcome: Outcome, then: Callable[[bytes], None]) -> None:
        try:
            while outcome.deliveries and outcome.failure is None:
                batch = outcome.deliveries[0]
                outcome.failure = await self._deliver_one(job, batch)
                if outcome.failure is None:  # should one behind it fail, it is not sent again
                    del outcome.deliveries[0], outcome.merged[batch.batch_id]
        except BaseException as error:
            if job.abandoned:
                raise  # it is this delivery that was cancelled
            outcome.failure = Failure.of(error)
        if not job.abandoned:
            job.delivering = False
            then(job.group)

    async def _deliver_one(self, job: Batch, batch: MergedTask) -> Failure | None:
        """Delivers a merged task; returns why that failed, if it did."""
        sink = self._deliveries.sink_of(batch.task)
        breaker = self._sinks.breaker_of(sink)
        admitted = breaker.admit(reserved=job.probing)
        if admitted is None:
            return Failure.of_sink_down(breaker.pause())
        try:
            await self._deliveries.deliver(sink, batch)
        except InvalidTask:  # it says nothing about the queue
            raise
        except BaseException as error:  # a sink may end in CancelledError or SystemExit too
            if job.abandoned:
                raise
            return failure_at(breaker, job.batch_id, admitted, error)
        breaker.succeeded()
        return None
