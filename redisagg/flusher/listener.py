"""Listens to the wake channel of a namespace by Redis' publish and subscribe.

Producers and other flushers publish there when something is due earlier than a leader expects. A
lost message costs time, never a task: leaders poll by themselves once a lease time, and at once
when the subscription was renewed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import tenacity

from redisagg.transport import retrying
from redisagg.transport.aio import AsyncTransport
from redisagg.transport.endpoint import Endpoint, aclose
from redisagg.transport.nodes import Cluster

_log = logging.getLogger("redisagg")


class Listener:
    """Listens to one channel with a connection of its own.

    Args:
        endpoint: where Redis is.
        transport: the flusher's, which knows the present nodes of a cluster, and notices when a
            primary has become a replica.
        channel: the name of the channel.
        on_message: called with each message, and with None when messages may have been lost.
        silence: seconds without a message after which the connection is checked.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        transport: AsyncTransport,
        channel: bytes,
        on_message: Callable[[bytes | None], None],
        *,
        silence: float,
    ) -> None:
        self._endpoint = endpoint
        self._transport = transport
        self._channel = channel
        self._on_message = on_message
        self._silence = silence
        self._turn = 0

    async def run(self) -> None:
        """Listens until it is cancelled."""
        while True:
            retryer = tenacity.AsyncRetrying(**retrying.options(None, since=time.monotonic()))
            try:
                await retryer(self._listen)
            except Exception as error:
                _log.error("can't listen to Redis: %s; leaders poll once a lease time", error)
                await asyncio.sleep(self._silence)

    async def _listen(self) -> None:
        client: Any = self._next_endpoint().asyncio()
        try:
            async with client.pubsub() as pubsub:
                await pubsub.subscribe(self._channel)
                silent = False
                role_changes = self._transport.role_changes
                while role_changes == self._transport.role_changes:
                    message = await pubsub.get_message(timeout=self._silence)
                    if message is not None:
                        silent = False  # any message shows that it works, the answer to a ping too
                        self._handle(message)
                    elif silent:
                        raise ConnectionError("the subscription does not answer")
                    else:
                        silent = True
                        await pubsub.ping()
            raise ConnectionError("the primary has become a replica")
        finally:
            await aclose(client)

    def _handle(self, message: dict[str, Any]) -> None:
        if message["type"] == "subscribe":
            self._on_message(None)
        elif message["type"] == "message":
            self._on_message(message["data"])

    def _next_endpoint(self) -> Endpoint:
        """The server to listen to: on a cluster any node, another one in each call."""
        client = self._transport.client
        if not isinstance(client, Cluster):
            return self._endpoint
        nodes = client.topology.nodes or self._endpoint.cluster
        self._turn += 1
        return self._endpoint.of_node(nodes[self._turn % len(nodes)])
