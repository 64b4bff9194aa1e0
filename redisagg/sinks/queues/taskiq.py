"""Taskiq as the queue, with any of its brokers."""

from __future__ import annotations

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
    headers_of,
    options_for,
)
from redisagg.sinks.urls import SinkUrl, require
from redisagg.task import Task

OPTIONS = ("priority", "timeout", "delay", "max_retries", "retry_on_error", "ack_type")
"""The labels of Taskiq's own that a sink and `Task.options` can set; times in seconds."""

_QUEUE = "queue_name"
"""The label by which the Redis brokers of Taskiq send a message to another queue."""

_BROKERS = {"list": "ListQueueBroker", "stream": "RedisStreamBroker"}


class TaskiqSink(DeliverySink):
    """Sends merged tasks to Taskiq workers, at least once, with the batch id as the task id.

    Taskiq does not look for an id that it has seen: a flusher that dies between the send and the
    removal of the batch leaves it to be sent again, with the same id.

    Args:
        broker: the URL of a Redis, or an `AsyncBroker` of any kind, for this sink alone: it is
            started and shut down with it, on the flusher's event loop.
        task: the name of the Taskiq task; None takes the merged task's type.
        queue: the name of the queue; a broker that is passed has its own.
            ``Task.options["queue"]`` overrides either.
        kind: for a URL, which broker the workers have: ``"list"`` (`ListQueueBroker`) or
            ``"stream"`` (`RedisStreamBroker`).
        arguments: how the task gets the payload, see `redisagg.sinks.function_calls.Arguments`.
        encode: turns the payload into what Taskiq's formatter takes; by default into what JSON
            knows.
        **options: labels of all messages, see `OPTIONS`.

    Raises:
        InvalidConfig: an argument is out of range or of the wrong type.
        SinkError: Taskiq is not installed.
    """

    def __init__(
        self,
        broker: Any,
        *,
        task: str | None = None,
        queue: str = "taskiq",
        kind: str = "list",
        arguments: Arguments = "auto",
        encode: Encode = to_plain,
        **options: Any,
    ) -> None:
        taskiq = require("taskiq", "taskiq")
        if isinstance(broker, str):
            require("taskiq_redis", "taskiq")
        elif not isinstance(broker, taskiq.AsyncBroker):
            raise InvalidConfig(
                f"TaskiqSink takes the URL of a Redis or a broker, not {type(broker).__name__}"
            )
        if kind not in _BROKERS:
            raise InvalidConfig(f"kind is 'list' or 'stream', not {kind!r}")
        check_arguments(arguments)
        check_options(options, OPTIONS)
        self.broker = broker
        self.task = task
        self.queue = queue
        self.kind = kind
        self.arguments = arguments
        self.encode = encode
        self.options = options
        self._sender: Any = None

    @classmethod
    def from_url(cls, url: SinkUrl) -> TaskiqSink:
        """``taskiq://QUEUE?redis=redis://HOST:6379/0&kind=list&task=NAME&arguments=auto``

        An empty QUEUE is Taskiq's own default, ``taskiq``.
        """
        return cls(
            url.required("redis"),
            task=url.option("task", str),
            queue=url.target or "taskiq",
            kind=url.option("kind", str, "list"),
            arguments=url.option("arguments", str, "auto"),
        )

    async def open(self, context: SinkContext) -> None:
        self._sender = self.broker
        if isinstance(self.broker, str):
            make = getattr(require("taskiq_redis", "taskiq"), _BROKERS[self.kind])
            self._sender = make(self.broker, queue_name=self.queue)
        # This also makes the group of a stream, behind which no message is missed.
        await self._sender.startup()

    async def close(self) -> None:
        await self._sender.shutdown()
        self._sender = None

    async def deliver(self, batch: MergedTask) -> None:
        call = Call.of(batch.task, self.task, self.arguments, self.encode)
        kicker = require("taskiq.kicker", "taskiq").AsyncKicker(
            call.name, self._sender, self._labels(batch.task)
        )
        await kicker.with_task_id(batch.batch_id).kiq(*call.args, **call.kwargs)

    def _labels(self, task: Task) -> dict[str, Any]:
        """Headers, priority and options: Taskiq has one place for all of them."""
        labels: dict[str, Any] = {**headers_of(task, {*OPTIONS, _QUEUE}, "Taskiq")}
        if task.priority:
            labels["priority"] = task.priority
        if queue := option(task, "queue", None):
            labels[_QUEUE] = queue
        return {**labels, **options_for(task, self.options, OPTIONS)}
