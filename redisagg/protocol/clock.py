"""The clock of Redis, as a producer knows it: for the times of schedules."""

from __future__ import annotations

import time
from collections.abc import Callable

from redisagg.protocol.keys import Keyspace
from redisagg.protocol.operations import Operation, ask
from redisagg.protocol.scripts import call

_TRUSTED = 10.0
"""Seconds after which Redis' clock is read again: it may have been set."""


class ClockUnread(Exception):
    """The clock of Redis has to be read first."""


class RedisClock:
    """Counts on from the time that Redis has told; for any number of threads.

    Args:
        keyspace: the keys of the namespace.
        monotonic: returns seconds of a clock that is never set.
    """

    def __init__(self, keyspace: Keyspace, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._keyspace = keyspace
        self._monotonic = monotonic
        self._ahead: float | None = None
        """Seconds by which Redis' clock is ahead of `monotonic`."""
        self._trusted_until = 0.0
        """Until when that is used without being read again, by `monotonic`."""

    @property
    def is_known(self) -> bool:
        """Whether the clock has been read."""
        return self._ahead is not None

    def now_ms(self) -> int:
        """Returns ms since the epoch.

        Raises:
            ClockUnread: the clock was not read lately. If it was read before, only one caller gets
                this error, and is to read it; the others count on from that for another while.
        """
        now = self._monotonic()
        if self._ahead is None:
            raise ClockUnread
        if now > self._trusted_until:
            self._trusted_until = now + _TRUSTED
            raise ClockUnread
        return int(1000 * (now + self._ahead))

    def keep(self) -> None:
        """Counts on from the last time for another while, since the clock can't be read."""
        self._trusted_until = self._monotonic() + _TRUSTED

    def read(self) -> Operation[None]:
        """Reads Redis' clock; on Redis Cluster that of the node with the namespace's record."""
        asked = self._monotonic()
        redis_ms = yield from ask(call("now", [self._keyspace.meta]))
        told = self._monotonic()
        self._ahead = redis_ms / 1000 - (asked + told) / 2
        self._trusted_until = told + _TRUSTED
