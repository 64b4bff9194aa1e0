"""Event loops of our own for flushers, which user code can neither end nor keep from closing."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

from redisagg.errors import FlusherFailed
from redisagg.texts import logger

_log = logger("flusher")

T = TypeVar("T")

OnEnd: TypeAlias = Callable[["BaseException | None"], None]

_CANCEL_TIMEOUT = 0.3
"""Seconds that tasks have to end after they were cancelled."""

_MOST_THREADS = 256


class _DaemonExecutor(ThreadPoolExecutor):
    """Runs each call in a daemon thread of its own.

    asyncio resolves host names in the default executor of a loop, and user code may use it by
    `asyncio.to_thread`. Python's own has a few threads only, and waits for them when the loop is
    closed and when the process ends.
    """

    def __init__(self) -> None:
        super().__init__(1)  # never starts a thread, since `submit` is replaced
        self._free = threading.Semaphore(_MOST_THREADS)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Starts a call.

        Raises:
            RuntimeError: too many calls run.
        """
        future: Future[T] = Future()

        def work() -> None:
            try:
                if future.set_running_or_notify_cancel():
                    future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)
            finally:
                self._free.release()

        if not self._free.acquire(blocking=False):
            raise RuntimeError(f"{_MOST_THREADS} calls of asyncio.to_thread or of its kind hang")
        try:
            threading.Thread(target=work, name="redisagg-loop-executor", daemon=True).start()
        except BaseException:
            self._free.release()
            raise
        return future


class LoopThread:
    """An event loop in a daemon thread, which ends when the last of its users has left.

    Raises:
        FlusherFailed: the thread can't be started, or can't run an event loop.
    """

    def __init__(self, name: str) -> None:
        self._lock = threading.Lock()
        self._users: list[OnEnd] = []
        self._closing = False
        self._begun = threading.Event()
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise FlusherFailed(f"no thread can be started for the flusher: {error}") from error
        self._begun.wait()
        if self._error is not None:
            raise self._error

    @property
    def is_alive(self) -> bool:
        """Whether it runs in this process: no thread of a parent runs in a forked child."""
        return self._thread.is_alive()

    def enter(self, on_end: OnEnd) -> bool:
        """Adds a user.

        Args:
            on_end: called with an error if the thread ends while it has this user.

        Returns:
            False if the thread is about to end.
        """
        with self._lock:
            if self._closing or not self._thread.is_alive():
                return False
            self._users.append(on_end)
            return True

    def leave(self, on_end: OnEnd) -> None:
        """Removes a user; on the event loop or when it has ended."""
        with self._lock:
            self._users.remove(on_end)
            self._closing = not self._users
        if self._closing and self._ending is not None:
            self._ending.set()

    def call(self, function: Callable[[], object]) -> None:
        """Calls a function on the event loop soon, unless it has ended."""
        assert self._loop is not None
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(function)

    def stop(self) -> None:
        """Ends the event loop at once, in the middle of what its tasks do; on the loop."""
        assert self._loop is not None
        self._loop.stop()

    def join_if_last(self, timeout: float) -> None:
        """Waits for the end of the thread if it has no user, for at most `timeout` seconds."""
        if self._closing:
            self._thread.join(max(0.0, timeout))

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            _check_no_loop_runs()
            run_in_new_loop(self._main())
        except BaseException as raised:  # SystemExit too: a thread ends by it without a word
            error = raised
        finally:
            if not self._begun.is_set():
                self._error = error
            self._begun.set()
            for on_end in tuple(self._users):
                on_end(error or RuntimeError("its event loop has ended"))

    async def _main(self) -> None:
        self._ending = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._begun.set()
        await self._ending.wait()


_shared: LoopThread | None = None
_shared_lock = threading.Lock()


def enter_shared_thread(on_end: OnEnd) -> LoopThread:
    """Adds a user to the thread that all flushers share that run no user code on their event loop.

    Raises:
        FlusherFailed: as for `LoopThread`.
    """
    global _shared
    with _shared_lock:
        if _shared is None or not _shared.enter(on_end):
            _shared = LoopThread("redisagg-flushers")
            _shared.enter(on_end)
        return _shared


def _forget_shared_thread() -> None:
    global _shared, _shared_lock
    _shared, _shared_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_shared_thread)


def _check_no_loop_runs() -> None:
    """Checks whether a new thread is an operating system's thread.

    Raises:
        FlusherFailed: it has an event loop that runs already.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise FlusherFailed(
        "an event loop runs in this thread already: gevent has patched this process, so that its "
        "threads are greenlets of one thread, which can run one event loop; flushers share it if "
        "their merge function is plain and their sink a queue in Redis; run each other one in a "
        "process of its own"
    )


def run_in_new_loop(main: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine on a new event loop, as `asyncio.run` does, with two differences.

    A `SystemExit` or `KeyboardInterrupt` in another task or callback does not end the loop: it is
    logged. Nobody waits for threads that user code has started.

    Raises:
        RuntimeError: the loop was stopped.
        BaseException: what the coroutine raised.
    """
    loop = asyncio.new_event_loop()
    try:
        asyncio.set_event_loop(loop)
        loop.set_default_executor(_DaemonExecutor())
        running = loop.create_task(main)
        while True:
            try:
                loop.run_until_complete(running)
                return
            except (SystemExit, KeyboardInterrupt):
                if running.done():
                    raise
                _log.exception("a task on the event loop of a flusher raised; the flusher goes on")
    finally:
        try:
            _cancel_all(loop)
        finally:
            asyncio.set_event_loop(None)
            loop.close()


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    if left := asyncio.all_tasks(loop):
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.wait(left, timeout=_CANCEL_TIMEOUT))
    closing = loop.create_task(loop.shutdown_asyncgens())
    loop.run_until_complete(asyncio.wait({closing}, timeout=_CANCEL_TIMEOUT / 3))
