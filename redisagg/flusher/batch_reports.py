"""Reports the batches of a leader: to listeners and a tracer by events, to a counter by numbers.

A batch that is reported has a `redisagg.flusher.batch.Trace`: a `BatchTrace`, which makes events
and spans, or `BatchTimes`, which costs less, if there is only a counter.
"""

from __future__ import annotations

import time
from typing import Any

from redisagg import events
from redisagg.events import BatchClaimed, BatchEnqueued, BatchMerged, EventBatch
from redisagg.flusher.batch import Batch, Claim, Failure, MergeOutcome, Trace
from redisagg.flusher.reporter import Reporter, new_value
from redisagg.observers import BatchSpans
from redisagg.protocol.failed_tasks import group_of
from redisagg.sinks.base import MergedTask
from redisagg.sinks.limited_calls import carries_context

_CLOCK_SECONDS = 60.0
"""Seconds after which an estimate of Redis' clock is replaced by a later one that is lower."""


class BatchReports:
    """Makes the traces of the batches of one leader.

    Args:
        report: of the flusher.
        partition: the number of the partition.
    """

    def __init__(self, report: Reporter, partition: int) -> None:
        self.report = report
        self._partition = partition
        self._ahead: float | None = None
        """Seconds by which Redis' clock is ahead of `time.monotonic`, at least."""
        self._ahead_at = 0.0
        self._claim_begun = 0
        """When the last claim was sent, nanoseconds since the epoch; 0 if nothing is traced."""

    def claiming(self) -> None:
        """A claim is sent."""
        if self.report.tracer is not None:
            self._claim_begun = time.time_ns()

    def trace(self, batch: Batch) -> None:
        """Gives a batch that has just been claimed its trace."""
        claim, now = batch.claim, time.monotonic()
        if claim.attempt == 1 and not claim.error and not claim.stored_result:
            # Most likely it was cut just now: `created` is the time of Redis then.
            ahead = claim.created / 1000 - now
            if self._ahead is None or ahead > self._ahead or now - self._ahead_at > _CLOCK_SECONDS:
                self._ahead, self._ahead_at = ahead, now
        batch.trace = self._trace(claim) if self.report.makes_events else BatchTimes(self, claim)

    def _trace(self, claim: Claim) -> Trace:
        """Makes a trace that makes events, and spans if somebody traces."""
        report, facts, spans = self.report, facts_of(claim, self._partition), None
        if report.tracer is not None:
            times = (self._claim_begun, time.time_ns())
            spans = report.tracer.claimed(report.namespace, report.flusher_id, facts, *times)
        if report.listeners[BatchClaimed]:
            report.send(report.event_of(BatchClaimed, facts))
        return (report.make_trace or BatchTrace)(self, claim, facts, spans)

    def redis_time(self) -> float:
        """Seconds since the epoch by Redis' clock, about."""
        return time.time() if self._ahead is None else time.monotonic() + self._ahead


def facts_of(claim: Claim, partition: int) -> EventBatch:
    """What events say about a batch."""
    facts: Any = new_value(EventBatch)
    facts.batch_id = claim.batch_id.decode("utf-8", "replace")
    facts.group_key = group_of(claim.group).decode("utf-8", "replace")
    facts.partition = partition
    facts.attempt = claim.attempt
    facts.size = claim.task_count
    facts.bytes = claim.length
    facts.weight = claim.weight
    facts.reason = claim.reason.decode("utf-8", "replace")
    facts.opened_at = claim.opened / 1000
    facts.due_at = claim.due_at / 1000
    facts.claimed_at = claim.created / 1000
    made: EventBatch = facts
    return made


class BatchTimes:
    """Keeps the times of one batch in one attempt, and has a counter count it."""

    __slots__ = ("_begun", "_counter", "_due_at", "_merge_seconds", "_reports", "_sink")

    def __init__(self, reports: BatchReports, claim: Claim) -> None:
        self._reports = reports
        self._counter = reports.report.counter
        self._due_at = (claim.due_at or claim.created) / 1000
        self._begun = 0.0
        """When the present step began: the merge, a delivery or the commit."""
        self._merge_seconds = 0.0
        self._sink = ""

    def begin(self) -> None:
        """The merge, a delivery or the commit begins; in any thread."""
        self._begun = time.monotonic()

    def merging(self, claim: Claim) -> Claim:
        """The merge has begun, in any thread; returns the claim with its span, if it has one."""
        return claim

    def delivering(self, sink: str, merged: MergedTask) -> None:
        """A delivery begins, in this asyncio task."""
        self.begin()

    def merged(self, claim: Claim, outcome: MergeOutcome) -> None:
        """The merge has ended."""
        self._count_merge(claim, outcome)

    def _count_merge(self, claim: Claim, outcome: MergeOutcome) -> bool:
        """Counts a merge that has ended; returns whether there was one."""
        if not self._begun or claim.stored_result or claim.result:
            return False  # an earlier attempt merged it
        self._merge_seconds = time.monotonic() - self._begun
        failure = outcome.failure
        if failure is not None and not failure.error:
            return False  # it did not begin, since its permit had expired
        if self._counter is not None:
            self._counter.count_merge(self._merge_seconds, failure is not None)
        return True

    def delivered(self, sink: str, error: BaseException | None = None) -> None:
        """A delivery has ended, or the queue in Redis has refused the batch."""
        self._count_delivery(sink, time.monotonic() - self._begun, error)

    def _count_delivery(self, sink: str, seconds: float, error: BaseException | None) -> None:
        self._sink = sink
        if self._counter is not None:
            self._counter.count_delivery(sink, seconds, error is not None)

    def enqueued(self, claim: Claim, outcome: MergeOutcome) -> None:
        """The batch has left."""
        self._count_flushed(claim, *self._left_by(outcome))

    def _left_by(self, outcome: MergeOutcome) -> tuple[str, float]:
        """The sink, and how many seconds the commit took that put the batch into its queue."""
        enqueue = outcome.enqueue
        if enqueue is None:
            return self._sink, 0.0
        return enqueue.queue.sink, time.monotonic() - self._begun

    def _count_flushed(self, claim: Claim, sink: str, seconds: float) -> None:
        if self._counter is not None:
            now = self._reports.redis_time()
            self._counter.count_flushed(claim, sink, self._due_at, now, seconds)

    def given_back(self, delay: float, failure: Failure | None) -> None:
        """The batch waits for another attempt."""

    def split(self, delay: float, failure: Failure) -> None:
        """Halves have taken the place of the batch."""

    def buried(self, attempts: int, failure: Failure) -> None:
        """The batch is among the dead letters."""


