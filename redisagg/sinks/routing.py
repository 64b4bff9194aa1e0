"""The sink of each merged task: one sink for all, or the one that a function returns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias, cast

from redisagg.errors import InvalidConfig, SinkError
from redisagg.sinks.base import DeliverySink, MergedTask, ScriptSink, Sink, SinkContext
from redisagg.task import Task

Route: TypeAlias = Callable[[Task], Sink]
"""Returns the sink for a merged task; the same object each time, since each is opened once."""


@dataclass(frozen=True, slots=True)
class Router:
    """Finds the sink for each merged task.

    Args:
        sink: the one sink, or a function of the merged task.
        clustered: whether Redis is a cluster.
    """

    sink: Sink | Route
    clustered: bool

    def sink_of(self, task: Task) -> ScriptSink | DeliverySink:
        """The sink for a merged task.

        Raises:
            SinkError: the function returned no sink.
        """
        sink = self.sink if isinstance(self.sink, Sink) else self.sink(task)
        if not isinstance(sink, Sink):
            raise SinkError(f"the sink function returned {type(sink).__name__}; return a Sink")
        return self._resolved(sink)

    def only(self) -> ScriptSink | DeliverySink | None:
        """The sink of all merged tasks; None if a function returns it."""
        return self._resolved(self.sink) if isinstance(self.sink, Sink) else None

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


@dataclass(slots=True)
class Deliveries:
    """Delivers merged tasks, opening each sink before its first delivery."""

    router: Router
    context: SinkContext
    _opened: list[DeliverySink] = field(default_factory=list)
    _opening: asyncio.Lock = field(default_factory=asyncio.Lock)

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

    async def deliver(self, sink: DeliverySink, merged: MergedTask) -> None:
        """Delivers one merged task; raises the error of the sink."""
        if sink not in self._opened:
            async with self._opening:
                if sink not in self._opened:  # another delivery may have opened it
                    await sink.open(self.context)
                    self._opened.append(sink)
        await sink.deliver(merged)

    async def close(self) -> None:
        """Closes the sinks that were opened."""
        for sink in self._opened:
            await sink.close()
        self._opened.clear()
