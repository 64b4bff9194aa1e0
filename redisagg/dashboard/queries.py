"""What the pages read from Redis: each function is one page's worth, in a bounded number of calls.

The rest of the dashboard asks Redis through this module only, so that a better way to read
something changes nothing else.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, NamedTuple

from redisagg.dashboard.sources import Shown
from redisagg.errors import AuthenticationFailed, KeyConflict, RedisAggError, RedisReadOnly
from redisagg.operations import measuring
from redisagg.protocol.keys import Keyspace
from redisagg.protocol.operations import Operation, ask
from redisagg.protocol.records import NEVER, DeadRecord, GroupRecord, dead_record, group_record
from redisagg.protocol.replies import scan_page
from redisagg.protocol.scripts import call, command
from redisagg.task import group_key_bytes
from redisagg.views import (
    BatchState,
    DeadLetter,
    GroupPlace,
    GroupState,
    PartitionStats,
    Stats,
)

Sort = Literal["due", "size", "age"]
SORTS: tuple[Sort, ...] = ("due", "size", "age")

_MOST_READ = 2_000
"""Groups that are read at most to find those with a prefix, or the largest."""


_SLICE_BYTES = 1 << 18
"""Bytes of records that one call reads, about."""


# --- health --------------------------------------------------------------------------------------


class Lease(NamedTuple):
    """The lease of a partition."""

    owner: str
    """Id of the flusher, or empty."""
    token: int
    expires_at: float
    """Seconds since the epoch; 0 without a lease."""


@dataclass(frozen=True, slots=True)
class Look:
    """A namespace in numbers, at one moment."""

    stats: Stats
    groups_due: int
    groups_waiting: int
    groups_held: int
    oldest_overdue: float
    """Seconds since the earliest due group or batch was due; 0 without any."""
    now: float
    """Time of Redis, seconds since the epoch."""
    clock_offset: float
    """Seconds by which the clock of Redis is ahead of this machine's."""

    @property
    def led(self) -> int:
        """Number of partitions with a leader."""
        return sum(partition.leader is not None for partition in self.stats.partitions)


async def look(shown: Shown) -> Look:
    """Reads the numbers of a namespace; a million groups take as long as ten."""
    asked = time.time()
    now_ms = await shown.run(ask(call("now", [keyspace_of(shown).meta])))
    told = time.time()
    measures = await shown.run(measuring.measure(keyspace_of(shown)))
    return Look(
        stats=measures.stats,
        groups_due=measures.groups_due,
        groups_waiting=measures.groups_waiting,
        groups_held=measures.groups_held,
        oldest_overdue=measures.oldest_overdue,
        now=now_ms / 1000,
        clock_offset=now_ms / 1000 - (asked + told) / 2,
    )


async def stats(shown: Shown) -> Stats:
    """Reads the counts of a namespace, in one round trip."""
    return await shown.aggregator.stats()


async def now(shown: Shown) -> float:
    """The time of Redis, in seconds since the epoch."""
    now_ms: int = await shown.run(ask(call("now", [keyspace_of(shown).meta])))
    return now_ms / 1000


def keyspace_of(shown: Shown) -> Keyspace:
    """The names of the keys of a namespace."""
    return shown.aggregator._keyspace


# --- rights --------------------------------------------------------------------------------------


async def why_not(shown: Shown) -> str:
    """Says why the user of Redis may not change anything; empty if it may.

    Redis has no command by which a user without administrative rights learns its own. So this
    removes a field that no state has, which changes nothing.
    """
    state = keyspace_of(shown).partitions[0].state
    try:
        await shown.run(ask(command("HDEL", state, b"")))
    except AuthenticationFailed:
        return "the user of Redis has no right to change anything (it has the role observer)"
    except RedisReadOnly:
        return "this Redis is a read-only replica"
    except KeyConflict:
        return ""
    return ""


# --- groups --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Group:
    """A group, as a row of a table."""

    state: GroupState
    record: GroupRecord | None
    """None if it has gone in the meantime."""
    partition: int

    @property
    def rule(self) -> str:
        """What makes the group due first, as `BatchInfo.reason`; empty if nothing does."""
        return "" if self.record is None else rule_of(self.record)


@dataclass(frozen=True, slots=True)
class GroupList:
    """A page of groups."""

    groups: Sequence[Group]
    next: str = ""
    """Text form of the place of the next page; empty after the last one."""
    exact: bool = True
    """Whether the order holds for all groups; else within this page only."""
    examined: int | None = None
    """Number of groups that were looked at, about, if that is known."""


def rule_of(record: GroupRecord) -> str:
    """What makes a group due first; as `reason_of` in Lua, but before its time too."""
    rules = record.rules_in_force
    if record.waiting == 0:
        return ""
    if record.marked:
        return "flush"
    if record.waiting >= record.size:
        return "size"
    if 0 < rules.max_bytes <= record.bytes:
        return "bytes"
    if 0 < rules.max_weight <= rules.weight:
        return "weight"
    if rules.leading:
        return "leading"
    grace_end = record.last + record.grace
    if rules.due and rules.due // 2 <= min(grace_end, record.deadline):
        return "schedule" if rules.due % 2 else "due_at"
    first = min(grace_end, record.deadline)
    if first >= NEVER:
        return ""
    return "max_delay" if record.deadline <= grace_end else "grace"


