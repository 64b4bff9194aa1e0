"""Reports what happens in a flusher to those who listen.

`Reporter` is one for each flusher. It always reports the life of the flusher, its leases and its
breakers, which are rare. Batches are reported only if somebody wants that: see
`redisagg.flusher.batch_reports`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from redisagg import events
from redisagg.config import AggregationConfig
from redisagg.events import BatchEvent, Event, EventBatch
from redisagg.flusher.batch import Trace
from redisagg.flusher.breaker import Breaker, BreakerState
from redisagg.flusher.event_log import EventLog
from redisagg.flusher.event_queue import make_event_queue
from redisagg.observers import BatchCounter, Listener, Observers, Tracer
from redisagg.protocol.keys import Keyspace
from redisagg.texts import logger, redact

_log = logger("events")

E = TypeVar("E", bound=Event)


def new_value(kind: type[Event | EventBatch]) -> Any:
    """Makes an event, or the batch of one, whose fields the caller sets.

    A call of a class with keywords makes a dictionary of them, which takes longer than to set the
    fields one by one.
    """
    return object.__new__(kind)


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
        self.make_trace: Callable[..., Trace] | None = None
        """Makes the trace of a batch that is reported by events, in place of `BatchTrace`."""
        self.listeners = _Listeners(listeners)
        """Those of each class of events."""
        self._failed = False

    def __call__(self, kind: Callable[..., E], /, **fields: Any) -> None:
        """Reports an event of a class, with these fields of its own."""
        if self.listeners[kind]:  # type: ignore[index]
            of_flusher = {"namespace": self.namespace, "flusher": self.flusher_id}
            self.send(kind(at=time.time(), **of_flusher, **fields))

    def event_of(self, kind: type[BatchEvent], batch: EventBatch) -> Any:
        """Makes an event of a batch whose own fields the caller sets, for `send`.

        That takes less time than `__call__`: each batch has three of them.
        """
        event = new_value(kind)
        event.at = time.time()
        event.namespace = self.namespace
        event.flusher = self.flusher_id
        event.batch = batch
        return event

    def send(self, event: Event) -> None:
        """Reports an event."""
        for listener in self.listeners[type(event)]:
            try:
                listener(event)
            except Exception:  # of our own code; a flusher does not end for it
                if not self._failed:
                    self._failed = True
                    _log.exception("an event can't be reported")

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


class _Listeners(dict[type[Event], tuple[Listener, ...]]):
    """The listeners of each class of events, found when it is first asked for.

    Args:
        listeners: all of them.
    """

    def __init__(self, listeners: Sequence[Listener]) -> None:
        super().__init__()
        self._all = listeners

    def __missing__(self, kind: type[Event]) -> tuple[Listener, ...]:
        found = tuple(
            each for each in self._all if each.kinds is None or issubclass(kind, tuple(each.kinds))
        )
        self[kind] = found
        return found


def _wants_batches(listener: Listener) -> bool:
    kinds = listener.kinds
    return kinds is None or any(
        issubclass(each, BatchEvent) or issubclass(BatchEvent, each) for each in kinds
    )


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
