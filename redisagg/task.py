"""Tasks, and the checks of their fields, of group keys and of task ids."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from redisagg.durations import Duration, to_seconds
from redisagg.errors import InvalidGroupKey, InvalidTask
from redisagg.ids import new_id
from redisagg.schedule import Cron
from redisagg.texts import shorten

MAX_GROUP_KEY_BYTES = 512
MAX_ID_BYTES = 128
MAX_TYPE_BYTES = 512
PRIORITIES = range(-1000, 1001)
MAX_WEIGHT = 2**31
MAX_BYTES = 2**40
_LAST_MOMENT = datetime(2200, 1, 1, tzinfo=timezone.utc)

_ESCAPED = re.compile(r"(?:[^\\]|\\[\\:])*", re.DOTALL)
_ESCAPED_OR_COLON = re.compile(r"\\.|:", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)

_NOTHING: Mapping[str, Any] = MappingProxyType({})

GroupKey: TypeAlias = "str | int | uuid.UUID | tuple[GroupKey, ...]"
"""The types that a group key may have; `group_key_text` returns its text form."""


def group_key_text(key: GroupKey) -> str:
    r"""Returns the text form of a group key.

    A `str` is itself, an `int` its decimal notation, a `UUID` its 36 characters in lower case. A
    tuple is the forms of its parts joined by ``:``, with ``\`` and ``:`` within a part written
    as ``\\`` and ``\:``, so that different tuples of strings have different forms.

    Args:
        key: the group key; its text form is 1 to 512 bytes of UTF-8.

    Raises:
        InvalidGroupKey: the key is of another type, empty, not valid Unicode or too long.
    """
    text = key if type(key) is str else _key_form(key)
    if not text:
        raise InvalidGroupKey("the group key is empty; pass a key of 1 to 512 bytes of UTF-8")
    # A character takes at most 4 bytes, so most keys need no encoding to be checked.
    if len(text) * 4 > MAX_GROUP_KEY_BYTES or not text.isascii():
        size = len(_utf8(text, "the group key", InvalidGroupKey))
        if size > MAX_GROUP_KEY_BYTES:
            raise _key_too_long(f"{size}")
    return text


def group_key_parts(text: str) -> tuple[str, ...]:
    r"""Returns the parts of a group key that was a tuple; the inverse of `group_key_text`.

    For a merge function: ``user, channel = group_key_parts(group)``. Parts that were an `int` or a
    `UUID` come back as text, and one that was a tuple as its text form, which has parts again. A
    key that was no tuple has one part, or several if it has a ``:``.

    Args:
        text: the text form of a tuple.

    Raises:
        InvalidGroupKey: the text is not the form of a tuple, such as ``C:\temp``, or no group key.
    """
    if not isinstance(text, str):
        raise InvalidGroupKey(
            f"the text form of a group key must be a str, not {type(text).__name__}"
        )
    text = group_key_text(text)
    if "\\" not in text:
        return tuple(text.split(":"))
    if not _ESCAPED.fullmatch(text):
        raise InvalidGroupKey(
            f"the group key {shorten(text)} is not the text form of a tuple: a backslash in it "
            "stands before neither a backslash nor a colon"
        )
    ends = [each.start() for each in _ESCAPED_OR_COLON.finditer(text) if each[0] == ":"]
    starts = [0, *(end + 1 for end in ends)]
    parts = (text[start:end] for start, end in zip(starts, [*ends, None], strict=True))
    return tuple(_ESCAPE.sub(r"\1", part) for part in parts)


def group_key_bytes(key: GroupKey) -> bytes:
    """Returns a group key as it is stored in Redis; raises `InvalidGroupKey`."""
    return group_key_text(key).encode()


def task_id_bytes(task_id: str) -> bytes:
    """Returns a task id as it is stored in Redis; raises `InvalidTask`."""
    _check_text(task_id, "the id of a task", MAX_ID_BYTES)
    return task_id.encode()


def _key_form(key: object) -> str:
    if isinstance(key, str):
        return str(key)
    if isinstance(key, int) and not isinstance(key, bool):
        if key.bit_length() > 8 * MAX_GROUP_KEY_BYTES:  # Python may refuse to write it out
            raise _key_too_long(f"more than {MAX_GROUP_KEY_BYTES}")
        return str(int(key))
    if isinstance(key, uuid.UUID):
        return str(key)
    if isinstance(key, tuple):
        return _tuple_form(key)
    raise InvalidGroupKey(
        f"a group key must be a str, int, UUID or a tuple of those, not {type(key).__name__}"
    )


def _tuple_form(key: tuple[object, ...]) -> str:
    try:
        parts = [_key_form(part).replace("\\", "\\\\").replace(":", "\\:") for part in key]
    except RecursionError:
        raise InvalidGroupKey("the group key is nested too deep; pass a flat tuple") from None
    text = ":".join(parts)
    if len(text) > MAX_GROUP_KEY_BYTES:  # each level of nesting could double it
        raise _key_too_long(f"at least {len(text)}")
    return text


def _key_too_long(size: str) -> InvalidGroupKey:
    return InvalidGroupKey(
        f"the group key has {size} bytes of UTF-8, the limit is {MAX_GROUP_KEY_BYTES}; "
        "pass a hash of it instead"
    )


def _utf8(text: str, what: str, kind: type[InvalidTask] = InvalidTask) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise kind(
            f"{what} is not valid Unicode ({error.reason}); pass text that UTF-8 can encode"
        ) from None


def _check_text(text: object, what: str, most: int) -> None:
    if not isinstance(text, str):
        raise InvalidTask(f"{what} must be a str, not {type(text).__name__}")
    size = len(_utf8(text, what))
    if not 1 <= size <= most:
        raise InvalidTask(f"{what} must have 1 to {most} bytes of UTF-8, not {size}")


def _are_plain(text: object, other: object) -> bool:
    """Whether both are short ASCII, which is valid as a type, an id and a group key."""
    return (
        type(text) is str
        and type(other) is str
        and 0 < len(text) <= MAX_ID_BYTES
        and 0 < len(other) <= MAX_ID_BYTES
        and text.isascii()
        and other.isascii()
    )


def check_priority(priority: object) -> None:
    """Raises `InvalidTask` unless `priority` is a whole number from -1000 to 1000."""
    if type(priority) is not int or priority not in PRIORITIES:
        raise InvalidTask(
            f"priority must be a whole number from -1000 to 1000, not {shorten(priority)}"
        )


def _check_number(number: object, what: str, least: int, most: int) -> None:
    if type(number) is not int or not least <= number <= most:
        raise InvalidTask(
            f"{what} must be a whole number from {least:,} to {most:,}, not {shorten(number)}"
        )


def check_moment(moment: object, what: str) -> None:
    """Raises `InvalidTask` unless `moment` is a `datetime` with a time zone, 1970 to 2199."""
    if not isinstance(moment, datetime) or moment.utcoffset() is None:
        raise InvalidTask(
            f"{what} must be a datetime with a time zone, such as "
            f"datetime.now(timezone.utc), not {shorten(moment)}"
        )
    if not 0 <= moment.timestamp() <= _LAST_MOMENT.timestamp():
        raise InvalidTask(f"{what} must be in the years 1970 to 2199, not {shorten(moment)}")


def moment_ms(moment: datetime) -> int:
    """Returns ms since the epoch."""
    return round(moment.timestamp() * 1000)


def check_size(size: object, what: str) -> None:
    """Raises `InvalidTask` unless `size` is a whole number of tasks from 1 to a million."""
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= 1_000_000:
        raise InvalidTask(f"{what} must be a whole number from 1 to 1,000,000, not {shorten(size)}")


@dataclass(frozen=True, slots=True, init=False)
class Task:
    """A small piece of work that is added, or the large one that a merge function returns.

    Args:
        type: kind of work, 1 to 512 bytes of UTF-8, such as ``"email:send"``.
        payload: data; `redisagg.payload` lists the types that it may hold.
        group_key: key of the group, 1 to 512 bytes of UTF-8; tasks with the same key are merged
            together. A merge function may leave it empty: its task gets the key of the group.
        id: 1 to 128 bytes of UTF-8, unique in the group; a new ULID by default. Adding an id that
            already waits in the group changes nothing.
        headers: `str` to `str`, stored with the task.
        options: settings for the queue that the merged task goes to, such as its name or its
            number of retries; the page of each sink in docs/sinks lists them. Values may be
            anything that a payload may hold.
        priority: -1000 to 1000, 0 by default. Of the groups that are due, those with a higher
            priority are claimed first; a group has the highest priority of its waiting tasks.
        grace_period: seconds, or a `timedelta`, in place of `group_grace_period`. The value of
            the newest task in the group counts.
        max_delay: seconds, or a `timedelta`, in place of `group_max_delay`. No task waits longer
            than its own value.
        max_size: number of tasks, in place of `group_max_size`. The smallest value among the
            waiting tasks of the group counts.
        max_bytes: bytes of stored tasks, in place of `group_max_bytes`. The smallest value among
            the waiting tasks of the group counts.
        weight: 0 to 2**31, 1 by default: what the task adds to the sum that `group_max_weight`
            limits, such as its tokens, rows or cost.
        due_at: a `datetime` with a time zone; the group is due then at the latest.
        not_before: a `datetime` with a time zone; no batch is cut from the group earlier, full or
            not, unless it is flushed. The latest value among the waiting tasks counts.
        flush: whether the group is due as soon as this task is in, with all tasks before it.
        schedule: a `Cron` in place of `group_schedule`: the group is due at its next occurrence.
            Not stored with the task, so that a flusher needs no time zones.
        on_conflict: what happens if a task with this id waits in the group: ``"keep"`` (default)
            keeps the one that waits, ``"replace"`` puts this one in its place. The place and the
            arrival time, from which the max delay counts, stay; the grace period begins anew.

    Raises:
        InvalidTask: a field is out of range or of the wrong type.
        InvalidGroupKey: the group key is too long, not valid Unicode or of the wrong type.
    """

    type: str
    payload: Any
    group_key: GroupKey
    id: str
    headers: Mapping[str, str]
    options: Mapping[str, Any]
    priority: int
    grace_period: Duration | None
    max_delay: Duration | None
    max_size: int | None
    max_bytes: int | None
    weight: int
    due_at: datetime | None
    not_before: datetime | None
    flush: bool
    on_conflict: Literal["keep", "replace"]
    schedule: Cron | None

    def __init__(
        self,
        type: str,
        payload: Any = None,
        group_key: GroupKey = "",
        id: str | None = None,
        headers: Mapping[str, str] = _NOTHING,
        options: Mapping[str, Any] = _NOTHING,
        priority: int = 0,
        grace_period: Duration | None = None,
        max_delay: Duration | None = None,
        max_size: int | None = None,
        max_bytes: int | None = None,
        weight: int = 1,
        due_at: datetime | None = None,
        not_before: datetime | None = None,
        flush: bool = False,
        on_conflict: Literal["keep", "replace"] = "keep",
        schedule: Cron | None = None,
    ) -> None:
        # On the path of every task: short ASCII, the usual case, skips the full checks.
        if not _are_plain(type, group_key):
            if not _are_plain(type, type):
                _check_text(type, "the type of a task", MAX_TYPE_BYTES)
            if group_key != "":
                group_key = group_key_text(group_key)
        if id is None:
            id = new_id()
        elif not _are_plain(id, id):
            _check_text(id, "the id of a task", MAX_ID_BYTES)
        headers = {} if headers is _NOTHING else _checked_headers(headers)
        options = {} if options is _NOTHING else _checked_options(options)
        if (
            priority != 0
            or grace_period is not None
            or max_delay is not None
            or max_size is not None
            or max_bytes is not None
            or weight != 1
            or due_at is not None
            or not_before is not None
            or flush is not False
            or on_conflict != "keep"
            or schedule is not None
            or self.__class__ is not Task  # a subclass may have other slots
        ):
            limits = _checked_limits(
                priority,
                grace_period,
                max_delay,
                max_size,
                max_bytes,
                weight,
                due_at,
                not_before,
                flush,
                on_conflict,
                schedule,
            )
            given = (type, payload, group_key, id, headers, options, *limits)
            for name, value in zip(OpenTask.__slots__, given, strict=True):
                object.__setattr__(self, name, value)
        else:
            object.__setattr__(self, "__class__", OpenTask)
            fill_task(self, type, payload, group_key, id, headers, options)


_Limits: TypeAlias = tuple[
    int,
    "Duration | None",
    "Duration | None",
    "int | None",
    "int | None",
    int,
    "datetime | None",
    "datetime | None",
    bool,
    str,
    "Cron | None",
]
"""The fields of a task from its priority on."""


class OpenTask:
    """A task whose fields are being set: the same slots, but not frozen."""

    __slots__ = tuple(each.name for each in fields(Task))


def fill_task(
    opened: Any,
    type_: str,
    payload: Any,
    group_key: GroupKey,
    task_id: str,
    headers: Mapping[str, str],
    options: Mapping[str, Any],
) -> Task:
    """Sets the fields of an `OpenTask` and turns it into a `Task` without limits of its own.

    The fields must have been checked. A frozen dataclass would make a call per field of
    `object.__setattr__`, which take longer than everything else that a producer does for a task.
    Plain stores take a fifth of that time, and the class of an object may be changed to one with
    the same slots.
    """
    opened.type = type_
    opened.payload = payload
    opened.group_key = group_key
    opened.id = task_id
    opened.headers = headers
    opened.options = options
    opened.priority = 0
    opened.grace_period = opened.max_delay = None
    opened.max_size = opened.max_bytes = None
    opened.weight = 1
    opened.due_at = opened.not_before = None
    opened.flush = False
    opened.on_conflict = "keep"
    opened.schedule = None
    opened.__class__ = Task
    task: Task = opened
    return task


def _checked_limits(
    priority: int,
    grace_period: Duration | None,
    max_delay: Duration | None,
    max_size: int | None,
    max_bytes: int | None,
    weight: int,
    due_at: datetime | None,
    not_before: datetime | None,
    flush: bool,
    on_conflict: str,
    schedule: Cron | None,
) -> _Limits:
    if priority != 0:
        check_priority(priority)
    if max_size is not None:
        check_size(max_size, "max_size")
    if max_bytes is not None:
        _check_number(max_bytes, "max_bytes", 1, MAX_BYTES)
    if weight != 1:
        _check_number(weight, "weight", 0, MAX_WEIGHT)
    if due_at is not None:
        check_moment(due_at, "due_at")
    if not_before is not None:
        check_moment(not_before, "not_before")
    if flush is not False and flush is not True:
        raise InvalidTask(f"flush must be True or False, not {shorten(flush)}")
    if on_conflict != "keep" and on_conflict != "replace":
        raise InvalidTask(f"on_conflict must be 'keep' or 'replace', not {shorten(on_conflict)}")
    if schedule is not None and not isinstance(schedule, Cron):
        raise InvalidTask(f"schedule must be a Cron, not {schedule.__class__.__name__}")
    if grace_period is not None:
        grace_period = to_seconds(grace_period, "grace_period", InvalidTask)
    if max_delay is not None:
        max_delay = to_seconds(max_delay, "max_delay", InvalidTask)
    return (
        *(priority, grace_period, max_delay, max_size, max_bytes),
        *(weight, due_at, not_before, flush, on_conflict, schedule),
    )


def _checked_options(options: object) -> Mapping[str, Any]:
    if not isinstance(options, Mapping):
        raise InvalidTask(f"options must be a mapping, not {type(options).__name__}")
    for name in options:
        if not isinstance(name, str):
            raise InvalidTask(f"the name of an option must be a str, not {name!r}")
        _utf8(name, "the name of an option")
    return dict(options)


def _checked_headers(headers: object) -> Mapping[str, str]:
    if not isinstance(headers, Mapping):
        raise InvalidTask(f"headers must be a mapping of str to str, not {type(headers).__name__}")
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise InvalidTask(f"headers must map str to str; the header {name!r} does not")
        _utf8(name, "a header name")
        _utf8(value, "a header value")
    return dict(headers)
