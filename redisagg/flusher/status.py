"""Publishes what a flusher says of itself: its settings, and which sinks are down.

A status is stored when the flusher starts, when a breaker has changed and every few minutes. So
an observer learns what only this flusher knows, and nothing is stored for each batch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from redisagg.config import AggregationConfig
from redisagg.durations import seconds, to_ms
from redisagg.errors import RedisAggError
from redisagg.flusher.breaker import Breaker, BreakerState
from redisagg.flusher.waiting import wait_for_event
from redisagg.protocol.keys import Keyspace
from redisagg.protocol.scripts import call
from redisagg.protocol.status import (
    LONGEST_TEXT,
    MOST_SINKS,
    pack_status,
    rate_limit_fields,
)
from redisagg.texts import logger, redact
from redisagg.transport.aio import AsyncTransport

_log = logger("flusher")

_REPEATED_AFTER = 600.0
"""Seconds after which the status is stored again; the script `report_status` relies on it."""

_SHORTEST_WAIT = 1.0
"""Seconds between two statuses, however often breakers change."""


class StatusPublisher:
    """Publishes the status of one flusher.

    Args:
        known: returns the number of sinks that the flusher has used.
    """

    def __init__(
        self,
        *,
        flusher_id: str,
        keyspace: Keyspace,
        config: AggregationConfig,
        transport: AsyncTransport,
        known: Callable[[], int],
    ) -> None:
        self._flusher_id = flusher_id
        self._keyspace = keyspace
        self._config = config
        self._transport = transport
        self._known = known
        self._started = time.monotonic()
        self._down: dict[Breaker, _Down] = {}
        self._changed = asyncio.Event()
        self._refused = False

    def breaker(self, breaker: Breaker, state: BreakerState, seconds: float, reason: str) -> None:
        """A breaker has changed its state; arguments as of `Reporter.breaker`."""
        now = time.monotonic()
        if state is BreakerState.CLOSED:
            self._down.pop(breaker, None)
        else:
            before = self._down.get(breaker)
            since = before.since if before else now
            reason = reason or (before.reason if before else "")
            self._down[breaker] = _Down(state, reason, since, now + seconds)
        self._changed.set()

    async def run(self) -> None:
        """Publishes the status until it is cancelled."""
        while True:
            self._changed.clear()
            await self._publish()
            await asyncio.sleep(_SHORTEST_WAIT)
            await wait_for_event(self._changed, _REPEATED_AFTER - _SHORTEST_WAIT)

    async def _publish(self) -> None:
        text = pack_status(self._fields())
        request = call("report_status", [self._keyspace.status], self._flusher_id, text)
        try:
            [reply] = await self._transport.exchange([request])
        except RedisAggError as error:
            reply = error
        if isinstance(reply, RedisAggError) and not self._refused:
            _log.warning("the status of the flusher can't be stored: %s", reply)
        self._refused = isinstance(reply, RedisAggError)

    def _fields(self) -> dict[str, Any]:
        config, now = self._config, time.monotonic()
        return {
            "started_ago": to_ms(now - self._started),
            "concurrency": config.concurrency,
            "max_attempts": config.max_attempts,
            "lease_ms": to_ms(seconds(config.lease_time)),
            "max_concurrency": config.max_concurrency or 0,
            "group_concurrency": config.group_concurrency or 0,
            "rate_limit": rate_limit_fields(config.rate_limit),
            "group_rate_limit": rate_limit_fields(config.group_rate_limit),
            "sinks_working": max(0, self._known() - len(self._down)),
            "sinks": [
                {
                    "sink": redact(breaker.name)[:LONGEST_TEXT],
                    "queue": redact(breaker.queue)[:LONGEST_TEXT],
                    "state": down.state.value,
                    "reason": down.reason,
                    "since_ago": to_ms(now - down.since),
                    "until_in": to_ms(max(0.0, down.until - now)),
                }
                for breaker, down in list(self._down.items())[:MOST_SINKS]
            ],
        }


class _Down:
    """A breaker that is not closed."""

    __slots__ = ("reason", "since", "state", "until")

    def __init__(self, state: BreakerState, reason: str, since: float, until: float) -> None:
        self.state = state
        self.reason = reason
        self.since = since
        self.until = until
