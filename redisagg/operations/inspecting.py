"""Operations that read groups, batches, dead letters and counts; they change nothing.

A listing leaves out what redisagg did not write, and logs a warning that names it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from redisagg.config import check_range
from redisagg.errors import InvalidConfig, KeyConflict, UnknownBatch
from redisagg.protocol.entries import decode_leniently, entry_id
from redisagg.protocol.failed_tasks import group_of
from redisagg.protocol.keys import MOVER, Keyspace, PartitionKeys
from redisagg.protocol.operations import Operation, ask, ask_all
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
from redisagg.protocol.scripts import Request, call, command
from redisagg.texts import logger, shorten
from redisagg.timeline import BatchTimeline, timeline_of
from redisagg.views import (
    FIRST_SCAN,
    BatchPage,
    BatchState,
    Counts,
    DeadLetter,
    DeadReason,
    GroupPage,
    GroupPlace,
    GroupState,
    PartitionStats,
    Stats,
)

_log = logger("operations")

T = TypeVar("T")
K = TypeVar("K", bytes, int)
R = TypeVar("R", GroupRecord, BatchRecord, DeadRecord)
V = TypeVar("V", GroupState, BatchState, DeadLetter)

_MOST_SCANNED = 500  # fields that one HSCAN reads at most
_PAGE_TASKS = 500  # entries that one command reads
_PAGE_BYTES = 1 << 20  # bytes that one command reads, about
_DEAD_PAGE = 16  # entries of a dead letter that one command reads: their size is not recorded
_MOST_NAMED = 10  # names in a warning
_BATCH_ID = re.compile(rb"[^-]*-(\d{1,4})-")  # TIME-PARTITION-NUMBER, as `claim` makes them
_NUMBER = re.compile(r"\d+")
_PARTIAL_RESULT = b"-"  # as in lua/includes/result.lua: its parts are being stored
_ROUND_SIZE = 64  # pages of lists, or batches, that one round trip reads

# The reply of the script `stats`: these counts, whether it is paused, owner, token, lease time.
_COUNTS = (
    *("pending", "in_flight", "stored_bytes", "batches_flushed", "flushed", "dead"),
    *("groups", "batches_in_flight", "batches_in_retry", "batches_dead"),
)
_STATS_LENGTH = len(_COUNTS) + 4


def groups(
    keyspace: Keyspace, *, tasks: bool, limit: int | None = None, due: bool = False
) -> Operation[dict[str, GroupState]]:
    """Reads groups, by their key, with their waiting tasks if `tasks`.

    Args:
        limit: largest number of groups; those that are due next. None for all, in any order.
        due: whether to read only groups that are due.

    Raises:
        InvalidConfig: the limit is no number from 1.
    """
    if limit is not None:
        check_range("limit", limit, 1)
    skipped = _Skipped("groups")
    if limit is None and not due:
        found = yield from _all_groups(keyspace, skipped)
    else:
        found = yield from _next_groups(keyspace, skipped, limit, due=due)
    # A group without tasks is there until its min interval is over.
    found = {name: each for name, each in found.items() if _is_shown(name, each)}
    states = yield from _group_states(keyspace, found, skipped, tasks=tasks)
    skipped.log()
    return {state.group_key: state for state in states}


def due_time(record: GroupRecord) -> float | None:
    """When a group with waiting tasks is due; None if no time makes it due."""
    due = record.due_at or record.last
    return due / 1000 if due < NEVER else None


def group(
    keyspace: Keyspace, group_key: bytes, *, offset: int = 0, limit: int
) -> Operation[GroupState | None]:
    """Reads one group with a page of its waiting tasks; None if there is no such group.

    Args:
        offset: number of waiting tasks to skip.
        limit: largest number of tasks.

    Raises:
        InvalidConfig: the offset or the limit is no number from 0.
        KeyConflict: a key of the group holds a value that redisagg did not write.
    """
    check_range("offset", offset, 0)
    check_range("limit", limit, 0)
    partition = keyspace.partition_of(group_key)
    packed = yield from ask(command("HGET", partition.groups, group_key))
    if packed is None:
        return None
    record = group_record(packed, group_key)
    if not _is_shown(group_key, record):
        return None
    part = _waiting_tasks(keyspace, group_key, record)
    length = max(0, min(limit, record.waiting - offset))
    [raw] = yield from _read_parts([part._replace(first=part.first + offset, length=length)], None)
    return _with_tasks(_group_state(group_key, record), raw)


def group_page(
    keyspace: Keyspace, place: GroupPlace, *, tasks: bool, due: bool
) -> Operation[GroupPage]:
    """Reads a page of all groups, in any order, with their waiting tasks if `tasks`.

    A group can be in several pages while groups come and go.

    Args:
        place: `GroupPlace()`, or the one that the page before names.
        due: whether to read only groups that are due.
    """
    skipped = _Skipped("groups")
    found, following = yield from _group_records(keyspace, place, skipped, due=due)
    found = {name: each for name, each in found.items() if _is_shown(name, each)}
    states = yield from _group_states(keyspace, found, skipped, tasks=tasks)
    skipped.log()
    return GroupPage(states, following)


def shown_groups(
    keyspace: Keyspace, packed: Mapping[bytes, bytes], *, tasks: bool
) -> Operation[list[GroupState]]:
    """Makes views of stored groups, by their key; leaves out what is not shown or can't be read."""
    skipped = _Skipped("groups")
    found = _records(group_record, packed, skipped)
    found = {name: each for name, each in found.items() if _is_shown(name, each)}
    states = yield from _group_states(keyspace, found, skipped, tasks=tasks)
    skipped.log()
    return states


