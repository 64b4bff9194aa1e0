"""Who watches an aggregator: listeners to the events of its flusher, and counters.

A counter is told numbers only. So it costs much less than a listener, for which objects are made.

The flusher and the producer ask this object; without observers that is all they do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from redisagg.events import Event, EventBatch, OnEvent


class Listener(Protocol):
    """Is called with each event on the event loop of the flusher; it neither waits nor raises."""

    @property
    def kinds(self) -> frozenset[type[Event]] | None:
        """The classes of the events that it wants, or base classes of them; None for all."""
        ...

    def __call__(self, event: Event) -> None:
        """Takes an event."""
        ...


class AddCounter(Protocol):
    """Counts what a producer adds; from any thread."""

    def count_added(self, new: int, known: int) -> None:
        """Redis has acknowledged tasks: so many new ones, and so many whose id was known."""
        ...

    def count_refused(self, error: Exception, tasks: int) -> None:
        """So many tasks were not added."""
        ...


class BatchCounter(Protocol):
    """Counts what a flusher does with batches; on its event loop."""

    def count_merge(self, seconds: float, failed: bool) -> None:
        """A call of the merge function has ended."""
        ...

    def count_delivery(self, sink: str, seconds: float, failed: bool) -> None:
        """A call of a sink outside Redis has ended, or a queue in Redis has refused a batch."""
        ...

    def count_flushed(
        self, claim: Claimed, sink: str, due_at: float, now: float, seconds: float
    ) -> None:
        """A batch has left.

        Args:
            claim: the batch.
            sink: the class of the last sink, or empty.
            due_at: when the batch was due, seconds since the epoch by Redis' clock.
            now: the same of the present time.
            seconds: the duration of the commit with which it was put into a queue in Redis; 0
                without one.
        """
        ...


class Claimed(Protocol):
    """What is counted of a batch."""

    @property
    def reason(self) -> bytes:
        """Why it was due."""
        ...

    @property
    def task_count(self) -> int:
        """The number of its tasks."""
        ...

    @property
    def length(self) -> int:
        """The bytes of its tasks, about."""
        ...

    @property
    def opened(self) -> int:
        """When its first task arrived, ms."""
        ...

    @property
    def entries(self) -> Sequence[bytes] | None:
        """The stored tasks; none if an earlier attempt merged them."""
        ...


class MergeSpan(Protocol):
    """The span of one merge. Can be pickled; a copy in another process only knows its context."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The trace context for merged tasks; empty if there is none."""
        ...

    def enter(self) -> None:
        """The merge function is called now, by this thread or asyncio task."""

    def exit(self) -> None:
        """It has returned; without effect if it was not called."""

    def end(self, error: str, tasks: int) -> None:
        """The merge has ended.

        Args:
            error: why it failed, or empty.
            tasks: the number of merged tasks.
        """


class BatchSpans(Protocol):
    """Makes the spans of one batch in one attempt."""

    def merging(self, entries: Sequence[bytes] | None) -> MergeSpan | None:
        """The merge begins, in any thread.

        Args:
            entries: the stored tasks; None or empty if an earlier attempt merged the batch, which
                then has no span of a merge.
        """
        ...

    def delivering(self, sink: str, merged_id: str) -> None:
        """A delivery begins, in this asyncio task."""

    def delivered(self, sink: str, seconds: float, error: str) -> None:
        """It has ended; or the queue in Redis has refused the batch."""

    def enqueued(self, queue: str, seconds: float, tasks: int) -> None:
        """A call of Redis has put merged tasks into a queue and removed the batch."""


class Tracer(Protocol):
    """Makes spans of what a flusher does."""

    def claimed(
        self, namespace: str, flusher: str, batch: EventBatch, begun: int, ended: int
    ) -> BatchSpans:
        """A batch was claimed.

        Args:
            begun, ended: when the call of Redis began and ended, nanoseconds since the epoch.
        """
        ...


class Observers:
    """What watches one aggregator.

    Args:
        on_event: the user's function for the events of the flusher.
        event_kinds: the classes of the events that it is called with, or base classes of them; None
            for all.
    """

    def __init__(
        self,
        on_event: OnEvent | None = None,
        event_kinds: Collection[type[Event]] | None = None,
    ) -> None:
        self.on_event = on_event
        self.event_kinds = None if event_kinds is None else frozenset(event_kinds)
        self.listeners: list[Listener] = []
        """Those of a flusher that starts later."""
        self.counter: AddCounter | None = None
        self.batch_counter: BatchCounter | None = None
        """That of a flusher that starts later."""
        self.tracer: Tracer | None = None
        """That of a flusher that starts later."""
        self.dropped = 0
        """The number of events that `on_event` was not called with, since it was too slow."""

    def add_counter(self, counter: AddCounter) -> None:
        """Has a counter count what the producer adds from now on, beside those that do already."""
        self.counter = counter if self.counter is None else _Both(self.counter, counter)

    def add_batch_counter(self, counter: BatchCounter) -> None:
        """Has a counter count the batches of a flusher that starts later, beside others."""
        other = self.batch_counter
        self.batch_counter = counter if other is None else _BothOfBatches(other, counter)


class _Both:
    """Two counters as one."""

    def __init__(self, one: AddCounter, other: AddCounter) -> None:
        self._counters = (one, other)

    def count_added(self, new: int, known: int) -> None:
        for each in self._counters:
            each.count_added(new, known)

    def count_refused(self, error: Exception, tasks: int) -> None:
        for each in self._counters:
            each.count_refused(error, tasks)


class _BothOfBatches:
    """Two counters of batches as one."""

    def __init__(self, one: BatchCounter, other: BatchCounter) -> None:
        self._counters = (one, other)

    def count_merge(self, seconds: float, failed: bool) -> None:
        for each in self._counters:
            each.count_merge(seconds, failed)

    def count_delivery(self, sink: str, seconds: float, failed: bool) -> None:
        for each in self._counters:
            each.count_delivery(sink, seconds, failed)

    def count_flushed(
        self, claim: Claimed, sink: str, due_at: float, now: float, seconds: float
    ) -> None:
        for each in self._counters:
            each.count_flushed(claim, sink, due_at, now, seconds)
