"""Compares the enqueued batches of a run with its offers. Pure functions over plain data.

Every rule is sound: it reports only what can't happen if redisagg keeps its guarantees, whatever
processes, network and servers did, and however long each step took. Where only the bounds of a time
are known (a task arrives in Redis between its offer and the end of the call), a rule takes the
bound that excuses most.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import accumulate, pairwise
from typing import NamedTuple

from tests.faults import rules, work
from tests.faults.history import (
    MOVED,
    Batch,
    History,
    Lease,
    Limits,
    Offer,
    Operation,
    Reply,
    Window,
    place_of,
)
from tests.faults.workload import result_of

# Redis rounds times down to milliseconds, in the arrival of tasks as in ids of stream entries.
_ROUNDING = 0.005

# Seconds by which a takeover may miss the end of a lease, on a machine that is busy.
_TAKEOVER_SLACK = 1.0

# Seconds for which limits of a task may matter to the group after the task has left.
_WAITS = 5.0

# Seconds after which batches in retry follow when their group is resumed.
_RETRIED_WITHIN = 2.0

_EXAMPLES = 20  # of each kind


class Kind(Enum):
    """The kinds of findings about a task or a batch."""

    LOST = "lost"
    """Acknowledged, but neither enqueued, nor in flight, waiting or dead."""
    LOST_IN_WINDOW = "lost where Redis may lose"
    """Lost, but acknowledged when Redis itself may lose writes. No violation."""
    DUPLICATED = "duplicated"
    """In more than one batch, or waiting and in a batch."""
    REORDERED = "reordered"
    """Enqueued after a task that was offered only when this one had been acknowledged."""
    OVERSIZED = "oversized"
    """A batch with more tasks, bytes or weight than its group allows."""
    MISSTATED = "misstated"
    """A batch with another weight, or other bytes, than it states."""
    MISGROUPED = "misgrouped"
    """In a batch of another group."""
    PREMATURE = "premature"
    """A batch that none of its limits allowed yet, or whose stated reason is not true."""
    LATE = "late"
    """A due batch that left later than its bound, disturbances not counted."""
    TAKEOVER = "taken over late"
    """A partition of a dead flusher that nobody took over within one lease time."""
    UNSTOPPED = "not stopped in time"
    """A flusher that did not end within its time after SIGTERM."""
    CANCELLED = "cancelled"
    """In a batch although it was cancelled, or dropped as a dead letter."""
    PAUSED = "paused"
    """A batch that was cut while the namespace or its group was paused."""
    BURIED = "buried"
    """A dead letter without a task that can't be merged."""
    PARTED = "parted wrongly"
    """A task that failed alone without a dead letter of its own, or in one with others, or a task
    that can't be merged in a batch that was enqueued."""
    ANSWERED = "answered wrongly"
    """A task that was submitted whose stored outcome, or what a receipt said, is not what became of
    it."""
    TOO_SOON = "tried too soon"
    """A batch that was merged again earlier than its merge function asked for, or another one while
    its flusher was asked to merge nothing."""
    EXCEEDED = "above a limit on work"
    """More merges at the same time, or in the window of a rate, than a limit allows."""
    OVERFULL = "overfull"
    """More pending tasks than `max_pending_tasks` allows."""
    PHANTOM = "phantom"
    """Stored or enqueued, but never offered, or refused."""
    STALE = "stale"
    """Enqueued by a flusher when another one already knew of its newer lease."""
    LEFT = "left"
    """Still waiting or in flight at the end."""


class Finding(NamedTuple):
    """One finding."""

    kind: Kind
    text: str


@dataclass
class Verdict:
    """The counts of a run and the findings of the checker."""

    offered: int = 0
    acknowledged: int = 0
    refused: int = 0
    unknown: int = 0
    enqueued: int = 0
    """Tasks in batches that were enqueued."""
    batches: int = 0
    dead: int = 0
    """Tasks among the dead letters."""
    redelivered: int = 0
    """Batches delivered again with the same id and tasks, to a sink that allows it."""
    repeated: int = 0
    """Tasks offered a second time, within the dedupe window."""
    cancelled: int = 0
    """Tasks that were cancelled or dropped, as far as the calls returned."""
    parted: int = 0
    """Tasks that failed alone."""
    retried: int = 0
    """Batches of tasks that failed alone and were tried again."""
    halves: int = 0
    """Batches that are parts of one that was split."""
    answered: int = 0
    """Tasks that were submitted, and whose outcome is kept."""
    told: int = 0
    """Outcomes that receipts said during the run."""
    merges: int = 0
    """Calls of merge functions."""
    put_off: int = 0
    """Merges that asked for time, or gave up."""
    operations: Counter[str] = field(default_factory=Counter)
    """Calls of the operator that returned."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Batches of groups with limits of all kinds, by why they were due."""
    takeovers: int = 0
    """Partitions that lost their leader, and another one took them over."""
    lateness: float = 0.0
    """The largest time in seconds from the moment when a batch was due to that when it left,
    disturbances not counted."""
    takeover: float = 0.0
    """The same from the end of a leader to the next lease."""
    counts: Counter[Kind] = field(default_factory=Counter)
    examples: list[Finding] = field(default_factory=list)

    @property
    def violations(self) -> int:
        """The number of findings that break a guarantee."""
        return self.counts.total() - self.counts[Kind.LOST_IN_WINDOW]


