"""Dramatiq as the queue, with any of its brokers."""

from __future__ import annotations

from typing import Any

from redisagg.errors import InvalidConfig
from redisagg.payload import to_plain
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
from redisagg.task import Task

OPTIONS = (
    *("max_retries", "min_backoff", "max_backoff", "max_age", "time_limit", "broker_priority"),
    *("store_results", "result_ttl", "on_success", "on_failure", "on_retry_exhausted"),
)
"""The options of a Dramatiq message that a sink and `Task.options` can set; times in ms."""

_MOST_PRIORITY = 255  # RabbitMQ's


class DramatiqSink(BlockingSink):
    """Sends merged tasks to Dramatiq workers, at least once, with the batch id as the message id.

    Dramatiq does not look for an id that it has seen: a flusher that dies between the send and the
    removal of the batch leaves it to be sent again, with the same id.

    Args:
        broker: the URL of a Redis, or a `dramatiq.Broker` of any kind.
        actor: the name of the actor; None takes the merged task's type.
        queue: the name of the queue; ``Task.options["queue"]`` overrides it.
        namespace: the prefix of the keys, as the workers' `RedisBroker` has it; a broker that is
            passed has its own.
        arguments: how the actor gets the payload, see `redisagg.sinks.function_calls.Arguments`.
        encode: turns the payload into what Dramatiq's encoder takes; by default into what JSON
            knows.
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
        **options: Any,
    ) -> None:
        dramatiq = require("dramatiq", "dramatiq")
        if not isinstance(broker, dramatiq.Broker) and not (isinstance(broker, str) and broker):
            raise InvalidConfig(
                f"DramatiqSink takes the URL of a Redis or a broker, not {type(broker).__name__}"
            )
        check_arguments(arguments)
        check_options(options, OPTIONS)
        self.broker = broker
        self.actor = actor
        self.queue = queue
        self.namespace = namespace
        self.arguments = arguments
        self.encode = encode
        self.options = options
        self._sender: Any = None
        self._client: Any = None

    @classmethod
    def from_url(cls, url: SinkUrl) -> DramatiqSink:
        """``dramatiq://QUEUE?redis=redis://HOST:6379/0&actor=NAME&namespace=NAME&arguments=auto``

        An empty QUEUE is Dramatiq's own default, ``default``.
        """
        return cls(
            url.required("redis"),
            actor=url.option("actor", str),
            queue=url.target or "default",
            namespace=url.option("namespace", str, "dramatiq"),
            arguments=url.option("arguments", str, "auto"),
        )

    async def open(self, context: SinkContext) -> None:
        if not isinstance(self.broker, str):
            self._sender = self.broker
            return
        brokers = require("dramatiq.brokers.redis", "dramatiq")
        self._client = require("redis", "dramatiq").Redis.from_url(self.broker)
        # Middleware is for workers, except what the user's own broker may have.
        self._sender = brokers.RedisBroker(
            client=self._client, namespace=self.namespace, middleware=[]
        )

    async def close(self) -> None:
        if self._client is not None:
            self._client.close()
        self._sender = self._client = None

    def deliver_blocking(self, batch: MergedTask) -> None:
        task = batch.task
        call = Call.of(task, self.actor, self.arguments, self.encode)
        message = require("dramatiq", "dramatiq").Message(
            queue_name=option(task, "queue", self.queue),
            actor_name=call.name,
            args=call.args,
            kwargs=dict(call.kwargs),
            options={
                **_headers(task),
                **_priority(task),
                **options_for(task, self.options, OPTIONS),
            },
            message_id=batch.batch_id,
        )
        self._sender.enqueue(message, delay=option(task, "delay", None))


def _headers(task: Task) -> dict[str, dict[str, str]]:
    """The headers as one option, out of the way of the middleware's own."""
    return {"headers": dict(task.headers)} if task.headers else {}


def _priority(task: Task) -> dict[str, int]:
    """The priority as RabbitMQ has it, where a message without one counts as 0."""
    return {"broker_priority": min(task.priority, _MOST_PRIORITY)} if task.priority > 0 else {}
