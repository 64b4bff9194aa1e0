"""What is new, for pages that are open: one look at Redis for all that watch a namespace."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from redisagg.dashboard import queries
from redisagg.dashboard.queries import Look
from redisagg.dashboard.sources import Shown
from redisagg.errors import RedisAggError

_INTERVAL = 2.0
"""Seconds between two events of a page at least."""

_QUIET = 15.0
"""Seconds after which a connection without news gets a comment, so that no proxy closes it."""

MOST_WATCHERS = 500
"""Connections at most: each takes a place in the server."""


class Feed:
    """The last look at a namespace, shared by all requests for it.

    Args:
        shown: the namespace.
    """

    def __init__(self, shown: Shown) -> None:
        self._shown = shown
        self._look: Look | None = None
        self._read_at = 0.0
        self._reading: asyncio.Task[Look] | None = None

    async def look(self, max_age: float) -> Look:
        """Returns a look that is at most so old, in seconds.

        Raises:
            RedisAggError: Redis can't be asked.
        """
        if self._look is not None and time.monotonic() - self._read_at <= max_age:
            return self._look
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
        return await asyncio.shield(self._reading)

    def forget(self) -> None:
        """Has the next look read anew, since something was changed."""
        self._look = self._reading = None

    async def _read(self) -> Look:
        self._look = await queries.look(self._shown)
        self._read_at = time.monotonic()
        return self._look


def mark_of(look: Look) -> tuple[object, ...]:
    """What changes when a page has something new to show."""
    stats = look.stats
    return (
        *(stats.pending, stats.in_flight, stats.dead, stats.flushed, stats.groups),
        *(stats.batches_in_flight, stats.batches_in_retry, stats.batches_dead),
        *(stats.paused, tuple(stats.flushers), look.led, look.groups_due, look.groups_waiting),
        round(look.oldest_overdue),
    )


async def events(
    feed: Feed,
    describe: Callable[[Look], dict[str, object]],
    is_gone: Callable[[], Awaitable[bool]],
    interval: float = _INTERVAL,
) -> AsyncIterator[str]:
    """Yields server-sent events until the browser has gone.

    Args:
        feed: the namespace.
        describe: what the event tells of a look.
        is_gone: whether the browser has gone.
        interval: seconds between two events at least.
    """
    yield "retry: 3000\n\n"
    mark: object = None
    told_at = time.monotonic()
    while not await is_gone():
        try:
            look = await feed.look(max_age=interval * 0.75)
            current: object = mark_of(look)
            data = describe(look)
        except RedisAggError as error:
            current = "away"
            data = {"level": "bad", "title": f"Redis can't be asked: {error}"}
        if current != mark:
            mark = current
            told_at = time.monotonic()
            yield f"event: news\ndata: {json.dumps(data)}\n\n"
        elif time.monotonic() - told_at >= _QUIET:
            told_at = time.monotonic()
            yield ": nothing new\n\n"
        await asyncio.sleep(interval)