def _group_states(
    keyspace: Keyspace, found: Mapping[bytes, GroupRecord], skipped: _Skipped, *, tasks: bool
) -> Operation[list[GroupState]]:
    states = [_group_state(group, record) for group, record in found.items()]
    if tasks:
        parts = [_waiting_tasks(keyspace, *item) for item in found.items()]
        lists = yield from _read_parts(parts, skipped)
        states = list(map(_with_tasks, states, lists))
    return states


def group_records(
    keyspace: Keyspace, place: GroupPlace
) -> Operation[tuple[dict[bytes, GroupRecord], GroupPlace | None]]:
    """Reads the records of a page of all groups, in any order, and names the next page."""
    skipped = _Skipped("groups")
    page = yield from _group_records(keyspace, place, skipped, due=False)
    skipped.log()
    return page


def _group_records(
    keyspace: Keyspace, place: GroupPlace, skipped: _Skipped, *, due: bool
) -> Operation[tuple[dict[bytes, GroupRecord], GroupPlace | None]]:
    """Reads the records of a page of groups, and names the next page."""
    partition = keyspace.partitions[place.partition]
    if due:
        found, more = yield from _indexed_page(
            partition, skipped, place.cursor, _PAGE_TASKS, due=True
        )
        following = place._replace(cursor=place.cursor + _PAGE_TASKS) if more else None
    else:
        page, cursor, size = yield from _scan_page(
            partition.groups, skipped, place.cursor, place.size
        )
        found = _records(group_record, page, skipped)
        following = place._replace(cursor=cursor, size=size) if cursor else None
    if following is None and place.partition + 1 < len(keyspace.partitions):
        following = GroupPlace(place.partition + 1)
    return found, following


def _all_groups(keyspace: Keyspace, skipped: _Skipped) -> Operation[dict[bytes, GroupRecord]]:
    """Reads the records of all groups, in any order."""
    found: dict[bytes, GroupRecord] = {}
    place: GroupPlace | None = GroupPlace()
    while place is not None:
        page, place = yield from _group_records(keyspace, place, skipped, due=False)
        found.update(page)
    return found


def _next_groups(
    keyspace: Keyspace, skipped: _Skipped, limit: int | None, *, due: bool
) -> Operation[dict[bytes, GroupRecord]]:
    """Reads the records of the groups that are due next, in that order."""
    found: dict[bytes, GroupRecord] = {}
    for partition in keyspace.partitions:
        found.update((yield from _indexed_groups(partition, skipped, limit, due=due)))
    # Groups whose tasks are all in flight, and those that a retry holds back, are in no index.
    if not due:
        for partition in keyspace.partitions:
            if limit is not None and len(found) >= limit:
                break
            raw = yield from _scan(partition.groups, skipped, limit)
            found.update(_records(group_record, raw, skipped))
    order = sorted(found.items(), key=lambda item: item[1].due_at if item[1].waiting else math.inf)
    return dict(order[:limit])


