"""The leader of a partition: claims, merges and commits side by side."""

from __future__ import annotations

import asyncio
import logging

from redisagg.config import AggregationConfig
from redisagg.durations import seconds
from redisagg.flusher.breaker import Breakers
from redisagg.flusher.leader.claimer import Claimer
from redisagg.flusher.leader.committer import Committer
from redisagg.flusher.leader.deliverer import Deliverer
from redisagg.flusher.leader.hand import Hand
from redisagg.flusher.leader.lanes import Lanes
from redisagg.flusher.leader.queue import CommitQueue
from redisagg.flusher.leader.requests import LeaderCalls
from redisagg.flusher.leader.session import Asker
from redisagg.flusher.leader.settling import Settler
from redisagg.flusher.leader.sink_health import KnownSinks
from redisagg.flusher.merging.merger import Merger
from redisagg.flusher.waiting import end, wait_for_event
from redisagg.protocol.keys import PartitionKeys
from redisagg.sinks.routing import Deliveries
from redisagg.transport.aio import AsyncTransport

_log = logging.getLogger("redisagg")


class Leader:
    """The leader of one partition.

    Args:
        partition: which one.
        token: the fencing token of the lease.
        merger, deliveries, breakers: the ones that all leaders of a flusher share.
        idle: longest sleep between two looks, seconds; news come sooner.
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
        idle: float,
    ) -> None:
        self.partition = partition
        self.token = token
        self._shutdown_timeout = seconds(config.shutdown_timeout)
        self._look = asyncio.Event()
        slot = partition.slot if transport.clustered else None
        calls = LeaderCalls(partition, token, config, idle)
        redis = Asker(transport, calls, partition.number)
        sinks = KnownSinks(breakers, deliveries.router.only(), slot)
        queue = CommitQueue()
        self._hand = Hand(self._look)
        self._deliverer = Deliverer(deliveries, sinks)
        lanes = Lanes(self._hand, queue, self._deliverer)
        self._claimer = Claimer(
            config=config,
            partition=partition,
            slot=slot,
            redis=redis,
            hand=self._hand,
            lanes=lanes,
            sinks=sinks,
            merger=merger,
            look=self._look,
            idle=idle,
        )
        self._settler = Settler(
            config=config,
            redis=redis,
            hand=self._hand,
            lanes=lanes,
            queue=queue,
            claiming=self._claimer.claiming,
        )
        self._committer = Committer(
            redis=redis,
            hand=self._hand,
            lanes=lanes,
            queue=queue,
            sinks=sinks,
            settler=self._settler,
        )

    async def run(self) -> None:
        """Leads until `finish` is called or the lease is lost.

        Raises:
            StaleLease: the partition has another leader; everything in hand is void.
        """
        claiming = asyncio.create_task(self._claimer.run())
        committing = asyncio.create_task(self._committer.run())
        try:
            # Claiming ends when it is told to finish.
            done, _ = await asyncio.wait(
                {claiming, committing}, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                task.result()
            drained = asyncio.create_task(self._drain())
            done, _ = await asyncio.wait({drained, committing}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._hand.abandon()
            self._deliverer.cancel()
            await end(claiming, committing)

    def look(self) -> None:
        """Something may have become due."""
        self._look.set()

    def finish(self) -> None:
        """Claims nothing more, finishes what is in hand, and ends."""
        self._claimer.finish()

    async def _drain(self) -> None:
        if not await wait_for_event(self._hand.empty, self._shutdown_timeout):
            _log.warning("%d batches in hand are given back unfinished", len(self._hand))
            await self._settler.give_back(list(self._hand.jobs.values()), 0)
