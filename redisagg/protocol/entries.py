"""The stored form of a task.

The script `add` puts 6 bytes of arrival time (ms, big endian) and 1 byte with the length of the id
before the id and the body. The body is a msgpack array: type, payload, headers (map or nil), and a
map with the priority (``p``), grace period and max delay (``g``, ``d``, seconds), max size (``s``)
and options (``o``) that the task sets. The last two members are left out if nothing is set.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from redisagg.config import AggregationConfig
from redisagg.durations import to_ms
from redisagg.errors import InvalidTask, TaskTooLarge, UndecodableTask
from redisagg.payload import pack, surely_has_json, to_json, unpack
from redisagg.task import Task, group_key_text, restore_task

_OPTIONS = {"p": "priority", "g": "grace_period", "d": "max_delay", "s": "max_size", "o": "options"}


class EncodedTask(NamedTuple):
    """A task that has been checked and packed."""

    group: bytes
    id: bytes
    body: bytes
    limits: bytes
    """Limits for its group, as `add` takes them: grace period, max delay (ms), size, priority."""


class StoredTask(NamedTuple):
    """A stored entry, decoded as far as possible."""

    task: Task | None
    """The task, or None if the bytes are no task."""
    arrived_at: float
    """Time of arrival in seconds since the epoch, by Redis' clock."""
    raw: bytes
    """The stored bytes."""


class Encoder:
    """Turns tasks into arguments of the script `add`, with the limits of a configuration.

    Args:
        config: the configuration.
        json: whether payloads without a form in JSON are refused.
    """

    def __init__(self, config: AggregationConfig, *, json: bool = False) -> None:
        self._max_bytes = config.max_task_bytes
        self._json = json
        self._common = (
            to_ms(config.group_grace_period),
            to_ms(config.group_max_delay),
            config.group_max_size,
        )
        self._limits = b"%d %d %d 0" % self._common

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
        if task.priority or task.grace_period or task.max_delay or task.max_size or task.options:
            limits = self._overridden(task)
            options = {code: getattr(task, name) for code, name in _OPTIONS.items()}
            set_options = {code: value for code, value in options.items() if value}
            packed = pack((task.type, task.payload, dict(task.headers) or None, set_options))
        else:
            limits = self._limits
            if task.headers:
                packed = pack((task.type, task.payload, dict(task.headers)))
            else:
                packed = pack((task.type, task.payload))
        if len(packed) > self._max_bytes:
            raise TaskTooLarge(
                f"the packed task has {len(packed):,} bytes, more than max_task_bytes "
                f"({self._max_bytes:,}); store large data elsewhere and put its address into the "
                "task, or raise max_task_bytes"
            )
        if self._json and not surely_has_json(packed):
            to_json(task.payload)
        return EncodedTask(str(group).encode(), task.id.encode(), packed, limits)

    def _overridden(self, task: Task) -> bytes:
        grace, delay, size = self._common
        return b"%d %d %d %d" % (
            grace if task.grace_period is None else to_ms(task.grace_period),
            delay if task.max_delay is None else to_ms(task.max_delay),
            task.max_size or size,
            task.priority,
        )


def decode(entry: bytes, group: str) -> Task:
    """Decodes a stored entry.

    Args:
        entry: bytes from the list of the group's tasks.
        group: group key.

    Raises:
        UndecodableTask: the bytes are no entry.
    """
    try:
        end = 7 + entry[6]
        body = unpack(entry[end:])
        if len(body) == 2:
            return restore_task(body[0], body[1], group, entry[7:end].decode())
        extras: dict[str, Any] = {}
        if len(body) > 2:
            extras["headers"] = body[2] or {}
        if len(body) > 3:
            extras.update((_OPTIONS[code], value) for code, value in body[3].items())
        return Task(body[0], body[1], group, entry[7:end].decode(), **extras)
    except Exception as error:
        raise UndecodableTask(f"{type(error).__name__}: {error}") from error


def decode_leniently(entry: bytes, group: str) -> StoredTask:
    """Decodes a stored entry for display; one that is no entry is returned without a task."""
    try:
        task = decode(entry, group)
    except UndecodableTask:
        task = None
    return StoredTask(task, int.from_bytes(entry[:6], "big") / 1000, entry)
