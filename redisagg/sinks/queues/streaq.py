"""Streaq as the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from redisagg.durations import Duration, to_seconds
from redisagg.errors import InvalidConfig
from redisagg.payload import to_builtin
from redisagg.sinks.base import DeliverySink, MergedTask, SinkContext
from redisagg.sinks.extras import require
from redisagg.sinks.function_calls import Arguments, Encode, FunctionCallOptions
from redisagg.sinks.urls import SinkUrl, check_url

OPTIONS = ("priority", "delay", "schedule", "expire")
"""The settings of a Streaq task that a sink and `Task.options` can set; times in seconds."""


class StreaqSink(DeliverySink):
    """Enqueues merged tasks for Streaq workers, with the batch id as the task id.

    Streaq refuses an id while the task waits or runs. The sink also looks for its result, which
    Streaq keeps for the task's ``ttl`` (5 minutes by default). A batch that is enqueued again
    within that time, because a flusher died before it removed the batch, is enqueued once.

    Args:
        worker: the URL of the Redis that the workers use, or a `streaq.Worker` for this sink alone:
            the sink opens and closes its connections, on the flusher's event loop.
        task: the name of the Streaq task; None takes the type of the merged task.
        queue: for a URL, the name of the workers' queue.
        serializer: for a URL, the serializer of the workers; None takes pickle.
        headers_as: the keyword argument by which the task receives the headers as a dict, since
            Streaq has no place for them; None leaves them out.
        arguments: how the task receives the payload, see `Arguments`.
        encode: converts the payload for the serializer; default `redisagg.payload.to_builtin`.
        timeout: seconds (or a `timedelta`) after which a delivery has failed.
        concurrency: the number of deliveries that a flusher makes at the same time; None (default)
            for no limit.
        **options: settings of all tasks, see `OPTIONS`.

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
        timeout: Duration = 30.0,
        concurrency: int | None = None,
        **options: Any,
    ) -> None:
        kind = require("streaq", "streaq").Worker
        check_url(worker, "StreaqSink takes the URL of a Redis or a Worker", kind)
        self.timeout = to_seconds(timeout, "timeout", InvalidConfig)
        self._limit_to(concurrency)
        self._calls = FunctionCallOptions(
            task, OPTIONS, options, arguments=arguments, encode=encode, headers_as=headers_as
        )
        self._worker = worker
        self._queue = queue
        self._serializer = serializer
        self._closing = asyncio.Event()
        self._opened: asyncio.Future[Any] | None = None
        self._holder: asyncio.Task[None] | None = None

    @classmethod
    def from_url(cls, url: SinkUrl) -> StreaqSink:
        """Parses ``streaq://QUEUE?redis=redis://HOST&task=NAME&headers_as=NAME&arguments=auto``.

        An empty QUEUE is Streaq's own default, ``default``.
        """
        return cls(
            url.required("redis"),
            **url.given(
                "queue", arguments=str, task=str, headers_as=str, timeout=float, concurrency=int
            ),
        )

    async def open(self, context: SinkContext) -> None:
        await self._sender()

    async def close(self) -> None:
        self._closing.set()
        holder = self._holder
        # The sink may be opened again on another event loop, so nothing of this one is kept.
        self._closing, self._opened, self._holder = asyncio.Event(), None, None
        if holder is not None:
            await holder

    async def deliver(self, merged: MergedTask) -> None:
        call = self._calls.call(merged.task)
        sender = await self._sender()
        # Streaq's own script does not look for a task that has ended.
        if await sender.redis.exists([sender.results_key + merged.batch_id]):
            return  # an earlier flusher died after it enqueued this batch
        task = sender.enqueue_unsafe(call.name)
        task.id = merged.batch_id
        task.args = call.args
        # Set here, since enqueue_unsafe has keyword arguments of its own.
        task.kwargs = call.kwargs
        task.parent.expire = call.options.pop("expire", None)
        await task.start(**call.options)

    async def _sender(self) -> Any:
        """The worker, with its connections open.

        Raises the error of opening them; the next call tries again.
        """
        if self._opened is None or self._holder is None or self._holder.done():
            self._opened = asyncio.get_running_loop().create_future()
            self._holder = asyncio.create_task(self._hold(self._opened, self._closing))
        return await asyncio.shield(self._opened)

    async def _hold(self, opened: asyncio.Future[Any], closing: asyncio.Event) -> None:
        """Opens the connections and closes them; anyio needs one asyncio task to do both."""
        worker = self._worker
        try:
            if isinstance(worker, str):
                settings: dict[str, Any] = {
                    "redis_kwargs": {
                        "stream_timeout": self.timeout,
                        "connect_timeout": self.timeout,
                    }
                }
                if self._serializer:
                    settings["serializer"] = self._serializer
                make = require("streaq", "streaq").Worker
                worker = make(worker, queue_name=self._queue, **settings)
            async with worker:
                opened.set_result(worker)
                await closing.wait()
        except Exception as error:
            if opened.done():
                raise
            opened.set_exception(_cause(error))


def _cause(error: Exception) -> Exception:
    """The one exception in the exception groups that anyio raises, or else the outer group."""
    inner: tuple[Exception, ...] = getattr(error, "exceptions", ())
    return _cause(inner[0]) if len(inner) == 1 else error