class BatchTrace(BatchTimes):
    """Reports one batch in one attempt by events.

    Args:
        facts: what its events say about it.
        spans: make the spans of the batch, if it is traced.
    """

    __slots__ = ("_deliveries", "_spans", "_split", "facts")

    def __init__(
        self,
        reports: BatchReports,
        claim: Claim,
        facts: EventBatch,
        spans: BatchSpans | None = None,
    ) -> None:
        super().__init__(reports, claim)
        self._spans = spans
        self.facts = facts
        self._deliveries = 0
        """The number of merged tasks that a sink outside Redis has taken."""
        self._split = False

    def merging(self, claim: Claim) -> Claim:
        """Begins the span of the merge; returns the claim with it."""
        if self._spans is None:
            return claim
        span = self._spans.merging(None if claim.stored_result else claim.entries)
        return claim if span is None else claim._replace(span=span)

    def delivering(self, sink: str, merged: MergedTask) -> None:
        """Begins the span of the delivery."""
        if self._spans is not None:
            self._spans.delivering(sink, merged.batch_id)
            carries_context.set(True)
        super().delivering(sink, merged)

    def merged(self, claim: Claim, outcome: MergeOutcome) -> None:
        """Reports the merge."""
        report, failure = self._reports.report, outcome.failure
        if self._count_merge(claim, outcome) and report.listeners[BatchMerged]:
            event = report.event_of(BatchMerged, self.facts)
            event.seconds = self._merge_seconds
            event.tasks = len(outcome.merged)
            event.bytes = sum(map(len, outcome.merged.values()))
            event.failed = len(outcome.failed)
            event.error = "" if failure is None else failure.error
            report.send(event)

    def delivered(self, sink: str, error: BaseException | None = None) -> None:
        """Reports the delivery."""
        seconds = time.monotonic() - self._begun
        self._deliveries += error is None
        text = "" if error is None else Failure.of(error).error
        if self._spans is not None:
            self._spans.delivered(sink, seconds, text)
        self._count_delivery(sink, seconds, error)
        self._reports.report(
            events.BatchDelivered, batch=self.facts, sink=sink, seconds=seconds, error=text
        )

    def enqueued(self, claim: Claim, outcome: MergeOutcome) -> None:
        """Reports that the batch has left."""
        sink, seconds = self._left_by(outcome)
        tasks = outcome.enqueued + len(outcome.merged) + self._deliveries
        if self._spans is not None and outcome.enqueue is not None:
            keys = outcome.enqueue.queue.keys
            queue = keys[0].decode("utf-8", "replace") if keys else sink
            self._spans.enqueued(queue, seconds, tasks)
        self._count_flushed(claim, sink, seconds)
        report = self._reports.report
        if report.listeners[BatchEnqueued]:
            event = report.event_of(BatchEnqueued, self.facts)
            event.sink = sink
            event.tasks = tasks
            event.failed = len(outcome.failed)
            event.lag = max(0.0, self._reports.redis_time() - self._due_at)
            event.merge_seconds = self._merge_seconds
            event.sink_seconds = seconds
            report.send(event)

    def given_back(self, delay: float, failure: Failure | None) -> None:
        """Reports that the batch waits for another attempt."""
        if self._split:
            return
        self._reports.report(
            events.BatchRetried,
            batch=self.facts,
            delay=delay,
            error="" if failure is None else failure.error,
            counts=failure is not None and failure.counts,
        )

    def split(self, delay: float, failure: Failure) -> None:
        """Reports that halves have taken the place of the batch."""
        self._split = True
        self._reports.report(events.BatchSplit, batch=self.facts, delay=delay, error=failure.error)

    def buried(self, attempts: int, failure: Failure) -> None:
        """Reports the dead letter."""
        self._reports.report(
            events.BatchBuried,
            batch=self.facts,
            attempts=attempts,
            error=failure.error,
            traceback=failure.traceback,
        )
