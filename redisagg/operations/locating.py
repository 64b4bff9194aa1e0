"""The operation that says where a task is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from redisagg.operations.inspecting import (
    batch_around,
    dead_letter_with,
    due_time,
    groups_of_failed,
)
from redisagg.protocol.answers import unpack_answer
from redisagg.protocol.keys import Keyspace, PartitionKeys
from redisagg.protocol.operations import Operation, ask
from redisagg.protocol.records import group_record
from redisagg.protocol.scripts import call, command
from redisagg.views import Location

# Tasks in batches that one call looks at, and about how many bytes.
_FIRST_COUNT = 125
_MOST_COUNT = 1000
_CALL_BYTES = 128 * 1024

_MOST_LOOKS = 3  # a batch may end, or go back, while it is looked for


def locate(keyspace: Keyspace, group: bytes, task_id: bytes) -> Operation[Location]:
    """Says where a task is.

    Looks at its group and its batches, then at the outcomes of submitted tasks, and last at the
    dead letters of the group; at all of them in pieces.

    Raises:
        KeyConflict: a key holds a value that redisagg did not write.
    """
    nowhere = Location("unknown", group.decode("utf-8", "replace"), task_id.decode())
    p = keyspace.partition_of(group)
    found = yield from _locate_in(p, nowhere, group, task_id)
    if found is None:
        for each in (yield from groups_of_failed(p, group)):
            found = found or (yield from _locate_in(p, nowhere, each, task_id))
    if found is not None:
        return found
    key = p.answer(group, task_id)
    if (record := (yield from ask(command("GET", key)))) is not None:
        return _answered(nowhere, record, key)
    if (letter := (yield from dead_letter_with(keyspace, group, task_id))) is not None:
        batch_id = letter.batch_id
        return replace(
            nowhere, state="failed", batch_id=batch_id, dead_letter=batch_id, error=letter.error
        )
    return nowhere


def _locate_in(
    p: PartitionKeys, nowhere: Location, group: bytes, task_id: bytes
) -> Operation[Location | None]:
    """Says where a task is in a group and its batches; None if it is not there."""
    for _ in range(_MOST_LOOKS):
        kind, *found = yield from _look_in_group(p, group, task_id)
        if kind == b"waiting":
            place, packed = found
            due_at = due_time(group_record(packed, group))
            return replace(nowhere, state="waiting", place=place, due_at=due_at)
        if kind != b"batch":
            break
        if (batch := (yield from batch_around(p, group, found[0]))) is not None:
            return replace(
                nowhere,
                state="in_batch",
                batch_id=batch.batch_id,
                attempt=batch.attempts,
                batch_state=batch.state,
                error=batch.error,
            )
    return None


def _look_in_group(p: PartitionKeys, group: bytes, task_id: bytes) -> Operation[list[Any]]:
    """Returns the last reply of the script `locate`, after as many calls as are needed."""
    keys = [p.groups, p.tasks(group), p.ids(group)]
    place: bytes | int = b""
    count = _FIRST_COUNT
    while True:
        reply: list[Any] = yield from ask(call("locate", keys, group, task_id, place, count))
        if reply[0] != b"more":
            return reply
        _, place, length = reply
        count = max(1, min(2 * count, _MOST_COUNT, count * _CALL_BYTES // max(1, length)))


def _answered(nowhere: Location, record: bytes, key: bytes) -> Location:
    state, batch_id, value = unpack_answer(record, key)
    if state == "cancelled":
        return replace(nowhere, state="cancelled")
    if state != "failed":
        return replace(nowhere, state="flushed", batch_id=batch_id)
    reason, letter = value
    return replace(nowhere, state="failed", batch_id=batch_id, dead_letter=letter, error=reason)
