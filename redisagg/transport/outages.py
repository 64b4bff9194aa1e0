"""Logs an outage of Redis in two lines: one when calls fail, one when they succeed again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

import tenacity

from redisagg.texts import logger, span_text

_log = logger("redis")

_FORGOTTEN = 60.0
"""Seconds without a failure after which an outage counts as over, whatever calls there are."""

_BETWEEN = 1.0
"""Seconds between two outages that are logged. Connections that break again and again would
otherwise fill the log."""


class Outage:
    """What is known of the outages of one server, for all transports of the process.

    An outage begins when a call fails twice. It ends when all calls that failed have ended, and a
    call has succeeded. Calls may come from any thread: what two of them do at the same time costs
    a line too many at most.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.since: float | None = None
        """When the present outage began; None if all is well."""
        self._clock = clock
        self._failing = 0
        """The number of calls that are tried again."""
        self._failed_at = -math.inf
        self._logged = False
        self._ended_at = -math.inf

    @contextmanager
    def trying(self) -> Iterator[None]:
        """Surrounds the further attempts of a call that has failed; raises if these fail too."""
        self._failing += 1
        try:
            yield
        finally:
            self._failing -= 1
        if self.since is not None:
            self.answered()

    def failed(self, state: tenacity.RetryCallState) -> None:
        """An attempt has failed, and another one follows; a callback for tenacity."""
        now = self._clock()
        if self.since is not None and now - self._failed_at > _FORGOTTEN:
            self.since = None
        self._failed_at = now
        if self.since is None:
            self.since = now - (state.seconds_since_start or 0.0)
            self._logged = False
        if not self._logged and now - self._ended_at >= _BETWEEN:
            self._logged = True
            error = state.outcome.exception() if state.outcome else None
            _log.warning(
                "Redis does not acknowledge (%s); calls are repeated until it does",
                error,
                extra={"event": "RedisAway", "error": str(error)},
            )

    def answered(self) -> None:
        """A call has succeeded; called while there is an outage only."""
        now = self._clock()
        if self.since is None or (self._failing and now - self._failed_at < _FORGOTTEN):
            return
        seconds, self.since = now - self.since, None
        if self._logged:
            self._ended_at = now
            _log.info(
                "Redis answers again after %s",
                span_text(seconds),
                extra={"event": "RedisBack", "seconds": seconds},
            )


_outages: WeakValueDictionary[Hashable, Outage] = WeakValueDictionary()


def outage_of(client: Any) -> Outage:
    """The outages of the server, or of the cluster, that a client talks to."""
    pool = getattr(client, "connection_pool", None)
    if pool is None:
        place: Hashable = id(client.topology)
    elif (service := getattr(pool, "service_name", None)) is not None:
        place = ("sentinel", service)
    else:
        options = pool.connection_kwargs
        place = (options.get("host"), options.get("port"), options.get("path"))
    return _outages.setdefault(place, Outage())