def check(history: History) -> Verdict:
    """Checks a history against the guarantees of redisagg."""
    offers = {offer.task: offer for offer in history.offers}
    enqueued = _once(history, history.enqueued)
    dropped = [
        Batch(each.target, each.group, each.tasks)
        for each in history.operations
        if each.name == "drop_dead_letter" and _is_sure(history, each)
    ]
    there = _once(history, [*enqueued, *history.in_flight, *history.dead]) + history.waiting
    outcomes = Counter(offer.outcome for offer in history.offers)
    verdict = Verdict(
        offered=len(history.offers),
        acknowledged=outcomes["acknowledged"],
        refused=outcomes["refused"],
        unknown=outcomes["unknown"],
        enqueued=sum(len(batch.tasks) for batch in enqueued),
        batches=len(enqueued),
        dead=sum(len(batch.tasks) for batch in history.dead),
        redelivered=len(history.enqueued) - len(enqueued),
        repeated=len(history.again),
        cancelled=sum(
            int(each.result)
            for each in history.operations
            if each.returned and each.name in _REMOVING
        ),
        parted=sum(len(batch.failed) for batch in enqueued),
        retried=sum(_RETRIED in batch.batch_id for batch in enqueued),
        halves=sum("." in batch.batch_id for batch in enqueued),
        answered=len(history.answers),
        told=len(history.told),
        merges=len(history.calls),
        put_off=len(history.replies),
        operations=Counter(
            f"{each.name} of a group" if each.group and each.name in _OF_ALL else each.name
            for each in history.operations
            if each.returned
        ),
    )
    if history.moves:
        verdict.operations["movers"] = history.moves
    for finding in _findings(history, offers, enqueued, there, dropped, verdict):
        verdict.counts[finding.kind] += 1
        if verdict.counts[finding.kind] <= _EXAMPLES:
            verdict.examples.append(finding)
    return verdict


_OF_ALL = ("pause", "resume")
"""The calls that are about all groups unless they name one."""

_REMOVING = ("cancel_task", "cancel_group", "drop_dead_letter")


def _once(history: History, batches: Sequence[Batch]) -> list[Batch]:
    """The batches, without redeliveries to a sink that allows them."""
    if history.exactly_once:
        return list(batches)
    first: dict[tuple[str, tuple[str, ...]], Batch] = {}
    for batch in batches:
        first.setdefault((batch.batch_id, batch.tasks), batch)
    return list(first.values())


def _findings(
    history: History,
    offers: Mapping[str, Offer],
    enqueued: list[Batch],
    there: list[Batch],
    dropped: list[Batch],
    verdict: Verdict,
) -> Iterator[Finding]:
    yield from _misplaced(history, offers, there, dropped)
    yield from _buried(history)
    yield from _parted(history, enqueued)
    yield from _answered(history, offers, enqueued)
    yield from _tried_too_soon(history, enqueued)
    yield from (Finding(Kind.TOO_SOON, what) for what in work.merged_while_held(history))
    yield from (Finding(Kind.EXCEEDED, what) for what in work.exceeded(history))
    for batch in (*enqueued, *history.in_flight, *history.dead):
        yield from _oversized(batch, history.limits[batch.group])
    cut_as = _as_cut(history, enqueued)
    whole = {batch.batch_id: batch for batch in cut_as.values()}.values()
    plain = [batch for batch in whole if batch.cause is None]
    ruled = {cut.batch.batch_id: cut for cut in rules.cuts(history, offers, whole)}
    verdict.reasons = Counter(cut.cause.reason for cut in ruled.values())
    yield from _against_rules(history, offers, ruled.values())
    yield from _premature(history, offers, plain)
    requeued = {each.target for each in history.operations if each.name == "requeue_dead_letter"}
    in_order = [
        batch
        for batch in enqueued
        if batch.batch_id not in requeued and _RETRIED not in batch.batch_id
    ]
    for group, batches in _by_group(in_order).items():
        tasks = [task for batch in batches for task in batch.tasks]
        yield from _reordered(history, group, tasks, offers)
    if history.exactly_once:
        yield from _stale(enqueued, history)
    yield from _cut_in_pause(history, there)
    yield from _late(history, offers, in_order, cut_as, ruled, verdict)
    yield from _taken_over_late(history, verdict)
    yield from _unstopped(history)
    yield from _overfull(history)
    for batch in (*history.waiting, *history.in_flight):
        for task in batch.tasks:
            yield Finding(Kind.LEFT, f"{task} in group {batch.group} {batch.batch_id}")


# --- where tasks are -----------------------------------------------------------------------------


