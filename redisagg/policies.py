"""Policies: limits for the groups whose keys match a pattern, in place of the configured ones.

`limits_for` decides: what a task sets comes first, then the policies that match its group, the one
with the longest pattern first, then the configuration. Each limit is decided on its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, NamedTuple

from redisagg.config import AggregationConfig
from redisagg.durations import Duration, to_ms, to_seconds
from redisagg.errors import InvalidConfig, InvalidTask, KeyConflict
from redisagg.task import MAX_GROUP_KEY_BYTES, Task, check_priority, check_size
from redisagg.texts import shorten

_CACHED_GROUPS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Limits for groups; None leaves a limit to a policy with a shorter pattern or to the settings.

    Args:
        grace_period: seconds, or a `timedelta`, in place of `group_grace_period`.
        max_delay: seconds, or a `timedelta`, in place of `group_max_delay`.
        max_size: number of tasks, in place of `group_max_size`.
        priority: -1000 to 1000, for tasks with the priority 0.

    Raises:
        InvalidConfig: a limit is out of range or of the wrong type, or none is set.
    """

    grace_period: Duration | None = None
    max_delay: Duration | None = None
    max_size: int | None = None
    priority: int | None = None

    def __post_init__(self) -> None:
        for name in ("grace_period", "max_delay"):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, to_seconds(given, name, InvalidConfig))
        try:
            if self.max_size is not None:
                check_size(self.max_size, "max_size")
            if self.priority is not None:
                check_priority(self.priority)
        except InvalidTask as error:
            raise InvalidConfig(str(error)) from None
        if not self._set():
            raise InvalidConfig("a policy without limits changes nothing; set one, or remove it")

    def _set(self) -> dict[str, Any]:
        given = ((name, getattr(self, name)) for name in _NAMES)
        return {name: value for name, value in given if value is not None}

    def stored(self) -> bytes:
        """Returns the form in Redis: a JSON object of the limits that are set."""
        return json.dumps(self._set(), separators=(",", ":")).encode()

    @classmethod
    def from_stored(cls, stored: bytes) -> Policy | None:
        """Reads what `stored` returned.

        Limits that this release does not know are left out: a later one has set them.

        Returns:
            The policy; None if this release knows none of its limits.

        Raises:
            KeyConflict: the bytes are no policy.
        """
        try:
            found = {name: value for name, value in json.loads(stored).items() if name in _NAMES}
            return cls(**found) if found else None
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise KeyConflict(f"what is stored as a policy is none: {error}") from error


_NAMES = tuple(each.name for each in fields(Policy))


class Limits(NamedTuple):
    """The limits that `add` takes with a task."""

    grace_period: int
    """Milliseconds."""
    max_delay: int
    """Milliseconds."""
    max_size: int
    priority: int


def check_pattern(pattern: object) -> str:
    """Checks the pattern of a policy.

    Raises:
        InvalidConfig: it is no text of 1 to 512 bytes of UTF-8.
    """
    if isinstance(pattern, str):
        try:
            if 1 <= len(pattern.encode()) <= MAX_GROUP_KEY_BYTES:
                return str(pattern)
        except UnicodeEncodeError:
            pass
    raise InvalidConfig(
        f"a pattern must be a str of 1 to {MAX_GROUP_KEY_BYTES} bytes of UTF-8, such as "
        f"'digest:*', not {shorten(pattern)}"
    )


class Policies:
    """The policies of a namespace.

    Args:
        policies: the policies by pattern. ``*`` stands for any characters, also for none; all other
            characters stand for themselves.
    """

    def __init__(self, policies: Mapping[str, Policy]) -> None:
        ordered = sorted(policies.items(), key=lambda each: (-len(each[0]), each[0]))
        self._patterns = [(pattern.split("*"), policy) for pattern, policy in ordered]
        self.limits_of = lru_cache(_CACHED_GROUPS)(self._limits_of)
        """Returns the limits that the policies set for a group key, by name."""

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def _limits_of(self, group: str) -> Mapping[str, Any]:
        limits: dict[str, Any] = {}
        for literals, policy in self._patterns:
            if _matches(literals, group):
                limits = {**policy._set(), **limits}
        return limits


def _matches(literals: list[str], text: str) -> bool:
    """Whether a text is the literals in their order, with anything between them.

    Takes time in proportion to the text: each literal in the middle is taken where it comes first.
    """
    first, *others = literals
    if not others:
        return text == first
    *middle, last = others
    end = len(text) - len(last)
    place = len(first)
    if not text.startswith(first) or not text.endswith(last) or end < place:
        return False
    for literal in middle:
        found = text.find(literal, place, end)
        if found < 0:
            return False
        place = found + len(literal)
    return True


def limits_for(task: Task, policies: Policies, config: AggregationConfig) -> Limits:
    """Returns the limits with which a task is added: its own, then policies, then the settings."""
    found = policies.limits_of(str(task.group_key)) if policies else {}

    def decide(own: Any, name: str, configured: Any) -> Any:
        return own if own is not None else found.get(name, configured)

    return Limits(
        to_ms(decide(task.grace_period, "grace_period", config.group_grace_period)),
        to_ms(decide(task.max_delay, "max_delay", config.group_max_delay)),
        decide(task.max_size, "max_size", config.group_max_size),
        task.priority or found.get("priority", 0),
    )
