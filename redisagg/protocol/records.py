"""The msgpack records that the scripts keep, as Python sees them; see lua/includes/."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar, get_type_hints

import msgpack

from redisagg.errors import KeyConflict


class GroupRecord(NamedTuple):
    """A group; lua/includes/group.lua. Times in ms since the epoch, spans in ms."""

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
    flush: int
    held: int
    held_at: int
    until: int
    bytes: int

    @property
    def due_at(self) -> int:
        """When the group is due, ms; 0: at once. The same formula as `due_at` in Lua."""
        if self.waiting >= self.size or self.flush:
            return 0
        return min(self.last + self.grace, self.deadline)


class BatchRecord(NamedTuple):
    """A batch in flight; lua/includes/batch.lua."""

    group: bytes
    start: int
    size: int
    attempts: int
    created: int
    error: bytes
    length: int
    merged: bytes


class DeadRecord(NamedTuple):
    """A dead letter; lua/includes/dead.lua."""

    group: bytes
    size: int
    attempts: int
    created: int
    died: int
    error: bytes
    traceback: bytes


def group_record(packed: bytes, name: bytes = b"") -> GroupRecord:
    """Decodes a value of the hash `groups`; raises `KeyConflict` for what is none."""
    return _decoded(GroupRecord, packed, name)


def batch_record(packed: bytes, name: bytes = b"") -> BatchRecord:
    """Decodes a value of the hash `batches`; raises `KeyConflict` for what is none."""
    return _decoded(BatchRecord, packed, name)


def dead_record(packed: bytes, name: bytes = b"") -> DeadRecord:
    """Decodes a value of the hash `dead`; raises `KeyConflict` for what is none."""
    return _decoded(DeadRecord, packed, name)


R = TypeVar("R", GroupRecord, BatchRecord, DeadRecord)

_TYPES = {
    kind: tuple(get_type_hints(kind).values()) for kind in (GroupRecord, BatchRecord, DeadRecord)
}


def _decoded(kind: type[R], packed: bytes, name: bytes) -> R:
    try:
        record = kind(*msgpack.unpackb(packed, raw=True))
    except Exception as error:  # whatever a decoder has to say about foreign bytes
        raise _foreign(kind, packed, name) from error
    if not all(map(isinstance, record, _TYPES[kind])):
        raise _foreign(kind, packed, name)
    return record


def _foreign(kind: type[Any], packed: bytes, name: bytes) -> KeyConflict:
    return KeyConflict(
        f"a key of redisagg holds {packed[:64]!r} in place of the {kind.__name__} of {name!r}"
    )
