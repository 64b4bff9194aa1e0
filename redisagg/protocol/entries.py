"""The stored form of a task.

The script `add` puts 6 bytes of arrival time (ms, big endian) and 1 byte with the length of the id
before the id and the body. If the highest bit of the first byte is set, 1 byte of length and a text
with limits (lua/includes/limits.lua) are between the id and the body. The body is a msgpack array:
type, payload, headers (map or nil), and a map with what the task sets: options (``o``) and the
limits in `_OPTIONS`. The last two members are left out if nothing is set. A task that was submitted
has a fifth member: for how long its outcome is kept, ms.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias

from redisagg.config import AggregationConfig
from redisagg.durations import Duration, to_ms
from redisagg.errors import InvalidTask, PayloadError, TaskTooLarge, UndecodableTask
from redisagg.payload import pack, surely_has_json, to_json, unpack, with_place
from redisagg.protocol.policies import OwnLimits
from redisagg.task import OpenTask, Task, fill_task, group_key_text, moment_ms

_OPTIONS = {
    "p": "priority",
    "g": "grace_period",
    "d": "max_delay",
    "s": "max_size",
    "b": "max_bytes",
    "w": "weight",
    "u": "due_at",
    "n": "not_before",
    "f": "flush",
    "o": "options",
}
_DEFAULTS: dict[str, Any] = {
    "priority": 0,
    "grace_period": None,
    "max_delay": None,
    "max_size": None,
    "max_bytes": None,
    "weight": 1,
    "due_at": None,
    "not_before": None,
    "flush": False,
    "options": {},
}

_CACHED_LIMITS = 1024

_WITH_LIMITS = 0x80  # in the first byte of an entry: it stores limits
_ARRIVAL = (1 << 47) - 1


_EncodedFields: TypeAlias = tuple[bytes, bytes, bytes, bytes, "bytes | None", OwnLimits]


class EncodedTask(NamedTuple):
    """A task that has been checked and packed."""

    group: bytes
    id: bytes
    body: bytes
    limits: bytes
    """Limits that tasks of a section share, as `add` takes them: lua/includes/limits.lua."""
    own: bytes | None = None
    """The part of the limits that is its own; None if there is none."""
    override: OwnLimits = None
    """The limits in `limits` that the task itself sets; None if it sets none."""


# A named tuple's own constructor is a function in Python, which every task would pay for.
_encoded: Callable[[_EncodedFields], EncodedTask] = partial(tuple.__new__, EncodedTask)


class StoredTask(NamedTuple):
    """A stored entry, decoded as far as possible."""

    task: Task | None
    """The task, or None if the bytes are no task."""
    arrived_at: float
    """Time of arrival in seconds since the epoch, by Redis' clock."""
    raw: bytes
    """The stored bytes."""


class LimitTexts:
    """The limits of sections, as `add` takes them: what tasks set, then policies, then settings.

    Args:
        config: the settings.
    """

    def __init__(self, config: AggregationConfig) -> None:
        self._settings: dict[str, Any] = {
            "grace_period": config.group_grace_period,
            "max_delay": config.group_max_delay,
            "max_size": config.group_max_size,
            "max_bytes": config.group_max_bytes or 0,
            "max_weight": config.group_max_weight or 0,
            "min_interval": config.group_min_interval or 0,
            "leading": config.group_leading,
            "priority": 0,
        }

    def under_policies(self, found: Mapping[str, Any], own: OwnLimits) -> bytes:
        """Returns the limits of a section.

        Args:
            found: what policies set, by the names of `Policy`.
            own: what its tasks set.
        """
        limits = {**self._settings, **found}
        if own is not None:
            limits.update(
                (name, value) for name, value in zip(_OWN_LIMITS, own, strict=True) if value
            )
        return b"%b %b %d %d%b" % (
            _span(limits["grace_period"]),
            _span(limits["max_delay"]),
            limits["max_size"],
            limits["priority"],
            b"".join(
                b" %s=%d" % (name, value)
                for name, value in (
                    (b"max_bytes", limits["max_bytes"]),
                    (b"max_weight", limits["max_weight"]),
                    (b"min_interval", to_ms(limits["min_interval"])),
                    (b"leading", int(limits["leading"])),
                )
                if value
            ),
        )


