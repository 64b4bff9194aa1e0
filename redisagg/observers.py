"""Who watches an aggregator: listeners to the events of its flusher, and counters of its producer.

The flusher and the producer ask this object; without observers that is all they do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from redisagg.events import Event, EventBatch, OnEvent


class Listener(Protocol):
    """Is called with each event on the event loop of the flusher; it neither waits nor raises."""

    @property
    def kinds(self) -> frozenset[type[Event]] | None:
        """The classes of the events that it wants; None for all."""
        ...

    def __call__(self, event: Event, entries: Sequence[bytes]) -> None:
        """Takes an event.

        Args:
            event: the event.
            entries: the stored tasks of the batch with `BatchEnqueued`, unless an earlier attempt
                merged it; else empty.
        """
        ...


class AddCounter(Protocol):
    """Counts what a producer adds; from any thread."""

    def count_added(self, new: int, known: int) -> None:
        """Redis has acknowledged tasks: so many new ones, and so many whose id was known."""
        ...

    def count_refused(self, error: Exception, tasks: int) -> None:
        """So many tasks were not added."""
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
    """

    def __init__(self, on_event: OnEvent | None = None) -> None:
        self.on_event = on_event
        self.listeners: list[Listener] = []
        """Those of a flusher that starts later."""
        self.counter: AddCounter | None = None
        self.tracer: Tracer | None = None
        """That of a flusher that starts later."""
        self.dropped = 0
        """The number of events that `on_event` was not called with, since it was too slow."""

    def add_counter(self, counter: AddCounter) -> None:
        """Has a counter count what the producer adds from now on, beside those that do already."""
        self.counter = counter if self.counter is None else _Both(self.counter, counter)


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
