"""Policies: limits for the groups whose keys match a pattern, in place of the configured ones.

What a task sets comes first, then the policies that match its group, the one with the longest
pattern first, then the configuration. Each limit is decided on its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from redisagg.config import check_range
from redisagg.durations import Duration, to_seconds
from redisagg.errors import InvalidConfig, InvalidTask, KeyConflict
from redisagg.task import MAX_BYTES, MAX_GROUP_KEY_BYTES, check_priority, check_size
from redisagg.texts import shorten

MAX_POLICIES = 1_000
"""Largest number of policies of a namespace."""

_RESERVED = "?[]"
"""What has a meaning in other kinds of patterns, and none in these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Limits for groups; None leaves a limit to a policy with a shorter pattern or to the settings.

    Args:
        grace_period: seconds, or a `timedelta`, in place of `group_grace_period`.
        max_delay: seconds, or a `timedelta`, in place of `group_max_delay`.
        max_size: number of tasks, in place of `group_max_size`.
        max_bytes: bytes of stored tasks, in place of `group_max_bytes`; 0 for no limit.
        max_weight: sum of weights, in place of `group_max_weight`; 0 for no limit.
        min_interval: seconds, or a `timedelta`, in place of `group_min_interval`; 0 for none.
        leading: in place of `group_leading`. Needs `min_interval`, and is False if only that is
            given.
        priority: -1000 to 1000, for tasks with the priority 0.

    Raises:
        InvalidConfig: a limit is out of range or of the wrong type, `leading` is given without
            `min_interval`, or nothing is given.
    """

    grace_period: Duration | None = None
    max_delay: Duration | None = None
    max_size: int | None = None
    max_bytes: int | None = None
    max_weight: int | None = None
    min_interval: Duration | None = None
    leading: bool | None = None
    priority: int | None = None

    def __post_init__(self) -> None:
        for name in ("grace_period", "max_delay"):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, to_seconds(given, name, InvalidConfig))
        if self.min_interval is not None and self.min_interval != 0:
            interval = to_seconds(self.min_interval, "min_interval", InvalidConfig)
            object.__setattr__(self, "min_interval", interval)
        try:
            if self.max_size is not None:
                check_size(self.max_size, "max_size")
            if self.priority is not None:
                check_priority(self.priority)
        except InvalidTask as error:
            raise InvalidConfig(str(error)) from None
        for name, most in (("max_bytes", MAX_BYTES), ("max_weight", 2**50)):
            if (limit := getattr(self, name)) is not None:
                check_range(name, limit, 0, most)
        if self.leading is not None:
            if not isinstance(self.leading, bool):
                raise InvalidConfig(f"leading must be True or False, not {shorten(self.leading)}")
            if not self.min_interval:
                raise InvalidConfig("leading needs min_interval in the same policy; set it")
        if not self.given():
            raise InvalidConfig("a policy without limits changes nothing; set one, or remove it")

    def given(self) -> dict[str, Any]:
        """Returns the limits that are set, by name."""
        limits = ((name, getattr(self, name)) for name in LIMITS)
        return {name: value for name, value in limits if value is not None}

    def stored(self) -> bytes:
        """Returns the form in Redis: a JSON object of the limits that are set."""
        return json.dumps(self.given(), separators=(",", ":")).encode()

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
            found = {name: value for name, value in json.loads(stored).items() if name in LIMITS}
            return cls(**found) if found else None
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise KeyConflict(f"what is stored as a policy is none: {error}") from error


LIMITS = tuple(each.name for each in fields(Policy))
"""The names of the limits that a policy may set."""


class Decision(NamedTuple):
    """The policy that decides a limit."""

    value: Any
    pattern: str


def check_pattern(pattern: object) -> str:
    """Checks the pattern of a policy.

    Raises:
        InvalidConfig: it is no text of 1 to 512 bytes of UTF-8, or has another wildcard than a
            single ``*``.
    """
    if isinstance(pattern, str):
        try:
            fits = 1 <= len(pattern.encode()) <= MAX_GROUP_KEY_BYTES
        except UnicodeEncodeError:
            fits = False
        if fits:
            if "**" in pattern or any(each in pattern for each in _RESERVED):
                raise InvalidConfig(
                    f"the pattern {shorten(pattern)} has a form that policies do not know: a * "
                    "stands for any characters, and **, ?, [ and ] may not be used"
                )
            return str(pattern)
    raise InvalidConfig(
        f"a pattern must be a str of 1 to {MAX_GROUP_KEY_BYTES} bytes of UTF-8, such as "
        f"'digest:*', not {shorten(pattern)}"
    )


class Policies:
    """The policies of a namespace.

    Args:
        policies: the policies by pattern. ``*`` stands for any characters, also for none; all other
            characters stand for themselves. Of patterns of the same number of bytes, one without a
            ``*`` comes first, then the lesser in the order of bytes.
    """

    def __init__(self, policies: Mapping[str, Policy]) -> None:
        ordered = sorted(policies.items(), key=lambda each: precedence(each[0]))
        self._patterns = [
            (pattern.encode().split(b"*"), _decisions(pattern, policy))
            for pattern, policy in ordered
        ]

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def decisions_of(self, group: bytes) -> Mapping[str, Decision]:
        """Returns which policy decides which limit of a group, by the name of the limit."""
        found: dict[str, Decision] = {}
        for literals, decisions in self._patterns:
            if _matches(literals, group):
                found = {**decisions, **found}
        return found

    def limits_of(self, group: bytes) -> Mapping[str, Any]:
        """Returns the limits that the policies set for a group key, by name."""
        return {name: decision.value for name, decision in self.decisions_of(group).items()}


def precedence(pattern: str) -> tuple[int, int, bytes]:
    """Returns the key by which patterns are sorted: the one that decides first comes first."""
    raw = pattern.encode()
    return -len(raw), raw.count(b"*"), raw


def _decisions(pattern: str, policy: Policy) -> dict[str, Decision]:
    limits = policy.given()
    if policy.min_interval is not None:  # the two are decided together
        limits["leading"] = bool(policy.leading)
    return {name: Decision(value, pattern) for name, value in limits.items()}


def _matches(literals: list[bytes], text: bytes) -> bool:
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
