"""How often something may be done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from redisagg.durations import Duration, seconds, to_ms, to_seconds
from redisagg.errors import InvalidConfig
from redisagg.texts import shorten

Unit: TypeAlias = Literal["batches", "tasks", "weight"]

_UNITS = ("batches", "tasks", "weight")
_MOST = 2**50


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most `limit` batches, tasks or units of weight in any `per` seconds.

    Args:
        limit: the number of batches, tasks or units of weight, 1 to 2^50.
        per: length of the window in seconds (or a `timedelta`).
        burst: how many of them may begin at once; what follows is spread evenly, `limit` in `per`
            seconds. None (default) for `limit`. 1 spreads all evenly.
        of: what is counted: ``"batches"`` (default), ``"tasks"``, or the ``"weight"`` of tasks.

    Raises:
        InvalidConfig: an argument is out of range or of the wrong type.
    """

    limit: int
    per: Duration
    burst: int | None = None
    of: Unit = "batches"

    def __post_init__(self) -> None:
        _check("limit", self.limit, _MOST)
        if self.burst is not None:
            _check("burst", self.burst, self.limit)
        object.__setattr__(self, "per", to_seconds(self.per, "per", InvalidConfig))
        if self.of not in _UNITS:
            raise InvalidConfig(
                f"of must be 'batches', 'tasks' or 'weight', not {shorten(self.of)}"
            )

    @property
    def per_ms(self) -> int:
        """The length of the window in milliseconds."""
        return to_ms(seconds(self.per))

    @property
    def burst_units(self) -> int:
        """How many units may begin at once."""
        return self.limit if self.burst is None else self.burst


def _check(name: str, value: object, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise InvalidConfig(
            f"{name} of a RateLimit must be a whole number from 1 to {most:,}, not {shorten(value)}"
        )
