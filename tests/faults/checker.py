"""Compares the enqueued batches of a run with its offers. Pure functions over plain data.

Every rule is sound: it reports only what can't happen if redisagg keeps its guarantees, whatever
processes, network and servers did, and however long each step took. Where only the bounds of a time
are known (a task arrives in Redis between its offer and the end of the call), a rule takes the
bound that excuses most.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from typing import NamedTuple

from tests.faults.history import Batch, History, Lease, Limits, Offer

# Redis rounds times down to milliseconds, in the arrival of tasks as in ids of stream entries.
_ROUNDING = 0.005

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
    """A batch with more tasks than its group allows."""
    MISGROUPED = "misgrouped"
    """In a batch of another group."""
    PREMATURE = "premature"
    """A batch that neither size nor grace period nor max delay allowed yet."""
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
    )
    for finding in _findings(history, offers, enqueued, there):
        verdict.counts[finding.kind] += 1
        if verdict.counts[finding.kind] <= _EXAMPLES:
            verdict.examples.append(finding)
    return verdict


def _once(history: History, batches: Sequence[Batch]) -> list[Batch]:
    """The batches, without redeliveries to a sink that allows them."""
    if history.exactly_once:
        return list(batches)
    first: dict[tuple[str, tuple[str, ...]], Batch] = {}
    for batch in batches:
        first.setdefault((batch.batch_id, batch.tasks), batch)
    return list(first.values())


def _findings(
    history: History, offers: Mapping[str, Offer], enqueued: list[Batch], there: list[Batch]
) -> Iterator[Finding]:
    yield from _misplaced(history, offers, there)
    for batch in (*enqueued, *history.in_flight, *history.dead):
        yield from _oversized(batch, history.limits[batch.group])
    for batch in enqueued:
        yield from _premature(batch, offers, history.limits[batch.group])
    for group, batches in _by_group(enqueued).items():
        yield from _reordered(group, [task for batch in batches for task in batch.tasks], offers)
    if history.exactly_once:
        yield from _stale(enqueued, history)
    for batch in (*history.waiting, *history.in_flight):
        for task in batch.tasks:
            yield Finding(Kind.LEFT, f"{task} in group {batch.group} {batch.batch_id}")


def _misplaced(
    history: History, offers: Mapping[str, Offer], there: list[Batch]
) -> Iterator[Finding]:
    """Each acknowledged task is there once, each unknown one at most once, and no other."""
    places = Counter(task for batch in there for task in batch.tasks)
    for task, count in places.items():
        offer = offers.get(task)
        if offer is None or offer.outcome == "refused":
            why = "never offered" if offer is None else "refused"
            yield Finding(Kind.PHANTOM, f"{task}, which was {why}")
        if count > 1:
            batches = [batch.batch_id or "waiting" for batch in there if task in batch.tasks]
            yield Finding(Kind.DUPLICATED, f"{task} in {', '.join(batches)}")
    for offer in history.offers:
        if offer.outcome == "acknowledged" and offer.task not in places:
            # The first tasks of a large call are acknowledged long before it returns.
            ended_at = offer.ended_at or offer.offered_at
            excused = not history.durable and _may_be_lost(history, offer.offered_at, ended_at)
            kind = Kind.LOST_IN_WINDOW if excused else Kind.LOST
            when = f"offered at {offer.offered_at:.3f}, acknowledged by {ended_at:.3f}"
            yield Finding(kind, f"{offer.task} of group {offer.group}, {when}")
    for batch in there:
        for task in batch.tasks:
            offer = offers.get(task)
            if offer is not None and offer.group != batch.group:
                where = f"batch {batch.batch_id} of group {batch.group}"
                yield Finding(Kind.MISGROUPED, f"{task} of group {offer.group} in {where}")


def _oversized(batch: Batch, limits: Limits) -> Iterator[Finding]:
    if len(batch.tasks) > limits.size or batch.stated_count not in (None, len(batch.tasks)):
        what = f"batch {batch.batch_id} of {len(batch.tasks)} tasks states {batch.stated_count}"
        yield Finding(Kind.OVERSIZED, f"{what}, at most {limits.size} are allowed")


def _premature(batch: Batch, offers: Mapping[str, Offer], limits: Limits) -> Iterator[Finding]:
    """A batch that is not full was due at some time before it was enqueued.

    It was due when its first task had waited for the max delay, or when the grace period had passed
    after one of its tasks before the next one came. That need not be its last task: a group that is
    due stays so, and tasks that come before the claim are in the same batch.
    """
    known = [offers[task] for task in batch.tasks if task in offers]
    if len(known) >= limits.size or not known or batch.enqueued_at is None:
        return
    latest_due = batch.enqueued_at + _ROUNDING
    if known[0].offered_at + limits.delay <= latest_due:
        return
    for this, following in pairwise(known):
        quiet_until = this.offered_at + limits.grace
        if quiet_until <= latest_due and _latest_arrival(following) + _ROUNDING >= quiet_until:
            return
    if known[-1].offered_at + limits.grace <= latest_due:
        return
    waited = batch.enqueued_at - known[-1].offered_at
    what = f"batch {batch.batch_id} of {len(known)} tasks, enqueued {waited:.3f} s after the last"
    yield Finding(Kind.PREMATURE, f"{what}; {limits}")


def _latest_arrival(offer: Offer) -> float:
    if offer.outcome == "acknowledged" and offer.ended_at is not None:
        return offer.ended_at
    return math.inf  # the network may deliver a request at any later time


def _by_group(batches: Sequence[Batch]) -> dict[str, list[Batch]]:
    groups: dict[str, list[Batch]] = {}
    for batch in batches:
        groups.setdefault(batch.group, []).append(batch)
    return groups


def _reordered(group: str, tasks: Sequence[str], offers: Mapping[str, Offer]) -> Iterator[Finding]:
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
            yield Finding(Kind.REORDERED, f"{task} behind {before.task} in group {group}")
        elif latest is not None and offer.ended_at < latest.offered_at:
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
    leases: dict[int, list[Lease]] = {}
    for lease in sorted(history.leases, key=lambda lease: -lease.token):
        leases.setdefault(lease.partition, []).append(lease)
    for batch in enqueued:
        at = batch.enqueued_at
        if at is None or not batch.by:
            continue
        for lease in leases.get(batch.partition, ()):
            if lease.flusher == batch.by and lease.at <= at + _ROUNDING:
                break
            if lease.at < at - _ROUNDING and not _may_be_lost(history, lease.at, lease.at):
                what = f"batch {batch.batch_id} by {batch.by}, {at - lease.at:.3f} s after"
                yield Finding(Kind.STALE, f"{what} {lease.flusher} held token {lease.token}")
                break


def _may_be_lost(history: History, since: float, until: float) -> bool:
    """Whether Redis may lose what it acknowledged between these two times."""
    return any(window.start <= until and since <= window.end for window in history.lossy)
