"""SAQ as the queue, on Redis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from redisagg.errors import InvalidConfig
from redisagg.payload import to_plain
from redisagg.sinks.base import DeliverySink, MergedTask, SinkContext, option
from redisagg.sinks.function_calls import (
    Arguments,
    Call,
    Encode,
    check_arguments,
    check_options,
    options_for,
)
from redisagg.sinks.urls import SinkUrl, require

OPTIONS = (
    *("timeout", "heartbeat", "retries", "ttl", "retry_delay", "retry_backoff"),
    "scheduled",
)
"""The settings of a SAQ `Job` that a sink and `Task.options` can set; times in seconds."""


class SAQSink(DeliverySink):
    """Enqueues merged tasks for SAQ workers, with the batch id as the key of the job.

    SAQ refuses a key while a job by it waits or runs. The sink also looks for a job that has
    ended, which SAQ keeps for its ``ttl`` (600 seconds unless set, for ever with 0, not at all with
    -1). A batch that is enqueued again within that time, because a flusher died before it removed
    it, is enqueued once.

    Args:
        redis: the URL of the Redis that the workers use.
        function: the name of the SAQ function; None takes the merged task's type.
        queue: the name of the queue; ``Task.options["queue"]`` overrides it.
        dump: as the workers' `saq.Queue` has it; None takes JSON.
        arguments: how the function gets the payload, see
            `redisagg.sinks.function_calls.Arguments`. SAQ
            knows arguments by name only: as one argument, it is called ``payload``.
        encode: turns the payload into what `dump` takes; by default into what JSON knows.
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
        **options: Any,
    ) -> None:
        require("saq", "saq")
        if not isinstance(redis, str) or not redis:
            raise InvalidConfig(f"SAQSink takes the URL of a Redis, not {redis!r}")
        check_arguments(arguments)
        check_options(options, OPTIONS)
        self.redis = redis
        self.function = function
        self.queue = queue
        self.dump = dump
        self.arguments = arguments
        self.encode = encode
        self.options = options
        self._client: Any = None
        self._queues: dict[str, Any] = {}

    @classmethod
    def from_url(cls, url: SinkUrl) -> SAQSink:
        """``saq://QUEUE?redis=redis://HOST:6379/0&function=NAME&arguments=auto``

        An empty QUEUE is SAQ's own default, ``default``.
        """
        return cls(
            url.required("redis"),
            function=url.option("function", str),
            queue=url.target or "default",
            arguments=url.option("arguments", str, "auto"),
        )

    async def open(self, context: SinkContext) -> None:
        self._client = require("redis.asyncio", "saq").Redis.from_url(self.redis)

    async def close(self) -> None:
        client, self._client, self._queues = self._client, None, {}
        if client is not None:
            await client.aclose()

    async def deliver(self, batch: MergedTask) -> None:
        task = batch.task
        call = Call.of(task, self.function, self.arguments, self.encode)
        queue = self._queue(option(task, "queue", self.queue))
        # SAQ's own script does not look at a job that has ended, but lets a new one replace it.
        if await self._client.exists(queue.job_id(batch.batch_id)):
            return  # an earlier flusher got this far and no further
        await queue.enqueue(
            require("saq", "saq").Job(
                function=call.name,
                kwargs={"payload": call.args[0]} if call.args else dict(call.kwargs),
                key=batch.batch_id,
                meta=dict(task.headers),
                **options_for(task, self.options, OPTIONS),
            )
        )

    def _queue(self, name: str) -> Any:
        if name not in self._queues:
            make = require("saq.queue.redis", "saq").RedisQueue
            self._queues[name] = make(self._client, name, self.dump)
        return self._queues[name]