async def groups(
    shown: Shown, *, prefix: str, sort: Sort, place: str, limit: int, due: bool
) -> GroupList:
    """Reads a page of groups.

    Args:
        shown: the namespace.
        prefix: with which their keys begin.
        sort: ``due``: due next first; ``size``: most tasks first; ``age``: oldest task first.
        place: `GroupList.next` of the page before; empty for the first page.
        limit: number of groups on a page.
        due: only groups that are due.
    """
    find: Any = getattr(shown.aggregator, "find_groups", None)
    if find is not None and not due:
        page: Any = await find(prefix=prefix, order=sort, limit=limit, cursor=place or None)
        rows = await _with_records(shown, page.states)
        return GroupList(rows, page.cursor or "", page.exact, page.examined)
    complete = True
    skip = int(place) if place.isdecimal() else 0
    if not prefix and sort == "due":
        found = await shown.aggregator.get_groups(limit=skip + limit + 1, due=due)
        states = list(islice(found.values(), skip, None))
    else:
        everything, complete = await _some_groups(shown, prefix, due=due)
        states = sorted(everything, key=_KEYS[sort])[skip:]
    following = str(skip + limit) if len(states) > limit else ""
    return GroupList(await _with_records(shown, states[:limit]), following, exact=complete)


_KEYS: dict[str, Any] = {
    "due": lambda state: (state.due_at is None, state.due_at or 0.0),
    "size": lambda state: -(state.size + state.in_flight),
    "age": lambda state: (state.first_task_at is None, state.first_task_at or 0.0),
}


async def _some_groups(shown: Shown, prefix: str, *, due: bool) -> tuple[list[GroupState], bool]:
    """Reads groups with a prefix; returns whether these are all."""
    found: dict[str, GroupState] = {}
    read = 0
    place: GroupPlace | None = GroupPlace()
    while place is not None:
        page = await shown.aggregator.read_groups(place, due=due)
        read += len(page.states)
        found.update(
            (each.group_key, each) for each in page.states if each.group_key.startswith(prefix)
        )
        place = page.next
        if read >= _MOST_READ:
            return list(found.values()), place is None
    return list(found.values()), True


async def _with_records(shown: Shown, states: Sequence[GroupState]) -> list[Group]:
    keyspace = keyspace_of(shown)
    keys = [group_key_bytes(state.group_key) for state in states]
    records = await shown.run(_records(keyspace, keys))
    return [
        Group(state, record, keyspace.partition_of(key).number)
        for state, key, record in zip(states, keys, records, strict=True)
    ]


def _records(keyspace: Keyspace, keys: Sequence[bytes]) -> Operation[list[GroupRecord | None]]:
    replies = yield [command("HGET", keyspace.partition_of(key).groups, key) for key in keys] or [
        command("HGET", keyspace.meta, b"schema")
    ]
    return [_record_or_none(reply, key) for key, reply in zip(keys, replies, strict=False)]


def _record_or_none(reply: Any, key: bytes) -> GroupRecord | None:
    if reply is None or isinstance(reply, Exception):
        return None
    try:
        return group_record(reply, key)
    except KeyConflict:
        return None


async def group(shown: Shown, key: str, *, offset: int, limit: int) -> Group | None:
    """Reads a group with a page of its waiting tasks; None if there is no such group."""
    state = await shown.aggregator.get_group(key, offset=offset, limit=limit)
    if state is None:
        return None
    [found] = await _with_records(shown, [state])
    return found


# --- batches -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BatchList:
    """A page of batches in flight."""

    batches: Sequence[BatchState]
    total: int
    """Number of those that were looked for."""
    complete: bool = True
    """Whether all were looked at."""


async def batches(shown: Shown, *, state: str, offset: int, limit: int) -> BatchList:
    """Reads a page of the batches in flight, oldest first.

    Args:
        shown: the namespace.
        state: ``claimed`` or ``retry``; empty for both.
        offset: number of batches to skip.
        limit: number of batches on the page.
    """
    found = await shown.aggregator.get_batches()
    found = [each for each in found if not state or each.state == state]
    return BatchList(found[offset : offset + limit], len(found))


async def batches_of(shown: Shown, group_key: str) -> list[BatchState]:
    """Reads the batches in flight of a group."""
    return [each for each in await shown.aggregator.get_batches() if each.group_key == group_key]


async def batch(shown: Shown, batch_id: str) -> BatchState | None:
    """Reads a batch in flight with its tasks; None if it has ended."""
    for each in await shown.aggregator.get_batches(tasks=True):
        if each.batch_id == batch_id:
            return each
    return None


