"""What the aggregators of this process do: counters of producers, and events of flushers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from redisagg import errors, events
from redisagg.aggregator.base import AggregatorBase
from redisagg.events import Event
from redisagg.instruments.batches import AnyCounter, AnyHistogram, BatchCounts, BatchInstruments
from redisagg.instruments.definitions import PROCESS, Definition, Labels

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


class ProcessRecorder:
    """Counts what the aggregators do that it watches; thread-safe.

    No metric has a label of a group key, so their number does not grow with that of groups.

    Args:
        counter: makes the counter of a definition.
        histogram: makes the histogram of a definition.
    """

    kinds: frozenset[type[Event]] | None = frozenset(
        {
            *(events.BreakerOpened, events.BreakerHalfOpened, events.BreakerClosed),
            events.FlusherStopped,
        }
    )

    _gather = 1
    """The number of batches after which what was noted of them is counted."""

    def __init__(
        self,
        counter: Callable[[Definition], AnyCounter],
        histogram: Callable[[Definition], AnyHistogram],
    ) -> None:
        self._lock = threading.Lock()
        self._added = counter(PROCESS["redisagg_tasks_added"])
        self._deduplicated = counter(PROCESS["redisagg_tasks_deduplicated"])
        self._refused = counter(PROCESS["redisagg_tasks_refused"])
        self._instruments = BatchInstruments(
            counter(PROCESS["redisagg_batches_flushed"]),
            histogram(PROCESS["redisagg_batch_size"]),
            histogram(PROCESS["redisagg_batch_bytes"]),
            histogram(PROCESS["redisagg_task_wait_seconds"]),
            histogram(PROCESS["redisagg_flush_lag_seconds"]),
            histogram(PROCESS["redisagg_merge_duration_seconds"]),
            histogram(PROCESS["redisagg_sink_duration_seconds"]),
        )
        self._batches: dict[str, BatchCounts] = {}
        """By namespace."""
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
                observers.add_batch_counter(self._batches_of(each.name))
                self._note_limits(each)
        return self

    def _batches_of(self, namespace: str) -> BatchCounts:
        counts = self._batches.get(namespace)
        if counts is None:
            counts = BatchCounts(namespace, self._instruments, self._lock, self._gather)
            self._batches[namespace] = counts
        return counts

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

    def __call__(self, event: Event) -> None:
        """Notes the state of a breaker; see `redisagg.observers.Listener`."""
        with self._lock:
            if isinstance(event, events.BreakerEvent):
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

    def _count_noted(self) -> None:
        """Counts what was noted of batches until now."""
        for each in tuple(self._batches.values()):
            each.count_noted()

    # --- what is there now -------------------------------------------------------------------

    def gauges(self) -> dict[str, dict[Labels, float]]:
        """Returns the present values of the gauges, by their names."""
        self._count_noted()
        with self._lock:
            used = ((name, sink) for name, each in self._batches.items() for sink in each.sinks)
            return {
                "redisagg_breaker_state": {
                    **dict.fromkeys(used, 0.0),
                    **{
                        labels: max(states.values(), default=0.0)
                        for labels, states in self._breakers.items()
                    },
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
