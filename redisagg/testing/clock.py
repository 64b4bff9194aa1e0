"""Moves the clock of the scripts, for the clients of tests alone.

All decisions about time are made by the scripts, which ask the include ``clock``. A client that an
`Endpoint` of this module makes sends them with another text of that include: it takes two more
arguments from the end of ARGV and counts by them. So each text is loaded once, however often the
clock is moved, and the clock holds over restarts of the server. Other clients send the scripts as
they are, and know nothing of this.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from redisagg.protocol.scripts import Request, Script
from redisagg.transport.endpoint import AsyncClient, Endpoint, SyncClient, aclose
from redisagg.transport.round_trip import RULES, Command, round_trip

_REDIS_TIME = b"  return seconds * 1000 + math.floor(microseconds / 1000)\n"
_MOVED_TIME = (
    b"  return clock_rate * (seconds * 1000 + math.floor(microseconds / 1000)) + clock_shift\n"
)
_ARGUMENTS = (
    b"local clock_shift = tonumber(table.remove(ARGV))\n"
    b"local clock_rate = tonumber(table.remove(ARGV))\n"
)


class Clock:
    """The clock by which the scripts count, as far as the clients of one kit send them.

    It runs with the clock of Redis until it is moved or frozen.
    """

    def __init__(self) -> None:
        self._ahead_ms = 0
        """By how much it is ahead of the clock of Redis, which is that of this machine."""
        self._frozen_ms: int | None = None
        """The time at which it stands; None if it runs."""
        self._scripts: dict[bytes, Script | None] = {}
        """By the SHA-1 of each script what is sent in its place; None if it asks no clock."""
        self.on_moved: list[Callable[[], object]] = []
        """Is called when it was moved."""

    def advance(
        self,
        delta: dt.timedelta | None = None,
        *,
        days: float = 0,
        hours: float = 0,
        minutes: float = 0,
        seconds: float = 0,
        milliseconds: float = 0,
    ) -> dt.datetime:
        """Moves the clock, to the millisecond; nothing that becomes due by it is flushed yet.

        Args:
            delta: by how much, beside the other arguments; a negative one moves it back.
            days: by how many days.
            hours: by how many hours.
            minutes: by how many minutes.
            seconds: by how many seconds.
            milliseconds: by how many milliseconds.

        Returns:
            The time that it shows now.
        """
        span = (delta or dt.timedelta()) + dt.timedelta(
            days=days, hours=hours, minutes=minutes, seconds=seconds, milliseconds=milliseconds
        )
        self._move(round(span / dt.timedelta(milliseconds=1)))
        return self.now()

    def set(self, moment: dt.datetime) -> dt.datetime:
        """Sets the clock; it runs on from there unless it is frozen.

        Args:
            moment: a `datetime` with a time zone.

        Returns:
            The time that it shows now.

        Raises:
            ValueError: the moment has no time zone.
        """
        if moment.tzinfo is None:
            raise ValueError(f"clock.set takes a datetime with a time zone, not {moment!r}")
        self._move(_ms_of(moment) - self.now_ms())
        return self.now()

    def freeze(self) -> None:
        """Stops the clock: from now on only `advance` and `set` move it."""
        self._frozen_ms = self.now_ms()

    def unfreeze(self) -> None:
        """Has the clock run on from where it stands."""
        if self._frozen_ms is not None:
            self._ahead_ms, self._frozen_ms = self._frozen_ms - _machine_ms(), None

    def reset(self) -> None:
        """Has the clock run with that of Redis again."""
        self._ahead_ms, self._frozen_ms = 0, None

    def now(self) -> dt.datetime:
        """Returns the time that it shows, in UTC."""
        return dt.datetime.fromtimestamp(self.now_ms() / 1000, dt.timezone.utc)

    def now_ms(self) -> int:
        """Returns the time that it shows, in ms since the epoch."""
        return _machine_ms() + self._ahead_ms if self._frozen_ms is None else self._frozen_ms

    def monotonic(self) -> float:
        """Returns seconds that follow it, in place of `time.monotonic`."""
        if self._frozen_ms is not None:
            return self._frozen_ms / 1000
        # Not by the clock of the machine, which may be set.
        return time.monotonic() + _EPOCH + self._ahead_ms / 1000

    def _move(self, ms: int) -> None:
        if self._frozen_ms is None:
            self._ahead_ms += ms
        else:
            self._frozen_ms += ms
        for moved in self.on_moved:
            moved()

    # --- what is sent ----------------------------------------------------------------------------

    def round_trip(
        self, requests: Sequence[Request]
    ) -> Generator[list[Command], list[Any], list[Any]]:
        """The rules of a round trip, with the scripts of this clock."""
        for request in requests:
            script = request.script
            if script is not None and script.sha not in self._scripts:
                self._scripts[script.sha] = _moved(script)
        steps = round_trip(requests)
        try:
            commands = next(steps)
            while True:
                commands[:] = map(self._moved_command, commands)
                commands = steps.send((yield commands))
        except StopIteration as stop:
            replies: list[Any] = stop.value
            return replies

    def _moved_command(self, command: Command) -> Command:
        kind, *rest = command
        if kind == b"EVALSHA":
            script = self._scripts.get(rest[0])
            body = script.sha if script else None
        elif kind == b"EVAL":
            script = self._scripts.get(Script.of("", rest[0]).sha)
            body = script.source if script else None
        else:
            return command
        return command if body is None else (kind, body, *rest[1:], *self._arguments())

    def _arguments(self) -> tuple[int, int]:
        if self._frozen_ms is None:
            return 1, self._ahead_ms
        return 0, self._frozen_ms


_EPOCH = time.time() - time.monotonic()


def _machine_ms() -> int:
    return time.time_ns() // 1_000_000


def _ms_of(moment: dt.datetime) -> int:
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)
    return (moment - epoch) // dt.timedelta(milliseconds=1)


def _moved(script: Script) -> Script | None:
    """The script with a clock that two arguments move; None if it asks no clock."""
    if b"local function clock()" not in script.source:
        return None
    if script.source.count(_REDIS_TIME) != 1:
        raise AssertionError(f"the script {script.name} has another clock than {__name__} knows")
    source = script.source.replace(_REDIS_TIME, _MOVED_TIME)
    return Script.of(script.name, _ARGUMENTS + source)


@dataclass(frozen=True, slots=True)
class MovedEndpoint(Endpoint):
    """An endpoint whose clients send the scripts of a clock of tests."""

    clock: Clock = field(default_factory=Clock, repr=False)

    @classmethod
    def of(cls, endpoint: Endpoint, clock: Clock) -> MovedEndpoint:
        """The endpoint of one server with a clock."""
        return cls(options=endpoint.options, tls=endpoint.tls, clock=clock)

    def blocking(self) -> SyncClient:
        """Makes a client for threads; as `Endpoint.blocking`."""
        client = Endpoint.blocking(self)
        setattr(client, RULES, self.clock.round_trip)
        return client

    def asyncio(self) -> AsyncClient:
        """Makes a client for asyncio; as `Endpoint.asyncio`."""
        client = Endpoint.asyncio(self)
        setattr(client, RULES, self.clock.round_trip)
        with suppress(RuntimeError):  # no event loop runs; who asks for it closes it
            asyncio.get_running_loop()
            ending: Any = _close_with_loop(client)
            with suppress(StopIteration):
                ending.__anext__().send(None)  # up to its `yield`
            setattr(client, _ENDING, ending)
        return client


_ENDING = "redisagg_ending"


async def _close_with_loop(client: AsyncClient) -> AsyncIterator[None]:
    """Is ended with its event loop, as all asynchronous generators; closes a client then.

    Nobody closes those of the aggregators of a test, and a connection that is left open is a
    `ResourceWarning`, which many runs of tests count as an error.
    """
    try:
        yield
    finally:
        with suppress(Exception):
            await aclose(client)
