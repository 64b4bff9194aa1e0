"""News from producers and other flushers, by Redis' publish and subscribe.

A message that is lost costs time, never a task: leaders look by themselves now and then, and at
once when the subscription had to be made anew.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import tenacity
from redis.asyncio import RedisCluster

from redisagg.transport import retrying
from redisagg.transport.endpoint import AsyncClient, Endpoint, aclose

_log = logging.getLogger("redisagg")


class Wakeups:
    """Listens on a namespace's channel with a connection of its own.

    Args:
        endpoint: where Redis is.
        client: the flusher's client, which knows the nodes that a cluster has now.
        channel: the channel.
        heard: called with each message; with None when messages may have been missed.
        silence: after so many seconds without a message the connection is checked.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        client: AsyncClient,
        channel: bytes,
        heard: Callable[[bytes | None], None],
        *,
        silence: float,
    ) -> None:
        self._endpoint = endpoint
        self._client = client
        self._channel = channel
        self._heard = heard
        self._silence = silence
        self._turn = 0

    async def run(self) -> None:
        """Listens until it is cancelled."""
        while True:
            retryer = tenacity.AsyncRetrying(**retrying.options(None, since=time.monotonic()))
            try:
                await retryer(self._listen)
            except Exception as error:
                _log.error("no news from Redis: %s; leaders look by themselves", error)
                await asyncio.sleep(self._silence)

    async def _listen(self) -> None:
        client: Any = self._next_endpoint().asyncio()
        try:
            async with client.pubsub() as pubsub:
                await pubsub.subscribe(self._channel)
                silent = False
                while True:
                    message = await pubsub.get_message(timeout=self._silence)
                    if message is not None:
                        silent = False  # whatever it is, the answer to a ping too
                        self._take(message)
                    elif silent:
                        raise ConnectionError("the subscription does not answer")
                    else:
                        silent = True
                        await pubsub.ping()
        finally:
            await aclose(client)

    def _take(self, message: dict[str, Any]) -> None:
        if message["type"] == "subscribe":
            self._heard(None)
        elif message["type"] == "message":
            self._heard(message["data"])

    def _next_endpoint(self) -> Endpoint:
        """One server to listen to; on a cluster any node does, another one each time."""
        if not isinstance(self._client, RedisCluster):
            return self._endpoint
        known = [(node.host, int(node.port)) for node in self._client.get_nodes()]
        nodes = known or self._endpoint.cluster
        self._turn += 1
        return self._endpoint.of_node(nodes[self._turn % len(nodes)])
