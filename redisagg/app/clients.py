"""The clients for adds that the aggregators of an app share."""

from __future__ import annotations

import asyncio
from typing import Any, TypeAlias

from redisagg.transport.endpoint import AsyncClient, Endpoint, SyncClient, aclose, close

_AsyncClients: TypeAlias = "list[tuple[Endpoint, AsyncClient]]"


class Clients:
    """One client for each endpoint; of asyncio, one for each endpoint and event loop.

    They connect at their first command. No lock is held, which a forked child would inherit: of two
    threads that make a client at the same time, both use the first one.
    """

    def __init__(self) -> None:
        self._blocking: list[tuple[Endpoint, SyncClient]] = []
        self._on_loops: dict[asyncio.AbstractEventLoop, _AsyncClients] = {}

    def blocking(self, endpoint: Endpoint) -> SyncClient:
        """Returns the client of an endpoint for threads."""
        if _found(self._blocking, endpoint) is None:
            self._blocking.append((endpoint, endpoint.blocking()))
        client: SyncClient = _found(self._blocking, endpoint)
        return client

    def asyncio(self, endpoint: Endpoint) -> AsyncClient:
        """Returns the client of an endpoint for the running event loop."""
        for each in list(self._on_loops):
            if each.is_closed():
                self._on_loops.pop(each, None)
        clients = self._on_loops.setdefault(asyncio.get_running_loop(), [])
        if _found(clients, endpoint) is None:
            clients.append((endpoint, endpoint.asyncio()))
        client: AsyncClient = _found(clients, endpoint)
        return client

    def close(self) -> None:
        """Closes the connections of the clients for threads; a further use opens others."""
        for _, client in tuple(self._blocking):
            close(client)

    async def aclose(self) -> None:
        """Closes the connections of the clients for the running event loop."""
        for _, client in self._on_loops.pop(asyncio.get_running_loop(), []):
            await aclose(client)


def _found(clients: list[tuple[Endpoint, Any]], endpoint: Endpoint) -> Any:
    return next((client for known, client in clients if known == endpoint), None)
