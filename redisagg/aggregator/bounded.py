"""Calls with a limit on the time that their caller waits, whatever Redis does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any


def call_within(timeout: float, function: Callable[[], object]) -> bool:
    """Calls a function in a daemon thread, and waits for it.

    Args:
        timeout: seconds after which nobody waits for it any more.

    Returns:
        Whether it has ended.

    Raises:
        BaseException: what the function raised.
    """
    errors: list[BaseException] = []

    def work() -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="redisagg-call", daemon=True)
    thread.start()
    thread.join(timeout)
    if errors:
        raise errors[0]
    return not thread.is_alive()


async def await_within(timeout: float, coroutine: Coroutine[Any, Any, object]) -> bool:
    """Awaits a coroutine, and cancels it after a time; does not wait until it is cancelled.

    Args:
        timeout: seconds.
        coroutine: what to await.

    Returns:
        Whether it has ended. False also if something outside has cancelled its task.

    Raises:
        BaseException: what the coroutine raised.
    """
    running = asyncio.ensure_future(coroutine)
    try:
        await asyncio.wait({running}, timeout=max(0.0, timeout))
    finally:
        running.cancel()  # has no effect if it has ended
    if not running.done() or running.cancelled():
        return False
    running.result()
    return True
