"""Looking at what is there. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from redisagg.errors import KeyConflict
from redisagg.protocol.entries import StoredTask, look_at
from redisagg.protocol.keys import Keyspace, PartitionKeys
from redisagg.protocol.operations import Operation, ask, ask_all
from redisagg.protocol.records import (
    GroupRecord,
    batch_record,
    dead_record,
    group_record,
)
from redisagg.protocol.replies import scan_page
from redisagg.protocol.scripts import Request, call, command
from redisagg.views import BatchState, DeadLetter, GroupState, PartitionStats, Stats

T = TypeVar("T")

_SCAN_COUNT = 500
_COUNTS, _STATS = 11, 14  # in a reply of the script `stats`
_TASKS_A_ROUND = 64  # lists that are read in one round trip


def text(raw: bytes) -> str:
    """Bytes from Redis for people to read; what is not UTF-8 is replaced."""
    return raw.decode("utf-8", "replace")


def entries(keyspace: Keyspace, *, tasks: bool) -> Operation[dict[str, GroupState]]:
    """All groups by their key, with their waiting tasks if `tasks`."""
    found: dict[bytes, GroupRecord] = {}
    for partition in keyspace.partitions:
        raw = yield from _scan(partition.groups)
        found.update((group, group_record(packed, group)) for group, packed in raw.items())
    states = {text(group): _group_state(group, record) for group, record in found.items()}
    if tasks:
        ranges = [_waiting(keyspace, group, record) for group, record in found.items()]
        lists = yield from _lists(ranges)
        states = {
            key: _with_tasks(state, raw, state.group_key)
            for (key, state), raw in zip(states.items(), lists, strict=True)
        }
    return states


def group(keyspace: Keyspace, group_key: bytes) -> Operation[GroupState | None]:
    """One group with its waiting tasks, or None."""
    partition = keyspace.partition_of(group_key)
    packed = yield from ask(command("HGET", partition.groups, group_key))
    if packed is None:
        return None
    record = group_record(packed, group_key)
    [raw] = yield from ask_all([_waiting(keyspace, group_key, record)])
    return _with_tasks(_group_state(group_key, record), raw, text(group_key))


def batches(keyspace: Keyspace, *, tasks: bool) -> Operation[list[BatchState]]:
    """All batches in flight, oldest first, with their tasks if `tasks`."""
    result: list[BatchState] = []
    for partition in keyspace.partitions:
        raw = yield from _scan(partition.batches)
        for batch_id, packed in sorted(raw.items()):
            record = batch_record(packed, batch_id)
            claimed, retried, group_packed = yield from ask_all(
                [
                    command("ZSCORE", partition.claims, batch_id),
                    command("ZSCORE", partition.retry, batch_id),
                    command("HGET", partition.groups, record.group),
                ]
            )
            stored = None
            if tasks and group_packed:
                first = record.start - group_record(group_packed, record.group).base
                [raw_tasks] = yield from ask_all(
                    [_range(partition.tasks(record.group), first, first + record.size - 1)]
                )
                stored = _look(raw_tasks, text(record.group))
            until = retried if retried is not None else claimed
            result.append(
                BatchState(
                    batch_id=text(batch_id),
                    group_key=text(record.group),
                    size=record.size,
                    attempts=record.attempts,
                    claimed_at=record.created / 1000,
                    state="claimed" if retried is None else "retry",
                    until=None if until is None else float(until) / 1000,
                    error=text(record.error),
                    tasks=stored,
                )
            )
    return sorted(result, key=lambda batch: batch.batch_id)


def dead_letters(keyspace: Keyspace, *, tasks: bool) -> Operation[list[DeadLetter]]:
    """All dead letters, oldest batch first, with their tasks if `tasks`."""
    found: list[tuple[PartitionKeys, bytes, bytes]] = []
    for partition in keyspace.partitions:
        raw = yield from _scan(partition.dead)
        found += [(partition, batch_id, packed) for batch_id, packed in raw.items()]
    found.sort(key=lambda item: item[1])
    letters = [_dead_letter(batch_id, packed) for _, batch_id, packed in found]
    if not tasks:
        return letters
    lists = yield from _lists(
        [_range(partition.dead_tasks(batch_id), 0, -1) for partition, batch_id, _ in found]
    )
    return [
        _with_tasks(letter, raw, letter.group_key)
        for letter, raw in zip(letters, lists, strict=True)
    ]


def dead_letter(keyspace: Keyspace, batch_id: str) -> Operation[DeadLetter | None]:
    """One dead letter with its tasks, or None."""
    raw_id = batch_id.encode(errors="surrogatepass")
    partition = yield from find_dead(keyspace, raw_id)
    if partition is None:
        return None
    packed, raw = yield from ask_all(
        [
            command("HGET", partition.dead, raw_id),
            _range(partition.dead_tasks(raw_id), 0, -1),
        ]
    )
    if packed is None:
        return None
    letter = _dead_letter(raw_id, packed)
    return _with_tasks(letter, raw, letter.group_key)


def find_dead(keyspace: Keyspace, batch_id: bytes) -> Operation[PartitionKeys | None]:
    """The partition that has this dead letter, or None. The id names it, as `claim` made it."""
    parts = batch_id.split(b"-")
    number = int(parts[1]) if len(parts) > 2 and parts[1].isdigit() else -1
    if not 0 <= number < len(keyspace.partitions):
        return None
    partition = keyspace.partitions[number]
    there = yield from ask(command("HEXISTS", partition.dead, batch_id))
    return partition if there else None


def stats(keyspace: Keyspace) -> Operation[Stats]:
    """The counts of all partitions; constant time for each."""
    replies = yield from ask_all(
        [
            call("stats", [p.state, p.groups, p.batches, p.retry, p.dead])
            for p in keyspace.partitions
        ]
        + [command("ZRANGE", keyspace.flushers, 0, -1)]
    )
    *rows, flushers = replies
    each = [_partition_stats(number, row) for number, row in enumerate(rows)]

    def total(count: Callable[[PartitionStats], int]) -> int:
        return sum(map(count, each))

    return Stats(
        pending=total(lambda p: p.pending),
        in_flight=total(lambda p: p.in_flight),
        stored_bytes=total(lambda p: p.stored_bytes),
        dead=total(lambda p: p.dead),
        flushed=total(lambda p: p.flushed),
        groups=total(lambda p: p.groups),
        batches_in_flight=total(lambda p: p.batches_in_flight),
        batches_in_retry=total(lambda p: p.batches_in_retry),
        batches_dead=total(lambda p: p.batches_dead),
        batches_flushed=total(lambda p: p.batches_flushed),
        paused=any(p.paused for p in each),
        flushers=[text(flusher) for flusher in flushers],
        partitions=each,
    )


def _partition_stats(number: int, row: Sequence[Any]) -> PartitionStats:
    if len(row) < _STATS or not all(isinstance(count, int) for count in row[:_COUNTS]):
        # A reply of Lua ends before a count that is no number.
        raise KeyConflict(f"the state of partition {number} holds a count that is no number")
    waiting, claimed, stored, flushed, flushed_tasks, dead = row[:6]
    groups, batches, retry, letters, paused, owner, token = row[6:13]
    return PartitionStats(
        partition=number,
        pending=waiting,
        in_flight=claimed,
        stored_bytes=stored,
        dead=dead,
        flushed=flushed_tasks,
        groups=groups,
        batches_in_flight=batches,
        batches_in_retry=retry,
        batches_dead=letters,
        batches_flushed=flushed,
        paused=bool(paused),
        leader=text(owner) or None,
        token=token,
    )


def _scan(key: bytes) -> Operation[dict[bytes, bytes]]:
    """All fields of a hash, in bounded steps."""
    found: dict[bytes, bytes] = {}
    cursor = 0
    while True:
        reply = yield from ask(command("HSCAN", key, cursor, "COUNT", _SCAN_COUNT))
        cursor, fields = scan_page(reply)
        found.update(fields)
        if cursor == 0:
            return found


def _lists(ranges: list[Request]) -> Operation[list[Any]]:
    lists: list[Any] = []
    for start in range(0, len(ranges), _TASKS_A_ROUND):
        lists += yield from ask_all(ranges[start : start + _TASKS_A_ROUND])
    return lists


def _range(key: bytes, first: int, last: int) -> Request:
    return command("LRANGE", key, first, last)


def _waiting(keyspace: Keyspace, group_key: bytes, record: GroupRecord) -> Request:
    _, tasks, _ = keyspace.place(group_key)
    return _range(tasks, record.claimed, -1)


def _group_state(group_key: bytes, record: GroupRecord) -> GroupState:
    waits = record.waiting > 0
    due = record.due_at or record.last
    return GroupState(
        group_key=text(group_key),
        size=record.waiting,
        in_flight=record.claimed,
        first_task_at=record.first / 1000 if waits else None,
        last_task_at=record.last / 1000 if waits else None,
        due_at=due / 1000 if waits else None,
        priority=record.priority,
        held=record.held > 0,
    )


def _dead_letter(batch_id: bytes, packed: bytes) -> DeadLetter:
    record = dead_record(packed, batch_id)
    return DeadLetter(
        batch_id=text(batch_id),
        group_key=text(record.group),
        size=record.size,
        attempts=record.attempts,
        claimed_at=record.created / 1000,
        died_at=record.died / 1000,
        error=text(record.error),
        traceback=text(record.traceback),
    )


def _look(raw: Sequence[bytes], group_key: str) -> list[StoredTask]:
    return [look_at(entry, group_key) for entry in raw]


def _with_tasks(view: T, raw: Sequence[bytes], group_key: str) -> T:
    return replace(view, tasks=_look(raw, group_key))  # type: ignore[type-var]
