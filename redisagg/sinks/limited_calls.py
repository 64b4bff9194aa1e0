"""Calls of user code with a time limit, and a bound on the calls that hang.

User code can raise anything, and can hang for ever. `AwaitedCalls` is for coroutine functions,
`ThreadedCalls` for plain ones. In both, every exception of the called code reaches the caller as an
`Ended`: a `SystemExit` in an asyncio task would end the event loop, and a `StopIteration` can't be
set on a future. Neither waits for a call that hangs; each counts those calls, and refuses further
ones at its bound.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from redisagg.errors import SinkError, SinkTimeout
from redisagg.texts import logger, summary_of

_log = logger("sinks")

begins_of_delivery: ContextVar[Callable[[], None] | None] = ContextVar(
    "redisagg_begins", default=None
)
"""Is called when a call in a thread begins that had to wait for the thread; it may raise, and then
the call is not made."""

carries_context: ContextVar[bool] = ContextVar("redisagg_carries_context", default=False)
"""Whether calls in threads have the context variables of their caller, such as its span."""

_IDLE_SECONDS = 2.0
"""Seconds after which a thread without a call ends."""

_MOST_IGNORING = 64
"""The number of coroutines that may run on although they were cancelled."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a call ended."""

    value: Any = None
    error: BaseException | None = None


def value_of(ended: Ended | None, name: str, timeout: float) -> Any:
    """The value that a call of a sink returned.

    Args:
        ended: how it ended; None if it exceeded its time limit.
        name: the sink, for errors.
        timeout: the time limit in seconds.

    Raises:
        SinkTimeout: the call exceeded its time limit.
        SinkError: the call raised something other than an `Exception`, or a `StopIteration`.
        Exception: what the call raised.
    """
    if ended is None:
        raise SinkTimeout(f"{name} took longer than its timeout ({timeout:g} s)")
    error = ended.error
    if error is None:
        return ended.value
    if isinstance(error, Exception) and not isinstance(error, StopIteration | StopAsyncIteration):
        raise error
    # Raised as it is, it would end the event loop or look like a cancellation.
    raise SinkError(f"{name} raised {summary_of(error)}") from error


class AwaitedCalls:
    """Awaits coroutine functions, each in an asyncio task of its own.

    Args:
        name: what is called, for errors and the log.
        most_hung: the number of calls that may run on after they were cancelled.
    """

    def __init__(self, name: str, most_hung: int = _MOST_IGNORING) -> None:
        self._name = name
        self._most_hung = most_hung
        self._hung: set[asyncio.Task[Ended]] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._name, self._most_hung)  # a copy has no calls

    @property
    def hung(self) -> int:
        """The number of calls that exceeded their time limit and ignore that they are cancelled."""
        return len(self._hung)

    @property
    def full(self) -> bool:
        """Whether so many calls hang that no further one is made."""
        if len(self._hung) >= self._most_hung:  # those of a flusher that has ended do not count
            self._hung -= {each for each in self._hung if each.get_loop().is_closed()}
        return len(self._hung) >= self._most_hung

    async def run(
        self, function: Callable[..., Awaitable[Any]], *args: Any, timeout: float
    ) -> Ended | None:
        """Awaits a call; returns None and cancels it if it takes longer than `timeout` seconds.

        Raises:
            SinkTimeout: too many calls hang.
        """
        if self.full:
            raise SinkTimeout(f"{len(self._hung)} calls of {self._name} hang; no other is made")
        calling = asyncio.ensure_future(_ended(function, args))
        try:
            await asyncio.wait({calling}, timeout=timeout)
        except asyncio.CancelledError:  # of the caller; one of the call itself is an `Ended`
            self._cancel(calling)
            raise
        if calling.done():
            return calling.result()
        self._cancel(calling)
        return None

    def _cancel(self, calling: asyncio.Task[Ended]) -> None:
        if calling.cancel():
            self._hung.add(calling)
            calling.add_done_callback(self._hung.discard)


