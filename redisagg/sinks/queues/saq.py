"""SAQ as the queue, on Redis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from redisagg.durations import Duration, to_seconds
from redisagg.errors import InvalidConfig
from redisagg.payload import to_plain
from redisagg.sinks.base import DeliverySink, MergedTask, SinkContext
from redisagg.sinks.clients import with_timeouts
from redisagg.sinks.extras import require
from redisagg.sinks.function_calls import Arguments, Encode, FunctionCallOptions
from redisagg.sinks.urls import SinkUrl, check_url

OPTIONS = (
    *("timeout", "heartbeat", "retries", "ttl", "retry_delay", "retry_backoff"),
    "scheduled",
)
"""The settings of a SAQ `Job` that a sink and `Task.options` can set; times in seconds."""


class SAQSink(DeliverySink):
    """Enqueues merged tasks for SAQ workers, with the batch id as the key of the job.

    SAQ refuses a key while the job waits or runs. The sink also looks for a job that has ended,
    which SAQ keeps for its ``ttl`` (600 seconds by default; 0 keeps it for ever, -1 not at all). A
    batch that is enqueued again within that time, because a flusher died before it removed the
    batch, is enqueued once.

    Args:
        redis: the URL of the Redis that the workers use.
        function: the name of the SAQ function; None takes the type of the merged task.
        queue: the name of the queue; ``Task.options["queue"]`` overrides it.
        dump: the `dump` of the workers' `saq.Queue`; None takes JSON.
        arguments: how the function receives the payload, see `Arguments`. SAQ has keyword
            arguments only: a payload that is passed as one argument is called ``payload``.
        encode: converts the payload for `dump`; default `redisagg.payload.to_plain`.
        delivery_timeout: seconds (or a `timedelta`) after which a delivery has failed;
            `timeout` is that of the job.
        concurrency: the number of deliveries that a flusher makes at the same time; None (default)
            for no limit.
        **options: settings of all jobs, see `OPTIONS`.

    Raises:
        InvalidConfig: an argument is out of range or of the wrong type.
        SinkError: SAQ is not installed.
    """

    def __init__(
        self,
        redis: str,
        *,
        function: str | None = None,
        queue: str = "default",
        dump: Callable[[Mapping[Any, Any]], bytes | str] | None = None,
        arguments: Arguments = "auto",
        encode: Encode = to_plain,
        delivery_timeout: Duration = 30.0,
        concurrency: int | None = None,
        **options: Any,
    ) -> None:
        require("saq", "saq")
        check_url(redis, "SAQSink takes the URL of a Redis")
        self.timeout = to_seconds(delivery_timeout, "delivery_timeout", InvalidConfig)
        self._limit_to(concurrency)
        self._calls = FunctionCallOptions(
            function, OPTIONS, options, arguments=arguments, encode=encode, queue=queue
        )
        self.takes_json = self._calls.takes_json
        self._redis = redis
        self._dump = dump
        self._client: Any = None
        self._queues: dict[str | None, Any] = {}

    @classmethod
    def from_url(cls, url: SinkUrl) -> SAQSink:
        """Parses ``saq://QUEUE?redis=redis://HOST:6379/0&function=NAME&arguments=auto``.

        An empty QUEUE is SAQ's own default, ``default``.
        """
        return cls(
            url.required("redis"),
            **url.given(
                "queue", arguments=str, function=str, delivery_timeout=float, concurrency=int
            ),
        )

    async def open(self, context: SinkContext) -> None:
        self._client = require("redis.asyncio", "saq").Redis.from_url(
            self._redis, **with_timeouts(self.timeout)
        )

    async def close(self) -> None:
        client, self._client, self._queues = self._client, None, {}
        if client is not None:
            await client.aclose()

    async def deliver(self, merged: MergedTask) -> None:
        call = self._calls.call(merged.task)
        queue = self._queue(call.queue)
        # SAQ's own script lets a new job replace one of the same key that has ended.
        if await self._client.exists(queue.job_id(merged.batch_id)):
            return  # an earlier flusher died after it enqueued this batch
        await queue.enqueue(
            require("saq", "saq").Job(
                function=call.name,
                kwargs={"payload": call.args[0]} if call.args else call.kwargs,
                key=merged.batch_id,
                meta=dict(merged.task.headers),
                **call.options,
            )
        )

    def _queue(self, name: str | None) -> Any:
        if name not in self._queues:
            make = require("saq.queue.redis", "saq").RedisQueue
            self._queues[name] = make(self._client, name, self._dump)
        return self._queues[name]
