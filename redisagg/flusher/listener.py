"""Listens to the wake channels of namespaces by Redis' publish and subscribe.

Producers and other flushers publish there when something is due earlier than a leader expects. A
lost message costs time, never a task: leaders poll by themselves once a lease time, and at once
when the subscription was renewed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from typing import Any, TypeAlias

import tenacity

from redisagg.flusher.waiting import cancel_and_wait
from redisagg.texts import logger
from redisagg.transport import retrying
from redisagg.transport.aio import AsyncTransport
from redisagg.transport.endpoint import Endpoint, aclose
from redisagg.transport.nodes import Cluster

_log = logger("redis")

Handler: TypeAlias = Callable[["bytes | None"], None]
"""Is called with each message, and with None when messages may have been lost."""


class Listener:
    """Listens to the channels of all flushers that share it, on one connection.

    Args:
        endpoint: where Redis is.
        transports: those of the flushers, which know the present nodes of a cluster, and notice
            when a primary has become a replica.
        silence: seconds without a message after which the connection is checked.
    """

    def __init__(
        self, endpoint: Endpoint, transports: Collection[AsyncTransport], *, silence: float
    ) -> None:
        self._endpoint = endpoint
        self._transports = transports
        self._silence = silence
        self._handlers: dict[bytes, list[Handler]] = {}
        self._changed = asyncio.Event()
        self._turn = 0

    def add(self, channel: bytes, handler: Handler) -> None:
        """Begins to listen to a channel; the handler is called once that is so."""
        handlers = self._handlers.setdefault(channel, [])
        handlers.append(handler)
        if len(handlers) > 1:  # its channel may have been subscribed long ago
            handler(None)
        self._changed.set()

    def remove(self, channel: bytes, handler: Handler) -> None:
        """Ends listening to a channel, unless another flusher listens to it."""
        handlers = self._handlers[channel]
        handlers.remove(handler)
        if not handlers:
            del self._handlers[channel]
        self._changed.set()

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
                await pubsub.connect()
                ending = asyncio.Event()
                subscribing = asyncio.create_task(self._subscribe(pubsub, ending))
                try:
                    await self._read(pubsub, subscribing)
                finally:
                    ending.set()  # the cancellation may be lost, see `cancel_and_wait`
                    self._changed.set()
                    await cancel_and_wait(subscribing)
        finally:
            await aclose(client)

    async def _subscribe(self, pubsub: Any, ending: asyncio.Event) -> None:
        """Keeps the subscriptions as they are wanted, until `ending` is set or it is cancelled."""
        subscribed: set[bytes] = set()
        while not ending.is_set():
            self._changed.clear()
            wanted = set(self._handlers)
            if missing := wanted - subscribed:
                await pubsub.subscribe(*missing)
            if unwanted := subscribed - wanted:
                await pubsub.unsubscribe(*unwanted)
            subscribed = wanted
            await self._changed.wait()

    async def _read(self, pubsub: Any, subscribing: asyncio.Task[None]) -> None:
        silent = False
        role_changes = self._role_changes()
        while role_changes == self._role_changes():
            if subscribing.done():
                subscribing.result()
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

    def _role_changes(self) -> int:
        return sum(transport.role_changes for transport in self._transports)

    def _handle(self, message: dict[str, Any]) -> None:
        if message["type"] not in {"subscribe", "message"}:
            return
        data = message["data"] if message["type"] == "message" else None
        for handler in tuple(self._handlers.get(message["channel"], ())):
            try:
                handler(data)
            except Exception:  # must not keep messages from other flushers
                _log.exception("a wake-up failed")

    def _next_endpoint(self) -> Endpoint:
        """The server to listen to: on a cluster any node, another one in each call."""
        client = next(iter(self._transports)).client
        if not isinstance(client, Cluster):
            return self._endpoint
        nodes = client.topology.nodes or self._endpoint.cluster
        self._turn += 1
        return self._endpoint.of_node(nodes[self._turn % len(nodes)])
