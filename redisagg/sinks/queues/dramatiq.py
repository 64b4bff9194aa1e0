"""Dramatiq as the queue, with any of its brokers."""

from __future__ import annotations

from typing import Any

from redisagg.durations import Duration, to_seconds
from redisagg.errors import InvalidConfig
from redisagg.payload import to_plain
from redisagg.sinks.base import BlockingSink, MergedTask, SinkContext
from redisagg.sinks.clients import with_timeouts
from redisagg.sinks.extras import require
from redisagg.sinks.function_calls import Arguments, Encode, FunctionCallOptions
from redisagg.sinks.urls import SinkUrl, check_url
from redisagg.task import Task

OPTIONS = (
    *("max_retries", "min_backoff", "max_backoff", "max_age", "time_limit", "broker_priority"),
    *("store_results", "result_ttl", "on_success", "on_failure", "on_retry_exhausted"),
)
"""The options of a Dramatiq message that a sink and `Task.options` can set; times in ms."""

_MAX_PRIORITY = 255  # of RabbitMQ


class DramatiqSink(BlockingSink):
    """Sends merged tasks to Dramatiq workers, at least once, with the batch id as the message id.

    Dramatiq does not check ids: a batch whose flusher dies between the send and the removal of the
    batch is sent again, with the same id.

    Args:
        broker: the URL of a Redis, or a `dramatiq.Broker` of any kind.
        actor: the name of the actor; None takes the type of the merged task.
        queue: the name of the queue; ``Task.options["queue"]`` overrides it.
        namespace: for a URL, the prefix of the keys, as the workers' `RedisBroker` has it.
        arguments: how the actor receives the payload, see `Arguments`.
        encode: converts the payload for Dramatiq's encoder; default `redisagg.payload.to_plain`.
        timeout: seconds (or a `timedelta`) after which a delivery has failed.
        concurrency: the number of deliveries that a flusher makes at the same time; None (default)
            for 16.
        **options: options of all messages, see `OPTIONS`.

    Raises:
        InvalidConfig: an argument is out of range or of the wrong type.
        SinkError: Dramatiq is not installed.
    """

    def __init__(
        self,
        broker: Any,
        *,
        actor: str | None = None,
        queue: str = "default",
        namespace: str = "dramatiq",
        arguments: Arguments = "auto",
        encode: Encode = to_plain,
        timeout: Duration = 30.0,
        concurrency: int | None = None,
        **options: Any,
    ) -> None:
        kind = require("dramatiq", "dramatiq").Broker
        check_url(broker, "DramatiqSink takes the URL of a Redis or a broker", kind)
        self._broker = broker
        self._namespace = namespace
        self.timeout = to_seconds(timeout, "timeout", InvalidConfig)
        self._limit_to(concurrency)
        self._calls = FunctionCallOptions(
            actor, OPTIONS, options, arguments=arguments, encode=encode, queue=queue
        )
        self.takes_json = self._calls.takes_json
        self._sender: Any = None
        self._client: Any = None

    @classmethod
    def from_url(cls, url: SinkUrl) -> DramatiqSink:
        """Parses ``dramatiq://QUEUE?redis=redis://HOST&actor=NAME&namespace=NAME&arguments=auto``.

        An empty QUEUE is Dramatiq's own default, ``default``.
        """
        return cls(
            url.required("redis"),
            **url.given(
                "queue", arguments=str, actor=str, namespace=str, timeout=float, concurrency=int
            ),
        )

    async def open(self, context: SinkContext) -> None:
        if not isinstance(self._broker, str):
            self._sender = self._broker
            return
        brokers = require("dramatiq.brokers.redis", "dramatiq")
        self._client = require("redis", "dramatiq").Redis.from_url(
            self._broker, **with_timeouts(self.timeout)
        )
        # Middleware is for workers; a user's own broker may have some for producers.
        self._sender = brokers.RedisBroker(
            client=self._client, namespace=self._namespace, middleware=[]
        )

    async def close(self) -> None:
        if self._client is not None:
            self._client.close()
        self._sender = self._client = None

    def deliver_blocking(self, merged: MergedTask) -> None:
        task = merged.task
        call = self._calls.call(task)
        message = require("dramatiq", "dramatiq").Message(
            queue_name=call.queue,
            actor_name=call.name,
            args=call.args,
            kwargs=call.kwargs,
            options={**_headers(task), **_priority(task), **call.options},
            message_id=merged.batch_id,
        )
        self._sender.enqueue(message, delay=task.options.get("delay"))


def _headers(task: Task) -> dict[str, dict[str, str]]:
    """The headers as one option, since Dramatiq's middleware has options of its own."""
    return {"headers": dict(task.headers)} if task.headers else {}


def _priority(task: Task) -> dict[str, int]:
    """The priority for RabbitMQ, where 0 is the lowest and the default."""
    return {"broker_priority": min(task.priority, _MAX_PRIORITY)} if task.priority > 0 else {}