def _misplaced(
    history: History, offers: Mapping[str, Offer], there: list[Batch], dropped: list[Batch]
) -> Iterator[Finding]:
    """Each acknowledged task is there once, each unknown one at most once, and no other."""
    places: dict[str, list[Batch]] = defaultdict(list)
    for batch in (*there, *dropped):
        for task in batch.tasks:
            places[task].append(batch)
    removals = _Removals(history)
    again = {offer.task: offer for offer in history.again}
    for task, batches in places.items():
        offer = offers.get(task)
        if offer is None or offer.outcome == "refused":
            why = "never offered" if offer is None else "refused"
            yield Finding(Kind.PHANTOM, f"{task}, which was {why}")
            continue
        names = ", ".join(batch.batch_id or "waiting" for batch in batches)
        last = again.get(task, offer)
        if len(batches) > 1 and not _wiped_during(history, offer, last):
            kind = Kind.CANCELLED if set(map(id, batches)) & set(map(id, dropped)) else None
            yield Finding(kind or Kind.DUPLICATED, f"{task} in {names}")
        cancel = removals.cancelled.get(task)
        if cancel and not (task in again or _may_be_lost(history, *_span(cancel))):
            yield Finding(Kind.CANCELLED, f"{task}, cancelled at {cancel.began_at:.3f}, in {names}")
        for batch in batches:
            if offer.group != batch.group:
                where = f"batch {batch.batch_id} of group {batch.group}"
                yield Finding(Kind.MISGROUPED, f"{task} of group {offer.group} in {where}")
    missing = [offer for offer in history.offers if offer.task not in places]
    yield from _lost(history, missing, removals)


def _lost(history: History, missing: Sequence[Offer], removals: _Removals) -> Iterator[Finding]:
    by_group: Counter[str] = Counter()  # tasks that only `cancel_group` can have removed
    unknown: Counter[str] = Counter()
    for offer in missing:
        if offer.outcome == "unknown":
            unknown[offer.group] += 1
        if offer.outcome != "acknowledged" or offer.task in removals.possible:
            continue
        # The first tasks of a large call are acknowledged long before it returns.
        ended_at = offer.ended_at or offer.offered_at
        lossy = _may_be_lost(history, offer.offered_at, ended_at)
        excused = (lossy and not history.durable) or _may_be_wiped(history, offer)
        if not excused:
            by_group[offer.group] += 1
            if by_group[offer.group] <= removals.of_group(offer):
                continue
        kind = Kind.LOST_IN_WINDOW if excused else Kind.LOST
        when = f"offered at {offer.offered_at:.3f}, acknowledged by {ended_at:.3f}"
        yield Finding(kind, f"{offer.task} of group {offer.group}, {when}")
    if not history.lossy:
        for group, count in removals.counted.items():
            if count > by_group[group] + unknown[group]:
                what = f"{count} tasks of {group} were cancelled, "
                yield Finding(
                    Kind.CANCELLED, f"{what}{by_group[group]} of those acknowledged are missing"
                )


class _Removals:
    """What the calls of the operator removed for certain, and what they may have removed."""

    def __init__(self, history: History) -> None:
        self.cancelled: dict[str, Operation] = {}
        """Tasks that `cancel_task` said to have removed."""
        self.possible: set[str] = set()
        """Tasks that may have been removed."""
        self.counted: Counter[str] = Counter()
        """Tasks that `cancel_group` said to have removed, by group."""
        self._may_be_more: dict[str, float] = {}
        """By group, when a call ended whose count is not known."""
        for each in history.operations:
            if each.name == "cancel_task":
                if each.returned and each.result:
                    self.cancelled[each.target] = each
                    self.possible.add(each.target)
                elif not _is_sure(history, each):
                    self.possible.add(each.target)
            elif each.name == "cancel_group":
                self.counted[each.group] += int(each.result or 0) if each.returned else 0
                if not _is_sure(history, each):
                    self._may_be_more[each.group] = each.ended_at or math.inf
            elif each.name == "drop_dead_letter" and not _is_sure(history, each):
                self.possible.update(each.tasks)

    def of_group(self, offer: Offer) -> float:
        """How many tasks of the group of this one `cancel_group` may have removed."""
        if offer.offered_at <= self._may_be_more.get(offer.group, -math.inf):
            return math.inf
        return self.counted[offer.group]


def _is_sure(history: History, operation: Operation) -> bool:
    """Whether what an operation returned tells what it did.

    A call whose reply was lost is sent again and answers as if there had been nothing to do.
    """
    start, end = _span(operation)
    return operation.returned and not (
        _may_be_lost(history, start, end)
        or _overlaps(
            (
                Window(each.start, each.end)
                for each in history.disturbances
                if not each.place and not each.group
            ),
            start,
            end,
        )
    )


def _span(operation: Operation) -> tuple[float, float]:
    return operation.began_at, math.inf if operation.ended_at is None else operation.ended_at


def _wiped_during(history: History, offer: Offer, last: Offer) -> bool:
    """Whether Redis forgot, while an add was repeated, that it had carried it out."""
    end = _latest_arrival(last)
    return _overlaps(history.wiped, offer.offered_at, end)


def _may_be_wiped(history: History, offer: Offer) -> bool:
    """Whether the task may have been in a dead letter, however old, when Redis lost all it had."""
    wiped = any(window.end >= offer.offered_at for window in history.wiped)
    return wiped and _may_be_buried(history, offer)


