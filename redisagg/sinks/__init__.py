"""Sinks: where merged tasks go."""

from __future__ import annotations

from redisagg.sinks.base import (
    Batch,
    BlockingSink,
    DeliverySink,
    EnqueuedBatch,
    ReadableSink,
    ScriptSink,
    Sink,
    SinkContext,
    SinkPage,
)
from redisagg.sinks.callable import CallableSink
from redisagg.sinks.list import ListSink
from redisagg.sinks.stream import StreamSink
from redisagg.sinks.urls import SinkUrl, sink_from_url

__all__ = [
    "Batch",
    "BlockingSink",
    "CallableSink",
    "DeliverySink",
    "EnqueuedBatch",
    "ListSink",
    "ReadableSink",
    "ScriptSink",
    "Sink",
    "SinkContext",
    "SinkPage",
    "SinkUrl",
    "StreamSink",
    "sink_from_url",
]
