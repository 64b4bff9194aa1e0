"""The dead letters of a namespace, without tasks and tracebacks: to group, search and page them.

Redis has no index of dead letters by their error. So all records are read from time to time, in
short calls, beside the requests for pages; a page shows what was read last.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from redisagg.dashboard.queries import dead_slices
from redisagg.dashboard.sources import Shown
from redisagg.errors import RedisAggError
from redisagg.protocol.failed_tasks import group_of
from redisagg.protocol.records import DeadRecord

MOST = 250_000
"""Dead letters that are kept in memory, some 200 MB."""

_MOST_ERROR = 200
"""Characters of an error that are kept."""

_WAIT = 0.05
"""Seconds that a page waits for a reading to end."""

_NUMBER = re.compile(r"\d+")


class Letter(NamedTuple):
    """A dead letter."""

    batch_id: str
    group: str
    size: int
    attempts: int
    died_at: float
    error: str
    """The start of its error."""
    reason: str
    """The first line of that, with # in place of numbers."""
    folded: str
    """What a search looks through: error, group and batch id, in small letters."""


class Reason(NamedTuple):
    """Dead letters with the same error, up to the numbers in it."""

    error: str
    batches: int
    tasks: int
    first_died_at: float
    last_died_at: float


class Filter(NamedTuple):
    """Which dead letters are meant: those that have all of these."""

    reason: str = ""
    """Their reason, exactly."""
    text: str = ""
    """A part of their error, group key or batch id, in letters of any case."""

    def select(self, letters: Sequence[Letter]) -> list[Letter]:
        """Those that are meant."""
        found: Iterator[Letter] = iter(letters)
        if self.reason:
            found = (each for each in found if each.reason == self.reason)
        if self.text:
            text = self.text.casefold()
            found = (each for each in found if text in each.folded)
        return list(found)


def reason_of(error: str) -> str:
    """The first line of an error, with # in place of numbers."""
    return _NUMBER.sub("#", error.partition("\n")[0])


class View(NamedTuple):
    """The dead letters as far as they were read."""

    letters: Sequence[Letter]
    """Those that died last come first."""
    reasons: Sequence[Reason]
    """The one with the most tasks first."""
    complete: bool
    """Whether all were read."""
    age: float
    """Seconds since they were read."""


class DeadIndex:
    """Keeps the dead letters of a namespace.

    Args:
        shown: the namespace.
    """

    def __init__(self, shown: Shown) -> None:
        self._shown = shown
        self._letters: dict[str, Letter] = {}
        self._view = View((), (), complete=False, age=0.0)
        self._read_at = 0.0
        self._took = 0.0
        self._mark: object = None
        self._reading: asyncio.Task[None] | None = None

    async def view(self, mark: object) -> View:
        """Returns the dead letters; starts to read them again if they may have changed.

        Args:
            mark: something that differs when they have changed.

        Raises:
            RedisAggError: Redis can't be asked.
        """
        age = time.monotonic() - self._read_at
        stale = not self._view.complete or mark != self._mark or age > 60
        # A long reading is not repeated at once.
        if self._reading is None and stale and age >= 10 * self._took:
            self._reading = asyncio.create_task(self._read(mark))
        if self._reading is not None:
            done, _ = await asyncio.wait([self._reading], timeout=_WAIT)
            for each in done:
                each.result()
        age = time.monotonic() - self._read_at if self._read_at else 0.0
        return self._view._replace(age=age)

    async def all(self) -> Sequence[Letter]:
        """Reads all dead letters now.

        Raises:
            RedisAggError: Redis can't be asked.
        """
        if self._reading is not None:
            with suppress(RedisAggError):
                await asyncio.shield(self._reading)
        self._reading = asyncio.create_task(self._read(None))
        await asyncio.shield(self._reading)
        return self._view.letters

    async def _read(self, mark: object) -> None:
        began = time.monotonic()
        found: dict[str, Letter] = {}
        try:
            async for batch_id, record in dead_slices(self._shown):
                found[batch_id] = _letter(batch_id, record)
                if len(found) >= MOST:
                    break
                if not self._view.complete and len(found) in (500, 5_000, 50_000):
                    self._view = _view(found, complete=False)
            self._view = _view(found, complete=len(found) < MOST)
            self._mark = mark
            self._read_at = time.monotonic()
            self._took = self._read_at - began
        finally:
            self._reading = None


def _letter(batch_id: str, record: DeadRecord) -> Letter:
    group = group_of(record.group).decode("utf-8", "replace")
    error = record.error.decode("utf-8", "replace")[:_MOST_ERROR]
    return Letter(
        batch_id,
        group,
        record.task_count,
        record.attempts,
        record.died / 1000,
        error,
        sys.intern(reason_of(error)),
        f"{error}\n{group}\n{batch_id}".casefold(),
    )


def _view(found: dict[str, Letter], *, complete: bool) -> View:
    letters = sorted(found.values(), key=lambda each: (-each.died_at, each.batch_id))
    by_error: dict[str, list[Letter]] = {}
    for letter in letters:
        by_error.setdefault(letter.reason, []).append(letter)
    reasons = [
        Reason(
            error,
            len(some),
            sum(each.size for each in some),
            min(each.died_at for each in some),
            max(each.died_at for each in some),
        )
        for error, some in by_error.items()
    ]
    reasons.sort(key=lambda each: (-each.tasks, each.error))
    return View(letters, reasons, complete, 0.0)
