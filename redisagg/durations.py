"""Durations: seconds or `timedelta` outside, milliseconds in the scripts."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import TypeAlias

Duration: TypeAlias = "float | timedelta"
"""Seconds, or a `timedelta`."""

LONGEST = 10 * 366 * 24 * 3600.0
"""Ten years in seconds; longer is taken for a slip of units."""


def to_seconds(value: object, what: str, error: type[Exception]) -> float:
    """`value` as seconds, from 1 millisecond to ten years.

    Raises:
        error: it is out of range, not a number, or of another type.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise error(f"{what} is a number of seconds or a timedelta, not {type(value).__name__}")
    if not math.isfinite(value) or not 0.001 <= value <= LONGEST:
        raise error(f"{what} is from 0.001 to {LONGEST:.0f} seconds, not {value!r}")
    return float(value)


def seconds(value: Duration) -> float:
    """A duration that was checked before, as seconds."""
    return value.total_seconds() if isinstance(value, timedelta) else value


def to_ms(value: Duration) -> int:
    """A duration that was checked before, as whole milliseconds; 0 only for none at all."""
    return max(1, round(seconds(value) * 1000)) if value else 0