def _may_be_buried(history: History, offer: Offer) -> bool:
    """Whether the task may become part of a dead letter."""
    return offer.task in history.poison or offer.group in history.buries_innocents


def _may_lose_letter(history: History, offer: Offer) -> bool:
    """Whether Redis may have lost a dead letter with this task after it was announced."""
    if _may_be_wiped(history, offer):
        return True
    lossy = _may_be_lost(history, offer.offered_at, _end(history))
    return lossy and _may_be_buried(history, offer)


def _buried(history: History) -> Iterator[Finding]:
    """Each dead letter holds a task that no flusher can merge."""
    for batch_id, tasks in _letters(history).items():
        if not history.poison.intersection(tasks):
            yield Finding(Kind.BURIED, f"batch {batch_id} of {', '.join(tasks[:3])}")


def _letters(history: History) -> dict[str, tuple[str, ...]]:
    """The tasks of all dead letters that are known, also of those that are gone, by batch id."""
    letters = {batch.batch_id: batch.tasks for batch in history.dead}
    for each in history.operations:
        if each.name in ("requeue_dead_letter", "drop_dead_letter"):
            letters.setdefault(each.target, each.tasks)
    return letters


def _parted(history: History, enqueued: Sequence[Batch]) -> Iterator[Finding]:
    """A task that fails alone is in a dead letter of its own, and the rest is done without it."""
    letters = _letters(history)
    for batch_id, tasks in letters.items():
        bad = history.poison.intersection(tasks)
        innocent = [task for task in tasks if task not in bad]
        if innocent and bad and bad <= history.alone:
            what = f"{innocent[0]} in dead letter {batch_id} with {min(bad)}, which fails alone"
            yield Finding(Kind.PARTED, what)
    cured = {
        task
        for each in history.operations
        if each.name == "requeue_dead_letter"
        for task in each.tasks
    }
    for batch in enqueued:
        for task in history.poison.intersection(batch.tasks) - cured:
            yield Finding(Kind.PARTED, f"{task}, which can't be merged, in batch {batch.batch_id}")
        # Its letters are written with its last slice; a sink outside Redis gets it before.
        known_until = math.inf if history.exactly_once else _end(history)
        since = (batch.left_at or 0.0) - _ROUNDING
        if _may_be_lost(history, since, known_until):
            continue
        for place, task in batch.failed:
            letter = f"{batch.batch_id}-task-{place}"
            if _times_failed(batch) < history.retries:  # it is tried again
                if letter in letters:
                    yield Finding(Kind.PARTED, f"{task} in {letter}, and not tried again")
            elif letters.get(letter) != (task,):
                what = f"{task} failed alone in batch {batch.batch_id}, not in {letter}"
                yield Finding(Kind.PARTED, what)


_RETRIED = "-failed-"
"""Is part of the id of a batch of tasks that failed alone; behind it, how often they did."""


def _times_failed(batch: Batch) -> int:
    """How often the tasks that failed alone in a batch have done so."""
    _, _, behind = batch.batch_id.partition(_RETRIED)
    return int(behind.split("-")[0]) + 1 if behind else 1


def _answered(
    history: History, offers: Mapping[str, Offer], enqueued: Sequence[Batch]
) -> Iterator[Finding]:
    """The outcome of a task that was submitted is kept, and is what became of it."""
    letters = {task: batch for batch in history.dead for task in batch.tasks}
    batches = {task: batch for batch in enqueued for task in batch.tasks}
    for task in history.submitted:
        offer, answer = offers[task], history.answers.get(task)
        if offer.outcome != "acknowledged" or task in letters:
            continue  # of a letter see below
        batch = batches.get(task)
        if batch is None or _may_be_lost(history, offer.offered_at, _end(history)):
            continue
        if answer != ("result", batch.batch_id, result_of(task)):
            yield Finding(Kind.ANSWERED, f"{task} of batch {batch.batch_id}: {answer}")
    for task, letter in letters.items():
        if task not in history.submitted or offers[task].outcome != "acknowledged":
            continue
        answer = history.answers.get(task)
        if _may_be_lost(history, offers[task].offered_at, _end(history)):
            continue
        if answer is None or answer.state != "failed" or answer.value[1] != letter.batch_id:
            yield Finding(Kind.ANSWERED, f"{task} of dead letter {letter.batch_id}: {answer}")
    dead = {task for tasks in _letters(history).values() for task in tasks}
    for told in history.told:
        wrong = told.outcome == "result" and told.value != result_of(told.task)
        failed = told.outcome == "TaskFailed" and told.task not in dead
        if wrong or (failed and not _may_lose_letter(history, offers[told.task])):
            yield Finding(Kind.ANSWERED, f"{told.task}: a receipt said {told.outcome} {told.value}")
        if told.outcome == "NoResult":
            yield Finding(Kind.ANSWERED, f"{told.task}: a receipt said that there is no result")