def _indexed_groups(
    partition: PartitionKeys, skipped: _Skipped, limit: int | None, *, due: bool
) -> Operation[dict[bytes, GroupRecord]]:
    """Reads the records of the first groups in the indexes of a partition."""
    found: dict[bytes, GroupRecord] = {}
    skip, more = 0, True
    size = min(_PAGE_TASKS, limit or _PAGE_TASKS)
    while more and (limit is None or len(found) < limit):
        page, more = yield from _indexed_page(partition, skipped, skip, size, due=due)
        found.update(page)
        skip += size
    return found


def _indexed_page(
    partition: PartitionKeys, skipped: _Skipped, skip: int, size: int, *, due: bool
) -> Operation[tuple[dict[bytes, GroupRecord], bool]]:
    """Reads the records of a page of each index of a partition; returns whether there may be more.

    Args:
        skip: number of groups to skip in each index.
        size: largest number of groups from each index.
    """
    keys = [partition.ready, partition.due]
    reply = yield from _ask_leniently(
        call("upcoming", keys, skip, size, b"1" if due else b""), keys[0], skipped
    )
    if reply is None:
        return {}, False
    now, ready, later = reply
    names = list(dict.fromkeys([*ready, *later]))
    if not names:
        return {}, False
    packed = yield from _ask_leniently(
        command("HMGET", partition.groups, *names), partition.groups, skipped
    )
    raw = {name: each for name, each in zip(names, packed or (), strict=False) if each}
    records = _records(group_record, raw, skipped).items()
    found = {name: g for name, g in records if not due or g.due_at <= now}
    return found, len(ready) == size or len(later) == size


def batches(keyspace: Keyspace, *, tasks: bool) -> Operation[list[BatchState]]:
    """Reads all batches in flight, oldest first, with their tasks if `tasks`."""
    found: list[_FoundBatch] = []
    skipped = _Skipped("batches")
    for partition in keyspace.partitions:
        raw = yield from _scan(partition.batches, skipped)
        records = _records(batch_record, raw, skipped)
        found += [_FoundBatch(partition, *item) for item in records.items()]
    found.sort(key=lambda batch: batch.id)
    states: list[BatchState] = []
    for some in _rounds(found):
        states += yield from _batches(some, skipped, tasks=tasks)
    skipped.log()
    return states


def batch_page(
    keyspace: Keyspace,
    place: GroupPlace | None,
    *,
    tasks: bool,
    state: str | None,
    group: bytes | None,
    error: str | None,
) -> Operation[BatchPage]:
    """Reads a page of the batches in flight, in any order.

    Args:
        place: the one that the page before names; None for the first page.
        state: of the batches; None for any.
        group: the key of their group; None for any.
        error: a part of their error, in letters of any case; None for any.

    Raises:
        InvalidConfig: there is no such state or no such partition.
    """
    if state not in (None, "claimed", "retry"):
        raise InvalidConfig(f"state must be 'claimed', 'retry' or None, not {shorten(state)}")
    if error is not None and not isinstance(error, str):
        raise InvalidConfig(f"error must be a str or None, not {shorten(error)}")
    only = None if group is None else keyspace.partition_of(group).number
    place = place or GroupPlace(only or 0)
    if not isinstance(place, GroupPlace):
        raise InvalidConfig(f"place must be that of a page or None, not {shorten(place)}")
    check_range("the partition of a place", place.partition, 0, len(keyspace.partitions) - 1)
    partition = keyspace.partitions[place.partition]
    skipped = _Skipped("batches")
    page, cursor, size = yield from _scan_page(partition.batches, skipped, place.cursor, place.size)
    wanted = error.casefold() if error else ""
    found = [
        _FoundBatch(partition, name, record)
        for name, record in _records(batch_record, page, skipped).items()
        if (group is None or group_of(record.group) == group)
        and (not wanted or wanted in _text(record.error).casefold())
    ]
    states: list[BatchState] = []
    for some in _rounds(found):
        read = yield from _batches(some, skipped, tasks=tasks)
        states += (each for each in read if state in (None, each.state))
    skipped.log()
    following = place._replace(cursor=cursor, size=size) if cursor else None
    if following is None and only is None and place.partition + 1 < len(keyspace.partitions):
        following = GroupPlace(place.partition + 1)
    return BatchPage(states, following)


