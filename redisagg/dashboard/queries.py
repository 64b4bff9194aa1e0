"""What the pages read from Redis: each function is one page's worth, in a bounded number of calls.

The rest of the dashboard asks Redis through this module only, so that a better way to read
something changes nothing else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, NamedTuple

from redisagg.dashboard.sources import Shown
from redisagg.errors import (
    AuthenticationFailed,
    KeyConflict,
    RedisAggError,
    RedisReadOnly,
    RedisUnavailable,
)
from redisagg.operations.inspecting import place_of_batch
from redisagg.protocol.entries import StoredTask, decode_leniently
from redisagg.protocol.failed_tasks import group_of
from redisagg.protocol.keys import Keyspace
from redisagg.protocol.operations import Operation, ask
from redisagg.protocol.records import (
    NEVER,
    BatchRecord,
    DeadRecord,
    GroupRecord,
    batch_record,
    dead_record,
    group_record,
)
from redisagg.protocol.replies import scan_page
from redisagg.protocol.scripts import command
from redisagg.task import group_key_bytes
from redisagg.timeline import BatchTimeline
from redisagg.views import (
    BatchState,
    DeadLetter,
    Explanation,
    FlusherState,
    GroupPlace,
    GroupState,
    PartitionStats,
    Stats,
    Trouble,
)

Sort = Literal["due", "size", "age"]

_SLICE_BYTES = 1 << 18
"""Bytes of records that one call reads, about."""

_MOST_PAGES = 40
"""Pages of batches that are read at most to find those of a state or a group."""


# --- health --------------------------------------------------------------------------------------


class PartlyAway(RedisUnavailable):
    """A master of a cluster does not answer, so that nothing can be counted.

    Args:
        troubles: what is wrong.
    """

    def __init__(self, troubles: Sequence[Trouble]) -> None:
        super().__init__(" ".join(each.text for each in troubles) or "a master does not answer")
        self.troubles = troubles


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
    flushers: Sequence[FlusherState] = ()
    troubles: Sequence[Trouble] = ()
    """What keeps tasks from being flushed, the worst first."""
    memory_used: int = 0
    memory_limit: int = 0
    """`maxmemory` of Redis in bytes; 0 for none."""

    @property
    def led(self) -> int:
        """Number of partitions with a leader."""
        return sum(partition.leader is not None for partition in self.stats.partitions)


async def look(shown: Shown) -> Look:
    """Reads the numbers of a namespace; a million groups take as long as ten.

    Raises:
        PartlyAway: a master of a cluster does not answer.
        RedisAggError: Redis can't be asked.
    """
    found = await shown.aggregator.overview()
    if found.stats is None:
        raise PartlyAway(found.troubles)
    return Look(
        stats=found.stats,
        groups_due=found.groups_due or 0,
        groups_waiting=found.groups_waiting or 0,
        groups_held=found.groups_held or 0,
        oldest_overdue=found.oldest_overdue or 0.0,
        now=found.at,
        flushers=found.flushers,
        troubles=found.troubles,
        memory_used=found.memory_used,
        memory_limit=found.memory_limit,
    )


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
    shown: Shown,
    *,
    prefix: str,
    sort: Sort,
    place: str,
    limit: int,
    due_at: float | None = None,
) -> GroupList:
    """Reads a page of groups.

    Args:
        shown: the namespace.
        prefix: with which their keys begin.
        sort: ``due``: due next first; ``size``: most tasks first; ``age``: oldest task first.
        place: `GroupList.next` of the page before; empty for the first page.
        limit: number of groups on a page.
        due_at: only groups that are due at this time, seconds since the epoch; None for all. With a
            prefix, a page may have few.

    Raises:
        InvalidConfig: the place is none of this order.
    """
    if due_at is not None and not prefix:
        skip = int(place) if place.isdecimal() else 0
        found = await shown.aggregator.get_groups(limit=skip + limit + 1, due=True)
        states = list(islice(found.values(), skip, None))
        following = str(skip + limit) if len(states) > limit else ""
        return GroupList(await _with_records(shown, states[:limit]), following)
    page = await shown.aggregator.find_groups(
        prefix=prefix, order=sort, limit=limit, cursor=place or None
    )
    states = [
        each
        for each in page.states
        if due_at is None or (each.due_at is not None and each.due_at <= due_at)
    ]
    rows = await _with_records(shown, states)
    return GroupList(rows, page.cursor or "", page.exact, page.examined)


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
    """Oldest first, within the page."""
    next: str = ""
    """Text form of the place of the next page; empty after the last one."""


async def batches(
    shown: Shown, *, state: Literal["claimed", "retry"] | None, place: str, limit: int
) -> BatchList:
    """Reads a page of the batches in flight.

    Args:
        shown: the namespace.
        state: of the batches; None for any.
        place: `BatchList.next` of the page before; empty for the first page.
        limit: number of batches from which on a page ends.

    Raises:
        InvalidConfig: there is no such place.
    """
    found: dict[str, BatchState] = {}
    at = _place_of(place)
    for _ in range(_MOST_PAGES):
        page = await shown.aggregator.read_batches(at, state=state)
        found.update((each.batch_id, each) for each in page.states)
        at = page.next
        if at is None or len(found) >= limit:
            break
    rows = sorted(found.values(), key=lambda each: each.batch_id)
    return BatchList(rows, "" if at is None else ".".join(map(str, at)))


def _place_of(text: str) -> GroupPlace | None:
    parts = text.split(".")
    if len(parts) != 3 or not all(each.isascii() and each.isdecimal() for each in parts):
        return None
    partition, cursor, size = map(int, parts)
    return GroupPlace(partition, cursor, max(1, min(size, 500)))


async def batches_of(shown: Shown, group_key: str) -> list[BatchState]:
    """Reads batches in flight of a group, oldest first; of very many not all are looked at."""
    found: dict[str, BatchState] = {}
    place: GroupPlace | None = None
    for _ in range(_MOST_PAGES):
        page = await shown.aggregator.read_batches(place, group_key=group_key)
        found.update((each.batch_id, each) for each in page.states)
        place = page.next
        if place is None:
            break
    return sorted(found.values(), key=lambda each: each.batch_id)


class Batch(NamedTuple):
    """A batch in flight, or a dead letter."""

    timeline: BatchTimeline
    record: BatchRecord | None
    """None of a dead letter, and if it has just ended."""
    tasks: Sequence[StoredTask]
    """The first of its tasks; none of a dead letter."""


async def batch(shown: Shown, batch_id: str, *, limit: int) -> Batch | None:
    """Reads a batch in flight or a dead letter; None if it is neither.

    Args:
        shown: the namespace.
        batch_id: its id.
        limit: number of tasks that are read at most.
    """
    timeline = await shown.aggregator.get_batch(batch_id)
    if timeline is None or timeline.state == "dead":
        return None if timeline is None else Batch(timeline, None, ())
    record, tasks = await shown.run(_first_tasks(keyspace_of(shown), batch_id, limit))
    return Batch(timeline, record, tasks)


def _first_tasks(
    keyspace: Keyspace, batch_id: str, limit: int
) -> Operation[tuple[BatchRecord | None, list[StoredTask]]]:
    """Reads the record and the first tasks of a batch; nothing if it has ended."""
    place = place_of_batch(keyspace, batch_id)
    if place is None:
        return None, []
    partition, raw_id = place
    packed = yield from ask(command("HGET", partition.batches, raw_id))
    if packed is None:
        return None, []
    record = batch_record(packed, raw_id)
    owner = yield from ask(command("HGET", partition.groups, record.group))
    if owner is None:
        return record, []
    # The record counts its tasks from the start of the group.
    first = record.start - group_record(owner, record.group).base
    last = first + min(limit, record.task_count) - 1
    if first < 0:
        return record, []
    raw = yield from ask(command("LRANGE", partition.tasks(record.group), first, last))
    group = group_of(record.group).decode("utf-8", "replace")
    return record, [decode_leniently(each, group) for each in raw]


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


@dataclass(frozen=True, slots=True)
class Leader:
    """A partition and its lease."""

    stats: PartitionStats
    expires_at: float | None
    """When its lease ends, if it has one."""


async def leaders(shown: Shown, counts: Stats) -> list[Leader]:
    """Reads the leases of the partitions of these counts."""
    keyspace = keyspace_of(shown)
    replies: list[Any] = await shown.run(
        _leniently([command("HMGET", p.state, b"expires") for p in keyspace.partitions])
    )
    expires = {
        number: int(reply[0]) / 1000
        for number, reply in enumerate(replies)
        if isinstance(reply, list) and reply[0] and reply[0].isdigit()
    }
    return [
        Leader(each, expires.get(each.partition) if each.leader else None)
        for each in counts.partitions
    ]


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

Span = Literal["hour", "month"]

_DRAWN = 120
"""Points of a line: more would not be seen, and each has a title."""


@dataclass(frozen=True, slots=True)
class Series:
    """Time series of a namespace; each list has one value for each moment."""

    times: Sequence[float]
    """Middles of the steps, seconds since the epoch."""
    added: Sequence[float | None]
    """Tasks added in each second; None where nothing was recorded."""
    flushed: Sequence[float | None]
    """Tasks flushed in each second."""
    batches: Sequence[float | None]
    """Batches flushed in each second."""
    failures: Sequence[float | None]
    """Failed attempts in each second."""
    per_batch: Sequence[float | None]
    """Tasks in a flushed batch, on average."""
    pending: Sequence[float | None]
    """Tasks that waited or were in flight, at most."""
    overdue: Sequence[float | None]
    """Seconds for which the oldest due group had been due, at most."""
    dead: Sequence[float | None]
    """Tasks in dead letters, at most."""


async def history(shown: Shown, span: Span) -> Series | None:
    """Reads the last hour or the last 30 days; None if nothing was recorded, or may be read."""
    try:
        found = await shown.aggregator.history(span)
    except (AuthenticationFailed, KeyConflict):
        return None
    if not found.points:
        return None
    length = 3_600 if span == "hour" else 30 * 86_400
    width = max(found.step, length / _DRAWN)
    last = found.now // width
    buckets: dict[int, list[Any]] = {}
    for point in found.points:
        buckets.setdefault(int(point.at // width - last), []).append(point)
    first = max(1 - _DRAWN, min(buckets))
    numbers = range(first, 1)
    if numbers[-1] not in buckets:  # the present step is recorded at its end
        numbers = numbers[:-1]
    steps = [buckets.get(number, []) for number in numbers]

    def rate(name: str) -> list[float | None]:
        return [
            sum(getattr(p, name) for p in some) / (len(some) * found.step) if some else None
            for some in steps
        ]

    def most(name: str) -> list[float | None]:
        return [max((float(getattr(p, name)) for p in some), default=None) for some in steps]

    def per_batch(some: Sequence[Any]) -> float | None:
        batches = sum(p.batches for p in some)
        return sum(p.tasks_out for p in some) / batches if batches else None

    return Series(
        times=[(last + number + 0.5) * width for number in numbers],
        added=rate("tasks_in"),
        flushed=rate("tasks_out"),
        batches=rate("batches"),
        failures=rate("failures"),
        per_batch=list(map(per_batch, steps)),
        pending=most("pending"),
        overdue=most("oldest_overdue"),
        dead=most("dead"),
    )


# --- causes --------------------------------------------------------------------------------------


async def explain(shown: Shown, key: str) -> Explanation:
    """Says why a group is where it is, and what to do."""
    return await shown.aggregator.explain(key)
