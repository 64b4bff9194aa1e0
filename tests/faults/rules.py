"""Checks the batches of groups whose tasks have limits of all kinds. Pure functions.

The limits follow from the offers (`workload.rules_of`), the arrival times are those that Redis gave
the tasks. A rule is checked for the tasks that waited when the batch was cut: those of this batch
and of later ones of its group that had arrived. Redis has whole milliseconds: of tasks that came in
the millisecond of the cut it is not known whether they waited, so they only excuse a batch. Nor is
it known when a task was replaced, so only the size, bytes and weight of batches with such
tasks are checked.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from tests.faults.history import Batch, Cause, History, Offer, Operation
from tests.faults.workload import (
    LIMITS,
    MAX_WEIGHT,
    MIN_INTERVAL,
    Rules,
    class_of,
    payload_size,
    rules_of,
)

_MS = 0.0021
"""Redis has whole ms, and moments are rounded to them."""

_ENTRY_BYTES = 400
"""More bytes than an entry has beside the text that fills its payload."""

_FEW = 60
"""Waiting tasks up to which the limits end exactly with their tasks: docs/settings.md."""


class Waiting(NamedTuple):
    """A task that waited when a batch was cut."""

    arrived_at: float
    rules: Rules
    filler: int
    offered_at: float

    @property
    def latest(self) -> float:
        """When it is due at the latest."""
        delay = math.inf if self.rules.delay is None else self.arrived_at + self.rules.delay
        due_at = math.inf if self.rules.due_at is None else self.rules.due_at
        return min(delay, due_at)


class Cut(NamedTuple):
    """A batch, the tasks that waited when it was cut, and when the group was cut before."""

    batch: Batch
    cause: Cause
    own: Sequence[Waiting]
    waiting: Sequence[Waiting]
    """The tasks of the batch, those that remained, and those that arrived in the millisecond of the
    cut."""
    certain: int
    """How many of these, from the first on, certainly waited."""
    cut_before: float
    """When the batch before this one was cut; -inf for the first."""
    flushed_until: float
    """Arrival of the last task of earlier batches that flushed what waited with it; -inf for none.
    """
    joined: bool
    """Whether the limits of tasks that have left may still hold."""


def cuts(history: History, offers: Mapping[str, Offer], enqueued: Iterable[Batch]) -> Iterator[Cut]:
    """The batches with a cause whose tasks are all known, by group."""
    ended: dict[str, list[Batch]] = defaultdict(list)
    uncertain = {each.group for each in history.dead}
    for batch in enqueued:
        if batch.cause and batch.group not in uncertain and set(batch.tasks) <= offers.keys():
            ended[batch.group].append(batch)
    for batches in ended.values():
        # Arrival times never fall along a list, not even after the clock was set back.
        batches.sort(key=lambda each: (each.cause and each.cause.arrivals[0], each.batch_id))
        tasks = [_tasks(batch, offers) for batch in batches]
        before = joined_until = flushed_until = -math.inf
        for at, batch in enumerate(batches):
            assert batch.cause is not None
            waiting = list(tasks[at])
            for later in tasks[at + 1 :]:
                some = [each for each in later if each.arrived_at <= batch.claimed_at + _MS / 4]
                waiting += some
                if len(some) < len(later):
                    break
            if len(waiting) > _FEW:
                joined_until = batch.claimed_at
            joined = tasks[at][0].arrived_at <= joined_until
            earlier = sum(each.arrived_at < batch.claimed_at - _MS / 4 for each in waiting)
            certain = max(len(tasks[at]), earlier)
            yield Cut(
                *(batch, batch.cause, tasks[at], waiting, certain, before, flushed_until, joined)
            )
            before = batch.claimed_at
            flushes = [each.arrived_at for each in tasks[at] if each.rules.flush]
            flushed_until = max(flushed_until, *flushes, -math.inf)


def _tasks(batch: Batch, offers: Mapping[str, Offer]) -> list[Waiting]:
    assert batch.cause is not None
    return [
        Waiting(
            arrived_at,
            rules_of(task, batch.group, offers[task].offered_at, version),
            payload_size(task, batch.group),
            offers[task].offered_at,
        )
        for task, arrived_at, version in zip(
            batch.tasks, batch.cause.arrivals, batch.cause.versions, strict=True
        )
    ]


def _max_size(rules: Rules, group: str) -> int:
    return rules.size or LIMITS[group].size


def _max_weight(history: History, group: str) -> float:
    return MAX_WEIGHT if history.with_policies and class_of(group) != "cooled" else math.inf


def _interval(history: History, group: str) -> float:
    return MIN_INTERVAL if history.with_policies and class_of(group) == "cooled" else 0.0


def above_a_cap(history: History, cut: Cut) -> str:
    """The cap of its own tasks that a batch exceeds; empty if there is none."""
    group, own = cut.batch.group, cut.own
    size = min(_max_size(each.rules, group) for each in own)
    if len(own) > size:
        return f"{len(own)} tasks of {size}"
    if len(own) == 1:
        return ""
    caps = [each.rules.bytes for each in own if each.rules.bytes is not None]
    if caps and max(cut.cause.bytes, sum(each.filler for each in own)) > min(caps):
        return f"{cut.cause.bytes} bytes of {min(caps)}"
    weight = sum(each.rules.weight for each in own)
    if weight > _max_weight(history, group):
        return f"weight {weight} of {MAX_WEIGHT}"
    return ""


def misstated(cut: Cut) -> str:
    """What a batch states wrongly of its tasks; empty if there is nothing."""
    weight = sum(each.rules.weight for each in cut.own)
    if cut.cause.weight != weight:
        return f"weight {cut.cause.weight} instead of {weight}"
    filler = sum(each.filler for each in cut.own)
    if not filler < cut.cause.bytes < filler + _ENTRY_BYTES * len(cut.own):
        return f"{cut.cause.bytes} bytes instead of {filler} and those of {len(cut.own)} entries"
    return ""


def early(history: History, cut: Cut, flushes: Sequence[Operation]) -> str:
    """Why a batch was cut too early; empty if it was not."""
    batch, waiting = cut.batch, cut.waiting
    if class_of(batch.group) == "changed" or cut.joined or cut.cut_before > batch.claimed_at:
        return ""
    came_by = min(waiting[0].arrived_at, cut.cause.opened_at)
    if waiting[0].arrived_at > batch.claimed_at + _MS:
        # The clock was set back: arrivals are those of the time before, and what one cut leaves
        # behind counts as opened by it.
        came_by = min(came_by, waiting[0].offered_at)
    flushed = (
        any(each.rules.flush for each in waiting)
        or cut.flushed_until >= waiting[0].arrived_at - _MS / 4
        or any(
            each.began_at <= batch.claimed_at + _MS and came_by <= (each.ended_at or math.inf)
            for each in flushes
        )
    )
    reason = cut.cause.reason
    if reason == "flush":
        return "" if flushed else "no flush"
    if not flushed:
        held = max(each.rules.not_before or 0.0 for each in waiting[: cut.certain])
        if batch.claimed_at < held - _MS:
            return f"{held - batch.claimed_at:.3f} s before not_before"
        since = batch.claimed_at - cut.cut_before
        if since < _interval(history, batch.group) - _MS:
            return f"{since:.3f} s after the last cut"
    return "" if flushed or _is_true(history, cut) else f"its reason {reason} is not true"


def _is_true(history: History, cut: Cut) -> bool:
    """Whether the stated reason holds for the tasks that waited."""
    group, waiting, at = cut.batch.group, cut.waiting, cut.batch.claimed_at + _MS
    rules = [each.rules for each in waiting]
    match cut.cause.reason:
        case "size":
            return len(waiting) >= min(_max_size(each, group) for each in rules)
        case "bytes":
            most = sum(each.filler + _ENTRY_BYTES for each in waiting)
            return most >= min(each.bytes or math.inf for each in rules)
        case "weight":
            return sum(each.weight for each in rules) >= _max_weight(history, group)
        case "leading":
            return _interval(history, group) > 0
        case "grace":
            return _was_quiet(waiting, at)
        case "max_delay":
            return any(
                each.rules.delay is not None and each.arrived_at + each.rules.delay <= at
                for each in waiting
            )
        case "due_at":
            return any(each.due_at is not None and each.due_at <= at for each in rules)
    return False


def _was_quiet(waiting: Sequence[Waiting], at: float) -> bool:
    arrivals = [*(each.arrived_at for each in waiting[1:]), math.inf]
    ends = [
        (each.arrived_at + each.rules.grace, following)
        for each, following in zip(waiting, arrivals, strict=True)
        if each.rules.grace is not None
    ]
    return any(end <= at and following >= end - _MS for end, following in ends)


def due_by(history: History, cut: Cut) -> float:
    """The latest time at which a batch became due, by limits that later tasks can't prolong."""
    waiting = cut.waiting
    due = min(each.latest for each in cut.own)
    # A flush makes due what is before it.
    due = min(due, *(each.arrived_at for each in waiting if each.rules.flush), math.inf)
    if len(cut.own) >= min(_max_size(each.rules, cut.batch.group) for each in cut.own):
        due = min(due, cut.own[-1].arrived_at)
    for each, following in pairwise(cut.own):
        if each.rules.grace is not None:
            end = each.arrived_at + each.rules.grace
            if following.arrived_at > end + _MS:
                due = min(due, end)
    due = max(due, cut.own[0].arrived_at)
    held = max(each.rules.not_before or 0.0 for each in waiting)
    return max(due, held, cut.cut_before + _interval(history, cut.batch.group))
