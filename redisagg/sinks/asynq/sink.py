"""Asynq's queues, in the same Redis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from redisagg.durations import Duration
from redisagg.errors import InvalidConfig, InvalidTask, PayloadError, RedisAggError, SinkError
from redisagg.payload import to_json
from redisagg.protocol.scripts import call, command
from redisagg.sinks.asynq import keys
from redisagg.sinks.asynq.message import TaskMessage
from redisagg.sinks.asynq.message import encode as encode_message
from redisagg.sinks.asynq.options import AsynqOptions, Moment
from redisagg.sinks.base import DeliverySink, MergedTask, ScriptSink, Sink, SinkContext
from redisagg.sinks.urls import SinkUrl
from redisagg.transport.aio import AsyncTransport

_INHERITED = ("queue", "max_retry", "timeout", "deadline")


class AsynqSink(ScriptSink):
    """Enqueues merged tasks in Asynq (https://github.com/hibiken/asynq), exactly once each.

    The sink writes what Asynq's client v0.26.0 writes. docs/asynq.md describes what a worker
    receives, and Redis Cluster, where the enqueue and the removal of the batch are two steps.

    `Task.options` of a merged task overrides any argument but `encode`. For `queue`, `max_retry`,
    `timeout` and `deadline` it takes the value of the first of the merged tasks that has one, if
    the merge function sets none.

    Args:
        queue: the name of the queue.
        max_retry: the largest number of retries of a failed task.
        timeout: the time limit of an attempt in seconds (or a `timedelta`), rounded up to whole
            seconds. With neither timeout nor deadline, Asynq's default of 30 minutes applies.
        deadline: the time at which the last attempt has to be complete: a `datetime` with a time
            zone, or seconds since the epoch.
        retention: seconds (or a `timedelta`) for which Asynq keeps a task that succeeded; None
            keeps none.
        unique_ttl: seconds (or a `timedelta`) in which a task keeps out others with the same
            queue, type and payload, at most until it succeeded. Those are dropped, as if they
            were enqueued.
        process_at: the time at which the task is to be processed, as `deadline`; a time in the
            past means at once.
        process_in: seconds (or a `timedelta`) between the enqueue and the processing.
        encode: converts a payload to bytes. None writes JSON; a payload of `bytes` is then written
            as it is, and a payload of None as no bytes.

    Raises:
        InvalidConfig: an argument is out of range or of the wrong type.
    """

    script = "commit_asynq"
    inherits = _INHERITED

    def __init__(
        self,
        queue: str = "default",
        *,
        max_retry: int = 25,
        timeout: Duration | None = None,
        deadline: Moment | None = None,
        retention: Duration | None = None,
        unique_ttl: Duration | None = None,
        process_at: Moment | None = None,
        process_in: Duration | None = None,
        encode: Callable[[Any], bytes] | None = None,
    ) -> None:
        super().__init__(queue)
        if encode is not None and not callable(encode):
            raise InvalidConfig(f"encode is a function of the payload, not {encode!r}")
        self._options = AsynqOptions(
            queue=queue,
            max_retry=max_retry,
            timeout=timeout,
            deadline=deadline,
            retention=retention,
            unique_ttl=unique_ttl,
            process_at=process_at,
            process_in=process_in,
        )
        self._encode = encode or as_json
        self.takes_json = encode is None
        self._on_cluster = _AsynqDelivery(self)

    @classmethod
    def from_url(cls, url: SinkUrl) -> AsynqSink:
        """Parses ``asynq://QUEUE?max_retry=5&timeout=30``.

        The options have the names of the arguments. Durations are in seconds; times are seconds
        since the epoch, or ISO 8601 with an offset.
        """
        durations = dict.fromkeys(("timeout", "retention", "unique_ttl", "process_in"), float)
        times = dict.fromkeys(("deadline", "process_at"), _moment)
        return cls(**url.given("queue", max_retry=int, **durations, **times))

    def resolve(self, *, clustered: bool) -> Sink:
        # An Asynq queue has a slot of its own, which no script can reach together with a partition.
        return self._on_cluster if clustered else self

    def key(self, slot: str | None) -> bytes:
        return keys.pending(self.name)

    def commit_keys(self, slot: str | None) -> Sequence[bytes]:
        return (keys.QUEUES,)

    def entry_keys(self, merged: MergedTask) -> Sequence[bytes]:
        options = self._options.overridden(merged.task.options)
        task = keys.task(options.queue, merged.batch_id)
        unique = self._unique_key(merged, options).encode() or task
        return task, keys.pending(options.queue), keys.scheduled(options.queue), unique

    def arguments(self, merged: MergedTask) -> Sequence[bytes]:
        """The arguments of a task for lua/includes/asynq.lua.

        Raises:
            InvalidTask: an option of the merged task is out of range or of the wrong type.
            PayloadError: JSON has no form for the payload, or `encode` did not return bytes.
        """
        task, options = merged.task, self._options.overridden(merged.task.options)
        if not task.type.strip():
            raise InvalidTask("Asynq takes no task with a blank type")
        message = TaskMessage(
            type=task.type,
            payload=self._payload(merged),
            id=merged.batch_id,
            queue=options.queue,
            retry=options.max_retry,
            timeout=options.timeout_seconds,
            deadline=options.deadline_at,
            unique_key=self._unique_key(merged, options),
            retention=options.retention_seconds,
            headers=task.headers,
        )
        return (
            options.queue.encode(),
            merged.batch_id.encode(),
            encode_message(message),
            b"%d" % options.unique_seconds if options.unique_ttl else b"",
            *options.schedule(),
        )

    def queue_of(self, merged: MergedTask) -> str:
        """The name of the queue that a merged task goes to."""
        return self._options.overridden(merged.task.options).queue

    def _unique_key(self, merged: MergedTask, options: AsynqOptions) -> str:
        if options.unique_ttl is None:
            return ""
        return keys.unique(options.queue, merged.task.type, self._payload(merged))

    def _payload(self, merged: MergedTask) -> bytes:
        payload = self._encode(merged.task.payload)
        if not isinstance(payload, bytes):
            raise PayloadError(f"encode returned {type(payload).__name__}; return bytes")
        return payload


class _AsynqDelivery(DeliverySink):
    """An `AsynqSink` on Redis Cluster: enqueues before the commit, at least once."""

    inherits = _INHERITED

    def __init__(self, sink: AsynqSink) -> None:
        self._sink = sink
        self._transport: AsyncTransport | None = None

    async def open(self, context: SinkContext) -> None:
        self._transport = context.transport

    async def deliver(self, merged: MergedTask) -> None:
        if self._transport is None:
            raise SinkError("the sink is not open; await open() first")
        sink = self._sink
        replies = await self._transport.exchange(
            [
                # As Asynq's client does. It can be repeated, and no later step depends on it.
                command("SADD", keys.QUEUES, sink.queue_of(merged)),
                call("enqueue_asynq", sink.entry_keys(merged), *sink.arguments(merged)),
            ]
        )
        for reply in replies:
            if isinstance(reply, RedisAggError):
                raise reply


def as_json(payload: Any) -> bytes:
    """A payload in JSON for Go's `encoding/json`; `bytes` stay as they are, None becomes no bytes.

    Raises:
        PayloadError: JSON has no form for the payload; see `redisagg.payload.to_json`.
    """
    if payload is None:
        return b""
    return payload if isinstance(payload, bytes) else to_json(payload).encode()


def _moment(text: str) -> Moment:
    try:
        return float(text)
    except ValueError:
        return datetime.fromisoformat(text)
