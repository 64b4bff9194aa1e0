"""Sinks: the queues that merged tasks are enqueued in.

Sinks that need more than Redis are imported when they are first used, so that ``import redisagg``
stays fast. Their packages, such as celery, are imported when a sink is made.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from redisagg.sinks.base import (
    BlockingSink,
    DeliverySink,
    EnqueuedBatch,
    MergedTask,
    ReadableSink,
    ScriptSink,
    Sink,
    SinkContext,
    SinkPage,
)
from redisagg.sinks.callable import CallableSink
from redisagg.sinks.redis.list import ListSink
from redisagg.sinks.redis.stream import StreamSink
from redisagg.sinks.urls import SinkUrl, sink_from_url

if TYPE_CHECKING:
    from redisagg.sinks.asynq.sink import AsynqSink
    from redisagg.sinks.queues.arq import ArqSink
    from redisagg.sinks.queues.bullmq import BullMQSink
    from redisagg.sinks.queues.celery import CelerySink
    from redisagg.sinks.queues.dramatiq import DramatiqSink
    from redisagg.sinks.queues.huey import HueySink
    from redisagg.sinks.queues.rq import RQSink
    from redisagg.sinks.queues.saq import SAQSink
    from redisagg.sinks.queues.streaq import StreaqSink
    from redisagg.sinks.queues.taskiq import TaskiqSink
    from redisagg.sinks.webhook import WebhookSink

__all__ = [
    "ArqSink",
    "AsynqSink",
    "BlockingSink",
    "BullMQSink",
    "CallableSink",
    "CelerySink",
    "DeliverySink",
    "DramatiqSink",
    "EnqueuedBatch",
    "HueySink",
    "ListSink",
    "MergedTask",
    "RQSink",
    "ReadableSink",
    "SAQSink",
    "ScriptSink",
    "Sink",
    "SinkContext",
    "SinkPage",
    "SinkUrl",
    "StreamSink",
    "StreaqSink",
    "TaskiqSink",
    "WebhookSink",
    "sink_from_url",
]

_MODULES = {
    "ArqSink": "redisagg.sinks.queues.arq",
    "AsynqSink": "redisagg.sinks.asynq.sink",
    "BullMQSink": "redisagg.sinks.queues.bullmq",
    "CelerySink": "redisagg.sinks.queues.celery",
    "DramatiqSink": "redisagg.sinks.queues.dramatiq",
    "HueySink": "redisagg.sinks.queues.huey",
    "RQSink": "redisagg.sinks.queues.rq",
    "SAQSink": "redisagg.sinks.queues.saq",
    "StreaqSink": "redisagg.sinks.queues.streaq",
    "TaskiqSink": "redisagg.sinks.queues.taskiq",
    "WebhookSink": "redisagg.sinks.webhook",
}
"""The modules of the sinks that are imported when they are first used."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
