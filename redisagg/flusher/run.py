"""Running a flusher: on the present event loop, in a thread, or until a signal."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from redisagg.durations import seconds
from redisagg.errors import FlusherFailed, NamespaceMismatch, RedisAggError
from redisagg.flusher.connections import shared_connections
from redisagg.flusher.event_loop import LoopThread, enter_shared_thread
from redisagg.flusher.flusher import Flusher
from redisagg.flusher.merging import check_executor, is_async
from redisagg.namespace import Namespace
from redisagg.sinks.base import ScriptSink, Sink
from redisagg.texts import logger
from redisagg.transport.endpoint import close
from redisagg.transport.threads import Transport

_log = logger("flusher")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_END_TIMEOUT = 1.6
"""Seconds beyond `shutdown_timeout` after which nobody waits for the end of a flusher. `close` has
to close connections after that, and to end 2 seconds beyond it."""

_HARD_STOP_TIMEOUT = 0.4
"""Seconds of them that are left when the event loop of a flusher is stopped."""


async def flush_until(
    namespace: Namespace,
    stop: asyncio.Event,
    lease_time: float | None = None,
    *,
    on_user_loop: bool = False,
) -> None:
    """Runs a flusher until `stop` is set.

    Args:
        namespace: what it flushes.
        stop: ends it.
        lease_time: the shortest lease time, in seconds, of the flushers on this event loop, so that
            all share the same connections; None for that of the namespace.
        on_user_loop: whether this event loop is the user's.
    """
    if lease_time is None:
        lease_time = seconds(namespace.config.lease_time)
    silence = min(lease_time / 3, 5.0)
    async with shared_connections(namespace.flusher_endpoint(lease_time), silence) as connections:
        await Flusher(
            keyspace=namespace.keyspace,
            config=namespace.config,
            sink=namespace.sink,
            connections=connections,
            observers=namespace.observers,
            on_user_loop=on_user_loop,
        ).run(stop)


def end_by(namespace: Namespace) -> float:
    """The time by `time.monotonic` at which a flusher that is stopped now has ended."""
    return time.monotonic() + seconds(namespace.config.shutdown_timeout) + _END_TIMEOUT


def _log_end(namespace: Namespace, error: BaseException) -> None:
    name = namespace.keyspace.name
    _log.error("the flusher of %r ended: %r", name, error, exc_info=error)


class FlusherTask:
    """Runs a flusher on the present event loop until `stop`."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._stop_event = asyncio.Event()
        flushing = flush_until(namespace, self._stop_event, on_user_loop=True)
        self._task = asyncio.create_task(flushing)
        self._task.add_done_callback(self._done)

    @property
    def is_running(self) -> bool:
        """Whether the flusher has not ended."""
        return not self._task.done()

    async def wait_until_signalled(self) -> None:
        """Waits until the flusher has ended; stops it at SIGTERM or SIGINT.

        Raises:
            BaseException: the error that ended the flusher.
        """
        loop = asyncio.get_running_loop()
        stopping = asyncio.create_task(self._stop_event.wait())
        try:
            with Signals(lambda: loop.call_soon_threadsafe(self._stop_event.set)):
                tasks = {stopping, self._task}
                try:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                finally:  # if the caller is cancelled too
                    was_stopped = self._stop_event.is_set()
                    await self.stop(end_by(self._namespace))
        finally:
            stopping.cancel()
        if self._task.cancelled() and not was_stopped:
            raise FlusherFailed("the asyncio task of the flusher was cancelled")
        if self._task.done() and not self._task.cancelled():
            self._task.result()

    async def stop(self, until: float) -> None:
        """Tells the flusher to end, and waits for its end.

        Args:
            until: the time by `time.monotonic` at which the wait ends.
        """
        self._stop_event.set()
        left = until - time.monotonic()
        await asyncio.wait({self._task}, timeout=max(0.0, left - _HARD_STOP_TIMEOUT))
        if not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=_HARD_STOP_TIMEOUT)
            _log.warning("the flusher of %r was cancelled", self._namespace.keyspace.name)

    def _done(self, task: asyncio.Task[None]) -> None:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None and not (task.cancelled() and self._stop_event.is_set()):
            _log_end(self._namespace, error)


