"""Calls the user's function for events, beside the flusher, which never waits for it.

Events wait in a queue of limited length. What comes while it is full is dropped and counted, and
the function is told the number by an `EventsDropped`.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any

from redisagg.events import Event, EventsDropped
from redisagg.merge_function import is_async
from redisagg.observers import Observers
from redisagg.texts import logger

_log = logger("events")

_MOST_WAITING = 10_000
"""The number of events that may wait."""

_CLOSE_TIMEOUT = 0.25
"""Seconds that the end of a flusher waits until the function has had all events."""

_GATHER = 16
"""The number of events after which the thread waits for others, so that it takes the interpreter
seldom from a busy flusher."""

_GATHER_SECONDS = 0.01


def make_event_queue(observers: Observers, *, on_loop: bool) -> EventQueue | None:
    """Makes the queue for the user's function; None without one.

    Args:
        on_loop: whether an ``async`` function is called on this event loop, which is the user's.
    """
    function = observers.on_event
    if function is None:
        return None
    kind = _LoopQueue if on_loop and is_async(function) else _ThreadQueue
    return kind(function, observers)


class EventQueue(ABC):
    """A listener that hands events to a function of the user.

    Args:
        function: plain or ``async``. What it raises is logged once.
        observers: counts the events that are dropped.
    """

    def __init__(self, function: Callable[[Any], Any], observers: Observers) -> None:
        self.kinds = observers.event_kinds
        self._function = function
        self._observers = observers
        self._waiting: deque[Event] = deque()
        self._missing = 0
        """The number of events that were dropped since the last one that was not."""
        self._busy = False
        self._idle = True
        """Whether an event has to wake what calls the function."""
        self._closed = False
        self._failed = False

    def __call__(self, event: Event) -> None:
        """Puts an event into the queue; drops it if that is full."""
        if len(self._waiting) >= _MOST_WAITING or self._missing:
            self._bound(event)
        else:
            self._waiting.append(event)
        if self._idle:
            self._wake()

    def _bound(self, event: Event) -> None:
        """Drops an event if the queue is full; else puts in how many were dropped before it."""
        if len(self._waiting) >= _MOST_WAITING:
            if not self._observers.dropped:
                _log.warning(
                    "on_event takes longer than events come or does not return: %d wait, further "
                    "ones are dropped",
                    _MOST_WAITING,
                )
            self._observers.dropped += 1
            self._missing += 1
            return
        missing, self._missing = self._missing, 0
        self._waiting.append(
            EventsDropped(
                at=event.at, namespace=event.namespace, flusher=event.flusher, count=missing
            )
        )
        self._waiting.append(event)

    async def close(self) -> None:
        """Waits for a moment until all events are taken; what is left then is dropped."""
        self._closed = True
        self._wake()
        end = time.monotonic() + _CLOSE_TIMEOUT
        while (self._waiting or self._busy) and time.monotonic() < end:  # noqa: ASYNC110 - a thread
            await asyncio.sleep(0.005)
        self._observers.dropped += len(self._waiting)
        self._waiting.clear()
        self._end()

    @abstractmethod
    def _wake(self) -> None:
        """An event waits, or the queue is closed."""

    @abstractmethod
    def _end(self) -> None:
        """No further event comes."""

    def _note(self, error: BaseException) -> None:
        """Logs the first error of the function."""
        if not self._failed:
            self._failed = True
            _log.error(
                "on_event raised %r; its further errors are not logged", error, exc_info=error
            )


class _ThreadQueue(EventQueue):
    """Calls the function in a daemon thread, an ``async`` one on an event loop in that thread."""

    def __init__(self, function: Callable[[Any], Any], observers: Observers) -> None:
        super().__init__(function, observers)
        self._woken = threading.Event()
        self._thread: threading.Thread | None = None

    def _wake(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._work, name="redisagg-events", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the system allows no further thread
                self._note(error)
                return
            self._thread = thread
        self._idle = False
        self._woken.set()

    def _end(self) -> None:
        self._woken.set()

    def _work(self) -> None:
        loop: asyncio.AbstractEventLoop | None = None
        function, take = self._function, self._waiting.popleft
        while True:
            self._idle = True
            if not (self._waiting or self._closed):  # looked at after `_idle` is set: see `_wake`
                self._woken.wait()
            self._woken.clear()
            self._busy, self._idle, taken = True, False, 0
            while self._waiting:
                taken += 1
                try:
                    event = take()
                except IndexError:  # `close` has dropped what waited
                    break
                try:
                    result = function(event)
                    if result is not None and inspect.isawaitable(result):
                        loop = loop or asyncio.new_event_loop()
                        loop.run_until_complete(_awaited(result))
                except BaseException as error:
                    self._note(error)
            self._busy = False
            if self._closed:
                break
            if taken >= _GATHER:
                time.sleep(_GATHER_SECONDS)
        if loop is not None:
            loop.close()


class _LoopQueue(EventQueue):
    """Calls an ``async`` function on the event loop that the flusher shares with the user."""

    def __init__(self, function: Callable[[Any], Any], observers: Observers) -> None:
        super().__init__(function, observers)
        self._woken = asyncio.Event()
        self._task = asyncio.create_task(self._work())

    def _wake(self) -> None:
        self._woken.set()

    def _end(self) -> None:
        self._task.cancel()

    async def _work(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            self._busy = True
            while self._waiting:
                event = self._waiting.popleft()
                # A task of its own: what cancels itself does not end this one.
                calling = asyncio.create_task(self._call(event))
                try:
                    await asyncio.wait({calling})
                finally:
                    calling.cancel()
            self._busy = False

    async def _call(self, event: Event) -> None:
        try:
            await self._function(event)
        except BaseException as error:
            self._note(error)
            if isinstance(error, asyncio.CancelledError):
                raise


async def _awaited(result: Any) -> Any:
    return await result