def batch(keyspace: Keyspace, batch_id: str) -> Operation[BatchTimeline | None]:
    """Reads what happened to a batch in flight or a dead letter; None if it is neither.

    Raises:
        UnknownBatch: the batch id is no `str`.
        KeyConflict: a key holds a value that redisagg did not write.
    """
    place = place_of_batch(keyspace, batch_id)
    if place is None:
        return None
    partition, raw_id = place
    packed, dead = yield from ask_all(
        [command("HGET", partition.batches, raw_id), command("HGET", partition.dead, raw_id)]
    )
    if packed is not None:
        found = [_FoundBatch(partition, raw_id, batch_record(packed, raw_id))]
        [state] = yield from _batches(found, _Skipped("batches"), tasks=False)
        return timeline_of(state)
    return None if dead is None else timeline_of(_dead_letter(raw_id, dead_record(dead, raw_id)))


def batch_around(
    partition: PartitionKeys, group: bytes, number: int
) -> Operation[BatchState | None]:
    """Finds the batch of a group that holds the task with an absolute number."""
    skipped = _Skipped("batches")
    cursor, count = 0, FIRST_SCAN
    while True:
        page, cursor, count = yield from _scan_page(partition.batches, skipped, cursor, count)
        for batch_id, record in _records(batch_record, page, skipped).items():
            if record.group == group and 0 <= number - record.start < record.task_count:
                found = [_FoundBatch(partition, batch_id, record)]
                [state] = yield from _batches(found, skipped, tasks=False)
                return state
        if cursor == 0:
            return None


def groups_of_failed(partition: PartitionKeys, group: bytes) -> Operation[list[bytes]]:
    """Finds the groups of batches that were made of tasks of this group that failed alone."""
    found: list[bytes] = []
    skipped = _Skipped("batches")
    cursor, count = 0, FIRST_SCAN
    while True:
        page, cursor, count = yield from _scan_page(partition.batches, skipped, cursor, count)
        records = _records(batch_record, page, skipped).values()
        found += [each.group for each in records if each.group != group == group_of(each.group)]
        if cursor == 0:
            return found


def dead_letter_with(
    keyspace: Keyspace, group: bytes, task_id: bytes
) -> Operation[DeadLetter | None]:
    """Finds the dead letter of a group that holds a task."""
    partition = keyspace.partition_of(group)
    skipped = _Skipped("dead letters")
    cursor, count = 0, FIRST_SCAN
    while True:
        page, cursor, count = yield from _scan_page(partition.dead, skipped, cursor, count)
        for batch_id, record in _records(dead_record, page, skipped).items():
            if group_of(record.group) != group:
                continue
            key, size = partition.dead_tasks(batch_id), _page_size(record.task_count, record.length)
            for first in range(0, record.task_count, size):
                entries = yield from ask(command("LRANGE", key, first, first + size - 1))
                if any(entry_id(entry) == task_id for entry in entries):
                    return _dead_letter(batch_id, record)
                if not entries:
                    break
        if cursor == 0:
            return None


class DeadFilter(NamedTuple):
    """Which dead letters are meant: those that have all of these."""

    group: bytes | None = None
    """The key of the group."""
    type: str | None = None
    """The type of one of the tasks."""
    error: str | None = None
    """A part of the error, in letters of any case."""
    after: str | None = None
    """The id of a batch; those behind it are meant, in the order of their ids."""

    def matches(self, batch_id: bytes, record: DeadRecord) -> bool:
        """Whether the record of a dead letter has all but the type."""
        return (
            (self.group is None or group_of(record.group) == self.group)
            and (self.error is None or self.error.casefold() in _text(record.error).casefold())
            and (self.after is None or _text(batch_id) > self.after)
        )


_ALL_DEAD = DeadFilter()


