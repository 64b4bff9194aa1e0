"""The sink of each merged task: one sink for all, or the one that a function returns."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

from redisagg.config import check_range
from redisagg.errors import InvalidConfig, SinkError
from redisagg.merge_function import Partial
from redisagg.sinks.base import (
    DeliverySink,
    MergedTask,
    RedisQueue,
    ScriptSink,
    Sink,
    SinkContext,
    timeout_of,
)
from redisagg.sinks.limited_calls import AwaitedCalls, begins_of_delivery, value_of
from redisagg.task import Task
from redisagg.texts import logger

_log = logger("sinks")

Route: TypeAlias = Callable[[Task], Sink]
"""Returns the sink for a merged task; the same object each time, since each is opened once."""


@dataclass(slots=True)
class Router:
    """Finds the sink for each merged task.

    Args:
        sink: the one sink, or a function of the merged task.
        clustered: whether Redis is a cluster.
        max_bytes: the largest size in bytes of all merged tasks of a batch.
    """

    sink: Sink | Route
    clustered: bool
    max_bytes: int
    _only: ScriptSink | DeliverySink | None = field(default=None, init=False)
    """The one sink, once it has been resolved."""
    _queues: dict[str | None, RedisQueue] = field(default_factory=dict, init=False)
    """Those of the one sink, by hash tag."""

    def sink_of(self, task: Task) -> ScriptSink | DeliverySink:
        """The sink for a merged task.

        Raises:
            SinkError: the function returned no sink.
        """
        only = self._only or self.only()
        if only is not None:
            return only
        sink: object = cast("Route", self.sink)(task)
        if not isinstance(sink, Sink):
            raise SinkError(f"the sink function returned {type(sink).__name__}; return a Sink")
        return self._resolved(sink)

    def only(self) -> ScriptSink | DeliverySink | None:
        """The sink of all merged tasks; None if a function returns it."""
        if self._only is None and isinstance(self.sink, Sink):
            self._only = self._resolved(self.sink)
        return self._only

    def queue_of(self, sink: ScriptSink, slot: str | None) -> RedisQueue:
        """The queue of a resolved sink in the partition with this hash tag."""
        if sink is not self._only:
            return sink.queue(slot)
        queue = self._queues.get(slot)
        if queue is None:
            queue = self._queues[slot] = sink.queue(slot)
        return queue

    def _resolved(self, sink: Sink) -> ScriptSink | DeliverySink:
        resolved = sink.resolve(clustered=self.clustered)
        if not isinstance(resolved, ScriptSink | DeliverySink):
            raise SinkError(
                f"{type(resolved).__name__} is neither a ScriptSink nor a DeliverySink; "
                "make it a subclass of one"
            )
        return resolved


def check_sink(sink: object) -> Sink | Route:
    """Returns `sink` if it is a sink or a function.

    Raises:
        InvalidConfig: it is neither.
    """
    if isinstance(sink, Sink) or (callable(sink) and not isinstance(sink, type)):
        return cast("Sink | Route", sink)
    raise InvalidConfig(
        f"sink is a Sink, a URL of one, or a function of the merged task, not {type(sink).__name__}"
    )


# Seconds that closing all sinks may take when a flusher ends.
_CLOSE_TIMEOUT = 0.5


@dataclass(slots=True)
class _Target:
    """A sink to which a flusher delivers."""

    sink: DeliverySink
    calls: AwaitedCalls
    slots: asyncio.Semaphore | None
    """One for each delivery that may be under way; None if there is no limit."""
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    opened: bool = False


@dataclass(slots=True)
class Deliveries:
    """Delivers merged tasks, opening each sink before its first delivery.

    A sink can raise anything and hang: see `limited_calls`.
    """

    router: Router
    context: SinkContext
    _targets: dict[int, _Target] = field(default_factory=dict)
    """By the `id` of the sink."""

    def sink_of(self, task: Task) -> DeliverySink:
        """The sink for a merged task that is to be delivered.

        Raises:
            SinkError: the function returned a `ScriptSink`, although it returned another kind
                when the task was merged.
        """
        sink = self.router.sink_of(task)
        if not isinstance(sink, DeliverySink):
            raise SinkError(
                "the sink function returned two sinks for one task; it has to return the same "
                "object each time"
            )
        return sink

    async def deliver(
        self, sink: DeliverySink, merged: MergedTask, begins: Callable[[], None] | None = None
    ) -> Partial | None:
        """Delivers one merged task.

        Args:
            begins: called when it is the turn of this delivery.

        Returns:
            The tasks that failed alone, if there are any.

        Raises:
            SinkTimeout: the sink took longer than its timeout, or too many deliveries hang.
            SinkError: the sink raised something other than an `Exception`.
            Exception: what the sink or `begins` raised.
        """
        target = self._targets.get(id(sink))
        if target is None:
            name = type(sink).__name__
            slots = None
            if sink.concurrency is not None:
                check_range("concurrency", sink.concurrency, 1)
                slots = asyncio.Semaphore(sink.concurrency)
            target = self._targets[id(sink)] = _Target(sink, AwaitedCalls(name), slots)
        if not target.opened:
            async with target.opening:
                if not target.opened:  # another delivery may have opened it
                    await self._call(target, sink.open, self.context)
                    target.opened = True
        if target.slots is None:
            return await self._deliver(target, merged, begins)
        async with target.slots:
            return await self._deliver(target, merged, begins)

    async def _deliver(
        self, target: _Target, merged: MergedTask, begins: Callable[[], None] | None
    ) -> Partial | None:
        if begins is not None:
            begins()
        if target.sink.limits_itself:
            if begins is not None:
                begins_of_delivery.set(begins)  # it may wait for a thread
            returned: object = await target.sink.deliver(merged)
        else:
            returned = await self._call(target, target.sink.deliver, merged)
        return returned if isinstance(returned, Partial) and returned.failed else None

    async def close(self) -> None:
        """Closes the sinks that were opened, within half a second; logs what they raise."""
        opened = [target for target in self._targets.values() if target.opened]
        self._targets.clear()
        await asyncio.gather(*map(self._close, opened))

    async def _close(self, target: _Target) -> None:
        name = type(target.sink).__name__
        try:
            ended = await target.calls.run(target.sink.close, timeout=_CLOSE_TIMEOUT)
            value_of(ended, f"closing {name}", _CLOSE_TIMEOUT)
        except Exception as error:
            _log.warning("%s can't be closed: %r", name, error)

    async def _call(
        self, target: _Target, function: Callable[..., Awaitable[Any]], *args: Any
    ) -> Any:
        timeout = timeout_of(target.sink)
        ended = await target.calls.run(function, *args, timeout=timeout)
        return value_of(ended, type(target.sink).__name__, timeout)
