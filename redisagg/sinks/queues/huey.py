"""Huey as the queue, with any of its storages."""

from __future__ import annotations

import copy
from typing import Any

from redisagg.durations import Duration, to_ms, to_seconds
from redisagg.errors import InvalidConfig
from redisagg.payload import to_builtin
from redisagg.sinks.base import BlockingSink, MergedTask, SinkContext, option
from redisagg.sinks.function_calls import (
    Arguments,
    Call,
    Encode,
    check_arguments,
    check_options,
    headers_as,
    options_for,
)
from redisagg.sinks.urls import SinkUrl, require
from redisagg.task import Task

OPTIONS = ("priority", "retries", "retry_delay", "retry_backoff", "eta", "expires", "timeout")
"""The fields of a Huey message that a sink and `Task.options` can set; times in seconds.
Huey knows ``timeout`` since 3.0 and ``retry_backoff`` since 3.3."""

_KINDS = {"list": "RedisHuey", "priority": "PriorityRedisHuey"}


class HueySink(BlockingSink):
    """Enqueues merged tasks for Huey consumers, with the batch id as the task id.

    Huey does not look for an id that it has seen. In Redis the sink writes a key of its own with
    each message, in one transaction, and enqueues nothing while that key is there: a batch that is
    enqueued again within `remember`, because a flusher died before it removed it, is enqueued once.
    With Huey's other storages it is enqueued again, with the same id.

    Args:
        huey: the URL of the Redis that the consumers use, or a `huey.Huey` whose storage and
            serializer are used.
        task: the consumers' name of the task, such as ``"app.tasks.digest"``; None takes the
            merged task's type.
        name: for a URL, the name of the consumers' Huey.
        kind: for a URL, what Huey the consumers have: ``"list"`` (`RedisHuey`, `RedisExpireHuey`)
            or ``"priority"`` (`PriorityRedisHuey`, `PriorityRedisExpireHuey`).
        remember: how long an id is refused after it was enqueued.
        headers_as: the argument by which the task gets the headers, as a dict; Huey has no place
            for them. None leaves them out.
        arguments: how the task gets the payload, see `redisagg.sinks.function_calls.Arguments`.
        encode: turns the payload into what the serializer takes; by default into builtins and the
            standard library's dates, UUIDs and so on.
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
        **options: Any,
    ) -> None:
        known = require("huey", "huey").Huey
        if not isinstance(huey, known) and not (isinstance(huey, str) and huey):
            raise InvalidConfig(
                f"HueySink takes the URL of a Redis or a Huey, not {type(huey).__name__}"
            )
        if isinstance(huey, known) and huey.immediate:
            raise InvalidConfig("a Huey in immediate mode has no queue")
        if kind not in _KINDS:
            raise InvalidConfig(f"kind is 'list' or 'priority', not {kind!r}")
        to_seconds(remember, "remember", InvalidConfig)
        check_arguments(arguments)
        check_options(options, OPTIONS)
        self.huey = huey
        self.task = task
        self.name = name
        self.kind = kind
        self.remember = remember
        self.headers_as = headers_as
        self.arguments = arguments
        self.encode = encode
        self.options = options
        self._sender: Any = None

    @classmethod
    def from_url(cls, url: SinkUrl) -> HueySink:
        """``huey://NAME?redis=redis://HOST:6379/0&task=NAME&kind=list&headers_as=NAME&arguments=auto``

        An empty NAME is Huey's own default, ``huey``; ``remember=3600`` is in seconds.
        """
        return cls(
            url.required("redis"),
            task=url.option("task", str),
            name=url.target or "huey",
            kind=url.option("kind", str, "list"),
            remember=url.option("remember", float, 3600),
            headers_as=url.option("headers_as", str),
            arguments=url.option("arguments", str, "auto"),
        )

    async def open(self, context: SinkContext) -> None:
        self._sender = self.huey
        if isinstance(self.huey, str):
            make = getattr(require("huey", "huey"), _KINDS[self.kind])
            self._sender = make(self.name, url=self.huey)

    async def close(self) -> None:
        sender, self._sender = self._sender, None
        if sender is not None and sender is not self.huey:
            sender.storage.conn.close()

    def deliver_blocking(self, batch: MergedTask) -> None:
        task = batch.task
        call = Call.of(task, self.task, self.arguments, self.encode)
        message = self._message(batch.batch_id, task, call)
        data = self._sender.serializer.serialize(message)
        storage = self._sender.storage
        if not isinstance(storage, require("huey.storage", "huey").RedisStorage):
            storage.enqueue(data, message.priority)
            return
        seen = f"redisagg:huey:{storage.name}:{batch.batch_id}"

        def enqueue(transaction: Any) -> None:
            if transaction.exists(seen):
                return  # an earlier flusher got this far and no further
            transaction.multi()
            transaction.set(seen, b"", px=to_ms(self.remember))
            # Huey's own way to enqueue, whatever it is, becomes part of the transaction.
            sender = copy.copy(storage)
            sender.conn = transaction
            sender.enqueue(data, message.priority)

        storage.conn.transaction(enqueue, seen)

    def _message(self, batch_id: str, task: Task, call: Call) -> Any:
        """What Huey's registry would make of a task; fields left out take the consumer's defaults.

        (A task made by the registry of a producer would have that producer's own defaults, and a
        producer has to have the task's function.)
        """
        utils = require("huey.utils", "huey")
        utc = self._sender.utc
        fields = options_for(task, self.options, OPTIONS)
        if task.priority and self._sender.storage.priority:
            fields = {"priority": task.priority, **fields}
        if (eta := fields.get("eta")) is not None:
            fields["eta"] = utils.normalize_time(eta, utc=utc)
        elif delay := option(task, "delay", None):
            fields["eta"] = utils.normalize_time(delay=delay, utc=utc)
        if expires := fields.get("expires"):
            fields["expires_resolved"] = utils.normalize_expire_time(expires, utc)
        return require("huey.registry", "huey").Message(
            id=batch_id,
            name=call.name,
            args=call.args,
            kwargs={**call.kwargs, **headers_as(task, self.headers_as)},
            **fields,
        )
