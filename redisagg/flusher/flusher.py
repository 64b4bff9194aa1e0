"""A flusher: a lease keeper, a leader for each lease, one merger, one ear for news."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from dataclasses import dataclass
from functools import partial

from redisagg.config import AggregationConfig
from redisagg.durations import seconds
from redisagg.flusher.backoff import break_delay
from redisagg.flusher.breaker import Breakers
from redisagg.flusher.leader import Leader
from redisagg.flusher.leases import LeaseKeeper
from redisagg.flusher.listener import Wakeups
from redisagg.flusher.merging import make_merger
from redisagg.flusher.waiting import end
from redisagg.protocol.keys import Keyspace, PartitionKeys
from redisagg.sinks.base import Sink, SinkContext
from redisagg.sinks.routing import Deliveries, Route, Router
from redisagg.transport.aio import AsyncTransport
from redisagg.transport.endpoint import AsyncClient, Endpoint

_log = logging.getLogger("redisagg")

# What giving back leases may take when merges have ended, seconds.
_FAREWELL = 2.0


def new_flusher_id() -> str:
    """Unique, and tells people which host and process it is."""
    return f"{socket.gethostname()[:64]}:{os.getpid()}:{os.urandom(4).hex()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flusher:
    """Claims, merges and enqueues what is due, as long as `run` runs.

    Args:
        client: for commands.
        endpoint: for the connection that listens.
    """

    keyspace: Keyspace
    config: AggregationConfig
    sink: Sink | Route
    client: AsyncClient
    endpoint: Endpoint

    async def run(self, stop: asyncio.Event) -> None:
        """Runs until `stop` is set; merges in hand are then finished and leases given back."""
        transport = AsyncTransport(self.client, timeout=None)
        router = Router(self.sink, transport.clustered)
        merger = make_merger(self.config, router)
        deliveries = Deliveries(router, SinkContext(self.keyspace, transport))

        def all_look() -> None:
            for leader in leaders.values():
                leader.look()

        breakers = Breakers(partial(break_delay, self.config), all_look)

        def make_leader(partition: PartitionKeys, token: int) -> Leader:
            return Leader(
                partition=partition,
                token=token,
                config=self.config,
                transport=transport,
                merger=merger,
                deliveries=deliveries,
                breakers=breakers,
                idle=seconds(self.config.lease_time),
            )

        keeper = LeaseKeeper(
            flusher_id=new_flusher_id(),
            keyspace=self.keyspace,
            config=self.config,
            transport=transport,
            make_leader=make_leader,
        )
        leaders = keeper.leaders

        def heard(message: bytes | None) -> None:
            if message is None or not message.isdigit():
                keeper.look()
            if message is None:
                all_look()
            elif message.isdigit() and int(message) in leaders:
                leaders[int(message)].look()

        silence = min(seconds(self.config.lease_time) / 3, 5.0)
        wakeups = Wakeups(
            self.endpoint, self.client, self.keyspace.wake_channel, heard, silence=silence
        )
        listening = asyncio.create_task(wakeups.run())
        keeping = asyncio.create_task(keeper.run(stop))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({keeping, stopping}, return_when=asyncio.FIRST_COMPLETED)
            # Redis may be out of reach just now; its leases run out by themselves then.
            within = seconds(self.config.shutdown_timeout) + _FAREWELL
            await asyncio.wait({keeping}, timeout=within)
            if keeping.done():
                keeping.result()
            else:
                _log.warning("the flusher ends without giving its leases back")
        finally:
            stopping.cancel()
            keeping.cancel()
            merger.close()
            await end(listening)
            await asyncio.gather(keeping, return_exceptions=True)
            await deliveries.close()
