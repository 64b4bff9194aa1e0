"""Running a flusher: on the present event loop, in a thread of its own, or until a signal."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading

from redisagg.flusher.flusher import Flusher
from redisagg.namespace import Namespace
from redisagg.transport.endpoint import aclose

_log = logging.getLogger("redisagg")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def flush_until(namespace: Namespace, stop: asyncio.Event) -> None:
    """Runs a flusher, with a client of its own, until `stop` is set."""
    endpoint = namespace.flusher_endpoint()
    client = endpoint.asyncio()
    try:
        await Flusher(
            keyspace=namespace.keyspace,
            config=namespace.config,
            sink=namespace.sink,
            client=client,
            endpoint=endpoint,
        ).run(stop)
    finally:
        await aclose(client)


class FlusherThread(threading.Thread):
    """Runs a flusher until `stop`. It is a daemon, so that it keeps no process alive."""

    def __init__(self, namespace: Namespace) -> None:
        super().__init__(name=f"redisagg-flusher-{namespace.keyspace.name}", daemon=True)
        self._namespace = namespace
        self._started_loop = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_event: asyncio.Event | None = None

    def run(self) -> None:
        """The body of the thread."""
        try:
            asyncio.run(self._main())
        except Exception:
            _log.exception("the flusher of %r ended", self._namespace.keyspace.name)
        finally:
            self._started_loop.set()

    async def _main(self) -> None:
        self._stop_event = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._started_loop.set()
        await flush_until(self._namespace, self._stop_event)

    def stop(self) -> None:
        """Tells the flusher to end, and waits for its end."""
        self._started_loop.wait()
        if self._loop is not None and self._stop_event is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop_event.set)
        self.join()


def run_until_signalled(namespace: Namespace) -> None:
    """Runs a flusher until SIGTERM or SIGINT; see `serve`."""
    asyncio.run(serve(namespace))


async def serve(namespace: Namespace) -> None:
    """Runs a flusher until SIGTERM or SIGINT; a second signal ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def signalled(number: signal.Signals) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for each in _SIGNALS:
        loop.add_signal_handler(each, signalled, each)
    try:
        await flush_until(namespace, stop)
    finally:
        for each in _SIGNALS:
            loop.remove_signal_handler(each)
