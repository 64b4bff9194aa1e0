"""Compares what came out of a run with what went in. Pure functions over plain data.

Every rule is sound: what it reports can't happen if redisagg keeps its promises, whatever the
processes, the network and the servers did, and however long each step took. Where an event's time
is known by bounds only (a task arrives in Redis at some time between its offer and the end of the
call), the bound is taken that excuses most.
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
    """What can be wrong with a task or a batch."""

    LOST = "lost"
    """Acknowledged, and nowhere to be found."""
    LOST_IN_WINDOW = "lost where Redis may lose"
    """The same, acknowledged when Redis itself could lose what it acknowledges. No violation."""
    DUPLICATED = "duplicated"
    """In more than one batch, or still waiting although it is in one."""
    REORDERED = "reordered"
    """Behind a task that was offered only after it had been acknowledged."""
    OVERSIZED = "oversized"
    """A batch with more tasks than its group allows."""
    MISGROUPED = "misgrouped"
    """In a batch of another group."""
    PREMATURE = "premature"
    """A batch that neither size nor grace period nor max delay allowed yet."""
    PHANTOM = "phantom"
    """Never offered, or refused, and there all the same."""
    STALE = "stale"
    """Enqueued by a flusher when another one knew already that it held a newer lease."""
    LEFT = "left"
    """Still waiting or in flight at the end."""


class Finding(NamedTuple):
    """One thing that is wrong."""

    kind: Kind
    what: str


@dataclass
class Verdict:
    """What the checker found."""

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
    """Batches delivered again with the same id and tasks, where a sink may do so."""
    counts: Counter[Kind] = field(default_factory=Counter)
    examples: list[Finding] = field(default_factory=list)

    @property
    def violations(self) -> int:
        """How many findings break a promise."""
        return self.counts.total() - self.counts[Kind.LOST_IN_WINDOW]


def check(history: History) -> Verdict:
    """Holds a history against what redisagg promises."""
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
    """Each batch once, where a sink may get the same one again; else all of them."""
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
    """Each acknowledged task is there once, each unknown one at most, no other one at all."""
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
            # A call of many tasks has the first of them acknowledged long before it returns.
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
    if len(batch.tasks) > limits.size or batch.says not in (None, len(batch.tasks)):
        what = f"batch {batch.batch_id} of {len(batch.tasks)} tasks says {batch.says}"
        yield Finding(Kind.OVERSIZED, f"{what}, at most {limits.size} are allowed")


def _premature(batch: Batch, offers: Mapping[str, Offer], limits: Limits) -> Iterator[Finding]:
    """A batch that is not full was due at some time before it was enqueued.

    That was when its first task had waited the max delay, or when after one of its tasks no other
    one came for the grace period. It need not be after the last of them: a group that is due stays
    so, and what comes between then and the claim rides along.
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
    return math.inf  # a request may have been on its way for as long as the network likes


def _by_group(batches: Sequence[Batch]) -> dict[str, list[Batch]]:
    groups: dict[str, list[Batch]] = {}
    for batch in batches:
        groups.setdefault(batch.group, []).append(batch)
    return groups


def _reordered(group: str, tasks: Sequence[str], offers: Mapping[str, Offer]) -> Iterator[Finding]:
    """What was acknowledged before another task was offered, by whomever, comes out before it.

    And tasks of one producer, of which several are in one call, come out in its order.
    """
    latest: Offer | None = None  # of those that have come out, the one offered last
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
    """Who enqueues holds the newest lease of those that are known by then.

    A flusher notes a lease after Redis granted it, and before it claims anything under it. A lease
    that Redis may have lost again, and its token with it, proves nothing about others.
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
