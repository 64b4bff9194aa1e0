"""What a namespace looks like now, in numbers: for metrics.

A few commands for each partition that read a bounded number of values, so that a million groups
take as long as ten.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from redisagg.errors import KeyConflict
from redisagg.operations import inspecting
from redisagg.protocol.keys import Keyspace, PartitionKeys
from redisagg.protocol.operations import Operation
from redisagg.protocol.records import batch_record, group_record
from redisagg.protocol.scripts import Request, call, command
from redisagg.views import Stats

_PARTITIONS = 64
"""Partitions that are read in one round trip."""

_READ = 100
"""Groups, and batches, of which the records are read in each partition."""

_PRIORITY_STEP = 2**42
"""What a priority takes off the score of a group in `ready`; see lua/includes/group.lua."""

_MOST_PRIORITIES = 16
"""Different priorities of groups that are due, of which the oldest group is looked for."""

R = TypeVar("R")


class Measures(NamedTuple):
    """The numbers of a namespace."""

    stats: Stats
    groups_due: int
    """Groups that are due and not claimed yet."""
    groups_waiting: int
    """Groups that are not due yet."""
    groups_held: int
    """Groups without a task that waits for its time: all are in batches, or a retry or a pause
    holds them back."""
    oldest_overdue: float
    """Seconds since the earliest of all due groups and batches in flight was due; 0 without any.
    Of more than 100 batches in one partition, the first ones count."""


def measure(keyspace: Keyspace) -> Operation[Measures]:
    """Reads the numbers of a namespace.

    Raises:
        KeyConflict: the list of flushers holds what redisagg did not write. What else it did not
            write is left out.
    """
    stats = yield from inspecting.stats(keyspace)
    found = _Found()
    partitions = keyspace.partitions
    for start in range(0, len(partitions), _PARTITIONS):
        yield from _measure(partitions[start : start + _PARTITIONS], found)
    overdue = 0.0
    if found.oldest is not None:
        overdue = max(0.0, (found.now - found.oldest) / 1000)
    indexed = found.due + found.waiting
    return Measures(
        stats, found.due, found.waiting, max(0, stats.groups - indexed), oldest_overdue=overdue
    )


class _Found:
    """What has been read so far; times are ms since the epoch."""

    def __init__(self) -> None:
        self.due = 0
        self.waiting = 0
        self.now = 0
        self.oldest: int | None = None

    def note(self, due_at: int) -> None:
        if due_at and (self.oldest is None or due_at < self.oldest):
            self.oldest = due_at


def _measure(partitions: Sequence[PartitionKeys], found: _Found) -> Operation[None]:
    replies = iter((yield [each for p in partitions for each in _first(p)]))
    later: list[Request] = []
    for p in partitions:
        upcoming, ready, due, first, *batches = (_or_none(next(replies)) for _ in range(7))
        now, _, due_names = upcoming or (0, [], [])
        found.now = max(found.now, now)
        found.due += ready or 0
        found.waiting += due or 0
        later.append(command("HMGET", p.groups, *(due_names or (b"",))))
        later.append(command("HMGET", p.batches, *(id for ids in batches for id in ids or ()), b""))
        yield from _note_ready(p, first, found)
    records = iter((yield later))
    for _ in partitions:
        for packed in _or_none(next(records)) or ():
            if (group := _decoded(group_record, packed)) and group.waiting:
                due_at = group.due_at or group.since
                if due_at <= found.now:  # the index may name an earlier time
                    found.due, found.waiting = found.due + 1, found.waiting - 1
                    found.note(due_at)
        for packed in _or_none(next(records)) or ():
            if batch := _decoded(batch_record, packed):
                found.note(batch.due_at)


def _first(p: PartitionKeys) -> Iterator[Request]:
    yield call("upcoming", [p.ready, p.due], 0, _READ, b"1")
    yield command("ZCARD", p.ready)
    yield command("ZCARD", p.due)
    yield command("ZRANGE", p.ready, 0, 0, "WITHSCORES")
    for key in (p.retry, p.claims, p.suspects):
        yield command("ZRANGE", key, 0, _READ - 1)


def _note_ready(p: PartitionKeys, first: Any, found: _Found) -> Operation[None]:
    """Notes the oldest group that is due, of each priority."""
    for _ in range(_MOST_PRIORITIES):
        score = _score(first)
        if score is None:
            return
        block, due_at = divmod(score, _PRIORITY_STEP)
        found.note(due_at)
        least = (block + 1) * _PRIORITY_STEP
        query = ("ZRANGE", p.ready, least, "+inf", "BYSCORE", "LIMIT", 0, 1, "WITHSCORES")
        [reply] = yield [command(*query)]
        first = _or_none(reply)


def _score(reply: Any) -> int | None:
    """The score of the only member in a reply of ZRANGE, in either protocol."""
    if not reply:
        return None
    last: Any = reply[-1]
    if isinstance(last, list):
        last = last[-1]
    return int(float(last))


def _or_none(reply: Any) -> Any:
    """The reply; None if a key holds what redisagg did not write."""
    if isinstance(reply, KeyConflict):
        return None
    if isinstance(reply, Exception):
        raise reply
    return reply


def _decoded(decode: Any, packed: bytes | None) -> Any:
    try:
        return decode(packed) if packed else None
    except KeyConflict:
        return None