def dead_letters(
    keyspace: Keyspace,
    *,
    tasks: bool,
    wanted: DeadFilter = _ALL_DEAD,
    limit: int | None = None,
) -> Operation[list[DeadLetter]]:
    """Reads the first dead letters that are wanted, oldest batch first; with tasks if `tasks`."""
    if limit is not None:
        check_range("limit", limit, 1)
    for name in ("type", "error", "after"):
        if not isinstance(value := getattr(wanted, name), str | None):
            raise InvalidConfig(f"{name} must be a str or None, not {shorten(value)}")
    skipped = _Skipped("dead letters")
    found = yield from _dead_records(keyspace, skipped)
    found = [each for each in found if wanted.matches(*each[1:])]
    letters: list[DeadLetter] = []
    if wanted.type is None:
        found = found[:limit]
    for some in _rounds(found):
        page = [_dead_letter(batch_id, record) for _, batch_id, record in some]
        if tasks or wanted.type is not None:
            lists = yield from _read_parts([_dead_tasks(*each) for each in some], skipped)
            page = list(map(_with_tasks, page, lists))
        if wanted.type is not None:
            page = [each for each in page if _has_type(each, wanted.type)]
        letters += page if tasks else [replace(each, tasks=None) for each in page]
        if limit is not None and len(letters) >= limit:
            break
    skipped.log()
    return letters[:limit]


def dead_reasons(keyspace: Keyspace) -> Operation[list[DeadReason]]:
    """Counts the dead letters by their error; the error with the most tasks comes first."""
    skipped = _Skipped("dead letters")
    found = yield from _dead_records(keyspace, skipped)
    by_error: dict[str, list[DeadRecord]] = {}
    for _, _, record in found:
        error = _NUMBER.sub("#", _text(record.error).partition("\n")[0])
        by_error.setdefault(error, []).append(record)
    skipped.log()
    reasons = [
        DeadReason(
            error=error,
            batches=len(records),
            tasks=sum(record.task_count for record in records),
            first_died_at=min(record.died for record in records) / 1000,
            last_died_at=max(record.died for record in records) / 1000,
        )
        for error, records in by_error.items()
    ]
    return sorted(reasons, key=lambda reason: (-reason.tasks, reason.error))


def _dead_records(
    keyspace: Keyspace, skipped: _Skipped
) -> Operation[list[tuple[PartitionKeys, bytes, DeadRecord]]]:
    """Reads the records of all dead letters, oldest batch first."""
    found: list[tuple[PartitionKeys, bytes, DeadRecord]] = []
    for partition in keyspace.partitions:
        raw = yield from _scan(partition.dead, skipped)
        records = _records(dead_record, raw, skipped)
        found += [(partition, *item) for item in records.items()]
    found.sort(key=lambda item: item[1])
    return found


def _has_type(letter: DeadLetter, type_: str) -> bool:
    return any(each.task is not None and each.task.type == type_ for each in letter.tasks or ())


def dead_letter(keyspace: Keyspace, batch_id: str) -> Operation[DeadLetter | None]:
    """Reads one dead letter with its tasks; None if there is no such dead letter.

    Raises:
        UnknownBatch: the batch id is no `str`.
    """
    place = place_of_batch(keyspace, batch_id)
    if place is None:
        return None
    partition, raw_id = place
    packed = yield from ask(command("HGET", partition.dead, raw_id))
    if packed is None and (moved := (yield from moved_batch(keyspace, raw_id))) is not None:
        partition = moved
        packed = yield from ask(command("HGET", partition.dead, raw_id))
    if packed is None:
        return None
    record = dead_record(packed, raw_id)
    [raw] = yield from _read_parts([_dead_tasks(partition, raw_id, record)], None)
    return _with_tasks(_dead_letter(raw_id, record), raw)


def place_of_batch(keyspace: Keyspace, batch_id: str) -> tuple[PartitionKeys, bytes] | None:
    """Returns the partition that a batch id names and the id as stored; None if it is no batch id.

    Raises:
        UnknownBatch: the batch id is no `str`.
    """
    if not isinstance(batch_id, str):
        raise UnknownBatch(
            f"a batch id must be a str, not {type(batch_id).__name__}; dead_letters() lists the ids"
        )
    raw_id = batch_id.encode(errors="surrogatepass")
    match = _BATCH_ID.match(raw_id)
    if match is None:
        return None
    return keyspace.partitions[int(match[1]) % len(keyspace.partitions)], raw_id


