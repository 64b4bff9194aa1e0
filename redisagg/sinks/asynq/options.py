"""The options of a task in Asynq, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any, TypeAlias

from redisagg.durations import Duration, seconds, to_ms, to_seconds
from redisagg.errors import InvalidConfig, InvalidTask

Moment: TypeAlias = "float | datetime"
"""Seconds since the epoch, or a `datetime` with a time zone."""

DEFAULT_TIMEOUT = 30 * 60
"""Seconds; what Asynq's client sets if a task has neither timeout nor deadline."""

_DURATIONS = ("timeout", "retention", "unique_ttl", "process_in")
_MOMENTS = ("deadline", "process_at")


@dataclass(frozen=True, slots=True, kw_only=True)
class AsynqOptions:
    """The options of an enqueued task; `AsynqSink` describes them.

    Raises:
        InvalidConfig: an option is out of range or of the wrong type.
    """

    queue: str = "default"
    max_retry: int = 25
    timeout: Duration | None = None
    deadline: Moment | None = None
    retention: Duration | None = None
    unique_ttl: Duration | None = None
    process_at: Moment | None = None
    process_in: Duration | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.queue, str) or not self.queue.strip():
            raise InvalidConfig(
                f"the name of a queue is a str that is not blank, not {self.queue!r}"
            )
        if "{" in self.queue or "}" in self.queue:
            # Asynq uses the name as a hash tag, so that all keys of a queue are in one slot.
            raise InvalidConfig(f"the name of a queue has no braces, unlike {self.queue!r}")
        retry = self.max_retry
        if not isinstance(retry, int) or isinstance(retry, bool) or not 0 <= retry < 2**31:
            raise InvalidConfig(f"max_retry is a whole number from 0 to 2^31 - 1, not {retry!r}")
        for name in _DURATIONS:
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, to_seconds(value, name, InvalidConfig))
        for name in _MOMENTS:
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, _timestamp(value, name))
        if self.process_at is not None and self.process_in is not None:
            raise InvalidConfig("give process_at or process_in, not both")

    def overridden(self, options: Mapping[str, Any]) -> AsynqOptions:
        """These options, overridden by those in `Task.options`; other names there are ignored.

        Raises:
            InvalidTask: an option of the task is out of range or of the wrong type.
        """
        changes = {name: options[name] for name in _NAMES if name in options}
        if not changes:
            return self
        # Either one replaces the other.
        if "process_at" in changes or "process_in" in changes:
            changes = {"process_at": None, "process_in": None, **changes}
        try:
            return replace(self, **changes)
        except InvalidConfig as error:
            raise InvalidTask(f"Task.options: {error}") from None

    @property
    def timeout_seconds(self) -> int:
        """The time limit of an attempt in whole seconds, rounded up, since 0 means no limit."""
        if self.timeout is None and self.deadline is None:
            return DEFAULT_TIMEOUT
        return _whole(self.timeout)

    @property
    def deadline_at(self) -> int:
        """The deadline as Unix time in whole seconds; 0 if there is none."""
        return 0 if self.deadline is None else math.floor(_timestamp(self.deadline, "deadline"))

    @property
    def retention_seconds(self) -> int:
        """The time for which Asynq keeps the task after it succeeded; 0 if it does not."""
        return _whole(self.retention)

    @property
    def unique_seconds(self) -> int:
        """The time for which the task keeps equal tasks out; 0 if it does not."""
        return _whole(self.unique_ttl)

    def schedule(self) -> tuple[bytes, bytes]:
        """`process_at` (Unix time) and `process_in` in milliseconds, each empty if not set."""
        at, delay = self.process_at, self.process_in
        return (
            b"" if at is None else b"%d" % round(1000 * _timestamp(at, "process_at")),
            b"" if delay is None else b"%d" % to_ms(delay),
        )


_NAMES = tuple(field.name for field in fields(AsynqOptions))


def _whole(duration: Duration | None) -> int:
    return 0 if duration is None else math.ceil(seconds(duration))


def _timestamp(moment: object, what: str) -> float:
    """A moment as seconds since the epoch."""
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            raise InvalidConfig(f"{what} needs a datetime with a time zone, not {moment!r}")
        moment = moment.timestamp()
    if not isinstance(moment, int | float) or isinstance(moment, bool):
        raise InvalidConfig(
            f"{what} is a datetime or seconds since the epoch, not {type(moment).__name__}"
        )
    if not 0 < moment < 2**38:  # catches milliseconds
        raise InvalidConfig(
            f"{what} is in seconds since the epoch, which {moment!r} can't be; is it milliseconds?"
        )
    return float(moment)
