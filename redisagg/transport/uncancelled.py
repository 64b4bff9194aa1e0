"""A call in a task of the event loop of which users know nothing, but which they can cancel.

Whoever shuts an event loop down may cancel all its tasks. A call that such a task makes for others
is then made again, unless they were cancelled themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Uncancelled(Generic[T]):
    """Makes a call in a task of its own, again if that is cancelled.

    Args:
        call: what is called; it may be repeated.
    """

    def __init__(self, call: Callable[[], Awaitable[T]]) -> None:
        self._call = call
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> T:
        return await self._call()

    @property
    def done(self) -> bool:
        """Whether the call has ended. It has not if it was cancelled."""
        return self._task.done() and not self._task.cancelled()

    def cancel(self) -> None:
        """Cancels the call, if nobody waits for its result."""
        self._task.cancel()

    async def result(self) -> T:
        """Waits for the end of the call; may be awaited by several tasks, and in vain.

        Raises:
            BaseException: what the call raised; the same object for all who await it.
        """
        while True:
            task = self._task
            await asyncio.wait({task})  # raises if its own caller is cancelled, only then
            if not task.cancelled():
                return task.result()
            if task is self._task:  # else another caller has begun it again
                self._task = asyncio.create_task(self._run())
