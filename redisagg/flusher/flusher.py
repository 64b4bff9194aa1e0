"""A flusher: one lease keeper, a leader for each lease, one merger."""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass, field, replace

from redisagg.config import AggregationConfig
from redisagg.durations import seconds
from redisagg.flusher.breaker import Breaker, BreakerState
from redisagg.flusher.connections import Connections
from redisagg.flusher.leases import LeaseKeeper
from redisagg.flusher.parts import Parts
from redisagg.flusher.permits import MESSAGE
from redisagg.flusher.recorder import Recorder
from redisagg.flusher.reporter import Reporter, reporting
from redisagg.flusher.status import StatusPublisher
from redisagg.flusher.waiting import cancel_and_wait
from redisagg.observers import Observers
from redisagg.protocol.keys import Keyspace
from redisagg.protocol.registration import NamespaceMoved
from redisagg.sinks.base import Sink
from redisagg.sinks.routing import Route
from redisagg.texts import logger

_log = logger("flusher")

# Seconds that giving back leases may take after merges have ended. `stop` ends 2 s after
# `shutdown_timeout`, and clients and sinks have to be closed before that.
_RELEASE_TIMEOUT = 0.8


def new_flusher_id() -> str:
    """Makes a unique id that names the host and the process."""
    return f"{socket.gethostname()[:64]}:{os.getpid()}:{os.urandom(4).hex()}"


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
        """Runs until `stop` is set, then finishes what is in flight and gives back the leases.

        If the namespace is moved, the flusher begins anew where it is then.
        """
        while True:
            # Producers of this process may follow the namespace while this flusher still ends.
            flusher = replace(self, keyspace=Keyspace(*self.keyspace.layout))
            try:
                await flusher._report_run(stop)
                return
            except NamespaceMoved as moved:
                _log.warning("%s; this flusher follows", moved)
                self.keyspace.become(moved.layout)

    async def _report_run(self, stop: asyncio.Event) -> None:
        of_flusher = (self.keyspace, self.config, flusher_id := new_flusher_id(), self.observers)
        async with reporting(*of_flusher, on_loop=self.on_user_loop) as report:
            await self._run(stop, flusher_id, report)

    async def _run(self, stop: asyncio.Event, flusher_id: str, report: Reporter) -> None:
        def report_breaker(
            breaker: Breaker, state: BreakerState, seconds: float, reason: str
        ) -> None:
            report.breaker(breaker, state, seconds, reason)
            status.breaker(breaker, state, seconds, reason)

        parts = Parts(
            flusher_id=flusher_id,
            keyspace=self.keyspace,
            config=self.config,
            sink=self.sink,
            transport=self.connections.batches,
            report=report,
            report_breaker=report_breaker,
        )
        permits = parts.permits
        status = StatusPublisher(
            flusher_id=flusher_id,
            keyspace=self.keyspace,
            config=self.config,
            transport=self.connections.leases,
            known=parts.health.sinks.__len__,
        )
        keeper = LeaseKeeper(
            flusher_id=flusher_id,
            keyspace=self.keyspace,
            config=self.config,
            transport=self.connections.leases,
            make_leader=parts.make_leader,
            report=report,
        )
        leaders = parts.leaders = keeper.leaders

        def on_message(message: bytes | None) -> None:
            """Wakes whom a message is for: the number of a partition, or a change of flushers."""
            if permits is not None and (message is None or message == MESSAGE):
                permits.wake()
            if message == MESSAGE:
                return
            if message is None or not message.isdigit():
                keeper.wake()
            if message is None:
                parts.wake_all()
            elif message.isdigit() and int(message) in leaders:
                leaders[int(message)].wake()

        listener, channel = self.connections.listener, self.keyspace.wake_channel
        listener.add(channel, on_message)

        async def keep() -> None:
            preparing = asyncio.create_task(parts.merger.prepare())
            await asyncio.wait({preparing, stopping}, return_when=asyncio.FIRST_COMPLETED)
            await cancel_and_wait(preparing)
            await keeper.run(stop)

        recording: asyncio.Task[None] | None = None
        if self.config.history:
            recorder = Recorder(
                flusher_id=flusher_id,
                keyspace=self.keyspace,
                transport=self.connections.batches,
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
            parts.merger.close()
            listener.remove(channel, on_message)
            await asyncio.gather(keeping, return_exceptions=True)
            await cancel_and_wait(publishing)
            await parts.close()
