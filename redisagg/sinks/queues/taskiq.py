"""Taskiq as the queue, with any of its brokers."""

from __future__ import annotations

from typing import Any

from redisagg.durations import Duration, to_seconds
from redisagg.errors import InvalidConfig
from redisagg.payload import to_plain
from redisagg.sinks.base import DeliverySink, MergedTask, SinkContext
from redisagg.sinks.clients import with_timeouts
from redisagg.sinks.extras import require
from redisagg.sinks.function_calls import Arguments, Encode, FunctionCallOptions, message_headers
from redisagg.sinks.urls import SinkUrl, check_url
from redisagg.texts import shorten

OPTIONS = ("priority", "timeout", "delay", "max_retries", "retry_on_error", "ack_type")
"""The labels of Taskiq's own that a sink and `Task.options` can set; times in seconds."""

_QUEUE = "queue_name"
"""The label with which Taskiq's Redis brokers send a message to another queue."""

_BROKERS = {"list": "ListQueueBroker", "stream": "RedisStreamBroker"}


class TaskiqSink(DeliverySink):
    """Sends merged tasks to Taskiq workers, at least once, with the batch id as the task id.

    Taskiq does not check ids: a batch whose flusher dies between the send and the removal of the
    batch is sent again, with the same id.

    Args:
        broker: the URL of a Redis, or an `AsyncBroker` of any kind, for this sink alone: the sink
            starts it and shuts it down, on the flusher's event loop.
        task: the name of the Taskiq task; None takes the type of the merged task.
        queue: for a URL, the name of the queue. ``Task.options["queue"]`` overrides the queue of
            any broker.
        kind: for a URL, the broker of the workers: ``"list"`` (`ListQueueBroker`) or ``"stream"``
            (`RedisStreamBroker`).
        arguments: how the task receives the payload, see `Arguments`.
        encode: converts the payload for Taskiq's formatter; default `redisagg.payload.to_plain`.
        delivery_timeout: seconds (or a `timedelta`) after which a delivery has failed;
            `timeout` is a label.
        concurrency: the number of deliveries that a flusher makes at the same time; None (default)
            for no limit.
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
        delivery_timeout: Duration = 30.0,
        concurrency: int | None = None,
        **options: Any,
    ) -> None:
        broker_class = require("taskiq", "taskiq").AsyncBroker
        if isinstance(broker, str):
            require("taskiq_redis", "taskiq")
        check_url(broker, "TaskiqSink takes the URL of a Redis or a broker", broker_class)
        if kind not in _BROKERS:
            raise InvalidConfig(f"kind is 'list' or 'stream', not {shorten(kind)}")
        self.timeout = to_seconds(delivery_timeout, "delivery_timeout", InvalidConfig)
        self._limit_to(concurrency)
        self._calls = FunctionCallOptions(
            task, OPTIONS, options, arguments=arguments, encode=encode
        )
        self.takes_json = self._calls.takes_json
        self._broker = broker
        self._default_queue = queue
        self._kind = kind
        self._sender: Any = None

    @classmethod
    def from_url(cls, url: SinkUrl) -> TaskiqSink:
        """Parses ``taskiq://QUEUE?redis=redis://HOST:6379/0&kind=list&task=NAME&arguments=auto``.

        An empty QUEUE is Taskiq's own default, ``taskiq``.
        """
        return cls(
            url.required("redis"),
            **url.given(
                "queue", arguments=str, task=str, kind=str, delivery_timeout=float, concurrency=int
            ),
        )

    async def open(self, context: SinkContext) -> None:
        self._sender = self._broker
        if isinstance(self._broker, str):
            make = getattr(require("taskiq_redis", "taskiq"), _BROKERS[self._kind])
            limits = with_timeouts(self.timeout)
            self._sender = make(self._broker, queue_name=self._default_queue, **limits)
        # A stream's consumer group is made here too, so that workers miss no later message.
        await self._sender.startup()

    async def close(self) -> None:
        await self._sender.shutdown()
        self._sender = None

    async def deliver(self, merged: MergedTask) -> None:
        call = self._calls.call(merged.task)
        # Taskiq has one place for headers, priority, queue and options: the labels.
        labels: dict[str, Any] = {
            **message_headers(merged.task, {*OPTIONS, _QUEUE}, "Taskiq"),
            **({"priority": merged.task.priority} if merged.task.priority else {}),
            **({_QUEUE: call.queue} if call.queue else {}),
            **call.options,
        }
        kicker = require("taskiq.kicker", "taskiq").AsyncKicker(call.name, self._sender, labels)
        await kicker.with_task_id(merged.batch_id).kiq(*call.args, **call.kwargs)
