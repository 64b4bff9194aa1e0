"""Streaq as the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from redisagg.errors import InvalidConfig
from redisagg.payload import to_builtin
from redisagg.sinks.base import DeliverySink, MergedTask, SinkContext
from redisagg.sinks.function_calls import (
    Arguments,
    Call,
    Encode,
    check_arguments,
    check_options,
    headers_as,
    options_for,
)
from redisagg.sinks.urls import SinkUrl, require

OPTIONS = ("priority", "delay", "schedule", "expire")
"""What a sink and `Task.options` can set of a Streaq task; times in seconds."""


class StreaqSink(DeliverySink):
    """Enqueues merged tasks for Streaq workers, with the batch id as the task id.

    Streaq refuses an id while a task by it waits or runs. The sink also looks for its result, which
    Streaq keeps for the task's ``ttl`` (5 minutes unless set). A batch that is enqueued again
    within that time, because a flusher died before it removed it, is enqueued once.

    Args:
        worker: the URL of the Redis that the workers use, or a `streaq.Worker` for this sink alone:
            its connections are opened and closed with it, on the flusher's event loop.
        task: the name of the Streaq task; None takes the merged task's type.
        queue: for a URL, the name of the workers' queue.
        serializer: for a URL, as the workers have it; None takes pickle.
        headers_as: the argument by which the task gets the headers, as a dict; Streaq has no place
            for them. None leaves them out.
        arguments: how the task gets the payload, see `redisagg.sinks.function_calls.Arguments`.
        encode: turns the payload into what the serializer takes; by default into builtins and the
            standard library's dates, UUIDs and so on.
        **options: of all tasks, see `OPTIONS`.

    Raises:
        InvalidConfig: an argument is out of range or of the wrong type.
        SinkError: Streaq is not installed.
    """

    def __init__(
        self,
        worker: Any,
        *,
        task: str | None = None,
        queue: str = "default",
        serializer: Callable[[Any], bytes | str] | None = None,
        headers_as: str | None = None,
        arguments: Arguments = "auto",
        encode: Encode = to_builtin,
        **options: Any,
    ) -> None:
        known = require("streaq", "streaq").Worker
        if not isinstance(worker, known) and not (isinstance(worker, str) and worker):
            raise InvalidConfig(
                f"StreaqSink takes the URL of a Redis or a Worker, not {type(worker).__name__}"
            )
        check_arguments(arguments)
        check_options(options, OPTIONS)
        self.worker = worker
        self.task = task
        self.queue = queue
        self.serializer = serializer
        self.headers_as = headers_as
        self.arguments = arguments
        self.encode = encode
        self.options = options
        self._closing = asyncio.Event()
        self._opened: asyncio.Future[Any] | None = None
        self._holder: asyncio.Task[None] | None = None

    @classmethod
    def from_url(cls, url: SinkUrl) -> StreaqSink:
        """``streaq://QUEUE?redis=redis://HOST:6379/0&task=NAME&headers_as=NAME&arguments=auto``

        An empty QUEUE is Streaq's own default, ``default``.
        """
        return cls(
            url.required("redis"),
            task=url.option("task", str),
            queue=url.target or "default",
            headers_as=url.option("headers_as", str),
            arguments=url.option("arguments", str, "auto"),
        )

    async def open(self, context: SinkContext) -> None:
        await self._sender()

    async def close(self) -> None:
        self._closing.set()
        holder = self._holder
        # Nothing of this event loop stays: the sink may be opened on another one.
        self._closing, self._opened, self._holder = asyncio.Event(), None, None
        if holder is not None:
            await holder

    async def deliver(self, batch: MergedTask) -> None:
        call = Call.of(batch.task, self.task, self.arguments, self.encode)
        options = options_for(batch.task, self.options, OPTIONS)
        sender = await self._sender()
        # Streaq's own script does not look at a task that has ended.
        if await sender.redis.exists([sender.results_key + batch.batch_id]):
            return  # an earlier flusher got this far and no further
        task = sender.enqueue_unsafe(call.name)
        task.id = batch.batch_id
        task.args = call.args
        # Not as arguments of enqueue_unsafe, which has names of its own among them.
        task.kwargs = {**call.kwargs, **headers_as(batch.task, self.headers_as)}
        task.parent.expire = options.pop("expire", None)
        await task.start(**options)

    async def _sender(self) -> Any:
        """The worker, with its connections open.

        Raises whatever opening them raised; the next call tries again.
        """
        if self._opened is None or self._holder is None or self._holder.done():
            self._opened = asyncio.get_running_loop().create_future()
            self._holder = asyncio.create_task(self._hold(self._opened, self._closing))
        return await asyncio.shield(self._opened)

    async def _hold(self, opened: asyncio.Future[Any], closing: asyncio.Event) -> None:
        """Opens the connections and closes them: anyio wants both from one task."""
        worker = self.worker
        try:
            if isinstance(worker, str):
                settings = {"serializer": self.serializer} if self.serializer else {}
                make = require("streaq", "streaq").Worker
                worker = make(worker, queue_name=self.queue, **settings)
            async with worker:
                opened.set_result(worker)
                await closing.wait()
        except Exception as error:
            if opened.done():
                raise
            opened.set_exception(_cause(error))


def _cause(error: Exception) -> Exception:
    """What is in the groups that anyio makes of exceptions, where it is one thing."""
    inner: tuple[Exception, ...] = getattr(error, "exceptions", ())
    return _cause(inner[0]) if len(inner) == 1 else error