def _tried_too_soon(history: History, enqueued: Sequence[Batch]) -> Iterator[Finding]:
    """After its merge asked for time or gave up, a batch is merged again then, or never.

    A leader that ends before Redis has the reply leaves the batch to the next one. A batch that
    gave up while an older one of its group failed goes back with that one, and is merged again.
    """
    said: dict[str, list[Reply]] = defaultdict(list)
    for reply in sorted(history.replies, key=lambda reply: reply.at):
        said[reply.batch_id].append(reply)
    left = {batch.batch_id: batch.left_at for batch in enqueued}
    for batch_id, replies in said.items():
        ends = [reply.at for reply in replies[1:]]
        if (left_at := left.get(batch_id)) is not None:
            ends.append(left_at)
        for reply, again in zip(replies, ends, strict=False):
            is_kept = again >= reply.again_at - _ROUNDING
            behind = math.isinf(reply.again_at) and _group_failed(history, reply)
            if not is_kept and not behind and not _may_be_unknown(history, reply, again):
                what = f"batch {batch_id} of {reply.group} at {again:.3f}"
                yield Finding(Kind.TOO_SOON, f"{what}, not before {reply.again_at:.3f}")


def _group_failed(history: History, reply: Reply) -> bool:
    """Whether a merge of the group failed shortly before the reply, and may wait for a retry."""
    return any(
        # The merge that gave up is in the journal itself, right before its reply.
        each.group == reply.group and each.start < reply.at - _ROUNDING <= each.end
        for each in history.disturbances
    )


def _may_be_unknown(history: History, reply: Reply, until: float) -> bool:
    """Whether Redis need not have known by then what a merge function said, or knows better."""
    since, partition = reply.at - history.lease_time, int(reply.batch_id.split("-")[1])
    place = place_of(reply.flusher)
    return (
        _overlaps(history.clock, since, until)
        or any(
            each.start <= until and since <= each.end
            for each in history.disturbances
            if not each.group and each.place in ("", place)
        )
        or any(each.partition == partition and since <= each.at <= until for each in history.leases)
        or any(
            each.began_at <= until and since <= _span(each)[1]
            for each in history.operations
            if each.name == "requeue_dead_letter"
        )
    )


# --- batches -------------------------------------------------------------------------------------


def _as_cut(history: History, enqueued: Iterable[Batch]) -> dict[str, Batch]:
    """The batches as they were cut, by the ids of those that were enqueued.

    A batch that was split has all tasks of its halves; it is left out if one of them is not known.
    So is a dead letter or a batch of tasks that failed alone.
    """
    found: dict[str, Batch] = {}
    halves: dict[str, dict[str, Batch]] = defaultdict(dict)
    for batch in enqueued:
        if "-task-" in batch.batch_id or _RETRIED in batch.batch_id:
            continue
        if "." in batch.batch_id:
            halves[batch.batch_id.split(".")[0]].setdefault(batch.batch_id, batch.as_cut)
        else:
            found[batch.batch_id] = batch.as_cut
    letters = {batch_id: tasks for batch_id, tasks in _letters(history).items() if "." in batch_id}
    for batch_id, tasks in letters.items():
        root = batch_id.split(".")[0]
        if "-task-" not in batch_id and root in halves:
            group = next(iter(halves[root].values())).group
            halves[root].setdefault(batch_id, Batch(batch_id, group, tasks))
    for root, parts in halves.items():
        if sum(0.5 ** each.count(".") for each in parts) == 1.0:
            joined = _joined(root, [parts[each] for each in sorted(parts)])
            found |= dict.fromkeys(parts, joined)
    return found


def _joined(root: str, parts: Sequence[Batch]) -> Batch:
    causes = [each.cause for each in parts if each.cause is not None]
    cause = None
    if len(causes) == len(parts):
        cause = causes[0]._replace(
            bytes=sum(each.bytes for each in causes),
            weight=sum(each.weight for each in causes),
            arrivals=tuple(at for each in causes for at in each.arrivals),
            versions=tuple(version for each in causes for version in each.versions),
        )
    return Batch(
        *(root, parts[0].group, tuple(task for each in parts for task in each.tasks)),
        enqueued_at=max((each.left_at or math.inf) for each in parts),
        cause=cause,
    )


def _oversized(batch: Batch, limits: Limits) -> Iterator[Finding]:
    if len(batch.tasks) > limits.size or batch.stated_count not in (None, len(batch.tasks)):
        what = f"batch {batch.batch_id} of {len(batch.tasks)} tasks states {batch.stated_count}"
        yield Finding(Kind.OVERSIZED, f"{what}, at most {limits.size} are allowed")


def _against_rules(
    history: History, offers: Mapping[str, Offer], ruled: Iterable[rules.Cut]
) -> Iterator[Finding]:
    """Batches of groups whose tasks have limits of all kinds."""
    flushes: dict[str, list[Operation]] = defaultdict(list)
    for each in history.operations:
        if each.name in ("flush", "flush_all"):
            flushes[each.group].append(each)
    for cut in ruled:
        batch = cut.batch
        for kind, what in (
            (Kind.OVERSIZED, rules.above_a_cap(history, cut)),
            (Kind.MISSTATED, rules.misstated(cut)),
        ):
            if what:
                yield Finding(kind, f"batch {batch.batch_id} of {batch.group}: {what}")
        if _is_disturbed(history, offers, batch):
            continue
        if what := rules.early(history, cut, [*flushes[batch.group], *flushes[""]]):
            yield Finding(Kind.PREMATURE, f"batch {batch.batch_id} of {batch.group}: {what}")


