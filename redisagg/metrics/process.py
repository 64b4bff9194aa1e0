"""What the aggregators of this process do: counters of producers, and events of flushers."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client.core import GaugeMetricFamily

from redisagg import errors, events
from redisagg.aggregator.base import AggregatorBase
from redisagg.events import Event
from redisagg.metrics.values import Counter, Histogram
from redisagg.protocol.entries import arrival_ms

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_WAITS = (0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 21600, 86400)
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10_000, 100_000)
_BYTES = (256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)

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


class Metrics:
    """A collector of what the aggregators do that it watches; thread-safe.

    No metric has a label of a group key, so their number does not grow with that of groups.
    """

    kinds: frozenset[type[Event]] | None = frozenset(
        {
            *(events.BatchMerged, events.BatchDelivered, events.BatchEnqueued),
            *(events.BreakerOpened, events.BreakerHalfOpened, events.BreakerClosed),
            events.FlusherStopped,
        }
    )

    def __init__(self) -> None:
        self._lock = threading.Lock()
        one = ("namespace",)
        self._added = Counter("redisagg_tasks_added", "Tasks that were new in their group.", one)
        self._deduplicated = Counter(
            "redisagg_tasks_deduplicated",
            "Added tasks whose id was known, so that nothing changed.",
            one,
        )
        self._refused = Counter(
            "redisagg_tasks_refused",
            "Tasks that were not added, by the reason.",
            ("namespace", "reason"),
        )
        self._flushed = Counter(
            "redisagg_batches_flushed",
            "Batches that are done, by the reason why they were due, and the class of their sink.",
            ("namespace", "reason", "sink"),
        )
        self._size = Histogram("redisagg_batch_size", "Tasks in a flushed batch.", one, _SIZES)
        self._bytes = Histogram(
            "redisagg_batch_bytes", "Bytes of the stored tasks of a flushed batch.", one, _BYTES
        )
        self._wait = Histogram(
            "redisagg_task_wait_seconds",
            "Time from the arrival of a task to the end of its batch.",
            one,
            _WAITS,
        )
        self._lag = Histogram(
            "redisagg_flush_lag_seconds",
            "Time from the moment at which a batch was due to its end.",
            one,
            _SECONDS,
        )
        self._merge = Histogram(
            "redisagg_merge_duration_seconds",
            "Duration of a call of the merge function.",
            ("namespace", "outcome"),
            _SECONDS,
        )
        self._sink = Histogram(
            "redisagg_sink_duration_seconds",
            "Duration of a call of a sink, or of the call of Redis that enqueues batches.",
            ("namespace", "sink", "outcome"),
            _SECONDS,
        )
        self._breakers: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
        """By namespace and sink, and then by flusher and queue: the states of breakers."""

    def watch(self, *aggregators: AggregatorBase) -> Metrics:
        """Counts what these aggregators add from now on, and what their flushers do.

        Of a flusher that runs already nothing is counted, so call it before `start` and `run`.

        Returns:
            The same object, to be registered.
        """
        for each in aggregators:
            observers = each.observers
            if self not in observers.listeners:
                observers.listeners.append(self)
                observers.counter = _AddCounter(self, each.name)
        return self

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

    # --- what is exposed ---------------------------------------------------------------------

    def collect(self) -> Iterator[Any]:
        """Returns all metrics."""
        with self._lock:
            state = GaugeMetricFamily(
                "redisagg_breaker_state",
                "State of the breakers of a sink class: 0 closed, 1 half open, 2 open; the highest "
                "of several.",
                labels=("namespace", "sink"),
            )
            for labels, states in self._breakers.items():
                state.add_metric(labels, max(states.values(), default=0.0))
            families: list[Any] = [
                *(self._added.collect(), self._deduplicated.collect(), self._refused.collect()),
                *(self._flushed.collect(), self._size.collect(), self._bytes.collect()),
                *(self._wait.collect(), self._lag.collect(), self._merge.collect()),
                *(self._sink.collect(), state),
            ]
        yield from families


class _AddCounter:
    """Counts for one namespace; see `redisagg.observers.AddCounter`."""

    def __init__(self, metrics: Metrics, namespace: str) -> None:
        self._metrics = metrics
        self._namespace = namespace
        metrics.count_added(namespace, 0, 0)  # a counter that is there from the start has a rate

    def count_added(self, new: int, known: int) -> None:
        self._metrics.count_added(self._namespace, new, known)

    def count_refused(self, error: Exception, tasks: int) -> None:
        self._metrics.count_refused(self._namespace, error, tasks)


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