# --- dead letters --------------------------------------------------------------------------------


async def dead_letter(shown: Shown, batch_id: str) -> DeadLetter | None:
    """Reads a dead letter with its tasks."""
    return await shown.aggregator.get_dead_letter(batch_id)


async def dead_slices(shown: Shown) -> AsyncIterator[tuple[str, DeadRecord]]:
    """Reads the records of all dead letters, a bounded number of bytes in a call."""
    for partition in keyspace_of(shown).partitions:
        cursor, size = 0, 64
        while True:
            request = command("HSCAN", partition.dead, cursor, "COUNT", size)
            try:
                cursor, page = scan_page(await shown.run(ask(request)))
            except KeyConflict:
                break
            for batch_id, packed in page.items():
                with suppress(KeyConflict):
                    yield batch_id.decode("utf-8", "replace"), dead_record(packed, batch_id)
            length = sum(map(len, page.values()))
            size = min(500, size * 2) if length < _SLICE_BYTES else max(1, size // 2)
            if cursor == 0:
                break


# --- flushers ------------------------------------------------------------------------------------


class LiveFlusher(NamedTuple):
    """A flusher that lives."""

    id: str
    leads: Sequence[int]
    """Numbers of the partitions that it leads."""


@dataclass(frozen=True, slots=True)
class Leader:
    """A partition and its lease."""

    stats: PartitionStats
    expires_at: float | None
    """When its lease ends, if it has one."""


@dataclass(frozen=True, slots=True)
class Workers:
    """The flushers and partitions of a namespace."""

    flushers: Sequence[LiveFlusher]
    partitions: Sequence[Leader]
    unreadable: Sequence[int] = field(default=())


async def workers(shown: Shown, counts: Stats) -> Workers:
    """Reads the leases, for the flushers and partitions of these counts."""
    keyspace = keyspace_of(shown)
    replies: list[Any] = await shown.run(
        _leniently([command("HMGET", p.state, b"expires") for p in keyspace.partitions])
    )
    expires = {
        number: int(reply[0]) / 1000
        for number, reply in enumerate(replies)
        if isinstance(reply, list) and reply[0] and reply[0].isdigit()
    }
    leads: dict[str, list[int]] = {each: [] for each in counts.flushers}
    for partition in counts.partitions:
        if partition.leader is not None:
            leads.setdefault(partition.leader, []).append(partition.partition)
    return Workers(
        flushers=[LiveFlusher(*each) for each in sorted(leads.items())],
        partitions=[
            Leader(each, expires.get(each.partition) if each.leader else None)
            for each in counts.partitions
        ],
        unreadable=counts.unreadable,
    )


def _leniently(requests: Sequence[Any]) -> Operation[list[Any]]:
    """Sends requests; an error stands in place of its reply."""
    replies = yield requests
    return list(replies)


class Limit(NamedTuple):
    """What is known of a limit on work of the whole namespace."""

    running: int
    """Batches that have a permit."""
    waiting: int
    """Flushers that wait for one."""


async def limits(shown: Shown) -> Limit | str | None:
    """Reads the permits of the namespace.

    Returns:
        None if it has no limits on work; a text that says why they can't be read.
    """
    try:
        found: Any = await shown.run(ask(command("HGETALL", keyspace_of(shown).permits)))
    except AuthenticationFailed:
        return "the user of Redis may not read the permits: it needs +hgetall"
    except RedisAggError as error:
        return str(error)
    names = list(found) if isinstance(found, dict) else list(found[::2])
    if not names:
        return None
    return Limit(
        sum(name.startswith(b"p:") for name in names), sum(name.startswith(b"w:") for name in names)
    )


# --- history -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class History:
    """Time series of a namespace; each list has one value for each moment."""

    step: float
    """Seconds between two moments."""
    times: Sequence[float]
    """Ends of the steps, seconds since the epoch."""
    added: Sequence[float | None] = ()
    """Tasks added in each second; None where nothing was noted."""
    flushed: Sequence[float | None] = ()
    """Tasks flushed in each second."""
    batches: Sequence[float | None] = ()
    """Batches flushed in each second."""
    pending: Sequence[float | None] = ()
    """Tasks that waited or were in flight."""
    dead: Sequence[float | None] = ()
    """Tasks in dead letters."""

    @property
    def per_batch(self) -> list[float | None]:
        """Tasks in a batch, on average."""
        return [
            None if not batches or tasks is None else tasks / batches
            for tasks, batches in zip(self.flushed, self.batches, strict=True)
        ]


Span = Literal["hour", "month"]
SPANS: tuple[Span, ...] = ("hour", "month")


async def history(shown: Shown, span: Span) -> History | None:
    """Reads the time series of the last hour or of the last 30 days; None if there is none."""
    return None


# --- causes --------------------------------------------------------------------------------------


async def explain(shown: Shown, key: str) -> str:
    """Says in a sentence why a group is where it is; empty if that is not known."""
    return ""