def _is_disturbed(history: History, offers: Mapping[str, Offer], batch: Batch) -> bool:
    """Whether the clock of Redis was off, or Redis lost tasks, while a batch waited, or shortly
    before."""
    since = min(offers[task].offered_at for task in batch.tasks) - _WAITS
    left_at = math.inf if batch.left_at is None else batch.left_at
    return _overlaps([*history.clock, *history.lossy], since, left_at)


def _premature(
    history: History, offers: Mapping[str, Offer], enqueued: Iterable[Batch]
) -> Iterator[Finding]:
    """A batch that is not full was due at some time before it was claimed.

    It was due when its first task had waited for the max delay, or when the grace period had passed
    after one of its tasks before the next one came. That need not be its last task: a group that is
    due stays so, and tasks that come before the claim are in the same batch.
    """
    flushes: dict[str, list[Operation]] = defaultdict(list)
    for each in history.operations:
        if each.name in ("flush", "flush_all"):
            flushes[each.group].append(each)
    for batch in enqueued:
        limits = history.limits[batch.group]
        known = [offers[task] for task in batch.tasks if task in offers]
        if len(known) >= limits.size or not known:
            continue
        latest_due = batch.claimed_at + _ROUNDING
        flushed = any(
            each.began_at <= latest_due and known[0].offered_at <= _span(each)[1]
            for each in (*flushes[batch.group], *flushes[""])
        )
        left_at = math.inf if batch.left_at is None else batch.left_at
        stepped = _overlaps(history.clock, known[0].offered_at, left_at)
        if flushed or stepped or _was_due(known, limits, latest_due):
            continue
        waited = batch.claimed_at - known[-1].offered_at
        what = f"batch {batch.batch_id} of {len(known)} tasks, claimed {waited:.3f} s after"
        yield Finding(Kind.PREMATURE, f"{what} the last; {limits}")


def _was_due(known: Sequence[Offer], limits: Limits, latest_due: float) -> bool:
    """Whether the limits may have made a batch of these tasks due by then."""
    if known[0].offered_at + limits.delay <= latest_due:
        return True
    for this, following in pairwise(known):
        quiet_until = this.offered_at + limits.grace
        if quiet_until <= latest_due and _latest_arrival(following) + _ROUNDING >= quiet_until:
            return True
    return known[-1].offered_at + limits.grace <= latest_due


def _latest_arrival(offer: Offer) -> float:
    if offer.outcome == "acknowledged" and offer.ended_at is not None:
        return offer.ended_at
    return math.inf  # the network may deliver a request at any later time


def _by_group(batches: Sequence[Batch]) -> dict[str, list[Batch]]:
    groups: dict[str, list[Batch]] = {}
    for batch in batches:
        groups.setdefault(batch.group, []).append(batch)
    return groups


def _reordered(
    history: History, group: str, tasks: Sequence[str], offers: Mapping[str, Offer]
) -> Iterator[Finding]:
    """A task that was acknowledged before another one was offered is enqueued before it.

    Tasks of one producer, of which a call may have several, are enqueued in its order.
    """
    latest: Offer | None = None  # of the tasks so far, the one offered last
    last_of: dict[str, Offer] = {}  # the last one of each producer
    for task in tasks:
        offer = offers.get(task)
        if offer is None or offer.outcome != "acknowledged" or offer.ended_at is None:
            continue
        before = last_of.get(offer.producer)
        if before is not None and before.number > offer.number:
            # A batch that was claimed before Redis was wiped may still be delivered.
            if not _overlaps(history.wiped, offer.offered_at, before.ended_at or math.inf):
                yield Finding(Kind.REORDERED, f"{task} behind {before.task} in group {group}")
        elif (
            latest is not None
            and offer.ended_at < latest.offered_at
            and not _overlaps(history.wiped, offer.offered_at, latest.ended_at or math.inf)
        ):
            late = latest.offered_at - offer.ended_at
            what = f"{task} behind {latest.task}, offered {late:.3f} s after its end"
            yield Finding(Kind.REORDERED, f"{what}, in group {group}")
        last_of[offer.producer] = offer
        if latest is None or offer.offered_at > latest.offered_at:
            latest = offer


def _stale(enqueued: Sequence[Batch], history: History) -> Iterator[Finding]:
    """The flusher that enqueues a batch holds the newest lease that is known by then.

    A flusher writes a lease to its journal after Redis granted it and before it claims anything. A
    lease that Redis may have lost, and its token with it, proves nothing about others.
    """
    moves = [each for each in history.disturbances if each.kind == MOVED]
    leases: dict[int, list[Lease]] = {}
    for lease in sorted(history.leases, key=lambda lease: -lease.token):
        leases.setdefault(lease.partition, []).append(lease)
    for batch in enqueued:
        at = batch.enqueued_at
        if at is None or not batch.by:
            continue
        if any(m.start <= at and batch.claimed_at <= m.end for m in moves):
            continue  # it may be in another partition than its id names
        for lease in leases.get(batch.partition, ()):
            if lease.flusher == batch.by and lease.at <= at + _ROUNDING:
                break
            if lease.at < at - _ROUNDING and not _may_be_lost(history, lease.at, lease.at):
                what = f"batch {batch.batch_id} by {batch.by}, {at - lease.at:.3f} s after"
                yield Finding(Kind.STALE, f"{what} {lease.flusher} held token {lease.token}")
                break


