"""The checker catches each kind of fault, and finds nothing where nothing is wrong.

The histories come from a small simulation of what redisagg promises, with flushers that are late
at random; a fault is planted by changing one thing in such a history.
"""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from redisagg.errors import UnknownBatch
from redisagg.protocol.answers import Answer
from tests.faults.checker import Kind, check
from tests.faults.history import (
    AGAIN,
    MOVED,
    Batch,
    Call,
    Cause,
    Disturbance,
    Down,
    History,
    Journal,
    Lease,
    Limits,
    Offer,
    Operation,
    OperatorLog,
    Outcome,
    Pending,
    ProducerLog,
    Reply,
    Stop,
    Told,
    Window,
    read_journal,
    read_offers,
    read_operation,
)
from tests.faults.workload import LIMITS as WORKLOAD_LIMITS
from tests.faults.workload import payload_size, result_of, rules_of

LIMITS = {"a": Limits(0.3, 1.0, 4), "b": Limits(0.1, 5.0, 10), "c": Limits(2.0, 1.0, 3)}
EPOCH = 1_700_000_000.0


def id_of(claimed: float, number: int = 0) -> str:
    """The id of a batch in partition 0."""
    return f"{round(claimed * 1000):012x}-0-{number:08x}"


def simulated(seed: int) -> History:
    """Three producers and two flushers that take turns, over about ten seconds."""
    chance = random.Random(seed)
    arrivals: list[tuple[float, Offer]] = []
    for producer in ("p1", "p2", "p3"):
        now, number = EPOCH, 0
        while now < EPOCH + 10:
            now += chance.expovariate(4)
            arrived = now + chance.uniform(0, 0.2)
            ended = arrived + chance.uniform(0, 0.2)
            outcome: Outcome = chance.choices(("acknowledged", "unknown", "refused"), (86, 10, 4))[
                0
            ]
            group = chance.choice(list(LIMITS))
            for _ in range(chance.choice((1, 1, 3))):  # tasks in a call
                name = f"{producer}/{number}"
                offer = Offer(name, producer, number, group, now, outcome, ended)
                arrivals.append((arrived, offer))
                number += 1
            now = ended
    history = History(LIMITS, offers=[offer for _, offer in arrivals])
    history.leases = [Lease(0, token, f"f{token % 2}", EPOCH + token * 0.9) for token in range(99)]
    for group, limits in LIMITS.items():
        there = [
            (at, offer)
            for at, offer in sorted(arrivals, key=lambda each: each[0])
            if offer.group == group
            and (offer.outcome == "acknowledged" or (offer.outcome == "unknown" and at % 1 < 0.8))
        ]
        history.enqueued += flushed(there, limits, chance)
    history.enqueued.sort(key=lambda batch: batch.enqueued_at or 0)
    return history


def flushed(
    arrivals: Sequence[tuple[float, Offer]], limits: Limits, chance: random.Random
) -> list[Batch]:
    """The batches of one group; each is claimed up to two seconds after it is due."""
    batches: list[Batch] = []
    waiting = list(arrivals)
    while waiting:
        count = 1
        due = waiting[0][0] + min(limits.grace, limits.delay)
        while count < len(waiting) and count < limits.size and waiting[count][0] < due:
            due = min(waiting[count][0] + limits.grace, waiting[0][0] + limits.delay)
            count += 1
        if count == limits.size:
            due = waiting[count - 1][0]
        claimed = max([due, *(batch.enqueued_at or 0 for batch in batches)]) + chance.choice(
            (0.001, 0.05, 2.0)
        )
        while count < min(len(waiting), limits.size) and waiting[count][0] < claimed:
            count += 1  # they ride along
        tasks = tuple(offer.task for _, offer in waiting[:count])
        leader = f"f{int((claimed - EPOCH) / 0.9) % 2}"
        batch_id = id_of(claimed, len(batches))
        batches.append(Batch(batch_id, waiting[0][1].group, tasks, leader, claimed, count))
        del waiting[:count]
    return batches


@pytest.mark.parametrize("seed", range(20))
def test_a_correct_history_passes(seed: int) -> None:
    verdict = check(simulated(seed))
    assert verdict.examples == []
    assert verdict.violations == 0
    assert verdict.acknowledged > 50
    assert verdict.enqueued >= verdict.acknowledged
    assert verdict.offered == verdict.acknowledged + verdict.refused + verdict.unknown


def test_a_batch_that_keeps_its_rules_passes() -> None:
    history = simulated(2)
    history.bound = 30
    add_ruled_batch(history)
    verdict = check(history)
    assert verdict.examples == []
    assert verdict.reasons == {"max_delay": 1}


def test_tasks_may_also_be_dead_or_on_their_way() -> None:
    history = simulated(1)
    for place in (history.dead, history.in_flight, history.waiting):
        place.append(history.enqueued.pop()._replace(enqueued_at=None))
    history.poison = frozenset(task for batch in history.dead for task in batch.tasks)
    verdict = check(history)
    assert {finding.kind for finding in verdict.examples} == {Kind.LEFT}
    assert verdict.dead > 0


# --- one planted fault of each kind --------------------------------------------------------------


def first_of(history: History, tasks: int) -> int:
    """The place of the first batch with so many tasks, all acknowledged."""
    sure = {offer.task for offer in history.offers if offer.outcome == "acknowledged"}
    return next(
        place
        for place, batch in enumerate(history.enqueued)
        if len(batch.tasks) == tasks and sure.issuperset(batch.tasks)
    )


def change(history: History, place: int, **fields: object) -> None:
    history.enqueued[place] = history.enqueued[place]._replace(**fields)  # type: ignore[arg-type]


def lose_a_task(history: History) -> None:
    place = first_of(history, 2)
    change(history, place, tasks=history.enqueued[place].tasks[:1], stated_count=1)


def lose_a_batch(history: History) -> None:
    del history.enqueued[first_of(history, 1)]


def enqueue_twice(history: History) -> None:
    history.enqueued.append(history.enqueued[first_of(history, 1)])


def leave_a_copy_waiting(history: History) -> None:
    batch = history.enqueued[0]
    history.waiting.append(Batch("", batch.group, batch.tasks[:1]))


def leave_a_copy_dead(history: History) -> None:
    history.dead.append(history.enqueued[0]._replace(batch_id="0-0-x"))


def enqueue_an_unknown_one_twice(history: History) -> None:
    unknown = {offer.task for offer in history.offers if offer.outcome == "unknown"}
    batch = next(batch for batch in history.enqueued if unknown & set(batch.tasks))
    [task, *_] = unknown & set(batch.tasks)
    history.dead.append(Batch("0-0-x", batch.group, (task,)))


