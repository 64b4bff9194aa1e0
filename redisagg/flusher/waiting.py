"""Waiting for an event with a timeout, and for the end of cancelled tasks."""

from __future__ import annotations

import asyncio

# Seconds until a task that still runs is cancelled again.
_CANCEL_AGAIN = 0.5


async def wait_for_event(event: asyncio.Event, timeout: float) -> bool:
    """Waits until `event` is set; returns False after `timeout` seconds.

    This does not use `asyncio.wait_for`: before Python 3.12 that loses a cancellation that comes
    together with the event, and its caller would go on.
    """
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({waiting}, timeout=timeout)
    finally:
        waiting.cancel()
    return event.is_set()


async def cancel_and_wait(*tasks: asyncio.Task[None]) -> None:
    """Cancels tasks that talk to Redis in a loop, and waits until they have ended.

    They are cancelled repeatedly: redis-py sends through `asyncio.wait_for`, which before Python
    3.12 loses a cancellation that comes when the sending is done.

    Their errors count as seen, also if this wait is cancelled before they have ended.
    """
    left = set(tasks)
    for task in left:
        task.add_done_callback(_see_error)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_CANCEL_AGAIN)


def _see_error(task: asyncio.Task[None]) -> None:
    """Keeps asyncio from reporting an error that nobody asked for."""
    if not task.cancelled():
        task.exception()