def _cut_in_pause(history: History, there: Sequence[Batch]) -> Iterator[Finding]:
    """No batch is cut between the end of a pause call and the next call to resume."""
    pauses: dict[str, list[Window]] = defaultdict(list)
    paused: dict[str, Operation] = {}
    for each in history.operations:
        if each.name == "pause" and each.returned:
            paused.setdefault(each.group, each)
        elif each.name == "resume" and each.group in paused:
            since = paused.pop(each.group)
            window = Window(_span(since)[1] + _ROUNDING, each.began_at - _ROUNDING)
            lost = _may_be_lost(history, since.began_at, window.end)
            if not lost and not _overlaps(history.clock, since.began_at, window.end):
                pauses[each.group].append(window)
    for batch in there:
        windows = [*pauses[""], *pauses[batch.group]]
        if batch.batch_id and (pause := _covering(windows, batch.claimed_at)):
            what = f"batch {batch.batch_id} of {batch.group}, cut at {batch.claimed_at:.3f}"
            yield Finding(Kind.PAUSED, f"{what}, paused since {pause.start:.3f}")


def _covering(windows: Iterable[Window], at: float) -> Window | None:
    return next((each for each in windows if each.start < at < each.end), None)


# --- liveness ------------------------------------------------------------------------------------


class _Calm:
    """The time without disturbances.

    Args:
        windows: the disturbances.
    """

    def __init__(self, windows: Iterable[tuple[float, float]]) -> None:
        joined: list[list[float]] = []
        for start, end in sorted(windows):
            if joined and start <= joined[-1][1]:
                joined[-1][1] = max(joined[-1][1], end)
            else:
                joined.append([start, end])
        self._starts = [start for start, _ in joined]
        self._ends = [end for _, end in joined]
        self._before = [0.0, *accumulate(end - start for start, end in joined)]

    def between(self, start: float, end: float) -> float:
        """Seconds without a disturbance between two times."""
        return max(0.0, end - start - (self._disturbed(end) - self._disturbed(start)))

    def _disturbed(self, until: float) -> float:
        at = bisect_right(self._starts, until)
        if at == 0:
            return 0.0
        return self._before[at - 1] + min(until, self._ends[at - 1]) - self._starts[at - 1]


class _Leaders:
    """Who led each partition, by the journals of the flushers."""

    def __init__(self, leases: Iterable[Lease]) -> None:
        self._leases: dict[int, list[Lease]] = defaultdict(list)
        for lease in sorted(leases, key=lambda each: (each.token, each.at)):
            self._leases[lease.partition].append(lease)

    def first(self, partition: int) -> float:
        """When the partition first had a leader."""
        return min((lease.at for lease in self._leases[partition]), default=-math.inf)

    def terms(self, *, flusher: str = "", place: str = "") -> Iterator[tuple[Lease, float]]:
        """The leases of a flusher or place, and when the next lease of that partition began."""
        for leases in self._leases.values():
            for at, lease in enumerate(leases):
                if lease.flusher == flusher or place_of(lease.flusher) == place:
                    yield lease, leases[at + 1].at if at + 1 < len(leases) else math.inf


def _everywhere(history: History) -> list[tuple[float, float]]:
    """The times in which all batches may be late: faults of servers, and pauses."""
    windows = [
        (each.start, each.end) for each in history.disturbances if not each.place and not each.group
    ]
    return [*windows, *_pauses(history)[""]]


def _pauses(history: History) -> dict[str, list[tuple[float, float]]]:
    """The times in which batches may be late since all groups or one was paused, by group."""
    windows: dict[str, list[tuple[float, float]]] = defaultdict(list)
    since: dict[str, float] = {}
    for each in history.operations:
        if each.name == "pause":
            since.setdefault(each.group, each.began_at)
        elif each.name == "resume" and each.returned and each.group in since:
            if _may_be_lost(history, *_span(each)):
                continue  # it may be paused until it is resumed again
            resumed = _span(each)[1] + (_RETRIED_WITHIN if each.group else 0.0)
            windows[each.group].append((since.pop(each.group), resumed))
    return windows


