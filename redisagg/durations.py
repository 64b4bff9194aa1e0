"""Durations: seconds or `timedelta` in the API, milliseconds in the scripts."""

from __future__ import annotations

from datetime import timedelta
from typing import TypeAlias

from redisagg.texts import shorten

Duration: TypeAlias = "float | timedelta"
"""Seconds, or a `timedelta`."""

LONGEST = 10 * 366 * 24 * 3600.0
"""The longest duration that is accepted, in seconds (ten years); a longer one is probably a value
in another unit."""


def to_seconds(value: object, what: str, error: type[Exception]) -> float:
    """Checks a duration.

    Args:
        value: seconds or a `timedelta`, from 1 millisecond to ten years.
        what: the name of the setting or field, for the error message.
        error: the class of the exception to raise.

    Returns:
        The duration in seconds.

    Raises:
        error: `value` is out of range, not a number, or of another type.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise error(
            f"{what} must be a number of seconds or a timedelta, not {type(value).__name__}"
        )
    if not 0.001 <= value <= LONGEST:
        raise error(f"{what} must be from 0.001 to {LONGEST:.0f} seconds, not {shorten(value)}")
    return float(value)


def seconds(value: Duration) -> float:
    """Returns a checked duration in seconds."""
    return value.total_seconds() if isinstance(value, timedelta) else value


def to_ms(value: Duration) -> int:
    """Returns a checked duration in whole milliseconds: at least 1, or 0 for a duration of 0."""
    return max(1, round(seconds(value) * 1000)) if value else 0