def enqueue_what_was_refused(history: History) -> None:
    refused = next(offer for offer in history.offers if offer.outcome == "refused")
    history.dead.append(Batch("1-0-x", refused.group, (refused.task,)))


def enqueue_what_nobody_offered(history: History) -> None:
    history.dead.append(Batch("1-0-x", "a", ("p1/999",)))


def swap_batches(history: History) -> None:
    """Two batches of one group, of which the second was offered after the first was acknowledged.

    What is enqueued late is never premature, so that this is the only thing that is wrong.
    """
    places = [n for n, batch in enumerate(history.enqueued) if batch.group == "a"]
    first, last = places[0], places[-1]
    batch = history.enqueued.pop(first)
    history.enqueued.insert(last, batch._replace(enqueued_at=None, by=""))


def swap_tasks_of_a_call(history: History) -> None:
    offers = {offer.task: offer for offer in history.offers}
    for place, batch in enumerate(history.enqueued):
        tasks = list(batch.tasks)
        for at in range(len(tasks) - 1):
            one, two = offers[tasks[at]], offers[tasks[at + 1]]
            if one.outcome == "acknowledged" and one[4:] == two[4:]:
                tasks[at : at + 2] = reversed(tasks[at : at + 2])
                change(history, place, tasks=tuple(tasks))
                return
    raise AssertionError("no call has two tasks in one batch")


def join_batches(history: History) -> None:
    full = [n for n, batch in enumerate(history.enqueued) if batch.group == "a"]
    one, two = (history.enqueued[place] for place in full[:2])
    change(history, full[1], tasks=one.tasks + two.tasks, stated_count=len(one.tasks + two.tasks))
    del history.enqueued[full[0]]


def miscount(history: History) -> None:
    change(history, 0, stated_count=len(history.enqueued[0].tasks) + 1)


def move_to_another_group(history: History) -> None:
    place = first_of(history, 1)
    other = "a" if history.enqueued[place].group != "a" else "b"
    change(history, place, group=other, enqueued_at=None, batch_id=id_of(EPOCH + 60))


def enqueue_before(history: History, group: str, span: float) -> None:
    """Has the first batch of `group` that is not full enqueued so long after its last task."""
    offers = {offer.task: offer for offer in history.offers}
    for place, batch in enumerate(history.enqueued):
        known = [offers[task] for task in batch.tasks]
        if batch.group != group or len(known) == LIMITS[group].size:
            continue
        if all(offer.offered_at == known[0].offered_at for offer in known):
            at = known[-1].offered_at + span
            change(history, place, enqueued_at=at, batch_id=id_of(at), by="")
            return
    raise AssertionError(f"no batch of {group} will do")


def ignore_the_grace_period(history: History) -> None:
    enqueue_before(history, "b", LIMITS["b"].grace - 0.02)


def ignore_the_max_delay(history: History) -> None:
    enqueue_before(history, "c", LIMITS["c"].delay - 0.02)


