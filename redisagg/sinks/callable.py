"""A function as the queue."""

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

    The call is repeated with the same batch id if the flusher dies between the call and the removal
    of the batch, or if `fn` raises after it did its work: have `fn` ignore an id that it has seen.
    Calls for one group come one after the other, in order.

    After a call that raised, the payload of the next one is as `redisagg.payload.to_builtin`
    returns it: a dict for a dataclass, a list for a tuple.

    Args:
        fn: a plain or `async` function; a plain one runs in a thread.

    Raises:
        InvalidConfig: `fn` can't be called.
    """

    def __init__(self, fn: Callable[[Task, str], Any]) -> None:
        if not callable(fn):
            raise InvalidConfig(f"CallableSink takes a function, not {type(fn).__name__}")
        self._fn = fn

    async def deliver(self, merged: MergedTask) -> None:
        if inspect.iscoroutinefunction(self._fn):
            result: Any = self._fn(merged.task, merged.batch_id)
        else:
            result = await asyncio.to_thread(self._fn, merged.task, merged.batch_id)
        if inspect.isawaitable(result):
            await result