async def _ended(function: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> Ended:
    try:
        return Ended(await function(*args))
    except BaseException as error:
        return Ended(error=error)


@dataclass(slots=True, eq=False)
class _Call:
    """A call in a thread."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Ended]
    over: bool = False
    """Whether the function has returned or raised."""
    given_up: bool = False
    """Whether nobody waits for it any more."""

    def run(self) -> Ended:
        try:
            return Ended(self.function(*self.args))
        except BaseException as error:
            return Ended(error=error)

    def report(self, ended: Ended) -> None:
        """Hands the result to the caller on its event loop."""
        try:
            self.loop.call_soon_threadsafe(self._set_result, ended)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return

    def _set_result(self, ended: Ended) -> None:
        if not self.future.done():
            self.future.set_result(ended)


@dataclass(slots=True, eq=False)
class _Waiter:
    """A caller that waits for a thread."""

    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[None]
    granted: bool = False


class ThreadedCalls:
    """Runs plain functions in daemon threads, which keep no process alive.

    asyncio's default executor is not used: it waits for its threads when a loop is closed, and
    resolves host names, which calls that hang would stop. Can be used from several event loops.

    Args:
        name: what is called, for errors and the log.
        limit: the number of calls that run at the same time. Further ones wait. If so many calls
            hang, further ones are refused.
    """

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._running = 0
        self._hung = 0
        self._idle = 0  # threads that wait for a call
        self._waiters: deque[_Waiter] = deque()
        self._queue: SimpleQueue[_Call] = SimpleQueue()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._name, self._limit)  # a copy has threads of its own

    @property
    def hung(self) -> int:
        """The number of calls that exceeded their time limit and still run."""
        return self._hung

    async def run(self, function: Callable[..., Any], *args: Any, timeout: float) -> Ended | None:
        """Runs a call in a thread; returns None if it takes longer than `timeout` seconds.

        The wait for a free thread is not part of `timeout`.

        Raises:
            SinkTimeout: all threads hang.
            RuntimeError: the system allows no further thread.
            Exception: what `begins_of_delivery` raised.
        """
        if self._pid != os.getpid():  # a forked child has none of its parent's threads
            self._begin()
        if await self._acquire() and (begin := begins_of_delivery.get()) is not None:
            try:
                begin()
            except BaseException:
                with self._lock:
                    self._release()
                raise
        loop = asyncio.get_running_loop()
        if carries_context.get():
            function = partial(copy_context().run, function)
        call = _Call(function, args, loop, loop.create_future())
        try:
            self._start(call)
            await asyncio.wait({call.future}, timeout=timeout)
        finally:
            self._give_up(call)
        return call.future.result() if call.future.done() else None

    # --- slots: as many as calls may run -----------------------------------------------------

    async def _acquire(self) -> bool:
        """Takes a slot; returns whether it had to wait for it."""
        with self._lock:
            if self._hung >= self._limit:
                raise self._all_hang()
            if self._running < self._limit:
                self._running += 1
                return False
            loop = asyncio.get_running_loop()
            waiter = _Waiter(loop, loop.create_future())
            self._waiters.append(waiter)
        try:
            await waiter.future
        except asyncio.CancelledError:
            with self._lock:
                if waiter.granted:
                    self._release()
                elif waiter in self._waiters:
                    self._waiters.remove(waiter)
            raise
        return True

    def _release(self) -> None:
        """Frees the slot of a call that is over; the lock is held."""
        self._running -= 1
        while self._waiters:
            waiter = self._waiters.popleft()
            if self._wake(waiter, None):
                waiter.granted = True
                self._running += 1
                return

    def _all_hang(self) -> SinkTimeout:
        return SinkTimeout(
            f"{self._hung} calls of {self._name} hang, as many as may run at the same time"
        )

    @staticmethod
    def _wake(waiter: _Waiter, error: Exception | None) -> bool:
        """Ends the wait of a caller; returns False if its event loop is closed."""

        def wake() -> None:
            if waiter.future.done():  # cancelled; `_acquire` passes the slot on
                return
            if error is None:
                waiter.future.set_result(None)
            else:
                waiter.future.set_exception(error)

        try:
            waiter.loop.call_soon_threadsafe(wake)
        except RuntimeError:
            return False
        return True

    def _give_up(self, call: _Call) -> None:
        """Notes that nobody waits for a call any more."""
        with self._lock:
            if call.over:
                return
            call.given_up = True
            self._hung += 1
            hung = self._hung
            refused = list(self._waiters) if hung >= self._limit else []
            if refused:
                self._waiters.clear()
        _log.warning("a call of %s is given up; %d of %d hang", self._name, hung, self._limit)
        for waiter in refused:
            self._wake(waiter, self._all_hang())

    # --- threads -----------------------------------------------------------------------------

    def _start(self, call: _Call) -> None:
        with self._lock:
            if self._idle > 0:
                self._idle -= 1
                start = False
            else:
                start = True
        if not start:
            self._queue.put(call)
            return
        try:
            threading.Thread(
                target=self._work, args=(call,), name="redisagg-sink", daemon=True
            ).start()
        except BaseException:
            with self._lock:
                call.over = True
                self._release()
            raise

    def _work(self, call: _Call | None) -> None:
        while call is not None:
            ended = call.run()
            with self._lock:
                call.over = True
                if call.given_up:
                    self._hung -= 1
                self._release()
                self._idle += 1
            call.report(ended)
            del ended
            call = self._next()

    def _next(self) -> _Call | None:
        """The next call for this thread; None if there is none for a while."""
        try:
            return self._queue.get(timeout=_IDLE_SECONDS)
        except Empty:
            pass
        with self._lock:
            if self._idle > 0:
                self._idle -= 1
                return None
        return self._queue.get()  # a call was meant for this thread a moment ago