def enqueue_with_a_lost_lease(history: History) -> None:
    batch = history.enqueued[len(history.enqueued) // 2]
    other = "f1" if batch.by == "f0" else "f0"
    assert batch.enqueued_at is not None
    # The other one has had the lease for a while, and the one before is long over.
    history.leases = [Lease(0, 1, batch.by, EPOCH), Lease(0, 2, other, batch.enqueued_at - 0.1)]
    history.enqueued = [
        each if each is batch else each._replace(by="") for each in history.enqueued
    ]


def enqueue_without_any_lease(history: History) -> None:
    change(history, -1, by="f7")


def leave_late(history: History) -> None:
    """The last batch leaves 50 s after it was due, by 20 s longer than allowed."""
    history.bound = 30
    place = last_known(history)
    at = history.enqueued[place].enqueued_at
    assert at is not None
    change(history, place, enqueued_at=at + 50, by="")


def last_known(history: History) -> int:
    """The place of the last batch of its group of which a task was acknowledged."""
    sure = {offer.task for offer in history.offers if offer.outcome == "acknowledged"}
    seen: set[str] = set()
    for place in reversed(range(len(history.enqueued))):
        batch = history.enqueued[place]
        if batch.group not in seen and sure & set(batch.tasks):
            return place
        seen.add(batch.group)
    raise AssertionError("no batch will do")


def take_over_late(history: History) -> None:
    """Nobody has a lease for 2.5 s after the death of a flusher, of which 2.1 s are too much."""
    history.lease_time = 0.9
    history.downs = [Down("f0", EPOCH + 2 * 0.9 + 0.4)]
    history.leases = [each for each in history.leases if not 3 <= each.token <= 5]
    history.enqueued = [each._replace(by="") for each in history.enqueued]


def stop_late(history: History) -> None:
    history.stops = [Stop("f0", EPOCH, EPOCH + 7, 7.5), Stop("f1", EPOCH, EPOCH + 7.6, 7.5)]


def never_stop(history: History) -> None:
    history.stops = [Stop("f0", EPOCH, None, 7.5)]


def operate(history: History, name: str, result: object = None, **fields: object) -> Operation:
    """Adds a call of the operator that took a tenth of a second."""
    at = history.operations[-1].began_at + 1 if history.operations else EPOCH + 1
    call = Operation(name, at, at + 0.1, result, True)
    history.operations.append(call._replace(**fields))  # type: ignore[arg-type]
    return history.operations[-1]


def enqueue_what_was_cancelled(history: History) -> None:
    batch = history.enqueued[first_of(history, 1)]
    operate(history, "cancel_task", True, group=batch.group, target=batch.tasks[0])


def lose_what_was_not_cancelled(history: History) -> None:
    batch = history.enqueued.pop(first_of(history, 1))
    operate(history, "cancel_task", False, group=batch.group, target=batch.tasks[0])


def lose_more_than_was_cancelled(history: History) -> None:
    batch = next(each for each in history.enqueued if each.group == "a" and is_sure(history, each))
    history.enqueued.remove(batch)
    operate(history, "cancel_group", len(batch.tasks) - 1, group="a")


def is_sure(history: History, batch: Batch) -> bool:
    """Whether all its tasks were acknowledged."""
    sure = {offer.task for offer in history.offers if offer.outcome == "acknowledged"}
    return sure.issuperset(batch.tasks)


def cancel_fewer_than_counted(history: History) -> None:
    operate(history, "cancel_group", 1_000, group="a")


def enqueue_what_was_dropped(history: History) -> None:
    batch = history.enqueued[first_of(history, 1)]
    history.poison = frozenset(batch.tasks)
    operate(
        history,
        "drop_dead_letter",
        1,
        group=batch.group,
        target=batch.batch_id,
        tasks=batch.tasks,
    )


def cut_in_a_pause(history: History) -> None:
    claimed = history.enqueued[len(history.enqueued) // 2].claimed_at
    operate(history, "pause", began_at=claimed - 0.5, ended_at=claimed - 0.1)
    operate(history, "resume", began_at=claimed + 0.1, ended_at=claimed + 0.5)


def bury_innocents(history: History) -> None:
    history.dead.append(history.enqueued.pop()._replace(enqueued_at=None))


def bury_innocents_that_are_requeued(history: History) -> None:
    batch = history.enqueued[0]
    operate(history, "requeue_dead_letter", target=batch.batch_id, tasks=batch.tasks)


def cut_from_a_paused_group(history: History) -> None:
    batch = history.enqueued[len(history.enqueued) // 2]
    at = batch.claimed_at
    operate(history, "pause", group="z", began_at=at - 0.5, ended_at=at - 0.1)
    operate(history, "pause", group=batch.group, began_at=at - 0.5, ended_at=at - 0.1)
    operate(history, "resume", group="z", began_at=at - 0.05, ended_at=at + 0.5)
    operate(history, "resume", group=batch.group, began_at=at + 0.1, ended_at=at + 0.5)


def part(history: History, letter: str = "") -> Batch:
    """Has the first task of a batch of two fail alone; returns the batch.

    Args:
        letter: the id of its dead letter, if not the right one.
    """
    place = first_of(history, 2)
    batch = history.enqueued[place]
    task, other = batch.tasks
    change(history, place, tasks=(other,), failed=((0, task),), stated_count=1)
    history.poison = history.alone = frozenset([task])
    history.dead.append(Batch(letter or f"{batch.batch_id}-task-0", batch.group, (task,)))
    return history.enqueued[place]


def part_under_another_id(history: History) -> None:
    part(history, "0-0-x-task-0")


def part_what_is_to_be_tried_again(history: History) -> None:
    history.retries = 2
    part(history)


def take_others_to_the_dead_letters(history: History) -> None:
    batch = history.enqueued.pop(first_of(history, 2))
    history.dead.append(batch._replace(enqueued_at=None))
    history.poison = history.alone = frozenset(batch.tasks[:1])


def enqueue_what_can_not_be_merged(history: History) -> None:
    history.poison = frozenset(history.enqueued[0].tasks)


def say(history: History, *after: float, again: float) -> None:
    """Has the merge of a batch reply so many seconds before it left, no leader in between."""
    history.leases = []
    history.enqueued = [each._replace(by="") for each in history.enqueued]
    batch = history.enqueued[5]
    left = batch.left_at or 0.0
    history.lease_time = 0.9
    history.replies = [
        Reply(batch.batch_id, batch.group, "f0", left - each, left - each + again) for each in after
    ]


def merge_before_the_time(history: History) -> None:
    say(history, 0.4, again=0.5)


def merge_again_before_the_time(history: History) -> None:
    say(history, 0.9, 0.8, again=0.5)


def merge_what_gave_up(history: History) -> None:
    say(history, 9.0, again=math.inf)


def submit(history: History, place: int) -> tuple[str, Batch]:
    """Has the first task of a batch submitted, with the right outcome."""
    batch = history.enqueued[place]
    task = batch.tasks[0]
    history.submitted.add(task)
    history.answers[task] = Answer("result", batch.batch_id, result_of(task))
    return task, batch


def submitted_place(history: History) -> int:
    """The place of a batch whose first task is acknowledged."""
    outcomes = {offer.task: offer.outcome for offer in history.offers}
    batches = enumerate(history.enqueued)
    return next(n for n, batch in batches if outcomes[batch.tasks[0]] == "acknowledged")


def forget_an_outcome(history: History) -> None:
    task, _ = submit(history, submitted_place(history))
    del history.answers[task]


def keep_the_outcome_of_another_batch(history: History) -> None:
    task, _ = submit(history, submitted_place(history))
    history.answers[task] = history.answers[task]._replace(batch_id="0-0-x")


def fail_what_was_enqueued(history: History) -> None:
    task, batch = submit(history, submitted_place(history))
    history.answers[task] = Answer("failed", batch.batch_id, ("no", None))


def tell_the_result_of_another_task(history: History) -> None:
    task, _ = submit(history, submitted_place(history))
    history.told.append(Told(task, "result", "other"))


def tell_of_a_failure_that_was_none(history: History) -> None:
    task, _ = submit(history, submitted_place(history))
    history.told.append(Told(task, "TaskFailed", None))


def tell_of_no_result(history: History) -> None:
    task, _ = submit(history, submitted_place(history))
    history.told.append(Told(task, "NoResult", None))


def name_the_wrong_dead_letter(history: History) -> None:
    batch = part(history)
    [task] = history.dead[0].tasks
    for offer in history.offers:
        if offer.task == task:
            history.offers.remove(offer)
            history.offers.append(offer._replace(outcome="acknowledged"))
            break
    history.submitted.add(task)
    history.answers[task] = Answer("failed", batch.batch_id, ("no", batch.batch_id))


def take_more_than_fits(history: History) -> None:
    history.max_pending = 100
    history.pending = [Pending(EPOCH, 100), Pending(EPOCH + 1, 101)]


def add_ruled_batch(history: History, weight_off: int = 0) -> None:
    """A batch of one task that leaves by its max delay, of a group with limits of all kinds."""
    number, rules = next(
        (number, rules)
        for number in range(1000)
        if (rules := rules_of(f"r/{number}", "mixed0", EPOCH)).delay
        and not (rules.grace or rules.due_at or rules.flush)
    )
    assert rules.delay is not None
    task, claimed = f"r/{number}", EPOCH + 0.1 + rules.delay
    history.limits = {**history.limits, "mixed0": WORKLOAD_LIMITS["mixed0"]}
    history.offers.append(Offer(task, "r", 0, "mixed0", EPOCH, "acknowledged", EPOCH + 0.2))
    cause = Cause(
        *("max_delay", EPOCH + 0.1, claimed, claimed),
        *(payload_size(task, "mixed0") + 60, rules.weight + weight_off, (EPOCH + 0.1,), (0,)),
    )
    batch = Batch(id_of(claimed, 999), "mixed0", (task,), "", claimed, 1, None, cause)
    history.enqueued.append(batch)


def add_task_with_not_before(history: History, arrived_before: float) -> None:
    """A task that holds its group back, and arrived so many seconds before the batch of
    `add_ruled_batch` was cut, without it."""
    add_ruled_batch(history)
    cut = history.enqueued[-1]
    assert cut.cause is not None
    offered, arrived = EPOCH + 4.5, cut.claimed_at - arrived_before
    number, rules = next(
        (number, rules)
        for number in range(1000)
        if (rules := rules_of(f"h/{number}", "mixed0", offered)).not_before
        and not (rules.grace or rules.due_at or rules.flush or rules.size or rules.bytes)
        and rules.weight == 1
    )
    assert rules.delay is not None
    assert rules.not_before is not None
    task, left = f"h/{number}", max(arrived + rules.delay, rules.not_before)
    history.offers.append(Offer(task, "h", 0, "mixed0", offered, "acknowledged", offered))
    size = payload_size(task, "mixed0") + 60
    cause = Cause("max_delay", arrived, left, left, size, 1, (arrived,), (0,))
    batch = Batch(id_of(left, 1000), "mixed0", (task,), "", left, 1, None, cause)
    history.enqueued.append(batch)


def cut_before_a_not_before(history: History) -> None:
    add_task_with_not_before(history, 0.001)


def misstate_the_weight(history: History) -> None:
    add_ruled_batch(history, weight_off=1)


def plant_in_cause(history: History, **fields: object) -> None:
    add_ruled_batch(history)
    cause = history.enqueued[-1].cause
    assert cause is not None
    change(history, -1, cause=cause._replace(**fields))  # type: ignore[arg-type]


def state_another_reason(history: History) -> None:
    plant_in_cause(history, reason="flush")


def cut_before_the_max_delay(history: History) -> None:
    plant_in_cause(history, arrivals=(EPOCH + 0.11,))


def leave_late_by_the_rules(history: History) -> None:
    history.bound = 30
    add_ruled_batch(history)
    at = history.enqueued[-1].enqueued_at
    assert at is not None
    change(history, -1, enqueued_at=at + 31)


def call_at(at: float, group: str = "a", flusher: str = "f0", took: float = 0.1) -> Call:
    return Call(group, flusher, 3, EPOCH + at, EPOCH + at + took)


def merge_more_at_once_than_allowed(history: History) -> None:
    history.work_limits = {"max_concurrency": 2}
    history.calls = [call_at(0.01 * n, f"g{n}", f"f{n}") for n in range(3)]


def merge_a_group_twice_at_once(history: History) -> None:
    history.work_limits = {"max_concurrency": 2, "group_concurrency": 1}
    history.calls = [call_at(0.01 * n) for n in range(2)]


def merge_more_often_than_allowed(history: History) -> None:
    history.work_limits = {"rate_limit": {"limit": 4, "per": 2}}
    history.calls = [call_at(0.45 * n, f"g{n}") for n in range(5)]


def merge_a_group_more_often_than_allowed(history: History) -> None:
    rate = {"limit": 4, "per": 2}
    history.work_limits = {"rate_limit": {**rate, "limit": 9}, "group_rate_limit": rate}
    history.calls = [call_at(0.45 * n) for n in range(5)]


def merge_when_asked_not_to(history: History) -> None:
    reply = Reply(id_of(EPOCH), "a", "f0", EPOCH + 1, EPOCH + 1.6, of_all=True)
    history.replies = [reply]
    history.calls = [call_at(1.5, "b")]


PLANTED: dict[Callable[[History], None], Kind] = {
    lose_a_task: Kind.LOST,
    lose_a_batch: Kind.LOST,
    enqueue_twice: Kind.DUPLICATED,
    enqueue_an_unknown_one_twice: Kind.DUPLICATED,
    leave_a_copy_waiting: Kind.DUPLICATED,
    leave_a_copy_dead: Kind.DUPLICATED,
    enqueue_what_was_refused: Kind.PHANTOM,
    enqueue_what_nobody_offered: Kind.PHANTOM,
    swap_batches: Kind.REORDERED,
    swap_tasks_of_a_call: Kind.REORDERED,
    join_batches: Kind.OVERSIZED,
    miscount: Kind.OVERSIZED,
    move_to_another_group: Kind.MISGROUPED,
    ignore_the_grace_period: Kind.PREMATURE,
    ignore_the_max_delay: Kind.PREMATURE,
    misstate_the_weight: Kind.MISSTATED,
    state_another_reason: Kind.PREMATURE,
    cut_before_the_max_delay: Kind.PREMATURE,
    cut_before_a_not_before: Kind.PREMATURE,
    leave_late_by_the_rules: Kind.LATE,
    enqueue_with_a_lost_lease: Kind.STALE,
    enqueue_without_any_lease: Kind.STALE,
    leave_late: Kind.LATE,
    take_over_late: Kind.TAKEOVER,
    stop_late: Kind.UNSTOPPED,
    never_stop: Kind.UNSTOPPED,
    enqueue_what_was_cancelled: Kind.CANCELLED,
    lose_what_was_not_cancelled: Kind.LOST,
    lose_more_than_was_cancelled: Kind.LOST,
    cancel_fewer_than_counted: Kind.CANCELLED,
    enqueue_what_was_dropped: Kind.CANCELLED,
    cut_in_a_pause: Kind.PAUSED,
    cut_from_a_paused_group: Kind.PAUSED,
    part_under_another_id: Kind.PARTED,
    part_what_is_to_be_tried_again: Kind.PARTED,
    take_others_to_the_dead_letters: Kind.PARTED,
    enqueue_what_can_not_be_merged: Kind.PARTED,
    merge_before_the_time: Kind.TOO_SOON,
    merge_again_before_the_time: Kind.TOO_SOON,
    merge_what_gave_up: Kind.TOO_SOON,
    merge_when_asked_not_to: Kind.TOO_SOON,
    merge_more_at_once_than_allowed: Kind.EXCEEDED,
    merge_a_group_twice_at_once: Kind.EXCEEDED,
    merge_more_often_than_allowed: Kind.EXCEEDED,
    merge_a_group_more_often_than_allowed: Kind.EXCEEDED,
    forget_an_outcome: Kind.ANSWERED,
    keep_the_outcome_of_another_batch: Kind.ANSWERED,
    fail_what_was_enqueued: Kind.ANSWERED,
    tell_the_result_of_another_task: Kind.ANSWERED,
    tell_of_a_failure_that_was_none: Kind.ANSWERED,
    tell_of_no_result: Kind.ANSWERED,
    name_the_wrong_dead_letter: Kind.ANSWERED,
    bury_innocents: Kind.BURIED,
    bury_innocents_that_are_requeued: Kind.BURIED,
    take_more_than_fits: Kind.OVERFULL,
}


def test_each_kind_of_violation_is_planted() -> None:
    assert {*PLANTED.values(), Kind.LEFT} == {*Kind} - {Kind.LOST_IN_WINDOW}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_fault_is_caught(plant: Callable[[History], None], seed: int) -> None:
    history = simulated(seed)
    plant(history)
    verdict = check(history)
    also = {
        # What is in two places is out of order in one of them, and one place is the end.
        Kind.DUPLICATED: {Kind.REORDERED, Kind.LEFT, Kind.BURIED},
        # None of these dead letters is poison.
        Kind.PHANTOM: {Kind.BURIED},
        # And what is in another group's batch is not in the order of that group.
        Kind.MISGROUPED: {Kind.REORDERED},
        # What was dropped was a dead letter of what can't be merged.
        Kind.CANCELLED: {Kind.PARTED},
    }.get(PLANTED[plant], set())
    found = {finding.kind for finding in verdict.examples}
    assert PLANTED[plant] in found
    assert found <= {PLANTED[plant], *also}
    assert verdict.violations > 0


# --- what is excused -----------------------------------------------------------------------------


def test_what_was_acknowledged_when_redis_may_lose_it_is_counted_apart() -> None:
    history = simulated(2)
    [gone] = history.enqueued.pop(first_of(history, 1)).tasks
    offer = next(offer for offer in history.offers if offer.task == gone)
    assert offer.ended_at is not None
    history.lossy = [Window(offer.ended_at - 0.001, offer.ended_at + 0.001)]
    verdict = check(history)
    assert verdict.counts == {Kind.LOST_IN_WINDOW: 1}
    assert verdict.violations == 0
    history.lossy = [Window(offer.offered_at - 9, offer.offered_at + 0.0001)]
    assert check(history).counts == {Kind.LOST_IN_WINDOW: 1}  # the first of many in one call
    for start, end in (
        (offer.ended_at + 0.001, offer.ended_at + 9),
        (offer.offered_at - 9, offer.offered_at - 0.001),
    ):
        history.lossy = [Window(start, end)]
        assert check(history).counts == {Kind.LOST: 1}


@pytest.mark.parametrize("innocent", [False, True])
def test_a_dead_letter_is_lost_when_redis_is_wiped_however_old_it_is(innocent: bool) -> None:
    history = simulated(2)
    [gone] = history.enqueued.pop(first_of(history, 1)).tasks
    offer = next(offer for offer in history.offers if offer.task == gone)
    history.wiped = [Window(offer.offered_at + 100, offer.offered_at + 101)]
    history.told = [Told(gone, "TaskFailed", None)]
    assert check(history).counts == {Kind.LOST: 1, Kind.ANSWERED: 1}
    if innocent:
        history.buries_innocents = frozenset({offer.group})
    else:
        history.poison = history.alone = frozenset({gone})
    assert check(history).counts == {Kind.LOST_IN_WINDOW: 1}
    history.wiped = [Window(offer.offered_at - 2, offer.offered_at - 1)]
    assert check(history).counts == {Kind.LOST: 1, Kind.ANSWERED: 1}


def test_a_receipt_may_tell_of_a_dead_letter_that_a_failover_lost() -> None:
    """The old primary announced it; the new one has never had it, and maybe not the task."""
    history = simulated(2)
    [gone] = history.enqueued.pop(first_of(history, 1)).tasks
    offer = next(offer for offer in history.offers if offer.task == gone)
    assert offer.ended_at is not None
    history.poison = history.alone = frozenset({gone})
    history.told = [Told(gone, "TaskFailed", None)]
    history.lossy = [Window(offer.ended_at - 0.001, offer.ended_at + 0.001)]
    assert check(history).counts == {Kind.LOST_IN_WINDOW: 1}
    history.lossy = [Window(offer.offered_at - 2, offer.offered_at - 1)]
    assert check(history).counts == {Kind.LOST: 1, Kind.ANSWERED: 1}
    history.poison = history.alone = frozenset()
    history.lossy = [Window(offer.ended_at - 0.001, offer.ended_at + 0.001)]
    assert check(history).counts == {Kind.LOST_IN_WINDOW: 1, Kind.ANSWERED: 1}


def test_adds_that_made_sure_have_no_excuse() -> None:
    history = simulated(2)
    [gone] = history.enqueued.pop(first_of(history, 1)).tasks
    offer = next(offer for offer in history.offers if offer.task == gone)
    assert offer.ended_at is not None
    history.lossy = [Window(offer.ended_at - 0.001, offer.ended_at + 0.001)]
    history.durable = True
    assert check(history).counts == {Kind.LOST: 1}


def test_a_lease_that_redis_may_have_lost_proves_nothing() -> None:
    history = simulated(2)
    enqueue_with_a_lost_lease(history)
    lost = history.leases[-1].at
    history.lossy = [Window(lost - 0.1, lost + 0.1)]
    assert check(history).violations == 0
    history.durable = True  # that is about adds
    assert check(history).violations == 0


def test_a_sink_that_delivers_at_least_once_may_get_a_batch_again() -> None:
    history = simulated(2)
    history.exactly_once = False
    again = history.enqueued[first_of(history, 2)]
    history.enqueued.append(again)
    history.dead.append(again)
    history.poison = frozenset(again.tasks)
    operate(history, "requeue_dead_letter", 1, target=again.batch_id, tasks=again.tasks)
    verdict = check(history)
    assert verdict.violations == 0
    assert verdict.redelivered == 1
    # With the same tasks, that is.
    history.enqueued.append(again._replace(tasks=again.tasks[:1], stated_count=1))
    assert check(history).counts[Kind.DUPLICATED] == 1


def test_what_was_cancelled_need_not_be_there() -> None:
    history = simulated(2)
    one, two, three = (history.enqueued.pop(first_of(history, 1)) for _ in range(3))
    operate(history, "cancel_task", True, group=one.group, target=one.tasks[0])
    operate(history, "cancel_group", 1, group=two.group)
    operate(history, "drop_dead_letter", 1, target="0-0-x", group=three.group, tasks=three.tasks)
    history.poison = frozenset(three.tasks)
    verdict = check(history)
    assert verdict.examples == []
    assert verdict.cancelled == 3


def test_a_call_that_a_fault_of_redis_disturbed_may_have_been_repeated() -> None:
    """Its second answer is that nothing was left to cancel."""
    history = simulated(2)
    batch = history.enqueued.pop(first_of(history, 1))
    call = operate(history, "cancel_task", False, group=batch.group, target=batch.tasks[0])
    assert check(history).counts == {Kind.LOST: 1}
    history.disturbances = [Disturbance("Redis killed", call.began_at, call.began_at + 1)]
    assert check(history).examples == []
    history.disturbances = [Disturbance("killed", call.began_at, call.began_at + 1, "f0")]
    assert check(history).counts == {Kind.LOST: 1}


def test_a_call_that_raised_may_have_been_carried_out() -> None:
    for done in (True, False):
        history = simulated(2)
        place = first_of(history, 1)
        batch = history.enqueued[place]
        if done:
            del history.enqueued[place]
        operate(history, "cancel_task", group=batch.group, target=batch.tasks[0], returned=False)
        assert check(history).examples == []


@pytest.mark.parametrize(
    ("disturbance", "excuses"),
    [
        (Disturbance("Redis killed", -60, 60), True),
        (Disturbance("Redis killed", -60, -40), False),
        (Disturbance("flusher frozen", -60, 60, "f0"), True),
        (Disturbance("flusher frozen", -60, 60, "elsewhere"), False),
        (Disturbance("merge raised", -60, 60, group="itself"), True),
        (Disturbance("merge raised", -60, 60, group="another"), False),
    ],
)
def test_a_fault_excuses_what_it_may_delay(disturbance: Disturbance, excuses: bool) -> None:
    history = simulated(2)
    leave_late(history)
    late = next(finding for finding in check(history).examples if finding.kind is Kind.LATE)
    batch = next(each for each in history.enqueued if each.batch_id in late.text)
    assert batch.enqueued_at is not None
    group = batch.group if disturbance.group == "itself" else disturbance.group
    history.disturbances = [
        disturbance._replace(
            start=batch.enqueued_at + disturbance.start,
            end=batch.enqueued_at + disturbance.end,
            group=group,
        )
    ]
    assert check(history).counts == ({} if excuses else {Kind.LATE: 1})


def test_nothing_is_late_before_there_is_a_leader() -> None:
    for since, excused in ((1, True), (40, False)):
        history = simulated(2)
        leave_late(history)
        ended = max(batch.enqueued_at or 0 for batch in history.enqueued)
        history.leases = [Lease(0, 1, "f0", ended - since)]
        history.enqueued = [each._replace(by="") for each in history.enqueued]
        assert check(history).counts == ({} if excused else {Kind.LATE: 1})


def test_a_pause_excuses_what_leaves_late() -> None:
    history = simulated(2)
    leave_late(history)
    ended = max(batch.enqueued_at or 0 for batch in history.enqueued)
    operate(history, "pause", began_at=ended - 40, ended_at=ended - 39.5)
    operate(history, "resume", began_at=ended - 1, ended_at=ended)
    assert check(history).counts == {}


def test_a_pause_goes_on_if_the_call_that_ended_it_may_be_lost() -> None:
    history = simulated(2)
    leave_late(history)
    ended = max(batch.enqueued_at or 0 for batch in history.enqueued)
    operate(history, "pause", began_at=ended - 40, ended_at=ended - 39.5)
    operate(history, "resume", began_at=ended - 38, ended_at=ended - 37.5)
    assert check(history).counts == {Kind.LATE: 1}
    history.lossy = [Window(ended - 39, ended - 37)]
    assert check(history).counts == {Kind.LATE: 1}  # nobody has resumed it again
    operate(history, "resume", began_at=ended - 1, ended_at=ended - 0.5)
    assert check(history).examples == []


def test_a_pause_of_a_group_excuses_what_leaves_late_of_it() -> None:
    for itself in (True, False):
        history = simulated(2)
        leave_late(history)
        late = next(finding for finding in check(history).examples if finding.kind is Kind.LATE)
        batch = next(each for each in history.enqueued if each.batch_id in late.text)
        ended, group = batch.enqueued_at or 0, batch.group if itself else "another"
        operate(history, "pause", group=group, began_at=ended - 40, ended_at=ended - 39.5)
        operate(history, "resume", group=group, began_at=ended - 1, ended_at=ended)
        assert check(history).counts == ({} if itself else {Kind.LATE: 1})


def test_a_task_that_fails_alone_leaves_the_rest_of_its_batch() -> None:
    history = simulated(2)
    batch = part(history)
    assert batch.as_cut.tasks == (history.dead[0].tasks[0], *batch.tasks)
    verdict = check(history)
    assert verdict.examples == []
    assert (verdict.parted, verdict.dead) == (1, 1)
    # It may be requeued, and is a batch of its own then.
    letter = history.dead.pop()
    operate(history, "requeue_dead_letter", 1, target=letter.batch_id, tasks=letter.tasks)
    history.enqueued.append(letter._replace(enqueued_at=EPOCH + 60, stated_count=1))
    assert check(history).examples == []


def test_tasks_that_failed_alone_are_tried_again_out_of_order() -> None:
    history = simulated(2)
    history.retries = 3
    batch = part(history)
    retried = history.dead.pop()._replace(batch_id=f"{batch.batch_id}-failed-1-0")
    history.poison = history.alone = frozenset()
    history.enqueued.append(retried._replace(enqueued_at=EPOCH + 60, stated_count=1))
    verdict = check(history)
    assert verdict.examples == []
    assert (verdict.parted, verdict.retried) == (1, 1)
    # What fails alone once too often is a dead letter of its own.
    history.retries = 1
    assert check(history).counts == {Kind.PARTED: 1}


def test_halves_of_a_batch_are_judged_as_one() -> None:
    history = simulated(3)
    place = next(n for n, each in enumerate(history.enqueued) if len(each.tasks) == 4)
    batch = history.enqueued[place]
    assert batch.group == "a"  # whose max size it has

    def half(name: str, *tasks: str) -> Batch:
        return batch._replace(batch_id=batch.batch_id + name, tasks=tasks, stated_count=len(tasks))

    one, two, three, four = batch.tasks
    history.enqueued[place : place + 1] = [half(".0", one, two), half(".1.0", three)]
    history.enqueued.insert(place + 2, half(".1.1", four))
    verdict = check(history)
    assert verdict.examples == []
    assert verdict.halves == 3
    # The last one may be dead.
    history.dead.append(history.enqueued.pop(place + 2)._replace(enqueued_at=None))
    history.poison = history.alone = frozenset([four])
    assert check(history).examples == []


@pytest.mark.parametrize(
    "excuse",
    [
        Disturbance("Redis killed", -60, 60),
        Disturbance("flusher frozen", -60, 60, "f0"),
        Lease(0, 7, "f1", -0.5),
        Window(-0.6, 0.1),
    ],
    ids=["server", "flusher", "lease", "clock"],
)
def test_a_reply_of_a_merge_may_not_have_reached_redis(excuse: object) -> None:
    history = simulated(2)
    merge_before_the_time(history)
    at = history.replies[0].at
    if isinstance(excuse, Disturbance):
        history.disturbances = [excuse._replace(start=at + excuse.start, end=at + excuse.end)]
    elif isinstance(excuse, Lease):
        history.leases = [excuse._replace(at=at + excuse.at)]
    elif isinstance(excuse, Window):
        history.clock = [Window(at + excuse.start, at + excuse.end)]
    assert check(history).examples == []
    history.disturbances = [Disturbance("flusher frozen", at - 60, at + 60, "elsewhere")]
    history.leases, history.clock = [], []
    assert check(history).counts == {Kind.TOO_SOON: 1}


def test_calls_within_their_limits_pass() -> None:
    history = simulated(2)
    rate = {"limit": 4, "per": 2}
    history.work_limits = {
        "max_concurrency": 2,
        "group_concurrency": 1,
        "rate_limit": rate,
        "group_rate_limit": rate,
    }
    history.calls = [call_at(0.55 * n + shift, f"g{shift}") for n in range(9) for shift in (0, 5.5)]
    assert check(history).examples == []


def test_a_call_does_not_count_after_its_time_or_while_its_process_is_frozen() -> None:
    history = simulated(2)
    history.work_limits, history.merge_timeout = {"group_concurrency": 1}, 1.0
    history.calls = [call_at(0, took=math.inf), call_at(1, flusher="f1")]
    assert check(history).examples == []
    history.calls[1] = call_at(0.5, flusher="f1")
    assert check(history).counts == {Kind.EXCEEDED: 1}
    history.downs = [Down("f0", EPOCH + 0.4)]
    assert check(history).examples == []


def test_a_flusher_merges_another_batch_before_and_after_a_pause() -> None:
    history = simulated(2)
    merge_when_asked_not_to(history)
    history.calls = [call_at(at, "b") for at in (0.9, 1.1, 1.61)] + [call_at(1.5, "b", "f1")]
    assert check(history).examples == []
    history.calls = [call_at(1.5, "b")]
    history.disturbances = [Disturbance("flusher frozen", EPOCH, EPOCH + 5, "f0")]
    assert check(history).examples == []
    history.disturbances = [Disturbance("merge asked for time for all", EPOCH, EPOCH + 5, "f0")]
    assert check(history).counts == {Kind.TOO_SOON: 1}


def test_a_partition_that_a_move_removes_needs_no_leader() -> None:
    history = simulated(2)
    take_over_late(history)
    assert check(history).counts == {Kind.TAKEOVER: 1}
    down = history.downs[0].at
    history.disturbances = [Disturbance(MOVED, down - 0.01, down + 0.01)]
    assert check(history).examples == []
    history.disturbances = [Disturbance(MOVED, down - 0.02, down - 0.01)]
    assert check(history).counts == {Kind.TAKEOVER: 1}


def test_a_flush_counts_for_tasks_that_came_by_a_clock_ahead() -> None:
    history = simulated(2)
    plant_in_cause(history, reason="flush", arrivals=(EPOCH + 300,))
    claimed = history.enqueued[-1].claimed_at
    assert check(history).counts == {Kind.PREMATURE: 1}
    operate(history, "flush_all", began_at=claimed - 0.01, ended_at=claimed)
    assert check(history).examples == []


def test_outcomes_that_are_true_pass() -> None:
    history = simulated(2)
    task, _ = submit(history, submitted_place(history))
    history.told.append(Told(task, "result", result_of(task)))
    name_the_wrong_dead_letter(history)
    [letter] = history.dead
    [dead] = letter.tasks
    history.answers[dead] = Answer("failed", letter.batch_id, ("no", letter.batch_id))
    history.told.append(Told(dead, "TaskFailed", None))
    verdict = check(history)
    assert verdict.examples == []
    assert (verdict.answered, verdict.told) == (2, 2)


def test_a_batch_that_gave_up_behind_a_failed_one_is_merged_again() -> None:
    history = simulated(2)
    merge_what_gave_up(history)
    reply = history.replies[0]
    failed = Disturbance("merge raised", reply.at - 0.5, reply.at + 0.5, group=reply.group)
    history.disturbances = [failed]
    assert check(history).examples == []
    own = failed._replace(start=reply.at - 0.0001)  # the merge that gave up
    history.disturbances = [own, failed._replace(group="other")]
    assert check(history).counts == {Kind.TOO_SOON: 1}


def test_a_step_of_the_clock_makes_a_group_wait_for_its_limits_once_more() -> None:
    history = simulated(2)
    leave_late(history)
    ended = max(batch.enqueued_at or 0 for batch in history.enqueued)
    history.clock = [Window(ended - 35, ended - 31 + 1)]
    assert check(history).counts == {}
    history.clock = [Window(ended - 45, ended - 40)]
    assert check(history).counts == {Kind.LATE: 1}


def test_a_takeover_waits_for_redis() -> None:
    history = simulated(2)
    take_over_late(history)
    [down] = history.downs
    assert check(history).counts == {Kind.TAKEOVER: 1}
    history.disturbances = [Disturbance("Redis frozen", down.at, down.at + 2)]
    assert check(history).counts == {}
    history.disturbances = [Disturbance("flusher killed", down.at, down.at + 2, "f0")]
    assert check(history).counts == {Kind.TAKEOVER: 1}


def test_what_waited_when_redis_was_wiped_is_lost_where_redis_may_lose() -> None:
    history = simulated(2)
    [gone] = history.enqueued.pop(first_of(history, 1)).tasks
    offer = next(offer for offer in history.offers if offer.task == gone)
    assert offer.ended_at is not None
    wipe = Window(offer.ended_at + 0.5, offer.ended_at + 0.6)
    history.wiped, history.lossy = [wipe], [wipe._replace(start=wipe.start - 30)]
    assert check(history).counts == {Kind.LOST_IN_WINDOW: 1}
    # What was acknowledged afterwards has no excuse.
    wipe = Window(offer.offered_at - 0.2, offer.offered_at - 0.1)
    history.wiped, history.lossy = [wipe], [wipe._replace(start=wipe.start - 30)]
    assert check(history).counts == {Kind.LOST: 1}


def test_an_add_that_is_repeated_after_redis_was_wiped_may_add_twice() -> None:
    history = simulated(2)
    history.exactly_once = False
    again = history.enqueued[first_of(history, 1)]._replace(enqueued_at=None)
    history.enqueued.append(again._replace(batch_id="0-0-x"))
    assert check(history).counts[Kind.DUPLICATED] == 1
    [task] = again.tasks
    offer = next(offer for offer in history.offers if offer.task == task)
    history.wiped = [Window(offer.offered_at, offer.offered_at + 0.01)]
    assert check(history).counts[Kind.DUPLICATED] == 0


def test_a_task_that_is_offered_again_is_enqueued_once() -> None:
    history = simulated(2)
    batch = history.enqueued[first_of(history, 1)]
    [task] = batch.tasks
    history.again = [
        Offer(task, "p1", AGAIN, batch.group, EPOCH + 20, "acknowledged", EPOCH + 20.1)
    ]
    verdict = check(history)
    assert (verdict.violations, verdict.repeated) == (0, 1)
    twice = batch._replace(batch_id=id_of(EPOCH + 25), enqueued_at=EPOCH + 25, by="")
    history.enqueued.append(twice)
    assert check(history).counts[Kind.DUPLICATED] == 1


def test_a_requeued_batch_is_out_of_order_and_late_with_reason() -> None:
    history = simulated(2)
    swap_batches(history)
    leave_late(history)
    assert check(history).violations > 0
    for batch in history.enqueued:
        operate(history, "requeue_dead_letter", 1, target=batch.batch_id, tasks=batch.tasks)
    history.poison = frozenset(task for batch in history.enqueued for task in batch.tasks)
    assert check(history).examples == []


def test_a_task_of_the_millisecond_of_a_cut_may_have_come_behind_it() -> None:
    history = simulated(2)
    add_task_with_not_before(history, 0.0)
    assert check(history).examples == []


def test_a_flush_makes_a_batch_due() -> None:
    for group, excused in (("b", True), ("", True), ("a", False)):
        history = simulated(1)
        ignore_the_grace_period(history)
        name = "flush" if group else "flush_all"
        operate(history, name, 1, group=group, began_at=EPOCH, ended_at=EPOCH + 20)
        assert check(history).counts == ({} if excused else {Kind.PREMATURE: 1})


# --- journals ------------------------------------------------------------------------------------


def test_a_journal_says_what_became_of_each_task(tmp_path: Path) -> None:
    path = tmp_path / "p"
    ticks = iter(range(10))
    journal = Journal(path)
    log = ProducerLog(journal, "p", lambda: next(ticks))
    assert log.offer(["a", "b"]) == ["p/0", "p/1"]
    log.end("acknowledged")
    log.offer(["a"])
    log.end("refused", "full")
    log.offer(["c"])
    with path.open("ab") as file:
        file.write(b'["ended", "p", 9, "ackn')  # killed within the call
    assert list(read_offers(read_journal(path))) == [
        Offer("p/0", "p", 0, "a", 0, "acknowledged", 1),
        Offer("p/1", "p", 1, "b", 0, "acknowledged", 1),
        Offer("p/2", "p", 2, "a", 2, "refused", 3),
        Offer("p/3", "p", 3, "c", 4, "unknown", None),
    ]


def test_a_journal_says_what_was_offered_again(tmp_path: Path) -> None:
    ticks = iter(range(10))
    log = ProducerLog(Journal(tmp_path / "p"), "p", lambda: next(ticks))
    [task] = log.offer(["a"])
    log.end("acknowledged")
    log.offer_again(task, "a")
    log.end("unknown", "no answer")
    assert list(read_offers(read_journal(tmp_path / "p"))) == [
        Offer("p/0", "p", 0, "a", 0, "acknowledged", 1),
        Offer("p/0", "p", AGAIN, "a", 2, "unknown", 3),
    ]


def test_a_journal_says_what_the_operator_did(tmp_path: Path) -> None:
    def cancel_task(group: str, task: str) -> bool:
        return (group, task) == ("a", "p/0")

    def drop_dead_letter(batch_id: str) -> int:
        raise UnknownBatch(batch_id)

    log = OperatorLog(Journal(tmp_path / "o"))
    assert log.call(cancel_task, group="a", target="p/0")
    with pytest.raises(UnknownBatch):
        log.call(drop_dead_letter, group="a", target="0-0-x", tasks=["p/1"])
    one, two = (read_operation(event[1:]) for event in read_journal(tmp_path / "o"))
    assert one[:1] + one[3:] == ("cancel_task", True, True, "a", "p/0", ())
    assert two[:1] + two[3:] == ("drop_dead_letter", "0-0-x", False, "a", "0-0-x", ("p/1",))
    assert one.began_at <= (one.ended_at or 0) <= two.began_at


def test_a_journal_outlives_a_sigkill(tmp_path: Path) -> None:
    """All that it had when the process said so is there."""
    path = tmp_path / "journal"
    code = (
        "import sys; from pathlib import Path; from tests.faults.history import Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for n in range(10**9):\n"
        "    journal.write(n)\n"
        "    if n % 1000 == 0: print(n, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        text=True,
    ) as process:
        assert process.stdout is not None
        for _ in range(5):
            said = int(process.stdout.readline())
        time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    events = [event for [event] in read_journal(path)]
    assert events == list(range(len(events)))
    assert len(events) > said


def test_a_flush_counts_for_tasks_whose_arrival_a_clock_ahead_has_stated() -> None:
    """What a cut leaves behind counts as opened by it, which says nothing of when it came."""
    history = simulated(2)
    add_ruled_batch(history)
    [*_, batch] = history.enqueued
    assert batch.cause is not None
    ahead = batch.claimed_at + 60
    cause = batch.cause._replace(reason="flush", arrivals=(ahead,), opened_at=batch.claimed_at)
    change(history, -1, cause=cause)
    assert check(history).counts == {Kind.PREMATURE: 1}
    flush = Operation("flush", EPOCH + 0.3, EPOCH + 0.31, 1, returned=True, group="mixed0")
    history.operations.append(flush)
    assert check(history).examples == []
