"""A flusher: one lease keeper, a leader for each lease, one merger."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from redisagg.config import AggregationConfig
from redisagg.durations import seconds
from redisagg.flusher.backoff import break_delay
from redisagg.flusher.breaker import Breaker, Breakers, BreakerState
from redisagg.flusher.budget import Isolation, MemoryBudget
from redisagg.flusher.connections import Connections
from redisagg.flusher.leader import Leader
from redisagg.flusher.leases import LeaseKeeper
from redisagg.flusher.merging import make_merger
from redisagg.flusher.permits import MESSAGE, Permits
from redisagg.flusher.recorder import Recorder
from redisagg.flusher.reporter import Reporter, reporting
from redisagg.flusher.status import StatusPublisher
from redisagg.flusher.waiting import cancel_and_wait
from redisagg.observers import Observers
from redisagg.protocol.keys import Keyspace, PartitionKeys
from redisagg.sinks.base import ScriptSink, Sink, SinkContext, timeout_of
from redisagg.sinks.routing import Deliveries, Route, Router
from redisagg.texts import logger

_log = logger("flusher")

# Seconds that giving back leases may take after merges have ended. `stop` ends 2 s after
# `shutdown_timeout`, and clients and sinks have to be closed before that.
_RELEASE_TIMEOUT = 0.8


def new_flusher_id() -> str:
    """Makes a unique id that names the host and the process."""
    return f"{socket.gethostname()[:64]}:{os.getpid()}:{os.urandom(4).hex()}"


def _sink_timeout(router: Router) -> float | None:
    """Seconds that a delivery takes at most; 0 for a queue in Redis, None if that is not known."""
    with suppress(Exception):  # of the sink's own code; each batch fails by it, and says so
        sink = router.only()
        if isinstance(sink, ScriptSink):
            return 0.0
        if sink is not None:
            return timeout_of(sink)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Flusher:
    """Claims, merges and enqueues what is due, as long as `run` runs.

    Args:
        connections: to Redis; other flushers may use them too.
        observers: who listens to its events.
        on_user_loop: whether it runs on an event loop of the user.
    """

    keyspace: Keyspace
    config: AggregationConfig
    sink: Sink | Route
    connections: Connections
    observers: Observers = field(default_factory=Observers)
    on_user_loop: bool = False

    async def run(self, stop: asyncio.Event) -> None:
        """Runs until `stop` is set, then finishes what is in flight and gives back the leases."""
        of_flusher = (self.keyspace, self.config, flusher_id := new_flusher_id(), self.observers)
        async with reporting(*of_flusher, on_loop=self.on_user_loop) as report:
            await self._run(stop, flusher_id, report)

    async def _run(self, stop: asyncio.Event, flusher_id: str, report: Reporter) -> None:
        transport = self.connections.batches
        router = Router(self.sink, transport.clustered, self.config.max_merged_bytes)
        merger = make_merger(self.config, router)
        deliveries = Deliveries(router, SinkContext(self.keyspace, transport))

        def wake_all() -> None:
            for leader in leaders.values():
                leader.wake()

        def breakers_changed() -> None:
            for leader in leaders.values():
                leader.breakers_changed()

        budget, isolation = MemoryBudget(wake_all), Isolation()
        delay = partial(break_delay, self.config)

        def report_breaker(
            breaker: Breaker, state: BreakerState, seconds: float, reason: str
        ) -> None:
            report.breaker(breaker, state, seconds, reason)
            status.breaker(breaker, state, seconds, reason)

        breakers = Breakers(delay, breakers_changed, report_breaker)
        merges = Breaker("the merge function", delay, breakers_changed, report=report_breaker)
        status = StatusPublisher(
            flusher_id=flusher_id,
            keyspace=self.keyspace,
            config=self.config,
            transport=self.connections.leases,
            known=breakers.__len__,
        )

        permits: Permits | None = None
        if self.config.limits_work:
            permits = Permits(
                flusher_id=flusher_id,
                keyspace=self.keyspace,
                config=self.config,
                transport=transport,
                most=merger.most,
                sink_timeout=_sink_timeout(router),
            )

        def make_leader(partition: PartitionKeys, token: int) -> Leader:
            return Leader(
                partition=partition,
                token=token,
                config=self.config,
                transport=transport,
                merger=merger,
                deliveries=deliveries,
                breakers=breakers,
                merges=merges,
                budget=budget,
                isolation=isolation,
                idle=seconds(self.config.lease_time),
                permits=permits,
                report=report if report.of_batches else None,
            )

        keeper = LeaseKeeper(
            flusher_id=flusher_id,
            keyspace=self.keyspace,
            config=self.config,
            transport=self.connections.leases,
            make_leader=make_leader,
            report=report,
        )
        leaders = keeper.leaders

        def on_message(message: bytes | None) -> None:
            """Wakes whom a message is for: the number of a partition, or a change of flushers."""
            if permits is not None and (message is None or message == MESSAGE):
                permits.wake()
            if message == MESSAGE:
                return
            if message is None or not message.isdigit():
                keeper.wake()
            if message is None:
                wake_all()
            elif message.isdigit() and int(message) in leaders:
                leaders[int(message)].wake()

        listener, channel = self.connections.listener, self.keyspace.wake_channel
        listener.add(channel, on_message)

        async def keep() -> None:
            preparing = asyncio.create_task(merger.prepare())
            await asyncio.wait({preparing, stopping}, return_when=asyncio.FIRST_COMPLETED)
            await cancel_and_wait(preparing)
            await keeper.run(stop)

        recording: asyncio.Task[None] | None = None
        if self.config.history:
            recorder = Recorder(
                flusher_id=flusher_id,
                keyspace=self.keyspace,
                transport=transport,
                leading=leaders.keys(),
            )
            recording = asyncio.create_task(recorder.run())
        stopping = asyncio.create_task(stop.wait())
        keeping = asyncio.create_task(keep())
        publishing = asyncio.create_task(status.run())
        try:
            await asyncio.wait({keeping, stopping}, return_when=asyncio.FIRST_COMPLETED)
            publishing.cancel()  # the status goes when the flusher leaves
            # If Redis can't be reached now, the leases run out by themselves.
            within = seconds(self.config.shutdown_timeout) + _RELEASE_TIMEOUT
            await asyncio.wait({keeping}, timeout=within)
            if keeping.done():
                keeping.result()
            else:
                _log.warning("the flusher ends without giving its leases back")
        finally:
            stopping.cancel()
            keeping.cancel()
            if recording is not None:
                await cancel_and_wait(recording)
            merger.close()
            listener.remove(channel, on_message)
            await asyncio.gather(keeping, return_exceptions=True)
            await cancel_and_wait(publishing)
            if permits is not None:
                await permits.close()
            await deliveries.close()
