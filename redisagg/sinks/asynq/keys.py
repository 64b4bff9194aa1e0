"""The names of Asynq's keys, as in `internal/base/base.go` of v0.26.0.

All keys of a queue share the hash tag ``{QUEUE}``, and so a slot of Redis Cluster.
"""

from __future__ import annotations

from hashlib import md5

QUEUES = b"asynq:queues"
"""The set of the names of all queues; it has a slot of its own."""


def _of(queue: str, name: str) -> str:
    return f"asynq:{{{queue}}}:{name}"


def task(queue: str, task_id: str) -> bytes:
    """The hash of a task."""
    return _of(queue, f"t:{task_id}").encode()


def pending(queue: str) -> bytes:
    """The list of the ids of tasks that can be processed; the oldest is on the right."""
    return _of(queue, "pending").encode()


def scheduled(queue: str) -> bytes:
    """The sorted set of the ids of tasks for later, by Unix time in seconds."""
    return _of(queue, "scheduled").encode()


def unique(queue: str, type: str, payload: bytes) -> str:
    """The key that exists while such a task is in the queue; the task stores its name."""
    # Asynq uses MD5, and no checksum for a task without a payload.
    checksum = md5(payload, usedforsecurity=False).hexdigest() if payload else ""
    return _of(queue, f"unique:{type}:{checksum}")
