"""Logs the events of a flusher: its life at INFO, each lease and each batch at DEBUG.

Failures are logged where they are found, at WARNING and ERROR.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from redisagg import events
from redisagg.events import BatchEvent, Event, EventBatch
from redisagg.flusher.batch import Batch
from redisagg.protocol.failed_tasks import group_of
from redisagg.texts import escape_control, group_text, logger, redact, span_text

_flusher, _leases, _batches = logger("flusher"), logger("leases"), logger("batches")

_GATHER_SECONDS = 0.25
"""Seconds in which leases that are taken or given up share a line."""

_LIFE: frozenset[type[Event]] = frozenset(
    {
        *(events.FlusherStarted, events.FlusherStopped),
        *(events.LeaseTaken, events.LeaseReleased, events.LeaseLost),
    }
)

_TEXTS: dict[type[Event], str] = {
    events.BatchClaimed: "claimed",
    events.BatchMerged: "merged",
    events.BatchDelivered: "delivered",
    events.BatchEnqueued: "enqueued",
    events.BatchRetried: "given back",
    events.BatchSplit: "split",
    events.BatchBuried: "buried",
}


class EventLog:
    """The listener that logs; see `redisagg.observers.Listener`.

    Whether batches are logged is decided when it is made, by the level of the logger then.
    """

    def __init__(self) -> None:
        self.of_batches = _batches.isEnabledFor(logging.DEBUG)
        self.kinds = _LIFE | _TEXTS.keys() if self.of_batches else _LIFE
        self._led: set[int] = set()
        """The partitions that the flusher leads."""
        self._told: set[int] = set()
        """Those of the last line about leases."""
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self, event: Event) -> None:
        """Logs an event."""
        if isinstance(event, BatchEvent):
            self._log_batch(event)
        elif isinstance(event, events.LeaseTaken):
            self._led.add(event.partition)
            self._log_lease(event, "the lease of partition %d is taken (token %d)")
        elif isinstance(event, events.LeaseReleased):
            self._led.discard(event.partition)
            self._log_lease(event, "the lease of partition %d is given back (token %d)")
        elif isinstance(event, events.LeaseLost):
            self._led.discard(event.partition)
            self._log_lease(event, "the lease of partition %d is lost (token %d)")
        elif isinstance(event, events.FlusherStarted):
            _flusher.info(
                "the flusher of %r starts as %s: %d partitions, concurrency %d",
                *(event.namespace, event.flusher, event.partitions, event.concurrency),
                extra=extra_of(event),
            )
        elif isinstance(event, events.FlusherStopped):
            _flusher.info(
                "the flusher of %r has stopped after %s%s",
                *(event.namespace, span_text(event.seconds)),
                f": {event.error}" if event.error else "",
                extra=extra_of(event),
            )

    def close(self) -> None:
        """The flusher has ended."""
        if self._timer is not None:
            self._timer.cancel()

    def _log_batch(self, event: BatchEvent) -> None:
        batch, error = event.batch, getattr(event, "error", "")
        _batches.debug(
            "batch %s of group '%s' with %d tasks is %s%s",
            *(batch.batch_id, batch.group_key[:100], batch.size, _TEXTS[type(event)]),
            f": {error}" if error else "",
            extra=extra_of(event),
        )

    def _log_lease(
        self, event: events.LeaseTaken | events.LeaseReleased | events.LeaseLost, text: str
    ) -> None:
        _leases.debug(text, event.partition, event.token, extra=extra_of(event))
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_GATHER_SECONDS, self._log_led, event)

    def _log_led(self, event: Event) -> None:
        self._timer = None
        taken, lost = self._led - self._told, self._told - self._led
        if not taken and not lost:
            return
        changes = [f"new: {ranges(taken)}"] if taken and self._told else []
        changes += [f"given up: {ranges(lost)}"] if lost else []
        self._told = set(self._led)
        _leases.info(
            "the flusher of %r leads %d partitions: %s%s",
            *(event.namespace, len(self._led), ranges(self._led) or "none"),
            f" ({'; '.join(changes)})" if changes else "",
            extra={
                "event": "LeasesChanged",
                "namespace": event.namespace,
                "flusher": event.flusher,
                "partitions": sorted(self._led),
            },
        )


def ranges(numbers: Iterable[int]) -> str:
    """Returns numbers as a text such as ``0-3, 7``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)


def extra_of(event: Event) -> dict[str, Any]:
    """The fields of an event for a JSON logger; those of its batch are among them."""
    extra: dict[str, Any] = {"event": type(event).__name__}
    for field in fields(event):
        value = getattr(event, field.name)
        if isinstance(value, EventBatch):
            extra |= {each.name: _safe(getattr(value, each.name)) for each in fields(value)}
        elif field.name not in ("at", "traceback"):
            extra[field.name] = _safe(value)
    return extra


def fields_of(batch: Batch, event: str, **more: Any) -> dict[str, Any]:
    """The fields of a log line about a batch, for a JSON logger.

    Args:
        event: the name of the event that the line is about.
        more: further fields.
    """
    found = {
        "event": event,
        "batch_id": batch.batch_id.decode("utf-8", "replace"),
        "group_key": group_text(group_of(batch.group)),
        "attempt": batch.attempt,
        "size": batch.claim.task_count,
    }
    return {name: _safe(value) for name, value in (found | more).items()}


class BatchDied(Exception):
    """Stands in a log record for the error of a dead letter, of which the traceback is a text.

    The error itself may have been raised in another process.
    """

    @classmethod
    def of(cls, error: str, traceback: str) -> BatchDied:
        """Makes one whose traceback ends with that of the error."""
        died = cls(error)
        died.__cause__ = _Traceback(traceback) if traceback else None
        return died


class _Traceback(Exception):
    """Shows the text of a traceback where Python shows the cause of an error."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _safe(value: Any) -> Any:
    return escape_control(redact(value)) if isinstance(value, str) else value
