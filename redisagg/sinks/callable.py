"""Any function as the queue."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from redisagg.errors import InvalidConfig
from redisagg.sinks.base import DeliverySink, MergedTask
from redisagg.task import Task


class CallableSink(DeliverySink):
    """Calls ``fn(task, batch_id)`` with each merged task, at least once.

    If the flusher dies after the call and before the batch is removed, or if `fn` raises after it
    did its work, the call is made again with the same batch id: have the queue refuse an id that
    it has seen. Batches of one group come one after the other, in order.

    When a call is made again because `fn` raised, the payload is as `redisagg.payload.to_builtin`
    returns it: a dict for a dataclass, a list for a tuple.

    Args:
        fn: plain or `async`; a plain one runs in a thread.

    Raises:
        InvalidConfig: `fn` can't be called.
    """

    def __init__(self, fn: Callable[[Task, str], Any]) -> None:
        if not callable(fn):
            raise InvalidConfig(f"CallableSink takes a function, not {type(fn).__name__}")
        self._fn = fn

    async def deliver(self, batch: MergedTask) -> None:
        if inspect.iscoroutinefunction(self._fn):
            result: Any = self._fn(batch.task, batch.batch_id)
        else:
            result = await asyncio.to_thread(self._fn, batch.task, batch.batch_id)
        if inspect.isawaitable(result):
            await result
