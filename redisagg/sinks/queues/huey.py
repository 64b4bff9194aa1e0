"""Huey as the queue, with any of its storages."""

from __future__ import annotations

import copy
from typing import Any

from redisagg.durations import Duration, to_ms, to_seconds
from redisagg.errors import InvalidConfig
from redisagg.payload import to_builtin
from redisagg.sinks.base import BlockingSink, MergedTask, SinkContext
from redisagg.sinks.clients import pool_of
from redisagg.sinks.extras import require
from redisagg.sinks.function_calls import Arguments, Encode, FunctionCall, FunctionCallOptions
from redisagg.sinks.urls import SinkUrl, check_url
from redisagg.task import Task
from redisagg.texts import shorten

OPTIONS = ("priority", "retries", "retry_delay", "retry_backoff", "eta", "expires", "timeout")
"""The fields of a Huey message that a sink and `Task.options` can set; times in seconds.
Huey knows ``timeout`` since 3.0 and ``retry_backoff`` since 3.3."""

_KINDS = {"list": "RedisHuey", "priority": "PriorityRedisHuey"}


class HueySink(BlockingSink):
    """Enqueues merged tasks for Huey consumers, with the batch id as the task id.

    Huey does not check ids. In Redis the sink writes a key of its own with each message, in one
    transaction, and enqueues nothing while that key exists: a batch that is enqueued again within
    `remember`, because a flusher died before it removed the batch, is enqueued once. In Huey's
    other storages the batch is enqueued again, with the same id.

    Args:
        huey: the URL of the Redis that the consumers use, or a `huey.Huey` whose storage and
            serializer are used.
        task: the consumers' name of the task, such as ``"app.tasks.digest"``; None takes the type
            of the merged task.
        name: for a URL, the name of the consumers' Huey.
        kind: for a URL, the class of the consumers' Huey: ``"list"`` (`RedisHuey`,
            `RedisExpireHuey`) or ``"priority"`` (`PriorityRedisHuey`, `PriorityRedisExpireHuey`).
        remember: seconds (or a `timedelta`) in which an enqueued id is refused.
        headers_as: the keyword argument that receives the headers, see `FunctionCallOptions`.
        arguments: how the task receives the payload, see `Arguments`.
        encode: converts the payload for the serializer; default `redisagg.payload.to_builtin`.
        delivery_timeout: seconds (or a `timedelta`) after which a delivery has failed;
            `timeout` is that of the task.
        concurrency: the number of deliveries that a flusher makes at the same time; None (default)
            for 16.
        **options: fields of all messages, see `OPTIONS`.

    Raises:
        InvalidConfig: an argument is out of range or of the wrong type.
        SinkError: Huey is not installed.
    """

    def __init__(
        self,
        huey: Any,
        *,
        task: str | None = None,
        name: str = "huey",
        kind: str = "list",
        remember: Duration = 3600,
        headers_as: str | None = None,
        arguments: Arguments = "auto",
        encode: Encode = to_builtin,
        delivery_timeout: Duration = 30.0,
        concurrency: int | None = None,
        **options: Any,
    ) -> None:
        huey_class = require("huey", "huey").Huey
        check_url(huey, "HueySink takes the URL of a Redis or a Huey", huey_class)
        if isinstance(huey, huey_class) and huey.immediate:
            raise InvalidConfig(
                "a Huey in immediate mode has no queue; give one with immediate=False"
            )
        if kind not in _KINDS:
            raise InvalidConfig(f"kind is 'list' or 'priority', not {shorten(kind)}")
        to_seconds(remember, "remember", InvalidConfig)
        self.timeout = to_seconds(delivery_timeout, "delivery_timeout", InvalidConfig)
        self._limit_to(concurrency)
        self._calls = FunctionCallOptions(
            task, OPTIONS, options, arguments=arguments, encode=encode, headers_as=headers_as
        )
        self._huey = huey
        self._name = name
        self._kind = kind
        self._remember = remember
        self._sender: Any = None

    @classmethod
    def from_url(cls, url: SinkUrl) -> HueySink:
        """Parses ``huey://NAME?redis=redis://HOST&task=NAME&kind=list&headers_as=NAME&arguments=auto``.

        An empty NAME is Huey's own default, ``huey``; ``remember=3600`` is in seconds.
        """
        settings = url.given(
            "name",
            arguments=str,
            task=str,
            kind=str,
            remember=float,
            headers_as=str,
            delivery_timeout=float,
            concurrency=int,
        )
        return cls(url.required("redis"), **settings)

    async def open(self, context: SinkContext) -> None:
        self._sender = self._huey
        if isinstance(self._huey, str):
            make = getattr(require("huey", "huey"), _KINDS[self._kind])
            pool = pool_of(self._huey, self.timeout)
            self._sender = make(self._name, connection_pool=pool)

    async def close(self) -> None:
        sender, self._sender = self._sender, None
        if sender is not None and sender is not self._huey:
            sender.storage.pool.disconnect()  # closing the client would leave it open

    def deliver_blocking(self, merged: MergedTask) -> None:
        message = self._message(merged)
        data = self._sender.serializer.serialize(message)
        storage = self._sender.storage
        if not isinstance(storage, require("huey.storage", "huey").RedisStorage):
            storage.enqueue(data, message.priority)
            return
        seen = f"redisagg:huey:{storage.name}:{merged.batch_id}"

        def enqueue(transaction: Any) -> None:
            if transaction.exists(seen):
                return  # an earlier flusher died after it enqueued this batch
            transaction.multi()
            transaction.set(seen, b"", px=to_ms(self._remember))
            # The storage's own enqueue, with the transaction as its connection.
            sender = copy.copy(storage)
            sender.conn = transaction
            sender.enqueue(data, message.priority)

        storage.conn.transaction(enqueue, seen)

    def _message(self, merged: MergedTask) -> Any:
        """The message that Huey's registry would make of a task.

        The registry itself needs the function of the task, and would set the defaults of the
        producer's decorator. Fields that this message leaves out take the consumer's defaults.
        """
        task, call = merged.task, self._calls.call(merged.task)
        return require("huey.registry", "huey").Message(
            id=merged.batch_id,
            name=call.name,
            args=call.args,
            kwargs=call.kwargs,
            **self._fields(task, call),
        )

    def _fields(self, task: Task, call: FunctionCall) -> dict[str, Any]:
        """The fields of a message besides the call."""
        utils = require("huey.utils", "huey")
        utc = self._sender.utc
        fields = dict(call.options)
        if task.priority and self._sender.storage.priority:
            fields.setdefault("priority", task.priority)
        if (eta := fields.get("eta")) is not None:
            fields["eta"] = utils.normalize_time(eta, utc=utc)
        elif delay := task.options.get("delay"):
            fields["eta"] = utils.normalize_time(delay=delay, utc=utc)
        if expires := fields.get("expires"):
            fields["expires_resolved"] = utils.normalize_expire_time(expires, utc)
        return fields
