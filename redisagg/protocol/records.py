"""The msgpack records that the scripts store. The fields have the names of the places in Lua."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar, get_type_hints

import msgpack

from redisagg.errors import KeyConflict

NEVER = 2**52
"""Stands for no grace period and no max delay, ms; a time from it on never comes."""


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
    rules: object
    """0, or the places of `GroupRules`."""

    @property
    def due_at(self) -> int:
        """When the group is due, ms since the epoch; 0: at once. As `due_at` in Lua."""
        if self.marked:
            return 0
        rules = self.rules_in_force
        at = min(self.last + self.grace, self.deadline)
        if rules.due:
            at = min(at, rules.due // 2)
        if self.is_full or rules.leading:
            at = 0
        return max(at, rules.not_before, rules.postponed, rules.cool_until)

    @property
    def is_full(self) -> bool:
        """Whether the waiting tasks reach a maximum of a batch."""
        rules = self.rules_in_force
        return (
            self.waiting >= self.size
            or 0 < rules.max_bytes <= self.bytes
            or 0 < rules.max_weight <= rules.weight
        )

    @property
    def rules_in_force(self) -> GroupRules:
        """What few groups use; the default if this one does not."""
        return GroupRules(*self.rules) if isinstance(self.rules, list) else GroupRules()


class GroupRules(NamedTuple):
    """Further places of a group; see lua/includes/group.lua. Times are ms since the epoch."""

    weight: int = 0
    max_bytes: int = 0
    max_weight: int = 0
    due: int = 0
    not_before: int = 0
    postponed: int = 0
    interval: int = 0
    cool_until: int = 0
    leading: int = 0
    common: bytes = b""
    segments: bytes = b""
    paused_by: bytes = b""
    paused: int = 0


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
    reason: bytes
    opened: int
    due_at: int
    batch_weight: int
    parted: bytes


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
    reason: bytes
    opened: int
    due_at: int
    batch_weight: int
    parted: bytes
    taken: bytes
    spare: bytes


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


_RULE_TYPES = tuple(get_type_hints(GroupRules).values())


def _decode(kind: type[R], packed: bytes, name: bytes) -> R:
    try:
        record = kind(*msgpack.unpackb(packed, raw=True))
    except Exception as error:  # msgpack raises many types for foreign bytes
        raise _key_conflict(kind, packed, name) from error
    sound = all(map(isinstance, record, _TYPES[kind]))
    if sound and isinstance(record, GroupRecord):
        sound = record.rules == 0 or _are_rules(record.rules)
    if not sound:
        raise _key_conflict(kind, packed, name)
    return record


def _are_rules(rules: object) -> bool:
    return (
        isinstance(rules, list)
        and len(rules) == len(_RULE_TYPES)
        and all(map(isinstance, rules, _RULE_TYPES))
    )


def _key_conflict(kind: type[Any], packed: bytes, name: bytes) -> KeyConflict:
    return KeyConflict(
        f"a key of redisagg holds {packed[:64]!r} in place of the {kind.__name__} of {name!r}"
    )
