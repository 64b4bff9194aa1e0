"""RQ as the queue."""

from __future__ import annotations

import contextlib
from typing import Any

from redisagg.durations import Duration, to_seconds
from redisagg.errors import InvalidConfig
from redisagg.payload import to_builtin, to_plain
from redisagg.sinks.base import BlockingSink, MergedTask, SinkContext
from redisagg.sinks.clients import with_timeouts
from redisagg.sinks.extras import require
from redisagg.sinks.function_calls import Arguments, Encode, FunctionCallOptions
from redisagg.sinks.urls import SinkUrl, check_url

OPTIONS = (
    *("timeout", "result_ttl", "ttl", "failure_ttl", "at_front", "description", "retry"),
    *("on_success", "on_failure", "on_stopped"),
)
"""The arguments of RQ's `enqueue_call` that a sink and `Task.options` can set."""

_SERIALIZERS = {
    "pickle": "rq.serializers.DefaultSerializer",
    "json": "rq.serializers.JSONSerializer",
}


class RQSink(BlockingSink):
    """Enqueues merged tasks for RQ workers, with the batch id as the job id.

    RQ refuses an id while it keeps the job: while the job waits or runs, then for ``result_ttl``
    seconds (500 by default), or ``failure_ttl`` (a year) if it failed. A batch that is enqueued
    again within that time, because a flusher died before it removed the batch, is enqueued once.

    Args:
        redis: the URL of the Redis that the workers use.
        function: the import path of the function, such as ``"app.tasks.digest"``; None takes the
            type of the merged task.
        queue: the name of the queue; ``Task.options["queue"]`` overrides it.
        serializer: the serializer of the workers: ``"pickle"``, ``"json"`` or an import path.
        arguments: how the function receives the payload, see `Arguments`.
        encode: converts the payload for the serializer. None takes `redisagg.payload.to_plain` for
            ``"json"`` and `redisagg.payload.to_builtin` for all others.
        delivery_timeout: seconds (or a `timedelta`) after which a delivery has failed;
            `timeout` is that of the job.
        concurrency: the number of deliveries that a flusher makes at the same time; None (default)
            for 16.
        **options: further arguments of `enqueue_call` for all jobs, see `OPTIONS`.

    Raises:
        InvalidConfig: an argument is out of range or of the wrong type.
        SinkError: RQ is not installed.
    """

    def __init__(
        self,
        redis: str,
        *,
        function: str | None = None,
        queue: str = "default",
        serializer: str = "pickle",
        arguments: Arguments = "auto",
        encode: Encode | None = None,
        delivery_timeout: Duration = 30.0,
        concurrency: int | None = None,
        **options: Any,
    ) -> None:
        require("rq", "rq")
        check_url(redis, "RQSink takes the URL of a Redis")
        encode = encode or (to_plain if serializer == "json" else to_builtin)
        self.timeout = to_seconds(delivery_timeout, "delivery_timeout", InvalidConfig)
        self._limit_to(concurrency)
        self._calls = FunctionCallOptions(
            function, OPTIONS, options, arguments=arguments, encode=encode, queue=queue
        )
        self.takes_json = self._calls.takes_json
        self._redis = redis
        self._serializer = _SERIALIZERS.get(serializer, serializer)
        self._client: Any = None

    @classmethod
    def from_url(cls, url: SinkUrl) -> RQSink:
        """Parses ``rq://QUEUE?redis=redis://HOST&function=NAME&serializer=json&arguments=auto``."""
        return cls(
            url.required("redis"),
            **url.given(
                "queue",
                arguments=str,
                function=str,
                serializer=str,
                delivery_timeout=float,
                concurrency=int,
            ),
        )

    async def open(self, context: SinkContext) -> None:
        # So that no thread waits for ever; options in the URL have precedence.
        self._client = require("redis", "rq").Redis.from_url(
            self._redis, **with_timeouts(self.timeout)
        )

    async def close(self) -> None:
        self._client.close()
        self._client = None

    def deliver_blocking(self, merged: MergedTask) -> None:
        rq = require("rq", "rq")
        call = self._calls.call(merged.task)
        queue = rq.Queue(call.queue, connection=self._client, serializer=self._serializer)
        # The id is known if an earlier flusher died after it enqueued this batch.
        with contextlib.suppress(rq.exceptions.DuplicateJobError):
            queue.enqueue_call(
                call.name,
                args=call.args,
                kwargs=call.kwargs,
                # A half of a batch that was split has a dot, which RQ allows in no id.
                job_id=merged.batch_id.replace(".", "_"),
                meta=dict(merged.task.headers),
                unique=True,  # RQ checks the id and enqueues in one script
                **call.options,
            )
