"""The connections to Redis that flushers on one event loop share.

A flusher of its own would have a connection for each partition, since timers of all partitions act
at the same time, and one that listens: a hundred namespaces in a process would have thousands.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import redis.exceptions as rx
from redis.asyncio import ConnectionPool

from redisagg.flusher.listener import Listener
from redisagg.flusher.waiting import cancel_and_wait
from redisagg.transport.aio import AsyncTransport
from redisagg.transport.durability import Durability
from redisagg.transport.endpoint import Endpoint, aclose
from redisagg.transport.nodes import Cluster
from redisagg.transport.round_trip import Command

_BATCH_CALLS = 28
"""The number of calls of leaders that are under way at a time."""

_LEASE_CALLS = 4
"""The number of calls that keep leases and are under way at a time; they wait for no batches."""


class _BoundedTransport(AsyncTransport):
    """A transport whose calls share a few connections; further calls wait their turn.

    Only for one Redis: on a cluster a call to a master that hangs would keep back the others.
    """

    def __init__(self, client: Any, calls: int) -> None:
        super().__init__(client, timeout=None)
        self._slots = asyncio.Semaphore(calls)

    async def _send_pipeline(
        self, pool: ConnectionPool, commands: list[Command], durability: Durability | None
    ) -> list[Any]:
        async with self._slots:
            try:
                return await super()._send_pipeline(pool, commands, durability)
            except (rx.ConnectionError, rx.TimeoutError, OSError):
                # The idle ones are probably lost too. Each would cost a timeout.
                idle: list[Any] = getattr(pool, "_available_connections", [])
                for connection in tuple(idle):
                    await connection.disconnect(nowait=True)
                raise


class Connections:
    """A client for flushers on the present event loop, and a listener.

    Args:
        endpoint: where Redis is.
        silence: as for `Listener`.
    """

    def __init__(self, endpoint: Endpoint, silence: float) -> None:
        self.endpoint = endpoint
        self.silence = silence
        self.users = 0
        self._client = endpoint.asyncio()
        if isinstance(self._client, Cluster):
            self.batches = self.leases = AsyncTransport(self._client, timeout=None)
        else:
            self.batches = _BoundedTransport(self._client, _BATCH_CALLS)
            self.leases = _BoundedTransport(self._client, _LEASE_CALLS)
        self.listener = Listener(endpoint, {self.batches, self.leases}, silence=silence)
        self._listening = asyncio.create_task(self.listener.run())

    async def close(self) -> None:
        """Closes all connections."""
        await cancel_and_wait(self._listening)
        await aclose(self._client)


class _OfThread(threading.local):
    """The connections that are open in a thread, by event loop."""

    def __init__(self) -> None:
        self.by_loop: dict[asyncio.AbstractEventLoop, list[Connections]] = {}


_of_thread = _OfThread()


@asynccontextmanager
async def shared_connections(endpoint: Endpoint, silence: float) -> AsyncIterator[Connections]:
    """Lends connections to a flusher: those of an endpoint and event loop are the same for all.

    Args:
        endpoint, silence: as for `Connections`.
    """
    by_loop = _of_thread.by_loop
    for closed in [loop for loop in by_loop if loop.is_closed()]:
        del by_loop[closed]
    loop = asyncio.get_running_loop()
    all_open = by_loop.setdefault(loop, [])
    for connections in all_open:
        if (connections.endpoint, connections.silence) == (endpoint, silence):
            break
    else:
        connections = Connections(endpoint, silence)
        all_open.append(connections)
    connections.users += 1
    try:
        yield connections
    finally:
        connections.users -= 1
        if not connections.users:
            all_open.remove(connections)  # before the wait, in which others may come
            if not all_open:
                with contextlib.suppress(KeyError):
                    del by_loop[loop]
            await connections.close()