class FlusherThread:
    """Runs a flusher in a daemon thread until `stop`; a daemon keeps no process alive.

    Flushers that run no user code on their event loop share one thread, and so their connections.
    Others have a thread each, since such code may block it.

    Args:
        namespace: what it flushes.
        on_end: called when it has ended.
        among: the thread in which it runs, with the other flushers of `run_together`; None for one
            that this class chooses.
        lease_time: as for `flush_until`.

    Raises:
        FlusherFailed: the thread can't be started, or can't run an event loop.
    """

    def __init__(
        self,
        namespace: Namespace,
        on_end: Callable[[], object] = lambda: None,
        among: LoopThread | None = None,
        lease_time: float | None = None,
    ) -> None:
        self._namespace = namespace
        self._on_end = on_end
        self._lease_time = lease_time
        self.error: BaseException | None = None
        """What ended the flusher, if nobody stopped it."""
        self._ended = threading.Event()
        self._stopped = False
        self._stop_event = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._shares_thread = among is not None or _shares_thread(namespace)
        if among is not None:
            if not among.enter(self._end):
                raise FlusherFailed("the event loop on which the flusher was to run has ended")
            self._thread = among
        elif self._shares_thread:
            self._thread = enter_shared_thread(self._end)
        else:
            self._thread = LoopThread(f"redisagg-flusher-{namespace.keyspace.name}")
            self._thread.enter(self._end)
        self._thread.call(self._begin)

    @property
    def is_running(self) -> bool:
        """Whether the flusher has not ended."""
        return self._thread.is_alive and not self._ended.is_set()

    def stop(self, until: float) -> None:
        """Tells the flusher to end, and waits for its end.

        Args:
            until: the time by `time.monotonic` at which the wait ends.
        """
        _stop_all([self], until)

    def check_end(self) -> None:
        """Raises what ended the flusher, if nobody stopped it.

        Raises:
            Exception: the error that ended it.
            FlusherFailed: something else that is raised, such as `SystemExit`, ended it.
        """
        if isinstance(self.error, Exception):
            raise self.error
        if self.error is not None:  # a SystemExit(0) would look like a regular end
            raise FlusherFailed(f"the flusher was ended by {self.error!r}") from self.error

    def ask_to_stop(self) -> None:
        """Tells the flusher to finish its merges and to end."""
        self._stopped = True
        if self._thread.is_alive:  # not in a forked child: its parent's flusher goes on
            self._thread.call(self._stop_event.set)

    def wait(self, until: float) -> bool:
        """Waits for the end of the flusher; returns whether it has ended or is another process'."""
        return not self._thread.is_alive or self._ended.wait(max(0.0, until - time.monotonic()))

    def cancel(self) -> None:
        """Ends the flusher in the middle of what it does."""
        self._thread.call(self._cancel if self._shares_thread else self._thread.stop)

    def release(self, until: float) -> None:
        """Waits for the end of its thread, if that has no other user."""
        if self._ended.is_set():
            self._thread.join_if_last(until - time.monotonic())
        elif self._thread.is_alive:
            _log.error(
                "the flusher of %r has not ended: its event loop is blocked by a merge function or "
                "a sink; it ends when that call returns",
                self._namespace.keyspace.name,
            )

    def _begin(self) -> None:
        flushing = flush_until(self._namespace, self._stop_event, self._lease_time)
        self._task = asyncio.get_running_loop().create_task(flushing)
        self._task.add_done_callback(self._done)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._end(asyncio.CancelledError() if task.cancelled() else task.exception())

    def _end(self, error: BaseException | None) -> None:
        """The flusher has ended, or its thread has."""
        if self._ended.is_set():
            return
        if error is not None and self._stopped:
            _log.warning("the flusher of %r was stopped", self._namespace.keyspace.name)
        elif error is not None:
            self.error = error
            _log_end(self._namespace, error)
        self._thread.leave(self._end)
        self._ended.set()
        self._on_end()


