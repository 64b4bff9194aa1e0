"""BullMQ as the queue, whose workers run in Node, Bun, Python, Elixir or PHP."""

from __future__ import annotations

import json
from typing import Any

from redisagg.errors import InvalidConfig, SinkError
from redisagg.payload import to_plain
from redisagg.sinks.base import DeliverySink, MergedTask, SinkContext, option
from redisagg.sinks.function_calls import Encode, check_options, headers_as, options_for
from redisagg.sinks.urls import SinkUrl, require
from redisagg.task import Task

OPTIONS = (
    *("attempts", "backoff", "deduplication", "delay", "keepLogs", "lifo", "priority"),
    *("removeOnComplete", "removeOnFail", "stackTraceLimit"),
)
"""The options of a BullMQ job that a sink and `Task.options` can set; times in ms."""

_TRACE_CONTEXT = "tm"
"""What BullMQ calls a job's `telemetry.metadata` where it stores it: `optsFromJSON` in job.ts."""


class BullMQSink(DeliverySink):
    """Adds merged tasks to a BullMQ queue, with the batch id as the job id.

    BullMQ adds no job under an id that it knows: while the job waits, is delayed or runs, and then
    for as long as it keeps it, which is for ever unless ``removeOnComplete`` (of the job, or of
    the worker) or ``removeOnFail`` says otherwise. A batch that is added again within that time,
    because a flusher died before it removed it, is added once.

    Args:
        redis: the URL of the Redis that the workers use.
        queue: the name of the queue; ``Task.options["queue"]`` overrides it.
        name: the name of the jobs; None takes the merged task's type.
        prefix: of all keys, as the workers have it.
        headers_as: the member of the job's data that gets the headers, as an object; BullMQ has no
            place for them. None leaves them out.
        encode: turns the payload into what JSON knows.
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
        **options: Any,
    ) -> None:
        require("bullmq", "bullmq")
        if not isinstance(redis, str) or not redis:
            raise InvalidConfig(f"BullMQSink takes the URL of a Redis, not {redis!r}")
        if not _is_queue(queue):
            raise InvalidConfig(f"the name of a queue is a str without ':', not {queue!r}")
        check_options(options, OPTIONS)
        self.redis = redis
        self.queue = queue
        self.name = name
        self.prefix = prefix
        self.headers_as = headers_as
        self.encode = encode
        self.options = options
        self._queues: dict[str, Any] = {}

    @classmethod
    def from_url(cls, url: SinkUrl) -> BullMQSink:
        """``bullmq://QUEUE?redis=redis://HOST:6379/0&name=NAME&prefix=bull&headers_as=NAME``"""
        return cls(
            url.required("redis"),
            url.target,
            name=url.option("name", str),
            prefix=url.option("prefix", str, "bull"),
            headers_as=url.option("headers_as", str),
        )

    async def open(self, context: SinkContext) -> None:
        self._queues = {}  # each is made, with a connection of its own, when it is first used

    async def close(self) -> None:
        for queue in self._queues.values():
            await queue.close()
        self._queues = {}

    async def deliver(self, batch: MergedTask) -> None:
        task = batch.task
        # For an id that is known nothing is added: an earlier flusher got this far and no further.
        await self._queue(option(task, "queue", self.queue)).add(
            self.name or task.type,
            self._data(task),
            {
                **_trace_context(task),
                **options_for(task, self.options, OPTIONS),
                "jobId": batch.batch_id,
            },
        )

    def _queue(self, name: Any) -> Any:
        if not _is_queue(name):
            raise SinkError(f"the name of a queue is a str without ':', not {name!r}")
        if name not in self._queues:
            make = require("bullmq", "bullmq").Queue
            self._queues[name] = make(name, {"connection": self.redis, "prefix": self.prefix})
        return self._queues[name]

    def _data(self, task: Task) -> Any:
        data = self.encode(task.payload)
        if self.headers_as is None:
            return data
        if not isinstance(data, dict) or self.headers_as in data:
            raise SinkError(f"the payload of {task.type} has no place for headers_as")
        return {**data, **headers_as(task, self.headers_as)}


def _is_queue(name: object) -> bool:
    return isinstance(name, str) and bool(name) and ":" not in name  # what BullMQ itself asks for


def _trace_context(task: Task) -> dict[str, str]:
    """The trace context as BullMQ's OpenTelemetry keeps it: a carrier in JSON."""
    names = ("traceparent", "tracestate")
    carrier = {name: task.headers[name] for name in names if name in task.headers}
    return {_TRACE_CONTEXT: json.dumps(carrier)} if carrier else {}
