"""Operations that change groups and dead letters: flush, cancel, pause, requeue, drop."""

from __future__ import annotations

from redisagg.errors import UnknownBatch
from redisagg.operations.inspecting import place_of_batch
from redisagg.protocol.keys import Keyspace, PartitionKeys
from redisagg.protocol.operations import Operation, ask, ask_all
from redisagg.protocol.records import batch_record, dead_record
from redisagg.protocol.scripts import call, command

_GROUPS_PER_CALL = 100  # a call takes about 1 ms


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
    reply = yield from ask(call("cancel_task", [*_index_keys(p), tasks, ids], group, task_id))
    return bool(reply)


def cancel_group(keyspace: Keyspace, group: bytes) -> Operation[int]:
    """Removes all waiting tasks from a group; returns their number."""
    p, tasks, ids = keyspace.place(group)
    count: int = yield from ask(call("cancel_group", [*_index_keys(p), tasks, ids], group))
    return count


def pause(keyspace: Keyspace, *, paused: bool) -> Operation[None]:
    """Stops or resumes flushing in all partitions."""
    yield from ask_all(
        [
            call(
                "pause",
                [p.state],
                int(paused),
                keyspace.wake_channel,
                p.label,
                registers=keyspace,
            )
            for p in keyspace.partitions
        ]
    )


def pause_group(keyspace: Keyspace, group: bytes, *, paused: bool) -> Operation[None]:
    """Stops or resumes the cutting of batches from one group, whether it exists or not."""
    p = keyspace.partition_of(group)
    yield from ask(
        call(
            "pause_group",
            _index_keys(p),
            *(int(paused), keyspace.wake_channel, p.label, group),
            registers=keyspace,
        )
    )


def requeue_dead_letter(keyspace: Keyspace, batch_id: str) -> Operation[int]:
    """Requeues a dead letter under the same batch id; returns the number of its tasks.

    A large one is moved in slices. If no slice follows for ten seconds, a flusher moves the tasks
    back; until then another call goes on.

    Raises:
        UnknownBatch: no dead letter has this id, or a flusher is moving its tasks there.
    """
    p, raw_id = _place(keyspace, batch_id)
    letter, batch = yield from ask_all(
        [command("HGET", p.dead, raw_id), command("HGET", p.batches, raw_id)]
    )
    if letter is not None:
        group = dead_record(letter, raw_id).group
    elif batch is not None and (record := batch_record(batch, raw_id)).letter:
        group = record.group
    else:
        raise _unknown(batch_id)
    keys = [p.state, p.groups, p.batches, p.retry, p.due, p.ready, p.dead]
    request = call(
        "requeue",
        [*keys, p.tasks(group), p.dead_tasks(raw_id), p.result(raw_id)],
        raw_id,
        keyspace.wake_channel,
        p.digits,
    )
    reply: int | bytes = b"MORE"
    while reply == b"MORE":
        reply = yield from ask(request)
    if isinstance(reply, bytes):
        raise UnknownBatch(
            f"the batch {batch_id!r} is on its way to the dead letters; requeue it when it is there"
        )
    return reply


def drop_dead_letter(keyspace: Keyspace, batch_id: str) -> Operation[int]:
    """Deletes a dead letter with its tasks; returns their number.

    Raises:
        UnknownBatch: no dead letter has this id.
    """
    p, raw_id = _place(keyspace, batch_id)
    if not (yield from ask(command("HEXISTS", p.dead, raw_id))):
        raise _unknown(batch_id)
    keys = [p.state, p.dead, p.dead_tasks(raw_id), p.result(raw_id)]
    count: int = yield from ask(call("drop", keys, raw_id))
    return count


def _place(keyspace: Keyspace, batch_id: str) -> tuple[PartitionKeys, bytes]:
    """As `place_of_batch`; raises `UnknownBatch` if it is no batch id."""
    place = place_of_batch(keyspace, batch_id)
    if place is None:
        raise _unknown(batch_id)
    return place


def _unknown(batch_id: str) -> UnknownBatch:
    return UnknownBatch(
        f"no dead letter has the batch id {batch_id!r}; dead_letters() lists the ids"
    )


def _index_keys(p: PartitionKeys) -> list[bytes]:
    return [p.state, p.groups, p.due, p.ready]
