"""A task, and what may stand in its fields."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, TypeAlias

from redisagg.durations import Duration, to_seconds
from redisagg.errors import InvalidGroupKey, InvalidTask
from redisagg.ids import new_id

MAX_GROUP_KEY_BYTES = 512
MAX_ID_BYTES = 128
MAX_TYPE_BYTES = 512
PRIORITIES = range(-1000, 1001)

_NOTHING: Mapping[str, Any] = MappingProxyType({})

GroupKey: TypeAlias = "str | int | uuid.UUID | tuple[GroupKey, ...]"
"""What is accepted as a group key; `group_key_text` gives its one string form."""


def group_key_text(key: GroupKey) -> str:
    r"""The one string form of a group key.

    A `str` is itself, an `int` its decimal notation, a `UUID` its 36 characters in lower case. A
    tuple is the forms of its parts joined by ``:``, with ``\`` and ``:`` within a part written
    as ``\\`` and ``\:``, so that different tuples of strings never meet.

    Raises:
        InvalidGroupKey: another type, empty, not encodable, or more than 512 bytes of UTF-8.
    """
    text = key if type(key) is str else _key_form(key)
    if not text:
        raise InvalidGroupKey("the group key is empty; give 1 to 512 bytes of UTF-8")
    # No character takes more than 4 bytes, so most keys need no second look.
    if len(text) * 4 > MAX_GROUP_KEY_BYTES or not text.isascii():
        size = len(_utf8(text, "the group key"))
        if size > MAX_GROUP_KEY_BYTES:
            raise InvalidGroupKey(
                f"the group key has {size} bytes of UTF-8, more than {MAX_GROUP_KEY_BYTES}; "
                "use a hash of it"
            )
    return text


def _key_form(key: object) -> str:
    if isinstance(key, str):
        return str(key)
    if isinstance(key, int) and not isinstance(key, bool):
        return str(int(key))
    if isinstance(key, uuid.UUID):
        return str(key)
    if isinstance(key, tuple):
        return ":".join(_key_form(part).replace("\\", "\\\\").replace(":", "\\:") for part in key)
    raise InvalidGroupKey(
        f"a group key is a str, int, UUID or a tuple of those, not {type(key).__name__}"
    )


def _utf8(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        kind = InvalidGroupKey if what == "the group key" else InvalidTask
        raise kind(f"{what} is not valid Unicode: {error.reason}") from None


def _check_text(text: object, what: str, most: int) -> None:
    if not isinstance(text, str):
        raise InvalidTask(f"{what} is a str, not {type(text).__name__}")
    if not 1 <= len(_utf8(text, what)) <= most:
        raise InvalidTask(f"{what} has 1 to {most} bytes of UTF-8")


def _is_plain(text: object) -> bool:
    """Whether it is short ASCII: valid wherever a text is asked for."""
    return type(text) is str and 0 < len(text) <= MAX_ID_BYTES and text.isascii()


def _check_priority(priority: object) -> None:
    if type(priority) is not int or priority not in PRIORITIES:
        raise InvalidTask(f"a priority is a whole number from -1000 to 1000, not {priority!r}")


def check_size(size: object, what: str) -> None:
    """Raises `InvalidTask` unless `size` is a whole number from 1 to a million."""
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= 1_000_000:
        raise InvalidTask(f"{what} is a whole number from 1 to 1,000,000, not {size!r}")


@dataclass(frozen=True, slots=True, init=False)
class Task:
    """One small piece of work, or the merged one.

    Args:
        type: what kind of work it is, 1 to 512 bytes, e.g. ``"email:send"``.
        payload: the data; see `redisagg.payload` for what it may hold.
        group_key: tasks with the same one are merged together. May stay empty in what a merge
            function returns; the group's own key is set then.
        id: 1 to 128 bytes, unique in its group; made of time and chance if not given. Adding an
            id that waits already in its group changes nothing.
        headers: text to go with the task, `str` to `str`.
        options: settings for the queue that the merged task goes to, such as its name or how
            often to retry there; the sink's docs say which. Anything that a payload may hold.
        priority: of its group, -1000 to 1000; among groups that are due, higher goes first. A
            group has the highest priority that a waiting task asked for.
        grace_period: seconds (or a `timedelta`) for this task instead of the configured ones; the
            newest task's counts.
        max_delay: likewise; no task waits longer than its own.
        max_size: likewise; the smallest that a waiting task asked for counts.

    Raises:
        InvalidTask: a field is out of range or of the wrong type.
        InvalidGroupKey: the same, of the group key.
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
    ) -> None:
        # Every task comes through here: what is plainly right is let through at once.
        if not _is_plain(type):
            _check_text(type, "the type of a task", MAX_TYPE_BYTES)
        if id is None:
            id = new_id()
        elif not _is_plain(id):
            _check_text(id, "the id of a task", MAX_ID_BYTES)
        if not _is_plain(group_key) and group_key != "":
            group_key = group_key_text(group_key)
        if priority != 0:
            _check_priority(priority)
        if max_size is not None:
            check_size(max_size, "max_size")
        if grace_period is not None:
            grace_period = to_seconds(grace_period, "grace_period", InvalidTask)
        if max_delay is not None:
            max_delay = to_seconds(max_delay, "max_delay", InvalidTask)
        headers = {} if headers is _NOTHING else _checked_headers(headers)
        options = {} if options is _NOTHING else _checked_options(options)
        limits = (priority, grace_period, max_delay, max_size)
        if self.__class__ is Task:
            object.__setattr__(self, "__class__", _Open)
            _fill(self, type, payload, group_key, id, headers, options, limits)
        else:  # a subclass, which may have other slots
            given = (type, payload, group_key, id, headers, options, *limits)
            for name, value in zip(_Open.__slots__, given, strict=True):
                object.__setattr__(self, name, value)


