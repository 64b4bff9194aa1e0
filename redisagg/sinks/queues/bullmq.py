"""BullMQ as the queue, whose workers run in Node, Bun, Python, Elixir or PHP."""

from __future__ import annotations

import json
from typing import Any

from redisagg.durations import Duration, to_seconds
from redisagg.errors import InvalidConfig, SinkError
from redisagg.payload import to_plain
from redisagg.sinks.base import DeliverySink, MergedTask, SinkContext
from redisagg.sinks.clients import url_with_timeouts
from redisagg.sinks.extras import require
from redisagg.sinks.function_calls import Encode, FunctionCall, FunctionCallOptions
from redisagg.sinks.urls import SinkUrl, check_url
from redisagg.task import Task

OPTIONS = (
    *("attempts", "backoff", "deduplication", "delay", "keepLogs", "lifo", "priority"),
    *("removeOnComplete", "removeOnFail", "stackTraceLimit"),
)
"""The options of a BullMQ job that a sink and `Task.options` can set; times in ms."""

_TRACE_CONTEXT = "tm"
"""The name under which BullMQ stores a job's `telemetry.metadata`, see `optsFromJSON` in job.ts."""


class BullMQSink(DeliverySink):
    """Adds merged tasks to a BullMQ queue, with the batch id as the job id.

    BullMQ refuses an id while it keeps the job: while the job waits, is delayed or runs, and then
    for ever, unless ``removeOnComplete`` (of the job, or of the worker) or ``removeOnFail`` limits
    that. A batch that is added again within that time, because a flusher died before it removed
    the batch, is added once.

    Args:
        redis: the URL of the Redis that the workers use.
        queue: the name of the queue; ``Task.options["queue"]`` overrides it.
        name: the name of the jobs; None takes the type of the merged task.
        prefix: the prefix of all keys, as the workers have it.
        headers_as: the member of the job's data that receives the headers as an object, since
            BullMQ has no place for them; None leaves them out.
        encode: converts the payload to the types of JSON.
        timeout: seconds (or a `timedelta`) after which a delivery has failed.
        concurrency: the number of deliveries that a flusher makes at the same time; None (default)
            for no limit.
        **options: options of all jobs, see `OPTIONS`.

    Raises:
        InvalidConfig: an argument is out of range or of the wrong type.
        SinkError: bullmq is not installed.
    """

    def __init__(
        self,
        redis: str,
        queue: str,
        *,
        name: str | None = None,
        prefix: str = "bull",
        headers_as: str | None = None,
        encode: Encode = to_plain,
        timeout: Duration = 30.0,
        concurrency: int | None = None,
        **options: Any,
    ) -> None:
        require("bullmq", "bullmq")
        check_url(redis, "BullMQSink takes the URL of a Redis")
        if not _is_queue(queue):
            raise InvalidConfig(_NO_QUEUE.format(queue))
        self.timeout = to_seconds(timeout, "timeout", InvalidConfig)
        self._limit_to(concurrency)
        # A job has one value as its data, so the payload is never passed by keywords.
        self._calls = FunctionCallOptions(
            *(name, OPTIONS, options, "payload", encode), queue=queue, headers_as=headers_as
        )
        self.takes_json = self._calls.takes_json
        self._redis = redis
        self._prefix = prefix
        self._queues: dict[str, Any] = {}

    @classmethod
    def from_url(cls, url: SinkUrl) -> BullMQSink:
        """Parses ``bullmq://QUEUE?redis=redis://HOST&name=NAME&prefix=bull&headers_as=NAME``."""
        settings = url.given(name=str, prefix=str, headers_as=str, timeout=float, concurrency=int)
        return cls(url.required("redis"), url.target, **settings)

    async def open(self, context: SinkContext) -> None:
        self._queues = {}  # each is made, with a connection of its own, when it is first used

    async def close(self) -> None:
        for queue in self._queues.values():
            await queue.close()
        self._queues = {}

    async def deliver(self, merged: MergedTask) -> None:
        call = self._calls.call(merged.task)
        options = {**_trace_context(merged.task), **call.options, "jobId": merged.batch_id}
        # Adds nothing if the id is known: an earlier flusher died after it added this batch.
        await self._queue(call.queue).add(call.name, _data(call, merged.task.type), options)

    def _queue(self, name: object) -> Any:
        if not isinstance(name, str) or not _is_queue(name):
            raise SinkError(_NO_QUEUE.format(name))
        if name not in self._queues:
            make = require("bullmq", "bullmq").Queue
            url = url_with_timeouts(self._redis, self.timeout)
            self._queues[name] = make(name, {"connection": url, "prefix": self._prefix})
        return self._queues[name]


_NO_QUEUE = "the name of a queue is a str without ':', not {!r}"


def _is_queue(name: object) -> bool:
    """Whether BullMQ accepts the name of a queue."""
    return isinstance(name, str) and bool(name) and ":" not in name


def _data(call: FunctionCall, type: str) -> Any:
    """The data of a job: the payload, with the headers as one more member of it."""
    [payload] = call.args
    if not call.kwargs:
        return payload
    if not isinstance(payload, dict) or payload.keys() & call.kwargs.keys():
        raise SinkError(
            f"headers_as needs a payload that is a map without the key {', '.join(call.kwargs)}; "
            f"that of {type} is not"
        )
    return {**payload, **call.kwargs}


def _trace_context(task: Task) -> dict[str, str]:
    """The trace context in the form of BullMQ's OpenTelemetry: a carrier in JSON."""
    names = ("traceparent", "tracestate")
    carrier = {name: task.headers[name] for name in names if name in task.headers}
    return {_TRACE_CONTEXT: json.dumps(carrier)} if carrier else {}
