"""How a leader sends requests to Redis while its lease lasts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from redisagg.errors import KeyConflict, RedisAggError, StaleLease, TaskTooLarge
from redisagg.flusher.leader.requests import LeaderRequests
from redisagg.protocol.scripts import Request
from redisagg.texts import logger
from redisagg.transport.aio import AsyncTransport

_log = logger("batches")

# Seconds between two attempts at a request that Redis refuses for a reason that may go away.
_REFUSED_WAIT = 0.5


class LeaseSession:
    """Sends the requests of one leader.

    Args:
        requests: makes the requests, each with the fencing token of the lease.
        partition: the number of the partition, for the log.
    """

    def __init__(self, transport: AsyncTransport, requests: LeaderRequests, partition: int) -> None:
        self.requests = requests
        self.partition = partition
        self._transport = transport

    async def send(self, request: Request) -> Any:
        """Sends a request and returns its reply; retries while Redis refuses it.

        Raises:
            StaleLease: the partition has another leader.
        """
        [reply] = await self.send_all([request])
        return reply

    async def send_all(
        self, requests: Sequence[Request], *, once: bool = False, of_batch: bool = False
    ) -> list[Any]:
        """Sends requests in one round trip, as `send`; only the first one must not be refused.

        Args:
            once: whether a lost connection is an error instead of being retried.
            of_batch: whether the first request reads keys of one batch only, so that a foreign
                type there concerns no other.

        Raises:
            StaleLease: the partition has another leader.
            RedisUnavailable: `once` is set and no reply came.
            KeyConflict: `of_batch` is set and a key holds a foreign type.
            TaskTooLarge: Redis can't take data of this size.
        """
        while True:
            replies = await self._transport.exchange(requests, once=once)
            refused = replies[0]
            if not isinstance(refused, RedisAggError):
                return replies
            if isinstance(refused, StaleLease | TaskTooLarge):
                raise refused
            if of_batch and isinstance(refused, KeyConflict):
                raise refused
            script = requests[0].script
            name = script.name if script else "a command"
            _log.error("partition %d: Redis refuses %s: %s", self.partition, name, refused)
            await asyncio.sleep(_REFUSED_WAIT)
