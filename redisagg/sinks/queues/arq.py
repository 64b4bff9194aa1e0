"""arq as the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from redisagg.durations import Duration, to_seconds
from redisagg.errors import InvalidConfig, SinkError
from redisagg.payload import to_builtin
from redisagg.sinks.base import DeliverySink, MergedTask, SinkContext
from redisagg.sinks.clients import limit_connections
from redisagg.sinks.extras import require
from redisagg.sinks.function_calls import Arguments, Encode, FunctionCallOptions
from redisagg.sinks.urls import SinkUrl, check_url

OPTIONS = ("queue_name", "defer_until", "defer_by", "expires", "job_try")
"""The arguments of arq's `enqueue_job`, without their underscore, that a sink and `Task.options`
can set."""

_RESERVED = {"function", "self", "_job_id", *(f"_{name}" for name in OPTIONS)}
"""The arguments of `enqueue_job`, which the function can't receive by keyword."""


class ArqSink(DeliverySink):
    """Enqueues merged tasks for arq workers, with the batch id as the job id.

    arq refuses an id while it keeps the job or its result: while the job waits or runs (at most a
    day unless ``expires`` is set), then for the worker's ``keep_result`` (an hour by default). A
    batch that is enqueued again within that time, because a flusher died before it removed the
    batch, is enqueued once.

    Args:
        redis: the URL of the Redis that the workers use, or an `arq.connections.RedisSettings`.
        function: the name of the arq function; None takes the type of the merged task.
        queue: the workers' queue; None takes arq's own default, ``arq:queue``.
        headers_as: the keyword argument by which the function receives the headers as a dict,
            since arq has no place for them; None leaves them out.
        job_serializer: the inverse of the workers' ``job_deserializer``; None takes pickle.
        arguments: how the function receives the payload, see `Arguments`.
        encode: converts the payload for the serializer; default `redisagg.payload.to_builtin`.
        timeout: seconds (or a `timedelta`) after which a delivery has failed.
        concurrency: the number of deliveries that a flusher makes at the same time; None (default)
            for no limit.
        **options: further arguments of `enqueue_job` for all jobs, see `OPTIONS`.

    Raises:
        InvalidConfig: an argument is out of range or of the wrong type.
        SinkError: arq is not installed.
    """

    def __init__(
        self,
        redis: Any,
        *,
        function: str | None = None,
        queue: str | None = None,
        headers_as: str | None = None,
        job_serializer: Callable[[Any], bytes] | None = None,
        arguments: Arguments = "auto",
        encode: Encode = to_builtin,
        timeout: Duration = 30.0,
        concurrency: int | None = None,
        **options: Any,
    ) -> None:
        kind = require("arq.connections", "arq").RedisSettings
        check_url(redis, "ArqSink takes the URL of a Redis or RedisSettings", kind)
        try:
            self._redis = kind.from_dsn(redis) if isinstance(redis, str) else redis
        except (RuntimeError, ValueError) as error:
            raise InvalidConfig(f"ArqSink takes the URL of a Redis: {error}") from error
        if queue:
            options["queue_name"] = queue
        self.timeout = to_seconds(timeout, "timeout", InvalidConfig)
        self._limit_to(concurrency)
        self._calls = FunctionCallOptions(
            function, OPTIONS, options, arguments=arguments, encode=encode, headers_as=headers_as
        )
        self._job_serializer = job_serializer
        self._pool: Any = None

    @classmethod
    def from_url(cls, url: SinkUrl) -> ArqSink:
        """Parses ``arq://QUEUE?redis=redis://HOST&function=NAME&headers_as=NAME&arguments=auto``.

        An empty QUEUE is arq's own default.
        """
        return cls(
            url.required("redis"),
            **url.given(
                "queue", arguments=str, function=str, headers_as=str, timeout=float, concurrency=int
            ),
        )

    async def open(self, context: SinkContext) -> None:
        create_pool = require("arq.connections", "arq").create_pool
        creating = create_pool(self._redis, job_serializer=self._job_serializer)
        self._pool = await asyncio.wait_for(creating, self.timeout)  # it waits for a reply
        limit_connections(self._pool.connection_pool, self.timeout)

    async def close(self) -> None:
        await self._pool.aclose()
        self._pool = None

    async def deliver(self, merged: MergedTask) -> None:
        call = self._calls.call(merged.task)
        if clashing := sorted(_RESERVED & call.kwargs.keys()):
            raise SinkError(f"arq reserves {', '.join(clashing)}; use arguments='payload'")
        # None is returned for a known id: an earlier flusher died after it enqueued this batch.
        await self._pool.enqueue_job(
            call.name,
            *call.args,
            _job_id=merged.batch_id,
            **{f"_{name}": value for name, value in call.options.items()},
            **call.kwargs,
        )