class _Open:
    """A task whose fields are being set: the same slots, without the refusal to set them."""

    __slots__ = tuple(each.name for each in fields(Task))


def _fill(
    opened: Any,
    type_: str,
    payload: Any,
    group_key: GroupKey,
    task_id: str,
    headers: Mapping[str, str],
    options: Mapping[str, Any],
    limits: tuple[int, Duration | None, Duration | None, int | None],
) -> None:
    """Sets the fields of an `_Open`, which is a task from then on.

    A frozen dataclass does so by ten calls of `object.__setattr__`, which take longer than all the
    rest that a producer does for a task; plain stores take a fifth of that, and the class of an
    object may be exchanged for one with the same slots.
    """
    opened.type = type_
    opened.payload = payload
    opened.group_key = group_key
    opened.id = task_id
    opened.headers = headers
    opened.options = options
    opened.priority, opened.grace_period, opened.max_delay, opened.max_size = limits
    opened.__class__ = Task


def _checked_options(options: object) -> Mapping[str, Any]:
    if not isinstance(options, Mapping):
        raise InvalidTask(f"options are a mapping, not {type(options).__name__}")
    for name in options:
        if not isinstance(name, str):
            raise InvalidTask(f"the name of an option is a str; {name!r} is not")
        _utf8(name, "the name of an option")
    return dict(options)


def _checked_headers(headers: object) -> Mapping[str, str]:
    if not isinstance(headers, Mapping):
        raise InvalidTask(f"headers are a mapping of str to str, not {type(headers).__name__}")
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise InvalidTask(f"headers map str to str; {name!r} does not")
        _utf8(name, "a header name")
        _utf8(value, "a header value")
    return dict(headers)


_NO_LIMITS = (0, None, None, None)


def restored(type_: str, payload: Any, group_key: str, task_id: str) -> Task:
    """A task with nothing else set, from parts that were checked when it was added.

    The constructor's checks take longer than reading the task: a flusher makes hundreds of
    thousands of tasks a second.
    """
    if type(type_) is not str:
        raise InvalidTask("the type of a task is a str")
    opened: Any = _Open()
    _fill(opened, type_, payload, group_key, task_id, {}, {}, _NO_LIMITS)
    task: Task = opened
    return task