def _stop_all(flushers: Sequence[FlusherThread], until: float) -> None:
    """Tells flushers to end, and waits for their ends until a time by `time.monotonic`."""
    for each in flushers:
        each.ask_to_stop()
    late = [each for each in flushers if not each.wait(until - _HARD_STOP_TIMEOUT)]
    for each in late:
        each.cancel()
    for each in late:
        each.wait(until)
    for each in flushers:
        each.release(until)


def run_together(namespaces: Sequence[Namespace]) -> None:
    """Runs a flusher for each namespace, all on one event loop in one thread.

    Those with the same Redis share a client and a listener. Runs until SIGTERM or SIGINT, or until
    one of them has ended; then it stops the others. A second signal ends the process at once.

    Raises:
        InvalidConfig: ``executor="process"`` in a process that can't have worker processes.
        FlusherFailed: the thread can't be started, or can't run an event loop.
        RedisAggError: Redis can't be used.
        Exception: the error that ended a flusher.
    """
    for each in namespaces:
        check_executor(each.config)
        _register(each)
    lease_time = min(seconds(each.config.lease_time) for each in namespaces)
    flushers: list[FlusherThread] = []
    endings = Endings()
    with Signals(endings.report):
        thread = LoopThread("redisagg-flushers")
        thread.enter(_ignore_end)  # else it would end with the first flusher
        try:
            flushers.extend(
                FlusherThread(each, endings.report, thread, lease_time) for each in namespaces
            )
            endings.wait()
        finally:
            until = max(map(end_by, namespaces))
            thread.call(lambda: thread.leave(_ignore_end))
            _stop_all(flushers, until)
    for flusher in flushers:
        flusher.check_end()


def _ignore_end(error: BaseException | None) -> None:
    """Is the user that keeps a thread alive."""


def _register(namespace: Namespace) -> None:
    """Records a namespace, on a connection that is closed again."""
    client = namespace.producer_endpoint().blocking()
    try:
        transport = Transport(client, seconds(namespace.config.add_timeout))
        try:
            transport.run(namespace.register())
        except NamespaceMismatch as error:
            with suppress(RedisAggError):
                transport.once(namespace.note_refusal(error))
            raise
    finally:
        close(client)


def _shares_thread(namespace: Namespace) -> bool:
    """Whether a flusher runs no user code on its event loop that could block others.

    Plain merge functions run in threads or processes. What a queue in Redis is asked for, its keys
    and options, are no calls that wait.
    """
    sink = namespace.sink
    if not isinstance(sink, Sink) or is_async(namespace.config.group_aggregator):
        return False
    return isinstance(sink.resolve(clustered=bool(namespace.endpoint.cluster)), ScriptSink)


class Signals:
    """Handles SIGTERM and SIGINT while a flusher runs; a second one ends the process at once.

    Does nothing outside the main thread, where Python can't handle signals.

    Args:
        on_signal: called with the first one, in the main thread between two instructions.
    """

    def __init__(self, on_signal: Callable[[], object]) -> None:
        self._on_signal = on_signal
        self._count = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = {each: signal.signal(each, self._handle) for each in _SIGNALS}

    def __exit__(self, *details: object) -> None:
        for each, handler in self._before.items():
            # None: it was not set by Python, and can't be set again.
            signal.signal(each, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: object) -> None:
        self._count += 1
        if self._count > 1:
            os._exit(128 + number)
        self._on_signal()


class Endings:
    """Why a flusher that `run` runs has to end; may be reported by signal handlers."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[None] = SimpleQueue()  # an Event could block in a signal handler

    def report(self) -> None:
        """A signal came, or the flusher has ended."""
        self._queue.put(None)

    def wait(self) -> None:
        """Waits for the first report."""
        self._queue.get()
