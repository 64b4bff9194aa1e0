"""The msgpack records that the scripts store. The fields have the names of the places in Lua."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar, get_type_hints

import msgpack

from redisagg.errors import KeyConflict


class GroupRecord(NamedTuple):
    """A group; see lua/includes/group.lua. Times are ms since the epoch, spans are ms."""

    waiting: int
    claimed: int
    base: int
    first: int
    last: int
    deadline: int
    grace: int
    delay: int
    size: int
    priority: int
    marked: int
    held: int
    held_from: int
    held_until: int
    bytes: int
    since: int
    ids_from: int
    cancelled: int

    @property
    def due_at(self) -> int:
        """When the group is due, ms since the epoch; 0: at once. As `due_at` in Lua."""
        if self.waiting >= self.size or self.marked:
            return 0
        return min(self.last + self.grace, self.deadline)


class BatchRecord(NamedTuple):
    """A batch in flight; see lua/includes/batch.lua."""

    group: bytes
    start: int
    task_count: int
    attempts: int
    created: int
    error: bytes
    length: int
    merged: bytes
    deaths: int
    read: int
    alone: int
    enqueued: int
    letter: bytes
    result: bytes


class DeadRecord(NamedTuple):
    """A dead letter; see lua/includes/dead.lua."""

    group: bytes
    task_count: int
    attempts: int
    created: int
    died: int
    error: bytes
    traceback: bytes
    length: int
    enqueued: int
    result: bytes


def group_record(packed: bytes, name: bytes = b"") -> GroupRecord:
    """Decodes a value of the hash `groups`.

    Args:
        packed: The value.
        name: The field, for the error message.

    Raises:
        KeyConflict: The value is no record of a group.
    """
    return _decode(GroupRecord, packed, name)


def batch_record(packed: bytes, name: bytes = b"") -> BatchRecord:
    """Decodes a value of the hash `batches`.

    Args:
        packed: The value.
        name: The field, for the error message.

    Raises:
        KeyConflict: The value is no record of a batch.
    """
    return _decode(BatchRecord, packed, name)


def dead_record(packed: bytes, name: bytes = b"") -> DeadRecord:
    """Decodes a value of the hash `dead`.

    Args:
        packed: The value.
        name: The field, for the error message.

    Raises:
        KeyConflict: The value is no record of a dead letter.
    """
    return _decode(DeadRecord, packed, name)


R = TypeVar("R", GroupRecord, BatchRecord, DeadRecord)

_TYPES = {
    kind: tuple(get_type_hints(kind).values()) for kind in (GroupRecord, BatchRecord, DeadRecord)
}


def _decode(kind: type[R], packed: bytes, name: bytes) -> R:
    try:
        record = kind(*msgpack.unpackb(packed, raw=True))
    except Exception as error:  # msgpack raises many types for foreign bytes
        raise _key_conflict(kind, packed, name) from error
    if not all(map(isinstance, record, _TYPES[kind])):
        raise _key_conflict(kind, packed, name)
    return record


def _key_conflict(kind: type[Any], packed: bytes, name: bytes) -> KeyConflict:
    return KeyConflict(
        f"a key of redisagg holds {packed[:64]!r} in place of the {kind.__name__} of {name!r}"
    )
