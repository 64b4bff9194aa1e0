"""Circuit breakers: a sink that is down is left alone for a while, and no batch is to blame for it.

The merge function has one too: there "sink" stands for what the function calls.

A breaker is closed as long as its sink works. It opens when `_FAILURES` different batches have
failed there in a row, so one batch alone, whatever is in it, never opens it. After a wait it is
half open: a few batches are let through, and the first result decides whether it closes or opens
again, for longer.
"""

from __future__ import annotations

import random
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from enum import Enum
from typing import TypeAlias

from redisagg.texts import escape_control, logger

_log = logger("sinks")

_FAILURES = 5
"""So many different batches have to fail in a row."""

_PROBES = 8
"""So many batches are let through when a breaker is half open."""

_MOST_KEPT = 1_000
"""The number of breakers beyond which closed ones are forgotten."""

_EARLIER = -1
"""For a batch that was let through by a state that is over."""

_SHORTEST_WAIT = 0.1
"""Seconds; `retry_delay` may be a millisecond, which must not become a busy loop."""

_LONGEST_PAUSE = 30.0
"""Seconds; a batch that is not to blame is tried again after this time, by another flusher perhaps,
for however long the sink has asked this one to wait."""


class BreakerState(Enum):
    """What a breaker lets through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half open"


# Access to a member of an enum takes longer than most steps here.
_CLOSED, _OPEN, _HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


Report: TypeAlias = "Callable[[Breaker, BreakerState, float, str], None]"
"""Is called with a breaker that has changed, its state, and how long and why it is open."""


class Breaker:
    """The breaker of one sink, for all leaders of a flusher; on their event loop.

    Args:
        name: of the sink, for the log.
        delay: seconds to wait after the sink was found down for so many times in a row.
        changed: called when it has opened or closed.
        clock: seconds that only grow.
        queue: tells it from others of the same name, for events.
        report: reports its changes.
    """

    def __init__(
        self,
        name: str,
        delay: Callable[[int], float],
        changed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        *,
        queue: str = "",
        report: Report | None = None,
    ) -> None:
        self.name = name
        self.queue = queue
        self._report = report
        self._opened_at = 0.0
        self._delay = delay
        self._changed = changed
        self._clock = clock
        self._state = _CLOSED
        self._failed: set[bytes] = set()  # while closed: batches, since the last success
        self._opened = 0  # how often in a row
        self._period = 0  # grows with each change of state
        self._wait = 0.0
        self._until = 0.0  # when it is half open, or lets further batches through
        self._held_until = 0.0  # when what was held may be sent again
        self._away = 0  # how often in a row it was said to be away
        self._claims = 0  # how many more may be claimed for it while it is half open
        self._probes = 0  # how many more may be sent

    @property
    def times_opened(self) -> int:
        """How often it has opened since it was closed last."""
        return self._opened

    @property
    def state(self) -> BreakerState:
        """What it is now: an open one becomes half open by the clock."""
        if self._state is not _CLOSED and self._clock() >= self._until:
            if self._state is _OPEN:
                self._enter(_HALF_OPEN)
                _log.info("%s is tried again", self.name, extra=self._fields("BreakerHalfOpened"))
                self._tell()
            # Again if the last ones gave no result within the wait: their leader may be gone.
            self._claims = self._probes = _PROBES
            self._until = self._clock() + self._wait
        return self._state

    def reserve(self, wanted: int) -> int:
        """How many of the `wanted` batches may be claimed for this sink while it is half open."""
        if self.state is not _HALF_OPEN:
            return 0
        granted = min(wanted, self._claims)
        self._claims -= granted
        return granted

    def unreserve(self, unused: int) -> None:
        """Takes back what was reserved and found nothing to be claimed."""
        self._claims += unused

    def admit(self, *, reserved: bool = False) -> int | None:
        """Lets a batch through: returns a number to give with its result. Or None: not now.

        Args:
            reserved: whether it was claimed by `reserve`; it is let through whatever happened
                since. A failure then makes nothing worse, and a success closes the breaker.
        """
        if self._state is _CLOSED:
            return self._period
        if self.state is _HALF_OPEN and self._probes > 0:
            self._probes -= 1
            return self._period
        return _EARLIER if reserved else None

    def succeeded(self) -> None:
        """A batch arrived, whenever it was let through: the sink works."""
        self._failed.clear()
        self._away = 0
        if self._state is not _CLOSED and self._clock() >= self._held_until:
            self._opened = 0
            self._enter(_CLOSED)
            _log.warning("%s works again", self.name, extra=self._fields("BreakerClosed"))
            self._tell(self._clock() - self._opened_at)
            self._changed()

    def failed(self, batch_id: bytes, admitted: int) -> bool:
        """A batch failed that was let through; returns whether the batch may be to blame."""
        if admitted != self._period:  # it was under way when the state changed
            return self._state is _CLOSED
        if self._state is _CLOSED:
            self._failed.add(batch_id)
            if len(self._failed) < _FAILURES:
                return True
        self._open()
        return False

    def away(self, batch_id: bytes, admitted: int | None) -> float:
        """A batch found that the sink can't be reached; returns seconds until its next attempt.

        Args:
            admitted: the number with which it was let through; None if it was not asked for.
        """
        self._away += 1
        if admitted is not None:
            self.failed(batch_id, admitted)
        if self._state is _CLOSED:
            return max(self._delay(self._away), _SHORTEST_WAIT)
        return self.pause()

    def hold(self, wait: float) -> None:
        """The sink has said that it takes nothing for `wait` seconds; it gets `delay(1)` at least.

        Else one that always says so, for a time of nothing, would be called without a pause.
        """
        shortest = max(self._delay(1), _SHORTEST_WAIT)
        wait = max(wait, shortest)
        until = self._clock() + wait
        if self._state is _OPEN and until <= self._until:
            return
        opens = self._state is not _OPEN
        self._failed.clear()
        # Later attempts to find out whether it works again do not wait for that long.
        self._wait = shortest
        self._until = self._held_until = until
        if opens:
            self._enter(_OPEN)
            _log.warning(
                "%s is busy; nothing is sent to it for %.1f s",
                *(self.name, wait),
                extra=self._fields("BreakerOpened", wait),
            )
            self._tell(wait, "busy")
            self._changed()

    @property
    def troubled(self) -> bool:
        """Whether a success would change anything; costs little while all is well."""
        return self._state is not _CLOSED or self._away > 0

    def pause(self) -> float:
        """Seconds after which a batch that it keeps out is tried again; with jitter.

        Until then it lets batches through, or half a minute is over.
        """
        left = max(self._until - self._clock(), 0) if self.state is not _CLOSED else 0
        return min(left, _LONGEST_PAUSE) + random.uniform(0.1, 1) * max(
            self._wait / 4, _SHORTEST_WAIT
        )

    def _open(self) -> None:
        self._opened += 1
        self._failed.clear()
        self._wait = max(self._delay(self._opened), _SHORTEST_WAIT)
        self._until = self._clock() + self._wait
        self._enter(_OPEN)
        _log.warning(
            "%s fails for all batches; nothing is sent to it for %.1f s",
            *(self.name, self._wait),
            extra=self._fields("BreakerOpened", self._wait),
        )
        self._tell(self._wait, "failures")
        self._changed()

    def _fields(self, event: str, seconds: float = 0.0) -> dict[str, object]:
        """The fields of a log line, for a JSON logger."""
        queue = escape_control(self.queue)
        return {"event": event, "sink": self.name, "queue": queue, "seconds": seconds}

    def _tell(self, seconds: float = 0.0, reason: str = "") -> None:
        """Reports the state that was just entered."""
        if self._report is not None:
            self._report(self, self._state, seconds, reason)

    def _enter(self, state: BreakerState) -> None:
        if self._state is BreakerState.CLOSED:
            self._opened_at = self._clock()
        self._state = state
        self._period += 1


class RecentBreakers:
    """Breakers by key; forgets closed ones that were not used for long, beyond `most` breakers.

    A route may send each customer's tasks to a stream of its own. A forgotten breaker is made anew
    when its sink is used again: it was closed, and has lost a few failures at most.
    """

    def __init__(self, most: int = _MOST_KEPT) -> None:
        self._most = most
        self._breakers: OrderedDict[Hashable, Breaker] = OrderedDict()
        self._closed: Breaker | None = None  # the one that was found closed last

    def __len__(self) -> int:
        return len(self._breakers)

    def __iter__(self) -> Iterator[Breaker]:
        return iter(self._breakers.values())

    def get(self, key: Hashable) -> Breaker | None:
        """The breaker with this key, which counts as used."""
        breaker = self._breakers.get(key)
        if breaker is not None:
            self._breakers.move_to_end(key)
        return breaker

    def put(self, key: Hashable, breaker: Breaker) -> None:
        """Adds or replaces a breaker."""
        self._breakers[key] = breaker
        self._breakers.move_to_end(key)
        for _ in range(2):  # more than are added, so that their number goes back after an outage
            if len(self._breakers) > self._most:
                oldest, breaker = self._breakers.popitem(last=False)
                if breaker.state is not _CLOSED:
                    self._breakers[oldest] = breaker

    def any_closed(self) -> bool:
        """Whether one of them is closed, at a cost that does not grow with those that are."""
        if self._closed is None or self._closed.state is not _CLOSED:
            closed = _CLOSED
            self._closed = next((each for each in self if each.state is closed), None)
        return self._closed is not None


class Breakers:
    """A breaker for each sink of a flusher.

    Args:
        delay, changed, report, clock: as in `Breaker`.
    """

    def __init__(
        self,
        delay: Callable[[int], float],
        changed: Callable[[], None],
        report: Report | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._delay = delay
        self._changed = changed
        self._report = report
        self._all = RecentBreakers()

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Breaker]:
        return iter(self._all)

    def of(self, key: Hashable, name: str) -> Breaker:
        """The breaker of the sink with this key and the name of its class."""
        breaker = self._all.get(key)
        if breaker is None:
            breaker = Breaker(
                name,
                self._delay,
                self._changed,
                self._clock,
                queue=_queue_text(key),
                report=self._report,
            )
            self._all.put(key, breaker)
        return breaker


def _queue_text(key: Hashable) -> str:
    """What tells a sink from others: the key of a queue in Redis, else a number."""
    if isinstance(key, tuple) and len(key) > 1 and isinstance(key[1], bytes):
        return key[1].decode("utf-8", "replace")
    return str(key)
