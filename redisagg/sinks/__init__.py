"""Sinks: where merged tasks go."""

from __future__ import annotations

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

__all__ = [
    "BlockingSink",
    "CallableSink",
    "DeliverySink",
    "EnqueuedBatch",
    "ListSink",
    "MergedTask",
    "ReadableSink",
    "ScriptSink",
    "Sink",
    "SinkContext",
    "SinkPage",
    "SinkUrl",
    "StreamSink",
    "sink_from_url",
]
