"""A flusher in the foreground, for worker processes."""

from __future__ import annotations

import asyncio
import os
import signal

from redisagg.flusher.background import flush_until
from redisagg.namespace import Namespace

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


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