def has_further_limits(limits: bytes) -> bool:
    """Whether the limits of a section are more than grace period, delay, size and priority."""
    return b"=" in limits


_OWN_LIMITS = ("priority", "grace_period", "max_delay", "max_size", "max_bytes")
"""The limits of its group that a task may set, in the order of `OwnLimits`."""

_overrides = attrgetter(*_OWN_LIMITS)


class Encoder:
    """Turns tasks into arguments of the script `add`, with the limits of a configuration.

    Args:
        config: the configuration.
        json: whether payloads without a form in JSON are refused.
        now_ms: returns the time of Redis, ms since the epoch, from which schedules count. What it
            raises is raised only for tasks that are valid.
    """

    def __init__(
        self,
        config: AggregationConfig,
        *,
        json: bool = False,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._schedule = config.group_schedule
        self._now_ms = now_ms
        self._max_bytes = config.max_task_bytes
        self._json = json
        texts = LimitTexts(config)
        self._limits = texts.under_policies({}, None)
        self._overridden = lru_cache(_CACHED_LIMITS)(partial(texts.under_policies, {}))

    def __call__(self, task: Task) -> EncodedTask:
        """Checks and packs a task.

        Raises:
            InvalidTask: the argument is no `Task`.
            InvalidGroupKey: the task has no group key.
            PayloadError: the payload can't be packed, or has no form in JSON.
            TaskTooLarge: the packed task has more than `max_task_bytes` bytes.
        """
        if not isinstance(task, Task):
            raise InvalidTask(f"a task must be a redisagg.Task, not {type(task).__name__}")
        group = task.group_key or group_key_text("")
        override = None
        is_plain = False
        if (
            task.priority
            or task.grace_period
            or task.max_delay
            or task.max_size
            or task.options
            or task.max_bytes
            or task.weight != 1
            or task.due_at
            or task.not_before
            or task.flush
            or task.on_conflict != "keep"
            or task.schedule
            or self._schedule
        ):
            override = _overrides(task)
            if any(override):
                limits = self._overridden(override)
            else:
                limits, override = self._limits, None
            options = {code: getattr(task, name) for code, name in _OPTIONS.items()}
            set_options = {
                code: value for code, value in options.items() if value != _DEFAULTS[_OPTIONS[code]]
            }
            body: tuple[Any, ...] = (
                *(task.type, task.payload, dict(task.headers) or None),
                set_options,
            )[: 4 if set_options else 3 if task.headers else 2]
        else:
            is_plain, limits = True, self._limits
            if task.headers:
                body = (task.type, task.payload, dict(task.headers))
            else:
                body = (task.type, task.payload)
        try:
            packed = pack(body)
        except PayloadError as error:
            raise with_place(error, payload=task.payload, options=task.options) from error
        if len(packed) > self._max_bytes:
            raise TaskTooLarge(
                f"the packed task has {len(packed):,} bytes, more than max_task_bytes "
                f"({self._max_bytes:,}); store large data elsewhere and put its address into the "
                "task, or raise max_task_bytes"
            )
        if self._json and not surely_has_json(packed):
            to_json(task.payload)
        own = None if is_plain else self._own_limits(task)
        return _encoded((str(group).encode(), task.id.encode(), packed, limits, own, override))

    def _own_limits(self, task: Task) -> bytes | None:
        """The limits of a task that are its own; None if there are none."""
        schedule = task.schedule or self._schedule
        named: tuple[tuple[bytes, int | None], ...] = (
            (b"weight", None if task.weight == 1 else task.weight),
            (b"due_at", None if task.due_at is None else moment_ms(task.due_at)),
            (b"schedule", None if schedule is None else schedule.next_after(self._now_ms())),
            (b"not_before", None if task.not_before is None else moment_ms(task.not_before)),
            (b"flush", 1 if task.flush else None),
            (b"replace", 1 if task.on_conflict == "replace" else None),
        )
        text = b" ".join(b"%b=%d" % (name, value) for name, value in named if value is not None)
        return text or None


def _span(duration: Duration | None) -> bytes:
    return b"-" if duration is None else b"%d" % to_ms(duration)


_SUBMITTED = 0x95  # the first byte of the body of a task that was submitted: an array of five
_MISSING = {0x92: b"\xc0\x80", 0x93: b"\x80", 0x94: b""}
"""The third and fourth member of a body, by its first byte, if they are left out."""


def mark_submitted(task: EncodedTask, keep_ms: int) -> EncodedTask:
    """Marks a packed task, so that its outcome is kept for so many ms."""
    body = task.body
    fifth = b"%b\xce%b" % (_MISSING[body[0]], keep_ms.to_bytes(4, "big"))
    return task._replace(body=b"%c%b%b" % (_SUBMITTED, body[1:], fifth))


def decode(entry: bytes, group: str, submitted: dict[str, int] | None = None) -> Task:
    """Decodes a stored entry.

    Args:
        entry: bytes from the list of the group's tasks.
        group: group key.
        submitted: takes the id of a task that was submitted, and how long its outcome is kept, ms.

    Raises:
        UndecodableTask: the bytes are no entry.
    """
    try:
        end = start = 7 + entry[6]
        if entry[0] >= _WITH_LIMITS:
            start += 1 + entry[end]
        body = unpack(entry[start:])
        if len(body) == 2:
            type_, payload = body
            if type(type_) is str:  # the constructor's checks take longer than the decoding
                return fill_task(OpenTask(), type_, payload, group, entry[7:end].decode(), {}, {})
        extras: dict[str, Any] = {}
        if len(body) > 2:
            extras["headers"] = body[2] or {}
        if len(body) > 3:
            extras.update((_OPTIONS[code], value) for code, value in body[3].items())
            if len(body) > 4 and submitted is not None and body[4] > 0:
                submitted[entry[7:end].decode()] = int(body[4])
        return Task(body[0], body[1], group, entry[7:end].decode(), **extras)
    except Exception as error:
        raise UndecodableTask(f"{type(error).__name__}: {error}") from error


def submitted_ms(entry: bytes) -> int:
    """How long the outcome of the task of a stored entry is kept, ms; 0 if it was not submitted.

    Does not decode the entry.
    """
    start = 7 + entry[6] if len(entry) > 6 else 0
    if start and entry[0] >= _WITH_LIMITS and len(entry) > start:
        start += 1 + entry[start]
    if not start or len(entry) < start + 6 or entry[start] != _SUBMITTED or entry[-5] != 0xCE:
        return 0
    return int.from_bytes(entry[-4:], "big")


def entry_id(entry: bytes) -> bytes:
    """The id of a stored entry, as it is stored; empty for bytes that are no entry."""
    return entry[7 : 7 + entry[6]] if len(entry) > 6 else b""


_PLAIN = (0x92, 0x93)  # the first byte of a body without options: an array of two or three


def limits_of_entry(entry: bytes) -> tuple[str, ...] | None:
    """Which limits of its group a task sets, as `apply_limits` names them.

    Args:
        entry: a stored entry; bytes that are no entry set none.

    Returns:
        The names; None if the form of its body says that it sets none.
    """
    try:
        start = 7 + entry[6]
        if entry[0] >= _WITH_LIMITS:
            start += 1 + entry[start]
        if entry[start] in _PLAIN:
            return None
        options = unpack(entry[start:])[3]
        return tuple(name for code, name in _APPLIED.items() if options.get(code))
    except Exception:  # whatever foreign bytes come to
        return ()


_APPLIED = {"p": "priority", "g": "grace", "d": "delay", "s": "size", "b": "max_bytes"}


def decode_leniently(entry: bytes, group: str) -> StoredTask:
    """Decodes a stored entry for display; one that is no entry is returned without a task."""
    try:
        task = decode(entry, group)
    except UndecodableTask:
        task = None
    return StoredTask(task, arrival_ms(entry) / 1000, entry)


def arrival_ms(entry: bytes) -> int:
    """When the task of a stored entry arrived, ms since the epoch by Redis' clock."""
    return int.from_bytes(entry[:6], "big") & _ARRIVAL
