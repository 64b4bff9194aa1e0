"""A function as the queue."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from redisagg.durations import Duration, to_seconds
from redisagg.errors import InvalidConfig
from redisagg.merge_function import Partial
from redisagg.sinks.base import DeliverySink, MergedTask
from redisagg.sinks.limited_calls import AwaitedCalls, Ended, ThreadedCalls, value_of
from redisagg.task import Task

_THREADS = 16
"""Calls of a plain function that run at the same time, unless another number is set."""


class CallableSink(DeliverySink):
    """Calls ``fn(task, batch_id)`` with each merged task, at least once.

    The call is repeated with the same batch id if the flusher dies between the call and the removal
    of the batch, or if `fn` raises after it did its work: have `fn` ignore an id that it has seen.
    Calls for one group come one after the other, in order.

    `fn` may return ``Partial(failed={task_id: reason})``: these tasks of the batch become dead
    letters of their own, the rest is done. Anything else that it returns is ignored.

    After a call that raised, the payload of the next one is as `redisagg.payload.to_builtin`
    returns it: a dict for a dataclass, a list for a tuple.

    Args:
        fn: a plain or `async` function; a plain one runs in a daemon thread.
        timeout: seconds (or a `timedelta`) after which a call has failed with `SinkTimeout`. A call
            of an `async` function is cancelled. A thread can't be stopped: it counts as hung until
            the call returns, so a plain function should have time limits of its own.
        concurrency: the number of calls that run at the same time in a flusher; None (default) for
            16 of a plain function, and no limit for an `async` one. Further ones wait, which is not
            part of `timeout`. If all threads hang, further calls fail at once.

    Raises:
        InvalidConfig: `fn` can't be called, or another argument is out of range or of the wrong
            type.
    """

    limits_itself = True

    def __init__(
        self,
        fn: Callable[[Task, str], Any],
        *,
        timeout: Duration = 30.0,
        concurrency: int | None = None,
    ) -> None:
        if not callable(fn):
            raise InvalidConfig(f"CallableSink takes a function, not {type(fn).__name__}")
        self._fn = fn
        self.timeout: float = to_seconds(timeout, "timeout", InvalidConfig)
        self._limit_to(concurrency)
        self._name = f"the function of {type(self).__name__}"
        self._threads = ThreadedCalls(self._name, self.concurrency or _THREADS)
        self._coroutines = AwaitedCalls(self._name)

    async def deliver(self, merged: MergedTask) -> Partial | None:
        arguments = merged.task, merged.batch_id
        run = self._threads.run
        if inspect.iscoroutinefunction(self._fn):
            run = self._coroutines.run
        returned = await self._value(run(self._fn, *arguments, timeout=self.timeout))
        if inspect.isawaitable(returned):  # a plain function that returns a coroutine
            running = self._coroutines.run(_awaited, returned, timeout=self.timeout)
            returned = await self._value(running)
        return returned if isinstance(returned, Partial) else None

    async def _value(self, running: Awaitable[Ended | None]) -> Any:
        return value_of(await running, self._name, self.timeout)


async def _awaited(returned: Awaitable[Any]) -> Any:
    return await returned