def _late(
    history: History,
    offers: Mapping[str, Offer],
    enqueued: Iterable[Batch],
    cut_as: Mapping[str, Batch],
    ruled: Mapping[str, rules.Cut],
    verdict: Verdict,
) -> Iterator[Finding]:
    """A due batch leaves within its bound, while the leader of its partition is not disturbed."""
    if math.isinf(history.bound):
        return
    leaders = _Leaders(history.leases)
    everywhere = _everywhere(history)
    pauses = _pauses(history)
    of_partition: dict[int, list[tuple[float, float]]] = defaultdict(list)
    of_group: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for each in history.disturbances:
        if each.group:
            of_group[each.group].append((each.start, each.end))
        elif each.place:
            for lease, until in leaders.terms(place=each.place):
                if lease.at <= each.end and each.start <= until:
                    of_partition[lease.partition].append((each.start, each.end))
    for down in history.downs:
        for lease, until in leaders.terms(flusher=down.flusher):
            if lease.at <= down.at < until:
                of_partition[lease.partition].append((down.at, min(until, _end(history))))
    calm: dict[str, _Calm] = {}
    for batch in enqueued:
        whole = cut_as.get(batch.batch_id)
        if whole is None:
            continue
        if whole.cause is None:
            due_at = _due_by(history, whole, offers)
        else:
            cut = ruled.get(whole.batch_id)
            due_at = rules.due_by(history, cut) if cut else None
            if cut and _is_disturbed(history, offers, batch):
                due_at = None
        if due_at is None or batch.left_at is None:
            continue
        if batch.group not in calm:
            windows = [*everywhere, *of_partition[batch.partition], *of_group[batch.group]]
            windows += pauses[batch.group]
            calm[batch.group] = _Calm(windows)
        due_at = max(due_at, leaders.first(batch.partition))
        late = calm[batch.group].between(due_at, batch.left_at)
        verdict.lateness = max(verdict.lateness, late)
        if late > history.bound:
            what = f"batch {batch.batch_id} of {batch.group}, due by {due_at:.3f}"
            yield Finding(
                Kind.LATE, f"{what}, left at {batch.left_at:.3f}: {late:.3f} s without a fault"
            )


def _due_by(history: History, batch: Batch, offers: Mapping[str, Offer]) -> float | None:
    """The latest time at which a batch became due; None if the arrival of its tasks is unknown."""
    limits = history.limits[batch.group]
    known = [offers[task] for task in batch.tasks if task in offers]
    arrived = [each.ended_at for each in known if each.outcome == "acknowledged" and each.ended_at]
    if not arrived:
        return None
    due_at = min(arrived) + limits.delay
    if len(arrived) == len(batch.tasks):
        full = len(batch.tasks) >= limits.size
        due_at = min(due_at, max(arrived) + (0.0 if full else limits.grace))
    left_at = math.inf if batch.left_at is None else batch.left_at
    # After a step of the clock of Redis, a group waits for no longer than its limits once more.
    for step in (at for window in history.clock for at in window):
        if known[0].offered_at <= step <= left_at:
            due_at = max(due_at, step + limits.delay)
    return due_at


def _taken_over_late(history: History, verdict: Verdict) -> Iterator[Finding]:
    """The partitions of a flusher that went down have another leader within one lease time."""
    leaders = _Leaders(history.leases)
    moves = [each for each in history.disturbances if each.kind == MOVED]
    everywhere = _everywhere(history)
    for down in history.downs:
        others = [
            (each.start, each.end)
            for each in history.disturbances
            if each.place and each.place != place_of(down.flusher)
        ]
        calm = _Calm([*everywhere, *others])
        for lease, until in leaders.terms(flusher=down.flusher):
            if not lease.at <= down.at < until or _may_be_lost(history, lease.at, down.at):
                continue
            if any(each.start <= until and down.at <= each.end for each in moves):
                continue  # the namespace may not have had this partition any more
            took = calm.between(down.at, min(until, _end(history)))
            verdict.takeovers += 1
            verdict.takeover = max(verdict.takeover, took)
            if took > history.lease_time + _TAKEOVER_SLACK:
                what = f"partition {lease.partition} of {down.flusher}, down at {down.at:.3f}"
                yield Finding(Kind.TAKEOVER, f"{what}, had no leader for {took:.3f} s")


def _end(history: History) -> float:
    if history.ended_at is not None:
        return history.ended_at
    return max((lease.at for lease in history.leases), default=0.0)


def _unstopped(history: History) -> Iterator[Finding]:
    """A flusher ends in time after SIGTERM."""
    for stop in history.stops:
        took = math.inf if stop.ended_at is None else stop.ended_at - stop.asked_at
        if took > stop.within:
            what = f"{stop.flusher}, asked at {stop.asked_at:.3f}"
            yield Finding(Kind.UNSTOPPED, f"{what}, took {took:.1f} s of {stop.within:g} s")


def _overfull(history: History) -> Iterator[Finding]:
    """There are never more pending tasks than allowed, but for dead letters that were requeued."""
    if history.max_pending is None:
        return
    requeued = sum(
        len(each.tasks) for each in history.operations if each.name == "requeue_dead_letter"
    )
    for at, tasks in history.pending:
        if tasks > history.max_pending + requeued:
            what = f"{tasks} pending tasks at {at:.3f}"
            yield Finding(Kind.OVERFULL, f"{what}, at most {history.max_pending} are allowed")


def _may_be_lost(history: History, since: float, until: float) -> bool:
    """Whether Redis may lose what it acknowledged between these two times."""
    return _overlaps(history.lossy, since, until)


def _overlaps(windows: Iterable[Window], since: float, until: float) -> bool:
    return any(window.start <= until and since <= window.end for window in windows)
