"""How a receipt waits for its outcome; once for threads and asyncio.

The key of the answer is read once after the subscription began, and again at growing intervals:
messages may be lost, a task that is not new may have been answered before, and a user may lack the
right to subscribe.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

from redisagg.errors import NoResult, RedisUnavailable, ResultTimeout, TaskCancelled, TaskFailed
from redisagg.protocol.answers import announced, unpack_answer
from redisagg.protocol.scripts import Request, command

_FIRST_LOOK = 0.5
"""Seconds until a key is read without a message; each further wait is three times as long."""

_LONGEST_LOOK = 5.0
_AFTER_OUTAGE = 0.3

Steps: TypeAlias = Generator["float | Request", Any, bytes]
"""Yields seconds to wait for a message, or a request whose reply it is sent; returns the record."""


class Slot:
    """What is known of the outcome of one task, for all receipts of it that share a subscription.

    Args:
        key: the key of the answer.
        look: whether the key has to be read, since the answer may have come before.
    """

    __slots__ = ("__weakref__", "key", "look", "record", "wakers")

    def __init__(self, key: bytes, look: bool) -> None:
        self.key = key
        self.look = look
        self.record: bytes | None = None
        self.wakers: list[Callable[[], object]] = []
        """Called when one of these has changed; by the thread of the subscription."""

    def wake(self) -> None:
        """Wakes all that wait."""
        for waker in tuple(self.wakers):
            waker()

    def steps(self, timeout: float | None) -> Steps:
        """The steps of a wait for the outcome.

        Args:
            timeout: seconds; None for no limit.

        Raises:
            ResultTimeout: there is none at the end of the timeout.
            RedisAggError: Redis refused to read it.
        """
        now = time.monotonic()
        end = math.inf if timeout is None else now + timeout
        interval, looked, error = _FIRST_LOOK, False, None
        look_at = now + interval
        while self.record is None:
            now = time.monotonic()
            if self.look or now >= look_at or (now >= end and not looked):
                self.look, looked = False, True
                reply = yield command("GET", self.key)
                if isinstance(reply, RedisUnavailable):
                    error, look_at = reply, time.monotonic() + _AFTER_OUTAGE
                    continue
                if isinstance(reply, Exception):
                    raise reply
                interval = min(3 * interval, _LONGEST_LOOK)
                error, look_at = None, time.monotonic() + interval
                if self.record is None:
                    self.record = reply
            elif now >= end:
                raise ResultTimeout(
                    f"no outcome within {timeout:g} s; locate() says where the task is"
                ) from error
            else:
                yield min(end, look_at) - now
        return self.record


class Inbox:
    """The slots of the receipts that share a subscription."""

    def __init__(self) -> None:
        self._slots: WeakValueDictionary[bytes, Slot] = WeakValueDictionary()
        self._lock = threading.Lock()
        self.listening = False
        """Whether each message from now on will be seen."""

    def slot(self, key: bytes, *, new: bool) -> Slot:
        """Returns the slot of a task.

        Args:
            new: whether it is submitted now, so that there was no outcome before.
        """
        with self._lock:
            known = self._slots.get(key)
            if known is None:
                slot = self._slots[key] = Slot(key, not (new and self.listening))
                return slot
            if not new and known.record is None:
                known.look = True
            return known

    def handle(self, message: bytes | None) -> None:
        """Takes a message; None if messages may have been lost, as after a subscription."""
        if message is None:
            self.listening = True
            with self._lock:
                slots = list(self._slots.values())
            for slot in slots:
                slot.look = slot.record is None
                slot.wake()
            return
        for key, record in announced(message).items():
            if (found := self._slots.get(key)) is not None:
                if record:
                    found.record = record
                else:
                    found.record, found.look = None, True
                found.wake()


def open_answer(record: bytes, key: bytes, task_id: str) -> Any:
    """Returns the result that a record holds.

    Raises:
        TaskFailed, NoResult, TaskCancelled: what became of the task instead.
        KeyConflict: the record is something else.
    """
    state, batch_id, value = unpack_answer(record, key)
    if state == "result":
        return value
    if state == "cancelled":
        raise TaskCancelled(f"task {task_id!r} was cancelled")
    if state == "failed":
        reason, letter = value
        where = f"dead letter {letter}" if letter else f"batch {batch_id}"
        failure = TaskFailed(f"task {task_id!r} failed ({where}): {reason}")
        failure.reason, failure.batch_id, failure.dead_letter = reason, batch_id, letter
        raise failure
    what = "dropped it" if state == "dropped" else "merged it"
    nothing = NoResult(f"the merge of batch {batch_id} {what} without a result: task {task_id!r}")
    nothing.batch_id, nothing.dropped = batch_id, state == "dropped"
    raise nothing


def forget(wakers: list[Callable[[], object]], waker: Callable[[], object]) -> None:
    """Removes a waker that may be gone."""
    with suppress(ValueError):
        wakers.remove(waker)
