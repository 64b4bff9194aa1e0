"""The clock of Redis, as a producer knows it: for the times of schedules."""

from __future__ import annotations

import time
from collections.abc import Callable

from redisagg.protocol.keys import Keyspace
from redisagg.protocol.operations import Operation, ask
from redisagg.protocol.scripts import call

_TRUSTED = 10.0
"""Seconds after which Redis' clock is read again: it may have been set."""


class RedisClock:
    """Counts on from the time that Redis has told.

    Who uses the time and finds `is_wanted` afterwards, reads the clock and uses the time again.

    Args:
        keyspace: the keys of the namespace.
        monotonic: returns seconds of a clock that is never set.
        own: returns seconds since the epoch by this machine's clock.
    """

    def __init__(
        self,
        keyspace: Keyspace,
        monotonic: Callable[[], float] = time.monotonic,
        own: Callable[[], float] = time.time,
    ) -> None:
        self.is_wanted = False
        """Whether `now_ms` was called when Redis had not told its time lately."""
        self._keyspace = keyspace
        self._monotonic = monotonic
        self._own = own
        self._ahead: float | None = None
        """Seconds by which Redis' clock is ahead of `monotonic`."""
        self._told = 0.0
        """When Redis told its time, by `monotonic`."""

    def now_ms(self) -> int:
        """Returns ms since the epoch: by this machine's clock until Redis' clock has been read."""
        now = self._monotonic()
        if self._ahead is None:
            self.is_wanted = True
            return int(1000 * self._own())
        if now - self._told > _TRUSTED:
            self.is_wanted = True
        return int(1000 * (now + self._ahead))

    def read(self) -> Operation[None]:
        """Reads Redis' clock; on Redis Cluster that of the node with the namespace's record."""
        asked = self._monotonic()
        redis_ms = yield from ask(call("now", [self._keyspace.meta]))
        self._told = self._monotonic()
        self._ahead = redis_ms / 1000 - (asked + self._told) / 2
        self.is_wanted = False
