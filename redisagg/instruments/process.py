"""What the aggregators of this process do: counters of producers, and events of flushers."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from redisagg import errors, events
from redisagg.aggregator.base import AggregatorBase
from redisagg.events import Event
from redisagg.instruments.definitions import PROCESS, Definition, Labels
from redisagg.protocol.entries import arrival_ms

if TYPE_CHECKING:
    from typing_extensions import Self

_REASONS: Sequence[tuple[type[Exception], str]] = (
    (errors.RedisOutOfMemory, "out_of_memory"),
    (errors.AggregatorFull, "full"),
    (errors.PayloadError, "payload"),
    (errors.TaskTooLarge, "too_large"),
    (errors.InvalidTask, "invalid"),
    (errors.NotReplicated, "not_replicated"),
    (errors.RedisUnavailable, "unavailable"),
    (errors.AuthenticationFailed, "no_rights"),
    (errors.RedisReadOnly, "read_only"),
    (errors.KeyConflict, "key_conflict"),
    (errors.NamespaceMismatch, "mismatch"),
)
"""Why tasks are refused, the more special classes first."""

_OPEN, _HALF_OPEN = 2.0, 1.0


class AnyCounter(Protocol):
    """A counter for each combination of labels."""

    def add(self, labels: Labels, amount: float = 1) -> None:
        """Adds to the counter of these labels."""


class AnyHistogram(Protocol):
    """A histogram for each combination of labels."""

    bounds: Sequence[float]
    """The upper bounds of the buckets, without infinity."""

    def observe(self, labels: Labels, value: float) -> None:
        """Counts a value."""

    def count(self, labels: Labels, bucket: int, values: int, total: float) -> None:
        """Counts values that belong into one bucket.

        Args:
            bucket: the place of the first bound that is no less than they are.
            values: the number of the values.
            total: their sum.
        """


class ProcessRecorder:
    """Counts what the aggregators do that it watches; thread-safe.

    No metric has a label of a group key, so their number does not grow with that of groups.

    Args:
        counter: makes the counter of a definition.
        histogram: makes the histogram of a definition.
    """

    kinds: frozenset[type[Event]] | None = frozenset(
        {
            *(events.BatchMerged, events.BatchDelivered, events.BatchEnqueued),
            *(events.BreakerOpened, events.BreakerHalfOpened, events.BreakerClosed),
            events.FlusherStopped,
        }
    )

    def __init__(
        self,
        counter: Callable[[Definition], AnyCounter],
        histogram: Callable[[Definition], AnyHistogram],
    ) -> None:
        self._lock = threading.Lock()
        self._added = counter(PROCESS["redisagg_tasks_added"])
        self._deduplicated = counter(PROCESS["redisagg_tasks_deduplicated"])
        self._refused = counter(PROCESS["redisagg_tasks_refused"])
        self._flushed = counter(PROCESS["redisagg_batches_flushed"])
        self._size = histogram(PROCESS["redisagg_batch_size"])
        self._bytes = histogram(PROCESS["redisagg_batch_bytes"])
        self._wait = histogram(PROCESS["redisagg_task_wait_seconds"])
        self._lag = histogram(PROCESS["redisagg_flush_lag_seconds"])
        self._merge = histogram(PROCESS["redisagg_merge_duration_seconds"])
        self._sink = histogram(PROCESS["redisagg_sink_duration_seconds"])
        self._breakers: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
        """By namespace and sink, and then by flusher and queue: the states of breakers."""
        self._limits: dict[str, dict[Labels, float]] = {
            "redisagg_partition_limit_tasks": {},
            "redisagg_partition_limit_bytes": {},
        }

    def watch(self, *aggregators: AggregatorBase) -> Self:
        """Counts what these aggregators add from now on, and what their flushers do.

        Of a flusher that runs already nothing is counted, so call it before `start` and `run`.

        Returns:
            The same object.
        """
        for each in aggregators:
            observers = each.observers
            if self not in observers.listeners:
                observers.listeners.append(self)
                observers.add_counter(_AddCounter(self, each.name))
                self._note_limits(each)
        return self

    def _note_limits(self, aggregator: AggregatorBase) -> None:
        config = aggregator.config
        limits = (config.max_pending_tasks, config.max_pending_bytes)
        with self._lock:
            for values, limit in zip(self._limits.values(), limits, strict=True):
                if limit:
                    values[(aggregator.name,)] = limit // config.partitions

    # --- what is counted ---------------------------------------------------------------------

    def count_added(self, namespace: str, new: int, known: int) -> None:
        """Counts tasks that Redis has acknowledged."""
        with self._lock:
            self._added.add((namespace,), new)
            self._deduplicated.add((namespace,), known)

    def count_refused(self, namespace: str, error: Exception, tasks: int) -> None:
        """Counts tasks that were not added."""
        reason = next((name for kind, name in _REASONS if isinstance(error, kind)), "error")
        with self._lock:
            self._refused.add((namespace, reason), tasks)

    def __call__(self, event: Event, entries: Sequence[bytes]) -> None:
        """Counts an event; see `redisagg.observers.Listener`."""
        with self._lock:
            if isinstance(event, events.BatchEnqueued):
                self._count_flushed(event, entries)
            elif isinstance(event, events.BatchMerged):
                self._merge.observe((event.namespace, _outcome(event.error)), event.seconds)
            elif isinstance(event, events.BatchDelivered):
                labels = (event.namespace, event.sink, _outcome(event.error))
                self._sink.observe(labels, event.seconds)
            elif isinstance(event, events.BreakerEvent):
                states = self._breakers.setdefault((event.namespace, event.sink), {})
                key = (event.flusher, event.queue)
                if isinstance(event, events.BreakerClosed):
                    states.pop(key, None)
                else:
                    opened = isinstance(event, events.BreakerOpened)
                    states[key] = _OPEN if opened else _HALF_OPEN
            elif isinstance(event, events.FlusherStopped):
                for states in self._breakers.values():
                    for key in [key for key in states if key[0] == event.flusher]:
                        del states[key]

    def _count_flushed(self, event: events.BatchEnqueued, entries: Sequence[bytes]) -> None:
        namespace, batch = event.namespace, event.batch
        one = (namespace,)
        self._flushed.add((namespace, batch.reason, event.sink))
        self._size.observe(one, batch.size)
        self._bytes.observe(one, batch.bytes)
        self._lag.observe(one, event.lag)
        if event.sink_seconds:
            self._sink.observe((namespace, event.sink, "ok"), event.sink_seconds)
        if event.sink:
            self._breakers.setdefault((namespace, event.sink), {})
        now = (batch.due_at or batch.claimed_at) + event.lag
        if entries:
            self._count_waits(one, entries, now)
        else:  # an earlier attempt merged it: only the first arrival is known
            wait = max(0.0, now - batch.opened_at)
            bucket = bisect_left(self._wait.bounds, wait)
            self._wait.count(one, bucket, batch.size, wait * batch.size)

    def _count_waits(self, one: tuple[str], entries: Sequence[bytes], now: float) -> None:
        """Counts how long tasks have waited, those of each bucket in one step.

        The tasks are in the order of their arrival, so the first one has waited longest.
        """
        histogram, end = self._wait, len(entries)
        oldest, youngest = arrival_ms(entries[0]) / 1000, arrival_ms(entries[-1]) / 1000
        first = bisect_left(histogram.bounds, now - youngest)
        last = bisect_left(histogram.bounds, now - oldest)
        for bucket in range(first, last):
            # Who arrived from then on has waited no longer than the bound.
            start = _first_since(entries, 1000 * (now - histogram.bounds[bucket]), end)
            if start < end:
                at = arrival_ms(entries[start]) / 1000
                wait = max(0.0, now - (at + youngest) / 2) * (end - start)
                histogram.count(one, bucket, end - start, wait)
            if not start:
                return
            end, youngest = start, arrival_ms(entries[start - 1]) / 1000
        wait = max(0.0, now - (oldest + youngest) / 2) * end
        histogram.count(one, max(first, last), end, wait)

    # --- what is there now -------------------------------------------------------------------

    def gauges(self) -> dict[str, dict[Labels, float]]:
        """Returns the present values of the gauges, by their names."""
        with self._lock:
            return {
                "redisagg_breaker_state": {
                    labels: max(states.values(), default=0.0)
                    for labels, states in self._breakers.items()
                },
                **{name: dict(values) for name, values in self._limits.items()},
            }


class _AddCounter:
    """Counts for one namespace; see `redisagg.observers.AddCounter`."""

    def __init__(self, recorder: ProcessRecorder, namespace: str) -> None:
        self._recorder = recorder
        self._namespace = namespace
        recorder.count_added(namespace, 0, 0)  # a counter that is there from the start has a rate

    def count_added(self, new: int, known: int) -> None:
        self._recorder.count_added(self._namespace, new, known)

    def count_refused(self, error: Exception, tasks: int) -> None:
        self._recorder.count_refused(self._namespace, error, tasks)


def _outcome(error: str) -> str:
    return "error" if error else "ok"


def _first_since(entries: Sequence[bytes], earliest: float, end: int) -> int:
    """The place of the first of the entries before `end` that arrived at `earliest` or later."""
    low, high = 0, end
    while low < high:
        middle = (low + high) // 2
        if arrival_ms(entries[middle]) < earliest:
            low = middle + 1
        else:
            high = middle
    return low
