"""Operations that read groups, batches, dead letters and counts; they change nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple, TypeVar

from redisagg.errors import KeyConflict, UnknownBatch
from redisagg.protocol.entries import decode_leniently
from redisagg.protocol.keys import Keyspace, PartitionKeys
from redisagg.protocol.operations import Operation, ask, ask_all
from redisagg.protocol.records import (
    BatchRecord,
    GroupRecord,
    batch_record,
    dead_record,
    group_record,
)
from redisagg.protocol.replies import scan_page
from redisagg.protocol.scripts import Request, call, command
from redisagg.views import BatchState, Counts, DeadLetter, GroupState, PartitionStats, Stats

T = TypeVar("T")
V = TypeVar("V", GroupState, BatchState, DeadLetter)

_SCAN_COUNT = 500  # fields that one HSCAN reads
_BATCH_ID = re.compile(rb"[^-]*-(\d{1,4})-")  # TIME-PARTITION-NUMBER, as `claim` makes them
_ROUND_SIZE = 64  # lists or batches that one round trip reads

# The reply of the script `stats`: these counts, whether it is paused, owner, token, lease time.
_COUNTS = (
    *("pending", "in_flight", "stored_bytes", "batches_flushed", "flushed", "dead"),
    *("groups", "batches_in_flight", "batches_in_retry", "batches_dead"),
)
_STATS_LENGTH = len(_COUNTS) + 4


def groups(keyspace: Keyspace, *, tasks: bool) -> Operation[dict[str, GroupState]]:
    """Reads all groups, by their key, with their waiting tasks if `tasks`."""
    found: dict[bytes, GroupRecord] = {}
    for partition in keyspace.partitions:
        raw = yield from _scan(partition.groups)
        found.update((group, group_record(packed, group)) for group, packed in raw.items())
    states = [_group_state(group, record) for group, record in found.items()]
    if tasks:
        lists = yield from _read_lists(
            [_waiting_tasks(keyspace, group, record) for group, record in found.items()]
        )
        states = list(map(_with_tasks, states, lists))
    return {state.group_key: state for state in states}


def group(keyspace: Keyspace, group_key: bytes) -> Operation[GroupState | None]:
    """Reads one group with its waiting tasks; None if there is no such group."""
    partition = keyspace.partition_of(group_key)
    packed = yield from ask(command("HGET", partition.groups, group_key))
    if packed is None:
        return None
    record = group_record(packed, group_key)
    raw = yield from ask(_waiting_tasks(keyspace, group_key, record))
    return _with_tasks(_group_state(group_key, record), raw)


def batches(keyspace: Keyspace, *, tasks: bool) -> Operation[list[BatchState]]:
    """Reads all batches in flight, oldest first, with their tasks if `tasks`."""
    found: list[_FoundBatch] = []
    for partition in keyspace.partitions:
        raw = yield from _scan(partition.batches)
        found += [
            _FoundBatch(partition, batch_id, batch_record(packed, batch_id))
            for batch_id, packed in raw.items()
        ]
    found.sort(key=lambda batch: batch.id)
    states: list[BatchState] = []
    for part in _rounds(found):
        states += yield from _batches(part, tasks=tasks)
    return states


def dead_letters(keyspace: Keyspace, *, tasks: bool) -> Operation[list[DeadLetter]]:
    """Reads all dead letters, oldest batch first, with their tasks if `tasks`."""
    found: list[tuple[PartitionKeys, bytes, bytes]] = []
    for partition in keyspace.partitions:
        raw = yield from _scan(partition.dead)
        found += [(partition, batch_id, packed) for batch_id, packed in raw.items()]
    found.sort(key=lambda item: item[1])
    letters = [_dead_letter(batch_id, packed) for _, batch_id, packed in found]
    if tasks:
        lists = yield from _read_lists(
            [_range(partition.dead_tasks(batch_id), 0, -1) for partition, batch_id, _ in found]
        )
        letters = list(map(_with_tasks, letters, lists))
    return letters


def dead_letter(keyspace: Keyspace, batch_id: str) -> Operation[DeadLetter | None]:
    """Reads one dead letter with its tasks; None if there is no such dead letter.

    Raises:
        UnknownBatch: the batch id is no `str`.
    """
    found = yield from find_dead_letter(keyspace, batch_id)
    if found is None:
        return None
    partition, raw_id = found
    packed, raw = yield from ask_all(
        [
            command("HGET", partition.dead, raw_id),
            _range(partition.dead_tasks(raw_id), 0, -1),
        ]
    )
    return None if packed is None else _with_tasks(_dead_letter(raw_id, packed), raw)


def find_dead_letter(
    keyspace: Keyspace, batch_id: str
) -> Operation[tuple[PartitionKeys, bytes] | None]:
    """Finds a dead letter in the partition that its batch id names.

    Returns:
        Its partition, and its id as stored; None if there is no such dead letter.

    Raises:
        UnknownBatch: the batch id is no `str`.
    """
    if not isinstance(batch_id, str):
        raise UnknownBatch(
            f"a batch id must be a str, not {type(batch_id).__name__}; dead_letters() lists the ids"
        )
    raw_id = batch_id.encode(errors="surrogatepass")
    match = _BATCH_ID.match(raw_id)
    number = int(match[1]) if match else len(keyspace.partitions)
    if number >= len(keyspace.partitions):
        return None
    partition = keyspace.partitions[number]
    exists = yield from ask(command("HEXISTS", partition.dead, raw_id))
    return (partition, raw_id) if exists else None


def stats(keyspace: Keyspace) -> Operation[Stats]:
    """Reads the counts of all partitions; takes constant time for each."""
    replies = yield from ask_all(
        [
            call("stats", [p.state, p.groups, p.batches, p.retry, p.dead])
            for p in keyspace.partitions
        ]
        + [call("flushers", [keyspace.flushers])]
    )
    *rows, flushers = replies
    partitions = [_partition_stats(number, row) for number, row in enumerate(rows)]
    totals = {
        count.name: sum(getattr(partition, count.name) for partition in partitions)
        for count in fields(Counts)
    }
    return Stats(
        **totals,
        paused=any(partition.paused for partition in partitions),
        flushers=[_text(flusher) for flusher in flushers],
        partitions=partitions,
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


def _batches(found: Sequence[_FoundBatch], *, tasks: bool) -> Operation[list[BatchState]]:
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
    present = [(i, packed) for i, packed in enumerate(replies[len(times) :]) if packed is not None]
    lists = yield from ask_all([_batch_tasks(found[i], packed) for i, packed in present])
    for (i, _), raw in zip(present, lists, strict=True):
        states[i] = _with_tasks(states[i], raw)
    return states


def _batch_state(
    batch: _FoundBatch, claimed_until: bytes | None, retry_at: bytes | None
) -> BatchState:
    record = batch.record
    until = claimed_until if retry_at is None else retry_at
    return BatchState(
        batch_id=_text(batch.id),
        group_key=_text(record.group),
        size=record.task_count,
        attempts=record.attempts,
        claimed_at=record.created / 1000,
        state="claimed" if retry_at is None else "retry",
        until=None if until is None else float(until) / 1000,
        error=_text(record.error),
    )


def _batch_tasks(batch: _FoundBatch, packed_group: bytes) -> Request:
    """The request for the tasks of a batch; its record counts them from the start of its group."""
    record = batch.record
    first = record.start - group_record(packed_group, record.group).base
    return _range(batch.partition.tasks(record.group), first, first + record.task_count - 1)


def _group_state(group_key: bytes, record: GroupRecord) -> GroupState:
    waits = record.waiting > 0
    due = record.due_at or record.last
    return GroupState(
        group_key=_text(group_key),
        size=record.waiting,
        in_flight=record.claimed,
        first_task_at=record.first / 1000 if waits else None,
        last_task_at=record.last / 1000 if waits else None,
        due_at=due / 1000 if waits else None,
        priority=record.priority,
        held=record.held > 0,
    )


def _waiting_tasks(keyspace: Keyspace, group_key: bytes, record: GroupRecord) -> Request:
    _, tasks, _ = keyspace.place(group_key)
    return _range(tasks, record.claimed, -1)


def _dead_letter(batch_id: bytes, packed: bytes) -> DeadLetter:
    record = dead_record(packed, batch_id)
    return DeadLetter(
        batch_id=_text(batch_id),
        group_key=_text(record.group),
        size=record.task_count,
        attempts=record.attempts,
        claimed_at=record.created / 1000,
        died_at=record.died / 1000,
        error=_text(record.error),
        traceback=_text(record.traceback),
    )


def _scan(key: bytes) -> Operation[dict[bytes, bytes]]:
    """Reads all fields of a hash, a bounded number in a round trip."""
    found: dict[bytes, bytes] = {}
    cursor = 0
    while True:
        reply = yield from ask(command("HSCAN", key, cursor, "COUNT", _SCAN_COUNT))
        cursor, page = scan_page(reply)
        found.update(page)
        if cursor == 0:
            return found


def _read_lists(ranges: Sequence[Request]) -> Operation[list[Any]]:
    """Reads lists, a bounded number in a round trip."""
    lists: list[Any] = []
    for part in _rounds(ranges):
        lists += yield from ask_all(part)
    return lists


def _rounds(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cuts items into parts, one for each round trip."""
    return (items[start : start + _ROUND_SIZE] for start in range(0, len(items), _ROUND_SIZE))


def _range(key: bytes, first: int, last: int) -> Request:
    return command("LRANGE", key, first, last)


def _with_tasks(view: V, entries: Sequence[bytes]) -> V:
    return replace(view, tasks=[decode_leniently(entry, view.group_key) for entry in entries])


def _text(raw: bytes) -> str:
    """Decodes bytes for people to read; a byte that is not UTF-8 is replaced."""
    return raw.decode("utf-8", "replace")