def moved_batch(keyspace: Keyspace, raw_id: bytes) -> Operation[PartitionKeys | None]:
    """Looks for a batch or dead letter in all partitions; None if there is none.

    It may be in another partition than the one that its id names, if the namespace was moved.
    """
    replies = yield from ask_all(
        [
            command("HEXISTS", key, raw_id)
            for p in keyspace.partitions
            for key in (p.dead, p.batches)
        ]
    )
    found = (number // 2 for number, there in enumerate(replies) if there)
    number = next(found, None)
    return None if number is None else keyspace.partitions[number]


def stats(keyspace: Keyspace) -> Operation[Stats]:
    """Reads the counts of all partitions; takes constant time for each."""
    replies = yield (
        [
            call("stats", [p.state, p.groups, p.batches, p.retry, p.dead])
            for p in keyspace.partitions
        ]
        + [call("flushers", [keyspace.flushers])]
    )
    *rows, flushers = replies
    skipped = _Skipped("partitions")
    unreadable: list[int] = []
    partitions: list[PartitionStats] = []
    for number, row in enumerate(rows):
        try:
            partitions.append(_partition_stats(number, _reply(row)))
        except KeyConflict as error:
            unreadable.append(number)
            skipped.add(number, error)
    skipped.log()
    totals = {
        count.name: sum(getattr(partition, count.name) for partition in partitions)
        for count in fields(Counts)
    }
    return Stats(
        **totals,
        paused=any(partition.paused for partition in partitions),
        flushers=[_text(each) for each in _reply(flushers) if not each.startswith(MOVER)],
        partitions=partitions,
        unreadable=unreadable,
    )


def _partition_stats(number: int, row: Sequence[Any]) -> PartitionStats:
    numbers = row[: len(_COUNTS) + 1]
    # Redis ends a reply of Lua before a value that is nil, such as a count that is no number.
    if len(row) < _STATS_LENGTH or not all(isinstance(each, int) for each in numbers):
        raise KeyConflict(
            f"the state of partition {number} holds a count that is no number, which redisagg did "
            "not write; find out who writes to redisagg's keys"
        )
    *counts, paused = numbers
    owner, token, *_ = row[len(numbers) :]
    return PartitionStats(
        **dict(zip(_COUNTS, counts, strict=True)),
        partition=number,
        paused=bool(paused),
        leader=_text(owner) or None,
        token=token,
    )


class _FoundBatch(NamedTuple):
    """A batch in the hash `batches` of its partition."""

    partition: PartitionKeys
    id: bytes
    record: BatchRecord


def _batches(
    found: Sequence[_FoundBatch], skipped: _Skipped, *, tasks: bool
) -> Operation[list[BatchState]]:
    """Reads the times of a few batches in one round trip, and their tasks in another."""
    times = [
        command("ZSCORE", key, batch.id)
        for batch in found
        for key in (batch.partition.claims, batch.partition.retry)
    ]
    owners = [
        command("HGET", batch.partition.groups, batch.record.group) for batch in found if tasks
    ]
    replies = yield from ask_all([*times, *owners])
    claimed, retried = replies[: len(times) : 2], replies[1 : len(times) : 2]
    states = list(map(_batch_state, found, claimed, retried))
    # A batch that has just ended may have been the last of its group.
    present = {i: packed for i, packed in enumerate(replies[len(times) :]) if packed is not None}
    owning = _records(
        lambda packed, i: group_record(packed, found[i].record.group), present, skipped
    )
    parts = [_batch_tasks(found[i], record) for i, record in owning.items()]
    lists = yield from _read_parts(parts, skipped)
    for i, raw in zip(owning, lists, strict=True):
        states[i] = _with_tasks(states[i], raw)
    return states


def _batch_state(
    batch: _FoundBatch, claimed_until: bytes | None, retry_at: bytes | None
) -> BatchState:
    record = batch.record
    until = claimed_until if retry_at is None else retry_at
    claimed = claimed_until is not None  # else it is in retry, or a suspect that waits for its turn
    return BatchState(
        batch_id=_text(batch.id),
        group_key=_text(group_of(record.group)),
        size=record.task_count,
        attempts=record.attempts + claimed,
        claimed_at=record.created / 1000,
        state="claimed" if claimed else "retry",
        until=None if until is None else float(until) / 1000,
        error=_text(record.error),
        reason=_text(record.reason),
        opened_at=record.opened / 1000,
        due_at=record.due_at / 1000,
        bytes=record.length,
        weight=record.batch_weight,
        merged=bool(record.merged or record.result not in (b"", _PARTIAL_RESULT)),
        enqueued=record.enqueued,
    )


def _batch_tasks(batch: _FoundBatch, group: GroupRecord) -> _Part:
    """The tasks of a batch; its record counts them from the start of its group."""
    record = batch.record
    first = record.start - group.base
    size = _page_size(record.task_count, record.length)
    return _Part(batch.partition.tasks(record.group), first, record.task_count, size)


def _is_paused(record: GroupRecord) -> bool:
    return isinstance(record.rules, list) and record.rules_in_force.paused > 0


def _is_shown(group: bytes, record: GroupRecord) -> bool:
    if group_of(group) != group:  # of a batch of tasks that failed alone
        return False
    return record.waiting > 0 or record.claimed > 0 or _is_paused(record)


def _group_state(group_key: bytes, record: GroupRecord) -> GroupState:
    waits = record.waiting > 0
    return GroupState(
        group_key=_text(group_key),
        size=record.waiting,
        in_flight=record.claimed,
        first_task_at=record.first / 1000 if waits else None,
        last_task_at=record.last / 1000 if waits else None,
        due_at=due_time(record) if waits else None,
        priority=record.priority,
        held=record.held > 0,
        paused=_is_paused(record),
    )


def _waiting_tasks(keyspace: Keyspace, group_key: bytes, record: GroupRecord) -> _Part:
    _, tasks, _ = keyspace.place(group_key)
    size = _page_size(record.waiting, record.bytes)
    return _Part(tasks, record.claimed, record.waiting, size)


def _dead_tasks(partition: PartitionKeys, batch_id: bytes, record: DeadRecord) -> _Part:
    return _Part(partition.dead_tasks(batch_id), 0, record.task_count, _DEAD_PAGE)


def _dead_letter(batch_id: bytes, record: DeadRecord) -> DeadLetter:
    return DeadLetter(
        batch_id=_text(batch_id),
        group_key=_text(group_of(record.group)),
        size=record.task_count,
        attempts=record.attempts,
        claimed_at=record.created / 1000,
        died_at=record.died / 1000,
        error=_text(record.error),
        traceback=_text(record.traceback),
        enqueued=record.enqueued,
        reason=_text(record.reason),
        opened_at=record.opened / 1000,
        due_at=record.due_at / 1000,
        bytes=record.length,
        weight=record.batch_weight,
    )


# --- what can't be read ------------------------------------------------------------------------


class _Skipped:
    """What a listing leaves out, since redisagg did not write it.

    Args:
        kind: plural noun for what is left out.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._errors: dict[object, KeyConflict] = {}

    def add(self, name: object, error: KeyConflict) -> None:
        """Adds the name of something that is left out, and the reason."""
        self._errors.setdefault(name, error)

    def log(self) -> None:
        """Logs everything that was left out in one warning."""
        if self._errors:
            named = ", ".join(map(repr, islice(self._errors, _MOST_NAMED)))
            more = ", ..." if len(self._errors) > _MOST_NAMED else ""
            _log.warning(
                "%d %s can't be read and are left out: %s%s: %s",
                *(len(self._errors), self._kind, named, more),
                next(iter(self._errors.values())),
            )


def _records(
    decode: Callable[[bytes, K], R], packed: Mapping[K, bytes], skipped: _Skipped
) -> dict[K, R]:
    """Decodes records by name; leaves out those that can't be decoded."""
    found: dict[K, R] = {}
    for name, each in packed.items():
        try:
            found[name] = decode(each, name)
        except KeyConflict as error:
            skipped.add(name, error)
    return found


def _reply(reply: Any) -> Any:
    """Returns a reply, or raises it if it is an error."""
    if isinstance(reply, Exception):
        raise reply
    return reply


def _ask_leniently(request: Request, name: object, skipped: _Skipped | None) -> Operation[Any]:
    """Sends a request; the reply is None if it meets what redisagg did not write."""
    try:
        return (yield from ask(request))
    except KeyConflict as error:
        if skipped is None:
            raise
        skipped.add(name, error)
        return None


# --- parts of large values, so that no command keeps Redis busy ----------------------------------


def _scan(key: bytes, skipped: _Skipped, limit: int | None = None) -> Operation[dict[bytes, bytes]]:
    """Reads the fields of a hash, a bounded number of bytes in a round trip.

    Args:
        limit: number of fields after which it ends; None for all.
    """
    found: dict[bytes, bytes] = {}
    cursor, count = 0, FIRST_SCAN
    while True:
        page, cursor, count = yield from _scan_page(key, skipped, cursor, count)
        found.update(page)
        if cursor == 0 or (limit is not None and len(found) >= limit):
            return found


def _scan_page(
    key: bytes, skipped: _Skipped, cursor: int, count: int
) -> Operation[tuple[dict[bytes, bytes], int, int]]:
    """Reads some fields of a hash, about `count`.

    Returns:
        The fields, the cursor of the next page (0 after the last one) and its count.
    """
    request = command("HSCAN", key, cursor, "COUNT", count)
    reply = yield from _ask_leniently(request, key, skipped)
    if reply is None:
        return {}, 0, count
    cursor, page = scan_page(reply)
    length = sum(map(len, page.values()))
    count = min(_MOST_SCANNED, count * 4) if length < _PAGE_BYTES // 4 else max(1, count // 2)
    return page, cursor, count


class _Part(NamedTuple):
    """Entries of a list."""

    key: bytes
    first: int
    length: int
    page: int
    """Number of entries that one command reads."""


def _page_size(count: int, length: int) -> int:
    """The number of entries for one command, of `count` entries with `length` bytes."""
    return max(1, min(_PAGE_TASKS, count * _PAGE_BYTES // max(1, length)))


def _read_parts(
    parts: Sequence[_Part], skipped: _Skipped | None
) -> Operation[list[list[bytes] | None]]:
    """Reads parts of lists, a bounded number of entries in a command and in a round trip.

    Returns:
        The entries of each part; None for a key that holds no list, or raises if `skipped` is None.
    """
    found: list[list[bytes] | None] = [[] for _ in parts]
    ended: set[int] = set()

    def pages() -> Iterator[tuple[int, int, Request]]:
        for i, part in enumerate(parts):
            end = part.first + part.length
            for first in range(part.first, end, part.page):
                # The count of a foreign record may be anything.
                if i in ended or first < 0:
                    break
                size = min(part.page, end - first)
                yield i, size, command("LRANGE", part.key, first, first + size - 1)

    waiting = pages()
    while some := list(islice(waiting, _ROUND_SIZE)):
        replies = yield [request for _, _, request in some]
        for (i, size, _), reply in zip(some, replies, strict=True):
            if isinstance(reply, KeyConflict) and skipped is not None:
                skipped.add(parts[i].key, reply)
                found[i] = None
            read = found[i]
            if read is None:
                ended.add(i)
                continue
            entries = _reply(reply)
            read += entries
            if len(entries) < size:
                ended.add(i)
    return found


def _rounds(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cuts items into parts, one for each round trip."""
    return (items[start : start + _ROUND_SIZE] for start in range(0, len(items), _ROUND_SIZE))


def _with_tasks(view: V, entries: Sequence[bytes] | None) -> V:
    """Adds decoded entries to a view; it stays without tasks if they can't be read."""
    if entries is None:
        return view
    return replace(view, tasks=[decode_leniently(entry, view.group_key) for entry in entries])


def _text(raw: bytes) -> str:
    """Decodes bytes for people to read; a byte that is not UTF-8 is replaced."""
    return raw.decode("utf-8", "replace")
