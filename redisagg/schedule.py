"""Schedules: the moments at which groups are due, by a cron expression in a time zone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from importlib import import_module
from itertools import islice
from typing import Any, overload
from zoneinfo import ZoneInfo

from redisagg.errors import InvalidConfig
from redisagg.texts import shorten

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MS = timedelta(milliseconds=1)
_MINUTE = timedelta(minutes=1)

_AHEAD = 4
"""The number of occurrences that are computed at once. Adds look them up until they are over."""

_NEVER = (OverflowError, ValueError)
"""What is raised when the years are over. cronsim gives up after 50 of them."""


@dataclass(frozen=True)
class Cron:
    """A schedule: ``Cron("0 9 * * 1-5", tz="Europe/Berlin")`` is 9:00 on Monday to Friday.

    Needs the extra ``schedule``: ``pip install 'redisagg[schedule]'``.

    When clocks go forward, an occurrence in the hour that does not exist is moved to the first
    minute that does. When clocks go back, an occurrence in the repeated hour counts once, at its
    first time. This holds for all expressions, also for ``*/10 * * * *``.

    Args:
        expression: minute, hour, day of the month, month and day of the week (0 or 7 is Sunday),
            in the notation of Debian's cron. If neither day begins with ``*``, one of both has to
            match. ``L`` is the last day of the month, ``LW`` its last weekday, ``MON#2`` its
            second Monday, and ``5L`` its last Friday.
        tz: name of the time zone, such as ``Europe/Berlin``; UTC by default.

    Raises:
        InvalidConfig: the expression or the time zone is not valid, no moment ever matches, or the
            extra is not installed.
    """

    expression: str
    tz: str = "UTC"
    _known: tuple[int, ...] = field(default=(), init=False, repr=False, compare=False)
    """A moment and the occurrences that follow it, in ms."""

    def __post_init__(self) -> None:
        if not isinstance(self.expression, str):
            raise InvalidConfig(
                f"a cron expression must be a str, not {type(self.expression).__name__}"
            )
        object.__setattr__(self, "expression", " ".join(self.expression.split()))
        if self.expression.count(" ") != 4:
            raise InvalidConfig(
                "a cron expression has five fields (minute, hour, day of the month, month, day of "
                f"the week), such as '0 9 * * 1-5'; not {shorten(self.expression)}"
            )
        _zone(self.tz)
        try:
            self._compute(0)
        except InvalidConfig:
            raise
        except _NEVER:
            raise InvalidConfig(f"no moment matches {shorten(self.expression)}") from None
        except Exception as error:  # cronsim has an assertion and a TypeError for some
            raise InvalidConfig(
                f"{shorten(self.expression)} is no cron expression: {error or 'bad field'}"
            ) from None

    def __reduce__(self) -> tuple[Any, ...]:
        return Cron, (self.expression, self.tz)

    @overload
    def next_after(self, moment: datetime) -> datetime: ...

    @overload
    def next_after(self, moment: int) -> int: ...

    def next_after(self, moment: datetime | int) -> datetime | int:
        """Returns the first occurrence that is later than a moment.

        Args:
            moment: a `datetime` with a time zone, or milliseconds since the epoch.

        Returns:
            A `datetime` in the schedule's time zone, or milliseconds since the epoch.

        Raises:
            InvalidConfig: the `datetime` has no time zone, or no occurrence follows it before the
                year 10000 or in 50 years.
        """
        if not isinstance(moment, datetime):
            return self._next_ms(moment)
        if moment.utcoffset() is None:
            raise InvalidConfig(
                "the datetime has no time zone; pass one with tzinfo, such as "
                "datetime.now(timezone.utc)"
            )
        following = _EPOCH + self._next_ms((moment - _EPOCH) // _MS) * _MS
        return following.astimezone(_zone(self.tz))

    def _next_ms(self, moment: int) -> int:
        known = self._known
        if not known or not known[0] <= moment < known[-1]:
            try:
                known = self._compute(moment)
            except _NEVER:
                raise InvalidConfig(f"no moment matches {self!r} later than {moment} ms") from None
            object.__setattr__(self, "_known", known)
        return known[bisect_right(known, moment)]

    def _compute(self, moment: int) -> tuple[int, ...]:
        """Returns the moment and the occurrences that follow it, in ms; raises one of `_NEVER`."""
        occurrences = islice(self._occurrences(_EPOCH + moment * _MS), _AHEAD)
        found = tuple((each - _EPOCH) // _MS for each in occurrences)
        if not found:
            raise OverflowError
        return moment, *found

    def _occurrences(self, moment: datetime) -> Iterator[datetime]:
        """Yields the occurrences later than a moment.

        cronsim counts in local time without a time zone, since with one it lets some expressions
        occur twice in a repeated hour. Local times that rise have instants that do not fall.
        """
        zone = _zone(self.tz)
        latest = moment
        for local in _cronsim().CronSim(
            self.expression, moment.astimezone(zone).replace(tzinfo=None)
        ):
            instant = _instant(local, zone)
            if instant > latest:
                latest = instant
                yield instant


def _instant(local: datetime, zone: ZoneInfo) -> datetime:
    """Returns the first instant with a local time; of one that is skipped, of the next minute."""
    while True:
        instant = local.replace(tzinfo=zone).astimezone(timezone.utc)
        if instant.astimezone(zone).replace(tzinfo=None) == local:
            return instant
        local += _MINUTE


def _cronsim() -> Any:
    try:
        return import_module("cronsim")
    except ImportError as error:
        raise InvalidConfig(
            "Cron needs the package 'cronsim': pip install 'redisagg[schedule]'"
        ) from error


def _zone(name: object) -> ZoneInfo:
    if not isinstance(name, str):
        raise InvalidConfig(
            f"tz must be the name of a time zone, such as 'Europe/Berlin', not {shorten(name)}"
        )
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # OSError: the name of a folder, such as "Europe"
        raise InvalidConfig(
            f"there is no time zone {shorten(name)}; use a name such as 'Europe/Berlin'. If this "
            "machine has no time zones at all: pip install 'redisagg[schedule]'"
        ) from None
