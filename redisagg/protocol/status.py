"""What a flusher says of itself in Redis, for those who look: its settings and its sinks.

The hash `status` has a text for each flusher: the time of Redis in ms, a space and a JSON object.
A flusher writes it when it starts, when a breaker opens or closes, and every few minutes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redisagg.rate_limit import RateLimit

MOST_SINKS = 16
"""Sinks in a status: those that are down first."""

LONGEST_TEXT = 200
"""Characters of a name in a status."""

LONGEST_ERROR = 500
"""Characters of an error in a status."""

MERGE_FUNCTION = "the merge function"
"""The name of the breaker of the merge function, in place of the class of a sink."""

REFUSED = "refused:"
"""Before the name of a host in place of a flusher id: a flusher could not start there."""


@dataclass(frozen=True, slots=True)
class SinkStatus:
    """A sink, or the merge function, whose breaker is open or half open."""

    sink: str
    queue: str
    state: str
    """``"open"`` or ``"half open"``."""
    reason: str
    """``"failures"`` or ``"busy"``."""
    since_ms: int
    """When it was found down, ms since the epoch."""
    until_ms: int
    """When it is tried again, ms since the epoch."""


@dataclass(frozen=True, slots=True)
class FlusherStatus:
    """The status of one flusher."""

    written_ms: int
    """When it was written, ms since the epoch by Redis' clock."""
    started_ms: int = 0
    concurrency: int = 0
    max_attempts: int = 0
    lease_ms: int = 0
    max_concurrency: int = 0
    group_concurrency: int = 0
    rate_limit: RateLimit | None = None
    group_rate_limit: RateLimit | None = None
    sinks: tuple[SinkStatus, ...] = ()
    """Those that are down."""
    sinks_working: int = 0
    """Number of other sinks that it has used."""
    error: str = ""
    """Why it could not start."""


def pack_status(fields: Mapping[str, Any]) -> str:
    """Packs the fields of a status; spans are ms before (``*_ago``) or after (``*_in``) now."""
    return json.dumps(fields, separators=(",", ":"))


def unpack_status(packed: bytes) -> FlusherStatus | None:
    """Reads a status; None if redisagg did not write it."""
    try:
        time, _, text = packed.partition(b" ")
        written, found = int(time), json.loads(text)
        sinks = tuple(
            SinkStatus(
                sink=str(each["sink"]),
                queue=str(each["queue"]),
                state=str(each["state"]),
                reason=str(each["reason"]),
                since_ms=written - int(each["since_ago"]),
                until_ms=written + int(each["until_in"]),
            )
            for each in found.get("sinks", ())
        )
        return FlusherStatus(
            written_ms=written,
            started_ms=written - int(found.get("started_ago", 0)),
            rate_limit=_rate_limit(found.get("rate_limit")),
            group_rate_limit=_rate_limit(found.get("group_rate_limit")),
            sinks=sinks,
            error=str(found.get("error", "")),
            **{name: int(found.get(name, 0)) for name in _NUMBERS},
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


_NUMBERS = (
    *("concurrency", "max_attempts", "lease_ms", "max_concurrency", "group_concurrency"),
    "sinks_working",
)


def rate_limit_fields(rate: RateLimit | None) -> list[Any] | None:
    """The form of a limit in a status."""
    return None if rate is None else [rate.limit, rate.per_ms, rate.burst_units, rate.of]


def _rate_limit(found: Any) -> RateLimit | None:
    if found is None:
        return None
    limit, per_ms, burst, of = found
    return RateLimit(limit, per_ms / 1000, burst=burst, of=of)
