"""How a leader talks to Redis."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from redisagg.errors import RedisAggError, StaleLease
from redisagg.flusher.leader.requests import LeaderCalls
from redisagg.protocol.scripts import Request
from redisagg.transport.aio import AsyncTransport

_log = logging.getLogger("redisagg")

# Between two attempts at something that Redis refuses for a reason that may go away, seconds.
_REFUSED_WAIT = 0.5


class Asker:
    """Sends the calls of one leader, for as long as its lease lasts.

    Args:
        calls: what it can be asked to send.
        partition: its number, for the log.
    """

    def __init__(self, transport: AsyncTransport, calls: LeaderCalls, partition: int) -> None:
        self.calls = calls
        self._transport = transport
        self._partition = partition

    async def ask(self, request: Request) -> Any:
        """The reply to a request; waits as long as Redis refuses for reasons that may go away.

        Raises:
            StaleLease: the partition has another leader.
        """
        [reply] = await self.ask_together([request])
        return reply

    async def ask_together(self, requests: Sequence[Request], *, once: bool = False) -> list[Any]:
        """As `ask`, for requests in one round trip; it is the first that must not be refused.

        Args:
            once: whether a lost connection is not ridden out.

        Raises:
            StaleLease: the partition has another leader.
            RedisUnavailable: `once`, and no reply came.
        """
        while True:
            replies = await self._transport.exchange(requests, once=once)
            refused = replies[0]
            if not isinstance(refused, RedisAggError):
                return replies
            if isinstance(refused, StaleLease):
                raise refused
            script = requests[0].script
            name = script.name if script else "a command"
            _log.error("partition %d: %s failed: %s", self._partition, name, refused)
            await asyncio.sleep(_REFUSED_WAIT)
