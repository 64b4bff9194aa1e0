"""Reports what happens in a flusher to those who listen.

`Reporter` is one for each flusher. It always reports the life of the flusher, its leases and its
breakers, which are rare. Batches are reported only if somebody wants that: to a listener each by a
`BatchTrace`, which makes events; to a counter alone by `BatchTimes`, which costs less.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from redisagg import events
from redisagg.config import AggregationConfig
from redisagg.events import BatchEvent, Event, EventBatch
from redisagg.flusher.batch import Batch, Claim, Failure, MergeOutcome
from redisagg.flusher.breaker import Breaker, BreakerState
from redisagg.flusher.event_log import EventLog
from redisagg.flusher.event_queue import make_event_queue
from redisagg.observers import BatchCounter, BatchSpans, Listener, Observers, Tracer
from redisagg.protocol.failed_tasks import group_of
from redisagg.protocol.keys import Keyspace
from redisagg.sinks.base import MergedTask
from redisagg.sinks.limited_calls import carries_context
from redisagg.texts import logger, redact

_log = logger("events")

_CLOCK_SECONDS = 60.0
"""Seconds after which an estimate of Redis' clock is replaced by a later one that is lower."""

E = TypeVar("E", bound=Event)


class Reporter:
    """Makes the events of one flusher and hands them to listeners.

    Args:
        listeners: are told of events.
        tracer: makes spans of batches.
        counter: counts batches.
    """

    def __init__(
        self,
        namespace: str,
        flusher_id: str,
        listeners: Sequence[Listener],
        tracer: Tracer | None = None,
        counter: BatchCounter | None = None,
    ) -> None:
        self.namespace = namespace
        self.flusher_id = flusher_id
        self.tracer = tracer
        self.counter = counter
        self.makes_events = tracer is not None or any(map(_wants_batches, listeners))
        """Whether batches are reported by events, or spans."""
        self.of_batches = self.makes_events or counter is not None
        """Whether batches are reported."""
        self._listeners: dict[type[Event], list[Listener]] = {}
        self._all = listeners
        self._failed = False

    def wants(self, kind: type[Event]) -> bool:
        """Whether anybody listens to this kind of event."""
        return bool(self._listeners_to(kind))

    def __call__(self, kind: Callable[..., E], /, **fields: Any) -> None:
        """Reports an event of a class, with these fields of its own."""
        listeners = self._listeners_to(kind)  # type: ignore[arg-type]
        if not listeners:
            return
        event = kind(at=time.time(), namespace=self.namespace, flusher=self.flusher_id, **fields)
        for listener in listeners:
            try:
                listener(event)
            except Exception:  # of our own code; a flusher does not end for it
                if not self._failed:
                    self._failed = True
                    _log.exception("an event can't be reported")

    def _listeners_to(self, kind: type[Event]) -> list[Listener]:
        found = self._listeners.get(kind)
        if found is None:
            found = [each for each in self._all if each.kinds is None or kind in each.kinds]
            self._listeners[kind] = found
        return found

    def batches(self, partition: int) -> BatchReports:
        """Makes what reports the batches of the leader of a partition."""
        return BatchReports(self, partition)

    def breaker(self, breaker: Breaker, state: BreakerState, seconds: float, reason: str) -> None:
        """A breaker has changed its state.

        Args:
            seconds: how long it stays open, or was open.
            reason: why it opened.
        """
        names = {"sink": breaker.name, "queue": breaker.queue}
        if state is BreakerState.OPEN:
            self(events.BreakerOpened, **names, seconds=seconds, reason=reason)
        elif state is BreakerState.CLOSED:
            self(events.BreakerClosed, **names, seconds=seconds)
        else:
            self(events.BreakerHalfOpened, **names)


def _wants_batches(listener: Listener) -> bool:
    kinds = listener.kinds
    return kinds is None or any(issubclass(each, BatchEvent) for each in kinds)


@asynccontextmanager
async def reporting(
    keyspace: Keyspace,
    config: AggregationConfig,
    flusher_id: str,
    observers: Observers,
    *,
    on_loop: bool,
    kind: type[Reporter] = Reporter,
) -> AsyncIterator[Reporter]:
    """Reports the start and the end of a flusher, and makes the reporter of what is between.

    Args:
        on_loop: whether an ``async`` `on_event` is called on this event loop.
        kind: the class of the reporter.
    """
    log = EventLog()
    queue = make_event_queue(observers, on_loop=on_loop)
    listeners: list[Listener] = [log, *observers.listeners]
    if queue is not None:
        listeners.append(queue)
    watched_by = (listeners, observers.tracer, observers.batch_counter)
    report = kind(keyspace.name, flusher_id, *watched_by)
    since, error = time.monotonic(), ""
    partitions = len(keyspace.partitions)
    report(events.FlusherStarted, partitions=partitions, concurrency=config.concurrency)
    try:
        yield report
    except BaseException as raised:
        error = redact(f"{type(raised).__name__}: {raised}")
        raise
    finally:
        report(events.FlusherStopped, seconds=time.monotonic() - since, error=error)
        log.close()
        if queue is not None:
            await queue.close()


class BatchReports:
    """Makes the traces of the batches of one leader.

    Args:
        report: of the flusher.
        partition: the number of the partition.
    """

    def __init__(self, report: Reporter, partition: int) -> None:
        self.report = report
        self.made: type[BatchTrace] | None = BatchTrace if report.makes_events else None
        """The class of traces that make events; None if nobody wants these."""
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
        if self.made is None:
            batch.trace = BatchTimes(self, claim)
        else:
            self._trace(batch, self.made)

    def _trace(self, batch: Batch, made: type[BatchTrace]) -> None:
        """Gives a batch a trace that makes events, and spans if somebody traces."""
        facts, spans = facts_of(batch.claim, self._partition), None
        if self.report.tracer is not None:
            of_flusher = (self.report.namespace, self.report.flusher_id)
            times = (self._claim_begun, time.time_ns())
            spans = self.report.tracer.claimed(*of_flusher, facts, *times)
        batch.trace = made(self, batch.claim, facts, spans)
        self.report(events.BatchClaimed, batch=facts)

    def redis_time(self) -> float:
        """Seconds since the epoch by Redis' clock, about."""
        return time.time() if self._ahead is None else time.monotonic() + self._ahead


def facts_of(claim: Claim, partition: int) -> EventBatch:
    """What events say about a batch."""
    return EventBatch(
        batch_id=claim.batch_id.decode("utf-8", "replace"),
        group_key=group_of(claim.group).decode("utf-8", "replace"),
        partition=partition,
        attempt=claim.attempt,
        size=claim.task_count,
        bytes=claim.length,
        weight=claim.weight,
        reason=claim.reason.decode("utf-8", "replace"),
        opened_at=claim.opened / 1000,
        due_at=claim.due_at / 1000,
        claimed_at=claim.created / 1000,
    )


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
        if self._count_merge(claim, outcome) and report.wants(events.BatchMerged):
            report(
                events.BatchMerged,
                batch=self.facts,
                seconds=self._merge_seconds,
                tasks=len(outcome.merged),
                bytes=sum(map(len, outcome.merged.values())),
                failed=len(outcome.failed),
                error="" if failure is None else failure.error,
            )

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
        self._reports.report(
            events.BatchEnqueued,
            batch=self.facts,
            sink=sink,
            tasks=tasks,
            failed=len(outcome.failed),
            lag=max(0.0, self._reports.redis_time() - self._due_at),
            merge_seconds=self._merge_seconds,
            sink_seconds=seconds,
        )

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
