"""The serialized merge result, as it is kept with a batch in Redis until it has been enqueued.

It is a msgpack array of the undecodable entries, each with its position and the reason, the merged
tasks, the number of merged tasks that were enqueued before the first of these, the tasks that
failed alone, each with its position and the reason, and the answers to submitted tasks, if there
are any. Each merged task is packed on its own, so that one that was delivered can be left out.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any, NamedTuple

from redisagg.errors import KeyConflict
from redisagg.flusher.batch import MergeOutcome
from redisagg.payload import pack, pack_merged, unpack
from redisagg.protocol.answers import Answered
from redisagg.sinks.base import MergedTask
from redisagg.task import Task

# In the order in which the constructor of `Task` takes them.
_FIELDS = (
    *("type", "payload", "group_key", "id", "headers", "options"),
    *("priority", "grace_period", "max_delay", "max_size"),
)
_values = attrgetter(*_FIELDS)


def pack_merged_task(merged: MergedTask) -> bytes:
    """Serializes one merged task with everything that a sink can see of it.

    Raises:
        PayloadError: msgpack has no form for its payload or for an option.
    """
    values = _values(merged.task)
    return pack_merged((merged.batch_id, merged.group, merged.count, values, merged.reason))


def pack_result(outcome: MergeOutcome) -> bytes:
    """Serializes what is left to be enqueued of an outcome; empty if there is no result.

    A merge that returned None has a result, and so has one whose tasks have all been delivered:
    that nothing is left. Without it the batch would be merged and delivered again.
    """
    if outcome.failure is not None and not outcome.merged:
        return b""  # the merge failed
    undecodable, failed = _packable(outcome.undecodable), _packable(outcome.failed)
    parts: tuple[Any, ...] = (
        *(undecodable, tuple(outcome.merged.values()), outcome.enqueued, failed),
    )
    return pack((*parts, outcome.answers) if outcome.answers else parts)


def _packable(reasons: list[tuple[int, str]]) -> list[tuple[int, bytes]]:
    return [(position, reason.encode("utf-8", "replace")) for position, reason in reasons]


class StoredResult(NamedTuple):
    """What `pack_result` packed."""

    undecodable: list[tuple[int, str]]
    merged: list[tuple[MergedTask, bytes]]
    """The merged tasks, each with its serialized form."""
    enqueued: int
    """How many merged tasks were enqueued before the first of these."""
    failed: list[tuple[int, str]]
    """The tasks that failed alone."""
    answers: list[Answered] | None


def unpack_result(packed: bytes) -> StoredResult:
    """Reads what `pack_result` returned.

    Raises:
        KeyConflict: these bytes are something else.
    """
    try:
        undecodable, merged, enqueued, failed, *answers = unpack(packed)
        return StoredResult(
            [(position, reason.decode()) for position, reason in undecodable],
            [(unpack_merged_task(each), each) for each in merged],
            int(enqueued),
            [(position, reason.decode()) for position, reason in failed],
            [(task_id, keep_ms, record) for task_id, keep_ms, record in answers[0]]
            if answers
            else None,
        )
    except Exception as error:  # foreign bytes can raise anything
        raise KeyConflict(f"the stored result of a merge can't be read: {error}") from error


def unpack_merged_task(packed: bytes) -> MergedTask:
    """Reads what `pack_merged_task` returned; foreign bytes can raise anything."""
    batch_id, group, count, values, reason = unpack(packed)
    task = Task(**dict(zip(_FIELDS, values, strict=True)))
    return MergedTask(batch_id, group, count, task, reason)
