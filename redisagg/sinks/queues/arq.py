"""arq as the queue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redisagg.errors import InvalidConfig, SinkError
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

OPTIONS = ("queue_name", "defer_until", "defer_by", "expires", "job_try")
"""The arguments of arq's `enqueue_job`, without their underscore, that a sink and `Task.options`
can set."""

_TAKEN = {"function", "self", "_job_id", *(f"_{name}" for name in OPTIONS)}


class ArqSink(DeliverySink):
    """Enqueues merged tasks for arq workers, with the batch id as the job id.

    arq refuses an id while it knows a job by it: while the job waits or runs (a day unless
    ``expires`` is set), then for the worker's ``keep_result`` (an hour unless set). A batch that is
    enqueued again within that time, because a flusher died before it removed it, is enqueued once.

    Args:
        redis: the URL of the Redis that the workers use, or an `arq.connections.RedisSettings`.
        function: the name of the arq function; None takes the merged task's type.
        queue: the workers' queue; None takes arq's own default, ``arq:queue``.
        headers_as: the argument by which the function gets the headers, as a dict; arq has no
            place for them. None leaves them out.
        job_serializer: as the workers have it in ``job_deserializer``; None takes pickle.
        arguments: how the function gets the payload, see `redisagg.sinks.function_calls.Arguments`.
        encode: turns the payload into what the serializer takes; by default into builtins and the
            standard library's dates, UUIDs and so on.
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
        **options: Any,
    ) -> None:
        arq = require("arq.connections", "arq")
        try:
            self.redis = arq.RedisSettings.from_dsn(redis) if isinstance(redis, str) else redis
        except (RuntimeError, ValueError) as error:
            raise InvalidConfig(f"ArqSink takes the URL of a Redis: {error}") from error
        if not isinstance(self.redis, arq.RedisSettings):
            raise InvalidConfig(
                f"ArqSink takes the URL of a Redis or RedisSettings, not {type(redis).__name__}"
            )
        check_arguments(arguments)
        check_options(options, OPTIONS)
        self.function = function
        self.headers_as = headers_as
        self.job_serializer = job_serializer
        self.arguments = arguments
        self.encode = encode
        self.options = options | ({"queue_name": queue} if queue else {})
        self._pool: Any = None

    @classmethod
    def from_url(cls, url: SinkUrl) -> ArqSink:
        """``arq://QUEUE?redis=redis://HOST:6379/0&function=NAME&headers_as=NAME&arguments=auto``

        An empty QUEUE is arq's own default.
        """
        return cls(
            url.required("redis"),
            function=url.option("function", str),
            queue=url.target or None,
            headers_as=url.option("headers_as", str),
            arguments=url.option("arguments", str, "auto"),
        )

    async def open(self, context: SinkContext) -> None:
        create_pool = require("arq.connections", "arq").create_pool
        self._pool = await create_pool(self.redis, job_serializer=self.job_serializer)

    async def close(self) -> None:
        await self._pool.aclose()
        self._pool = None

    async def deliver(self, batch: MergedTask) -> None:
        call = Call.of(batch.task, self.function, self.arguments, self.encode)
        if taken := sorted(_TAKEN & call.kwargs.keys()):
            raise SinkError(f"arq takes {', '.join(taken)} for itself; use arguments='payload'")
        options = options_for(batch.task, self.options, OPTIONS)
        # None for an id that is known: an earlier flusher got this far and no further.
        await self._pool.enqueue_job(
            call.name,
            *call.args,
            _job_id=batch.batch_id,
            **{f"_{name}": value for name, value in options.items()},
            **{**call.kwargs, **headers_as(batch.task, self.headers_as)},
        )
