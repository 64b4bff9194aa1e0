"""Asynq, the Go task queue (https://github.com/hibiken/asynq), as the queue."""

from __future__ import annotations

from redisagg.sinks.asynq.sink import AsynqSink

__all__ = ["AsynqSink"]
