"""The leader of a partition: wires its parts together, and drains when it ends."""

from __future__ import annotations

import asyncio
import time

from redisagg.config import AggregationConfig
from redisagg.durations import seconds
from redisagg.flusher.batch import Batch, Failure, MergeOutcome
from redisagg.flusher.batch_reports import BatchReports
from redisagg.flusher.breaker import Breaker, Breakers
from redisagg.flusher.budget import Isolation, MemoryBudget
from redisagg.flusher.leader.claimer import Claimer
from redisagg.flusher.leader.committer import Committer
from redisagg.flusher.leader.deliverer import Deliverer
from redisagg.flusher.leader.inflight import InFlight
from redisagg.flusher.leader.permits import LeaderPermits
from redisagg.flusher.leader.requests import MAX_CLAIM_BATCHES, LeaderRequests
from redisagg.flusher.leader.session import LeaseSession
from redisagg.flusher.leader.sink_health import SinkHealth, merge_ended
from redisagg.flusher.leader.task_reader import TaskReader
from redisagg.flusher.merging import Merger
from redisagg.flusher.permits import Permits
from redisagg.flusher.reporter import Reporter
from redisagg.flusher.waiting import cancel_and_wait, wait_for_event
from redisagg.protocol.keys import PartitionKeys
from redisagg.sinks.routing import Deliveries
from redisagg.texts import logger
from redisagg.transport.aio import AsyncTransport

_log = logger("batches")


class Leader:
    """The leader of one partition, for the time of one lease.

    Args:
        partition: the keys of the partition.
        token: the fencing token of the lease.
        merges: the breaker of the merge function.
        merger, deliveries, breakers, merges, budget, isolation: shared by all leaders of a flusher.
        idle: seconds between two polls at most; a wake-up shortens the wait.
        permits: of the flusher, if something limits all flushers together.
        report: reports its batches, if somebody listens.
    """

    def __init__(
        self,
        *,
        partition: PartitionKeys,
        token: int,
        config: AggregationConfig,
        transport: AsyncTransport,
        merger: Merger,
        deliveries: Deliveries,
        breakers: Breakers,
        merges: Breaker,
        budget: MemoryBudget,
        isolation: Isolation,
        idle: float,
        permits: Permits | None = None,
        report: Reporter | None = None,
    ) -> None:
        self.partition = partition
        self.token = token
        self._shutdown_timeout = seconds(config.shutdown_timeout)
        self._left = asyncio.Event()
        slot = partition.slot if transport.clustered else None
        requests = LeaderRequests(
            partition,
            token,
            config,
            idle,
            wants_cause=report is not None or (permits is not None and permits.needs_weight),
        )
        session = LeaseSession(transport, requests, partition.number)
        sinks = SinkHealth(breakers, deliveries.router.only(), slot)
        limit = max(4 * config.concurrency, 4 * MAX_CLAIM_BATCHES)
        self._permits: LeaderPermits | None = None
        if permits is not None:
            self._permits = LeaderPermits(permits, partition)
        self._merger = merger
        self._merges = merges
        self._inflight = InFlight(
            limit,
            max_stalled=limit // 4,
            max_attempts=config.max_attempts,
            budget=budget,
            max_of_group=config.group_concurrency,
            isolate=config.isolate_failures,
        )
        self._deliverer = Deliverer(
            deliveries, session, self._inflight, sinks, on_delivered=self._wake_committer
        )
        self._committer = Committer(
            config=config,
            session=session,
            inflight=self._inflight,
            sinks=sinks,
            deliverer=self._deliverer,
            on_room=self._batches_left,
        )
        self._reader = TaskReader(session, on_read=self._read, on_failed=_fail)
        self._claimer = Claimer(
            session=session,
            inflight=self._inflight,
            sinks=sinks,
            merges=merges,
            isolation=isolation,
            slot=slot,
            on_claimed=self._claimed,
            on_merged=self._merged,
            on_failed=self._wake_committer,
            idle=idle,
            permits=self._permits,
            reports=None if report is None else BatchReports(report, partition.number),
        )

    async def run(self) -> None:
        """Leads until `finish` is called or the lease is lost.

        Raises:
            StaleLease: the partition has another leader; all batches in flight are void.
        """
        claiming = asyncio.create_task(self._claimer.run())
        committing = asyncio.create_task(self._committer.run())
        draining: asyncio.Task[None] | None = None
        try:
            await _first_of(claiming, committing)  # claiming ends after `finish`
            draining = asyncio.create_task(self._drain())
            await _first_of(draining, committing)
        finally:
            self._inflight.close()
            self._deliverer.cancel()
            self._reader.cancel()
            if self._permits is not None:
                self._permits.close()
            await cancel_and_wait(*filter(None, (claiming, committing, draining)))

    @property
    def is_settled(self) -> bool:
        """Whether nothing is merged or delivered; batches may wait for permits."""
        waiting = 0 if self._permits is None else self._permits.waiting
        return self._inflight.working <= waiting

    def wake(self) -> None:
        """Something may have become due."""
        self._claimer.wake()

    def breakers_changed(self) -> None:
        """A breaker has opened or closed."""
        self._claimer.breakers_changed()

    def finish(self) -> None:
        """Makes `run` end: nothing more is claimed, and batches in flight are finished."""
        self._claimer.finish()

    def _claimed(self, batch: Batch) -> None:
        claim = batch.claim
        if claim.entries or claim.stored_result:
            self._merger.submit(batch)
        else:
            self._reader.start(batch)

    def _read(self, batch: Batch) -> None:
        self._inflight.result_stored(batch)
        if self._permits is not None:
            self._permits.merge_later(batch, self._merger.submit)
        else:
            self._merger.submit(batch)

    def _merged(self, batch: Batch) -> None:
        outcome = batch.outcome
        if batch.trace is not None and outcome is not None:
            batch.trace.merged(batch.claim, outcome)
        if outcome is not None and (outcome.failure is not None or self._merges.troubled):
            merge_ended(self._merges, batch, outcome)
        deliver = self._inflight.merged(batch)
        if deliver is not None:
            self._deliverer.start(deliver)
        self._committer.wake()

    def _wake_committer(self) -> None:
        # A method, since the deliverer is made before the committer.
        self._committer.wake()

    def _batches_left(self) -> None:
        self._left.set()
        self._claimer.wake()

    async def _drain(self) -> None:
        """Waits until nothing is in flight; gives the rest back after `shutdown_timeout`."""
        end = time.monotonic() + self._shutdown_timeout
        while len(self._inflight):
            self._left.clear()
            if not await wait_for_event(self._left, max(0.0, end - time.monotonic())):
                _log.warning("%d batches in flight are given back unfinished", len(self._inflight))
                await self._committer.give_back(self._inflight.give_back_all(), 0)
                return


def _fail(batch: Batch, failure: Failure) -> None:
    """Ends a batch without a merge."""
    if batch.begin():
        batch.end_merge(MergeOutcome(failure))


async def _first_of(*tasks: asyncio.Task[None]) -> None:
    """Waits until one of the tasks has ended, and raises what it raised."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
