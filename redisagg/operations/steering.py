"""Changing what happens to groups and dead letters: flush, cancel, pause, requeue, drop."""

from __future__ import annotations

from redisagg.errors import UnknownBatch
from redisagg.operations.inspecting import find_dead
from redisagg.protocol.keys import Keyspace, PartitionKeys
from redisagg.protocol.operations import Operation, ask, ask_all
from redisagg.protocol.records import dead_record
from redisagg.protocol.scripts import call, command

_GROUPS_A_CALL = 500


def flush(keyspace: Keyspace, group: bytes) -> Operation[int]:
    """Makes what waits in a group due now; returns how many tasks that newly are."""
    p = keyspace.partition_of(group)
    told: int = yield from ask(call("flush", _index_keys(p), keyspace.wake_channel, p.label, group))
    return told


def flush_all(keyspace: Keyspace) -> Operation[int]:
    """Makes all that waits due now; returns how many tasks that newly are."""
    told = 0
    cursors = dict.fromkeys(keyspace.partitions, b"0")
    while cursors:
        replies = yield from ask_all(
            [
                call(
                    "flush_all",
                    _index_keys(p),
                    keyspace.wake_channel,
                    p.label,
                    cursor,
                    _GROUPS_A_CALL,
                )
                for p, cursor in cursors.items()
            ]
        )
        told += sum(tasks for _, tasks in replies)
        seen = zip(cursors, replies, strict=True)
        cursors = {p: cursor for p, (cursor, _) in seen if cursor != b"0"}
    return told


def cancel_task(keyspace: Keyspace, group: bytes, task_id: bytes) -> Operation[bool]:
    """Takes a waiting task out of its group; False if it does not wait there."""
    p, tasks, ids = keyspace.place(group)
    reply = yield from ask(call("cancel_task", [*_index_keys(p), tasks, ids], group, task_id))
    return bool(reply)


def cancel_group(keyspace: Keyspace, group: bytes) -> Operation[int]:
    """Takes all waiting tasks out of a group; returns how many."""
    p, tasks, ids = keyspace.place(group)
    cancelled: int = yield from ask(call("cancel_group", [*_index_keys(p), tasks, ids], group))
    return cancelled


def pause(keyspace: Keyspace, *, paused: bool) -> Operation[None]:
    """Stops or resumes flushing in all partitions."""
    yield from ask_all(
        [
            call("pause", [p.state], int(paused), keyspace.wake_channel, p.label)
            for p in keyspace.partitions
        ]
    )


def requeue_dead_letter(keyspace: Keyspace, batch_id: str) -> Operation[int]:
    """Gives a dead letter another life as the same batch; returns how many tasks it has.

    Raises:
        UnknownBatch: no dead letter has this id.
    """
    raw_id = batch_id.encode(errors="surrogatepass")
    p = yield from find_dead(keyspace, raw_id)
    packed = None
    if p is not None:
        packed = yield from ask(command("HGET", p.dead, raw_id))
    if p is None or packed is None:
        raise UnknownBatch(f"no dead letter has the batch id {batch_id!r}")
    group = dead_record(packed, raw_id).group
    keys = [p.state, p.groups, p.batches, p.retry, p.due, p.ready, p.dead]
    count: int = yield from ask(
        call(
            "requeue",
            [*keys, p.tasks(group), p.dead_tasks(raw_id)],
            raw_id,
            keyspace.wake_channel,
            p.label,
        )
    )
    return count


def drop_dead_letter(keyspace: Keyspace, batch_id: str) -> Operation[int]:
    """Deletes a dead letter with its tasks; returns how many they were.

    Raises:
        UnknownBatch: no dead letter has this id.
    """
    raw_id = batch_id.encode(errors="surrogatepass")
    p = yield from find_dead(keyspace, raw_id)
    if p is None:
        raise UnknownBatch(f"no dead letter has the batch id {batch_id!r}")
    count: int = yield from ask(call("drop", [p.state, p.dead, p.dead_tasks(raw_id)], raw_id))
    return count


def _index_keys(p: PartitionKeys) -> list[bytes]:
    return [p.state, p.groups, p.due, p.ready]
