"""Operations that change groups and dead letters: flush, cancel, pause, requeue, drop."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence, Set
from hashlib import sha1
from typing import NamedTuple
from uuid import uuid4

from redisagg.errors import HalfEnqueued, InvalidConfig, UnknownBatch, UnknownTask
from redisagg.operations.inspecting import moved_batch, place_of_batch
from redisagg.protocol.keys import Keyspace, PartitionKeys
from redisagg.protocol.operations import Operation, ask, ask_all
from redisagg.protocol.records import DeadRecord, batch_record, dead_record
from redisagg.protocol.scripts import Request, call, command
from redisagg.texts import shorten

_GROUPS_PER_CALL = 100  # a call takes about 1 ms
_SELECTED_TASKS = 1_000  # tasks of a dead letter that one call copies
_SELECTED_BYTES = 256 * 1024  # their bytes, about; one task always fits
_READ_TASKS = 500  # entries that one command reads
_READ_BYTES = 1 << 20  # their bytes, about
_PART = re.compile(rb"-part-[0-9a-f]{8}$")


def flush(keyspace: Keyspace, group: bytes) -> Operation[int]:
    """Makes the waiting tasks of a group due now; returns the number of tasks newly due."""
    p = keyspace.partition_of(group)
    count: int = yield from ask(
        call("flush", _index_keys(p), keyspace.wake_channel, p.digits, group)
    )
    return count


def postpone(keyspace: Keyspace, group: bytes, until_ms: int) -> Operation[int]:
    """Has no batch cut from a group before a moment; returns the number of its waiting tasks."""
    p = keyspace.partition_of(group)
    count: int = yield from ask(
        call("postpone", _index_keys(p), keyspace.wake_channel, p.digits, group, until_ms)
    )
    return count


def flush_all(keyspace: Keyspace) -> Operation[int]:
    """Makes all waiting tasks due now; returns the number of tasks newly due."""
    count = 0
    cursors = dict.fromkeys(keyspace.partitions, b"0")
    while cursors:
        replies = yield from ask_all(
            [
                call(
                    "flush_all",
                    _index_keys(p),
                    keyspace.wake_channel,
                    p.digits,
                    cursor,
                    _GROUPS_PER_CALL,
                )
                for p, cursor in cursors.items()
            ]
        )
        count += sum(tasks for _, tasks in replies)
        read = zip(cursors, replies, strict=True)
        cursors = {p: cursor for p, (cursor, _) in read if cursor != b"0"}
    return count


def cancel_task(keyspace: Keyspace, group: bytes, task_id: bytes) -> Operation[bool]:
    """Removes a waiting task from its group; returns False if the task does not wait there."""
    p, tasks, ids = keyspace.place(group)
    keys = [*_index_keys(p), tasks, ids, p.answer(group, task_id)]
    reply = yield from ask(call("cancel_task", keys, group, task_id, p.answers_channel))
    return bool(reply)


def cancel_group(keyspace: Keyspace, group: bytes) -> Operation[int]:
    """Removes all waiting tasks from a group; returns their number."""
    p, tasks, ids = keyspace.place(group)
    count: int = yield from ask(call("cancel_group", [*_index_keys(p), tasks, ids], group))
    return count


def pause(keyspace: Keyspace, *, paused: bool, by: bytes = b"") -> Operation[None]:
    """Stops or resumes flushing in all partitions."""
    yield from ask_all(
        [
            call(
                "pause",
                [p.state],
                int(paused),
                keyspace.wake_channel,
                p.label,
                by,
                registers=p.layout,
            )
            for p in keyspace.partitions
        ]
    )


def pause_group(
    keyspace: Keyspace, group: bytes, *, paused: bool, by: bytes = b""
) -> Operation[None]:
    """Stops or resumes the cutting of batches from one group, whether it exists or not."""
    p = keyspace.partition_of(group)
    yield from ask(
        call(
            "pause_group",
            _index_keys(p),
            *(int(paused), keyspace.wake_channel, p.label, group, by),
            registers=p.layout,
        )
    )


def requeue_dead_letter(keyspace: Keyspace, batch_id: str) -> Operation[int]:
    """Requeues a dead letter under the same batch id; returns the number of its tasks.

    A large one is moved in slices. If no slice follows for ten seconds, a flusher moves the tasks
    back; until then another call goes on.

    Raises:
        UnknownBatch: no dead letter has this id, or a flusher is moving its tasks there.
    """
    p, raw_id, letter = yield from _letter(keyspace, batch_id)
    batch = None
    if letter is None:
        batch = yield from ask(command("HGET", p.batches, raw_id))
    if letter is not None:
        group = dead_record(letter, raw_id).group
    elif batch is not None and (record := batch_record(batch, raw_id)).letter:
        group = record.group
    else:
        raise _unknown(batch_id)
    return (yield from _requeue(_requeue_call(keyspace, p, group, raw_id), batch_id))


def _requeue_call(keyspace: Keyspace, p: PartitionKeys, group: bytes, raw_id: bytes) -> Request:
    keys = [p.state, p.groups, p.batches, p.retry, p.due, p.ready, p.dead]
    keys += (p.tasks(group), p.dead_tasks(raw_id), p.result(raw_id))
    return call("requeue", keys, raw_id, keyspace.wake_channel, p.digits)


def _requeue(request: Request, batch_id: str) -> Operation[int]:
    """Sends the calls of a requeue, one for each slice."""
    reply: int | bytes = b"MORE"
    while reply == b"MORE":
        reply = yield from ask(request)
    if isinstance(reply, bytes):
        raise UnknownBatch(
            f"the batch {batch_id!r} is on its way to the dead letters; requeue it when it is there"
        )
    return reply


class ChosenTasks(NamedTuple):
    """Some tasks of a dead letter."""

    ids: Set[bytes]
    excluded: bool
    """Whether it is all tasks but these."""


def chosen_tasks(only: Iterable[str] | None, excluding: Iterable[str] | None) -> ChosenTasks | None:
    """The tasks that the arguments of `requeue_dead_letter` name; None for all.

    Raises:
        InvalidConfig: both are given, or one is no list of texts.
    """
    if only is not None and excluding is not None:
        raise InvalidConfig("only and excluding can't be given together")
    given = excluding if only is None else only
    if given is None:
        return None
    ids = None
    if isinstance(given, Iterable) and not isinstance(given, str | bytes):
        ids = list(given)
    if ids is None or not all(isinstance(each, str) for each in ids):
        raise InvalidConfig(f"only and excluding take a list of task ids, not {shorten(given)}")
    return ChosenTasks(frozenset(each.encode(errors="surrogatepass") for each in ids), only is None)


def requeue_tasks(
    keyspace: Keyspace,
    batch_id: str,
    chosen: ChosenTasks | None,
) -> Operation[int]:
    """Requeues a dead letter, or some of its tasks as a batch of their own; returns their number.

    The others stay a dead letter. Copies of both parts are made first; then one script exchanges
    them for the dead letter.

    Args:
        chosen: the tasks; None for all.

    Raises:
        UnknownBatch: no dead letter has this id, or it has been changed meanwhile.
        UnknownTask: the dead letter has no task with one of the ids.
        HalfEnqueued: the dead letter keeps its merge result.
    """
    if chosen is None:
        return (yield from requeue_dead_letter(keyspace, batch_id))
    p, raw_id, packed = yield from _letter(keyspace, batch_id)
    if packed is None:
        raise _unknown(batch_id)
    letter = dead_record(packed, raw_id)
    if letter.result:
        raise HalfEnqueued(
            f"a part of the dead letter {batch_id!r} has been enqueued already; its tasks can only "
            "be requeued together"
        )
    tasks = yield from _read_tasks(p.dead_tasks(raw_id), letter)
    ids = {task_id for task_id, _ in tasks}
    if unknown := chosen.ids - ids:
        example = shorten(min(unknown).decode("utf-8", "replace"))
        raise UnknownTask(
            f"the dead letter {batch_id!r} has no task with {len(unknown)} of the ids, such as "
            f"{example}; nothing was requeued"
        )
    wanted = [(task_id in chosen.ids) is not chosen.excluded for task_id, _ in tasks]
    if not any(wanted):
        return 0
    if all(wanted):
        return (yield from requeue_dead_letter(keyspace, batch_id))
    new_id = b"%b-part-%b" % (_PART.sub(b"", raw_id), uuid4().hex[:8].encode())
    selected, others = p.dead_tasks(new_id + b":selected"), p.dead_tasks(new_id + b":others")
    sha = sha1(packed, usedforsecurity=False).hexdigest()
    end = len(tasks)
    while end > 0:
        start = _start_of_slice(tasks, end)
        marks = b"".join(b"01"[mark : mark + 1] for mark in wanted[start:end])
        keys = [p.state, p.dead, p.dead_tasks(raw_id), selected, others]
        copied = yield from ask(call("select_tasks", keys, raw_id, sha, len(tasks) - end, marks))
        if copied != len(tasks) - start:
            raise _changed(batch_id)
        end = start
    request = _requeue_call(keyspace, p, letter.group, new_id)
    sizes = [
        sum(size for (_, size), mark in zip(tasks, wanted, strict=True) if mark is which)
        for which in (True, False)
    ]
    first = request._replace(
        keys=[*request.keys, p.dead_tasks(raw_id), selected, others],
        args=[*request.args, raw_id, sha, *sizes],
    )
    reply: int | bytes = yield from ask(first)
    if reply == b"CHANGED":
        raise _changed(batch_id)
    if reply == b"MORE":
        yield from _requeue(request, new_id.decode())
    return sum(wanted)


def _start_of_slice(tasks: Sequence[tuple[bytes, int]], end: int) -> int:
    """The place of the first task of a slice that ends before a place."""
    start, size = end - 1, tasks[end - 1][1]
    while start > 0 and end - start < _SELECTED_TASKS:
        size += tasks[start - 1][1]
        if size > _SELECTED_BYTES:
            break
        start -= 1
    return start


def _read_tasks(key: bytes, letter: DeadRecord) -> Operation[list[tuple[bytes, int]]]:
    """Reads the ids of the tasks of a dead letter, each with the bytes of its entry."""
    page = letter.task_count * _READ_BYTES // max(1, letter.length)
    page = max(1, min(_READ_TASKS, page))
    found: list[tuple[bytes, int]] = []
    while True:
        entries = yield from ask(command("LRANGE", key, len(found), len(found) + page - 1))
        found += [
            (entry[7 : 7 + entry[6]] if len(entry) > 6 else b"", len(entry)) for entry in entries
        ]
        if len(entries) < page:
            return found


def drop_dead_letter(keyspace: Keyspace, batch_id: str) -> Operation[int]:
    """Deletes a dead letter with its tasks; returns their number.

    Raises:
        UnknownBatch: no dead letter has this id.
    """
    p, raw_id, packed = yield from _letter(keyspace, batch_id)
    if packed is None:
        raise _unknown(batch_id)
    keys = [p.state, p.dead, p.dead_tasks(raw_id), p.result(raw_id)]
    count: int = yield from ask(call("drop", keys, raw_id))
    return count


def _letter(
    keyspace: Keyspace, batch_id: str
) -> Operation[tuple[PartitionKeys, bytes, bytes | None]]:
    """Finds a dead letter: its partition, its id as stored, and its record; None if it has none.

    Raises:
        UnknownBatch: it is no batch id.
    """
    place = place_of_batch(keyspace, batch_id)
    if place is None:
        raise _unknown(batch_id)
    p, raw_id = place
    packed = yield from ask(command("HGET", p.dead, raw_id))
    if packed is None and (moved := (yield from moved_batch(keyspace, raw_id))) is not None:
        p = moved
        packed = yield from ask(command("HGET", p.dead, raw_id))
    return p, raw_id, packed


def _changed(batch_id: str) -> UnknownBatch:
    return UnknownBatch(
        f"the dead letter {batch_id!r} has been requeued or dropped meanwhile, if only in part"
    )


def _unknown(batch_id: str) -> UnknownBatch:
    return UnknownBatch(
        f"no dead letter has the batch id {batch_id!r}; dead_letters() lists the ids"
    )


def _index_keys(p: PartitionKeys) -> list[bytes]:
    return [p.state, p.groups, p.due, p.ready]
