"""RQ as the queue."""

from __future__ import annotations

import contextlib
from typing import Any

from redisagg.errors import InvalidConfig
from redisagg.payload import to_builtin, to_plain
from redisagg.sinks.base import BlockingSink, MergedTask, SinkContext, option
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

    RQ refuses an id while it knows a job by it: while the job waits or runs, then for
    ``result_ttl`` seconds (500 unless set), or ``failure_ttl`` (a year) if it failed. A batch that
    is enqueued again within that time, because a flusher died before it removed it, is enqueued
    once.

    Args:
        redis: the URL of the Redis that the workers use.
        function: where the workers import the function from, such as ``"app.tasks.digest"``; None
            takes the merged task's type.
        queue: the name of the queue; ``Task.options["queue"]`` overrides it.
        serializer: the workers' serializer: ``"pickle"``, ``"json"``, or where to import one from.
        arguments: how the function gets the payload, see `redisagg.sinks.function_calls.Arguments`.
        encode: turns the payload into what the serializer takes; by default into what JSON knows
            for ``"json"``, else into builtins and the standard library's dates, UUIDs and so on.
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
        **options: Any,
    ) -> None:
        require("rq", "rq")
        if not isinstance(redis, str) or not redis:
            raise InvalidConfig(f"RQSink takes the URL of a Redis, not {redis!r}")
        check_arguments(arguments)
        check_options(options, OPTIONS)
        self.redis = redis
        self.function = function
        self.queue = queue
        self.serializer = serializer
        self.arguments = arguments
        self.encode = encode or (to_plain if serializer == "json" else to_builtin)
        self.options = options
        self._client: Any = None

    @classmethod
    def from_url(cls, url: SinkUrl) -> RQSink:
        """``rq://QUEUE?redis=redis://HOST:6379/0&function=NAME&serializer=json&arguments=auto``"""
        return cls(
            url.required("redis"),
            function=url.option("function", str),
            queue=url.target or "default",
            serializer=url.option("serializer", str, "pickle"),
            arguments=url.option("arguments", str, "auto"),
        )

    async def open(self, context: SinkContext) -> None:
        self._client = require("redis", "rq").Redis.from_url(self.redis)

    async def close(self) -> None:
        self._client.close()
        self._client = None

    def deliver_blocking(self, batch: MergedTask) -> None:
        rq = require("rq", "rq")
        call = Call.of(batch.task, self.function, self.arguments, self.encode)
        queue = rq.Queue(
            option(batch.task, "queue", self.queue),
            connection=self._client,
            serializer=_SERIALIZERS.get(self.serializer, self.serializer),
        )
        # A duplicate: an earlier flusher got this far and no further.
        with contextlib.suppress(rq.exceptions.DuplicateJobError):
            queue.enqueue_call(
                call.name,
                args=call.args,
                kwargs=call.kwargs,
                job_id=batch.batch_id,
                meta=dict(batch.task.headers),
                unique=True,  # looked for and enqueued in one script
                **options_for(batch.task, self.options, OPTIONS),
            )
