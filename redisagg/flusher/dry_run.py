"""Merges a dead letter to see what comes of it; nothing is written."""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import dataclass
from typing import Any

from redisagg.errors import MergeError
from redisagg.flusher.batch import Failure
from redisagg.flusher.merging.steps import positions_of
from redisagg.merge_function import GroupAggregator, Partial, Results, wants_info
from redisagg.task import Task
from redisagg.views import BatchInfo, DeadLetter


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a merge function did with the tasks of a dead letter."""

    merged: list[Task]
    """What it returned; nothing was enqueued."""
    failed: dict[str, str]
    """The ids of the tasks that failed alone, each with the reason."""
    error: str
    """Why the merge failed; empty if it did not."""
    traceback: str
    """The traceback of that error, or empty."""


def dry_run(function: GroupAggregator, letter: DeadLetter) -> DryRun:
    """Calls a merge function with the tasks of a dead letter that can be read, in this thread."""
    tasks = [stored.task for stored in letter.tasks or () if stored.task is not None]
    arguments: list[Any] = [letter.group_key, tasks]
    if wants_info(function):
        arguments.append(_info(letter))
    try:
        returned: Any = function(*arguments)
        if inspect.isawaitable(returned):
            returned = asyncio.run(_awaited(returned))
        failed: dict[str, str] = {}
        while isinstance(returned, Partial | Results):
            if isinstance(returned, Results):
                returned = returned.merged
                continue
            places = {task.id: place for place, task in enumerate(tasks)}
            if returned.failed:
                parts = positions_of(returned.failed, places)
                failed = {tasks[place].id: reason for place, reason in parts}
            returned = returned.merged
        return DryRun(_tasks(returned), failed, "", "")
    except Exception as error:
        failure = Failure.of(error)
        return DryRun([], {}, failure.error, failure.traceback)


def _tasks(returned: Any) -> list[Task]:
    several = returned if isinstance(returned, list | tuple) else [returned]
    if returned is None:
        return []
    for each in several:
        if not isinstance(each, Task):
            raise MergeError(f"the merge function returned {type(each).__name__}")
    return list(several)


def _info(letter: DeadLetter) -> BatchInfo:
    return BatchInfo(
        batch_id=letter.batch_id,
        group_key=letter.group_key,
        attempt=1,
        reason=letter.reason,
        opened_at=letter.opened_at,
        due_at=letter.due_at,
        claimed_at=letter.claimed_at,
        bytes=letter.bytes,
        weight=letter.weight,
        arrivals=tuple(stored.arrived_at for stored in letter.tasks or () if stored.task),
    )


async def _awaited(returned: Any) -> Any:
    return await returned
