"""The steps of a merge, which all mergers share: decode, call the merge function, route.

A batch whose merge result is stored in Redis is not merged again: `prepare` routes that result.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

from redisagg.config import GroupAggregator
from redisagg.errors import MergedTaskTooLarge, MergeError, PayloadError, SinkError, UndecodableTask
from redisagg.flusher.batch import Claim, Enqueue, Failure, MergeOutcome
from redisagg.flusher.merging.answering import (
    answer,
    answer_undecodable,
    check_results,
    size_of,
)
from redisagg.flusher.merging.result_codec import pack_merged_task, unpack_result
from redisagg.flusher.merging.tracing import linked, trace_headers
from redisagg.merge_function import Partial, Results
from redisagg.payload import check_levels, parts_of, to_json
from redisagg.protocol.entries import arrival_ms, decode
from redisagg.protocol.failed_tasks import group_of
from redisagg.sinks.base import DeliverySink, MergedTask, ScriptSink
from redisagg.sinks.limited_calls import Ended
from redisagg.sinks.routing import Router
from redisagg.task import Task
from redisagg.texts import redact, shorten, summary_of
from redisagg.views import BatchInfo

_BLAMES = "the payload of task "
_BLAMED = f"PayloadError: {_BLAMES}".encode()
"""The start of the error of an attempt that failed because of one task. In the next attempt, this
task and others like it go to the dead letters, and the rest is merged."""

_REASON_CHARACTERS = 2000
"""Characters that are kept of the reason why one task failed."""

_Routed: TypeAlias = tuple[ScriptSink | DeliverySink, MergedTask]


def merge(
    function: GroupAggregator, router: Router, claim: Claim, *, informed: bool
) -> MergeOutcome:
    """Makes all steps of a merge by a plain function, in a thread or a process.

    Args:
        informed: whether the function takes the info about its batch.

    Returns:
        The outcome. Whatever is raised becomes its failure, `SystemExit` too.
    """
    outcome = MergeOutcome()
    try:
        group, tasks = prepare(claim, outcome, router)
        if tasks:
            check_permit(claim)
            if claim.span is not None:
                claim.span.enter()
            returned: Any = function(*arguments(claim, outcome, group, tasks, informed))
            if type(returned) is not Task and inspect.isawaitable(returned):
                # It is a plain function that returns a coroutine.
                ended = asyncio.run(_awaited(returned))
                if ended.error is not None:
                    raise ended.error
                returned = ended.value
            route_result(claim, outcome, router, tasks, returned)
    except PermitExpired:
        outcome.failure = TOO_LATE
    except BaseException as error:
        outcome.failure = Failure.of(error)
    finally:
        if claim.span is not None:
            claim.span.exit()
    return outcome


class PermitExpired(Exception):
    """The merge may not begin any more."""


TOO_LATE = Failure("", "", pause=0.0)
"""A merge did not begin, since its permit had expired; that is no attempt."""


def check_permit(claim: Claim) -> None:
    """Is called right before the merge function.

    Raises:
        PermitExpired: the permit of the batch has expired.
    """
    if claim.begin_by and time.monotonic() > claim.begin_by:
        raise PermitExpired


def prepare(claim: Claim, outcome: MergeOutcome, router: Router) -> tuple[str, list[Task]]:
    """Decodes the tasks of a batch, or takes up the result that an earlier attempt stored.

    Returns:
        The arguments of the merge function. There are no tasks if it must not be called: no entry
        could be decoded, or the outcome has the stored result.

    Raises:
        KeyConflict: the stored result is not one that redisagg wrote.
    """
    group = group_of(claim.group).decode("utf-8", "replace")
    if claim.stored_result:
        result = unpack_result(claim.stored_result)
        outcome.undecodable, stored, first, outcome.failed, outcome.answers = result
        outcome.enqueued = claim.enqueued
        stored = stored[claim.enqueued - first :]
        outcome.merged = {merged.batch_id: packed for merged, packed in stored}
        routed = ((router.sink_of(merged.task), merged) for merged, _ in stored)
        _route(claim, outcome, router, routed)
        return group, []
    submitted: dict[str, int] = {}
    if claim.error.startswith(_BLAMED):
        tasks = _decode_good(claim, outcome, router, group, submitted)
    else:
        try:
            tasks = [decode(entry, group, submitted) for entry in claim.entries]
        except UndecodableTask:  # rare, and one by one takes longer
            tasks = _decode_good(claim, outcome, router, group, submitted)
    if submitted:
        outcome.submitted = submitted
    return group, tasks


def _decode_good(
    claim: Claim, outcome: MergeOutcome, router: Router, group: str, submitted: dict[str, int]
) -> list[Task]:
    """Decodes the entries that are tasks and, if one was blamed, fit into a merged task.

    The others go into the outcome.
    """
    tasks: list[Task] = []
    blamed = claim.error.startswith(_BLAMED)
    for position, entry in enumerate(claim.entries):
        try:
            task = decode(entry, group, submitted)
            if blamed:
                _check_fits(task, router.only())
            tasks.append(task)
        except (UndecodableTask, PayloadError) as error:
            outcome.undecodable.append((position, str(error)))
            answer_undecodable(claim, outcome, entry, str(error))
    return tasks


def arguments(
    claim: Claim, outcome: MergeOutcome, group: str, tasks: list[Task], informed: bool
) -> tuple[Any, ...]:
    """The arguments of the merge function: the group key, the tasks and, if it takes it, the info.

    Args:
        outcome: tells which entries are no tasks.
        tasks: the tasks of the other entries.
        informed: whether it takes the info.
    """
    if not informed:
        return group, tasks
    no_tasks = {position for position, _ in outcome.undecodable}
    info = BatchInfo(
        batch_id=claim.batch_id.decode(),
        group_key=group,
        attempt=claim.attempt,
        reason=claim.reason.decode(),
        opened_at=claim.opened / 1000,
        due_at=claim.due_at / 1000,
        claimed_at=claim.created / 1000,
        bytes=claim.length,
        weight=claim.weight,
        arrivals=tuple(
            arrival_ms(entry) / 1000
            for position, entry in enumerate(claim.entries)
            if position not in no_tasks
        ),
    )
    return group, tasks, info


def route_result(
    claim: Claim, outcome: MergeOutcome, router: Router, tasks: Sequence[Task], returned: Any
) -> None:
    """Puts what the merge function returned into the outcome, in the form that its sinks take.

    Args:
        tasks: the tasks that were merged.
        returned: a task, None, or a list or tuple of tasks; or a `Partial` or `Results` with one of
            these.

    Raises:
        MergeError: it is something else.
        MergedTaskTooLarge: it has too many bytes for a commit or for its sink.
        PayloadError: msgpack or the sink has no form for its payload.
        SinkError: there is no sink, or the tasks of one batch go to two queues in Redis.
    """
    values: Mapping[str, Any] = {}
    if isinstance(returned, _ENVELOPES):
        tasks, values, returned = _opened(claim, outcome, tasks, returned)
    routed: list[_Routed] = []
    inherited: dict[Sequence[str], dict[str, Any]] = {}  # by the names; the same for all tasks
    for merged in _merged_tasks(claim, tasks, returned):
        sink = router.sink_of(merged.task)
        if sink.inherits:
            names = tuple(sink.inherits)
            if names not in inherited:
                inherited[names] = _inherited(names, tasks)
            merged = _inheriting(merged, inherited[names])
        routed.append((sink, merged))
    if outcome.submitted is not None:  # before the merged tasks: a failure is one of the merge
        answer(claim, outcome, values, merged=bool(routed), reason_of=_reason)
        size = size_of(outcome.answers)
        if size > router.max_bytes:
            raise _too_large(size, router.max_bytes, "max_merged_bytes")
    most = router.max_bytes
    try:
        size = 0
        packed_tasks = outcome.merged
        for _, merged in routed:
            packed = packed_tasks[merged.batch_id] = pack_merged_task(merged)
            size += len(packed)
        if size > most:
            raise _too_large(size, most, "max_merged_bytes")
        # A failure from here on is one of the sink, not of the merge.
        size = _route(claim, outcome, router, routed)
        if size > most:
            raise _too_large(size, most, "max_merged_bytes")
    except MergedTaskTooLarge:
        outcome.merged.clear()  # it must not be stored either
        raise
    except PayloadError as error:
        if blame := _blame(tasks, router.only(), routed):
            outcome.merged.clear()  # the next attempt merges the others
            raise PayloadError(blame) from error
        raise


# As tuples: a union of types is made anew each time, which takes longer than the check.
_ENVELOPES = (Partial, Results)
_SEVERAL = (list, tuple)


def _opened(
    claim: Claim, outcome: MergeOutcome, tasks: Sequence[Task], returned: Any
) -> tuple[Sequence[Task], Mapping[str, Any], Any]:
    """Opens a `Partial` or `Results`, and those in it.

    Returns:
        The tasks that did not fail alone, the results of tasks, and the merged tasks.

    Raises:
        MergeError: one names tasks that the batch does not have.
    """
    values: Mapping[str, Any] = {}
    known = [task.id for task in tasks]
    while isinstance(returned, _ENVELOPES):
        if isinstance(returned, Results):
            check_results(returned, known)
            values = {**values, **returned.values}
        else:
            tasks = _take_failed(claim, outcome, tasks, returned.failed)
        returned = returned.merged
    return tasks, values, returned


def _take_failed(
    claim: Claim, outcome: MergeOutcome, tasks: Sequence[Task], failed: Any
) -> Sequence[Task]:
    """Puts the tasks that failed alone into the outcome; returns the others.

    Raises:
        MergeError: the batch has none of these tasks, or no others.
    """
    if not failed and isinstance(failed, Mapping):
        return tasks
    no_tasks = {position for position, _ in outcome.undecodable}
    positions = [place for place in range(len(claim.entries)) if place not in no_tasks]
    ids = [task.id for task in tasks]
    outcome.failed = positions_of(failed, dict(zip(ids, positions, strict=True)))
    return [task for task in tasks if task.id not in failed]


def positions_of(failed: Any, places: Mapping[str, int]) -> list[tuple[int, str]]:
    """The positions of tasks that failed alone, each with the reason.

    Args:
        failed: the mapping of a `Partial`.
        places: the position of each task of the batch, by its id.

    Raises:
        MergeError: the batch has none of these tasks, or no others.
    """
    if not isinstance(failed, Mapping):
        raise MergeError(f"Partial takes a mapping of task ids, not {type(failed).__name__}")
    if unknown := [each for each in failed if each not in places]:
        raise MergeError(
            f"Partial names {len(unknown)} task ids that the batch does not have, such as "
            f"{shorten(unknown[0])}"
        )
    if len(failed) == len(places):
        task_id, reason = next(iter(failed.items()))
        raise MergeError(f"all tasks failed; {task_id}: {_reason(reason)}")
    return sorted((places[task_id], _reason(reason)) for task_id, reason in failed.items())


def _reason(reason: object) -> str:
    if isinstance(reason, BaseException):  # without its traceback, which takes long to format
        return summary_of(reason)[:_REASON_CHARACTERS]
    text = reason if isinstance(reason, str) else shorten(reason)
    return redact(text)[:_REASON_CHARACTERS]


def _too_large(size: int, most: int, limit: str) -> MergedTaskTooLarge:
    return MergedTaskTooLarge(
        f"the merged tasks (or results) of the batch have {size:,} bytes, more than {limit} "
        f"({most:,}); "
        "return less from the merge function, store large data elsewhere and enqueue its "
        "address, lower group_max_size, or raise max_merged_bytes"
    )


def _blame(
    tasks: Sequence[Task], sink: ScriptSink | DeliverySink | None, routed: Sequence[_Routed]
) -> str:
    """Returns which task is to blame for a payload that has no form; empty if none is.

    It is one whose own payload has no form and was put into a merged task as it was.
    """
    used = {id(part) for _, merged in routed for part in parts_of(merged.task.payload)}
    for task in tasks:
        if id(task.payload) in used:
            try:
                _check_fits(task, sink)
            except PayloadError as error:
                return f"{_BLAMES}{task.id!r} has no form in the merged task: {error}"
    return ""


def _check_fits(task: Task, sink: ScriptSink | DeliverySink | None) -> None:
    """Raises `PayloadError` if no merged task can hold the payload as it is."""
    check_levels(task.payload)
    if sink is not None and sink.takes_json:
        to_json(task.payload)


def _route(claim: Claim, outcome: MergeOutcome, router: Router, routed: Iterable[_Routed]) -> int:
    """Puts merged tasks into the outcome; returns how many bytes the commit enqueues."""
    total = 0
    last, enqueue = None, None
    for sink, merged in routed:
        if sink.delivers:
            size = len(outcome.merged[merged.batch_id])
            if sink.max_bytes is not None and size > sink.max_bytes:
                raise _too_large(size, sink.max_bytes, f"{type(sink).__name__} takes")
            outcome.deliveries.append(merged)
            continue
        if TYPE_CHECKING:
            assert isinstance(sink, ScriptSink)
        if enqueue is None:
            enqueue = outcome.enqueue = Enqueue(router.queue_of(sink, claim.slot))
        elif sink is not last and enqueue.queue != router.queue_of(sink, claim.slot):
            raise SinkError(
                "the merged tasks of one batch go to two queues in Redis, which is not possible in "
                "one step: have the sink function choose one queue for all of them"
            )
        last = sink
        enqueue.entry_keys += sink.entry_keys(merged)
        arguments = sink.arguments(merged)
        size = sum(map(len, arguments))
        if sink.max_bytes is not None and size > sink.max_bytes:
            raise _too_large(size, sink.max_bytes, f"{type(sink).__name__} takes")
        enqueue.arguments += arguments
        total += size
    if enqueue is not None:
        enqueue.size = total
    outcome.deliveries.reverse()
    return total


def _inherited(names: Sequence[str], tasks: Sequence[Task]) -> dict[str, Any]:
    """Returns the options that merged tasks inherit; the first task that has an option decides."""
    given = [task.options for task in tasks if task.options] if names else []
    return {name: has[name] for has in reversed(given) for name in names if name in has}


def _inheriting(merged: MergedTask, inherited: Mapping[str, Any]) -> MergedTask:
    if not inherited:
        return merged
    options = {**inherited, **merged.task.options}
    return replace(merged, task=replace(merged.task, options=options))


def _merged_tasks(claim: Claim, tasks: Sequence[Task], returned: Any) -> list[MergedTask]:
    if returned is None:
        return []
    several = returned if isinstance(returned, _SEVERAL) else (returned,)
    group = group_of(claim.group).decode("utf-8", "replace")
    batch_id, reason = claim.batch_id.decode(), claim.reason.decode("utf-8", "replace")
    trace, count = trace_headers(tasks, len(several)), len(tasks)
    if claim.span is not None:
        trace = {**trace, **claim.span.headers}
    all_merged: list[MergedTask] = []
    for number, task in enumerate(several, 1):
        if not isinstance(task, Task):
            raise MergeError(
                f"the merge function returned {type(task).__name__}; return a Task, None, or a "
                "list of tasks"
            )
        if trace or not task.group_key:
            headers = linked(task.headers, trace)
            task = replace(task, group_key=task.group_key or group, headers=headers)
        merged_id = f"{batch_id}-{number}" if several is returned else batch_id
        all_merged.append(MergedTask(merged_id, group, count, task, reason))
    return all_merged


async def _awaited(merging: Awaitable[Any]) -> Ended:
    try:  # an event loop reads what is raised in a task, and may fail at that
        return Ended(await merging)
    except BaseException as error:
        return Ended(error=error)
