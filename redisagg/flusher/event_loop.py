"""An event loop of our own for a flusher, which user code can neither end nor keep from closing."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

_log = logging.getLogger("redisagg")

T = TypeVar("T")

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
