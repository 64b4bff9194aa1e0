"""Encoded tasks and the options of a producer, for tests without Redis."""

from __future__ import annotations

from typing import Any

from redisagg import AggregationConfig
from redisagg.producer.options import AddOptions
from redisagg.protocol.entries import EncodedTask
from redisagg.protocol.keys import Keyspace


def options_for(partitions: int = 1, **config: Any) -> AddOptions:
    """The options of a producer whose configuration has these settings."""
    keyspace = Keyspace("tests", partitions)
    return AddOptions.of(keyspace, AggregationConfig(partitions=partitions, **config), None)


def encoded(group: str, number: int = 0, limits: bytes = b"limits", size: int = 1) -> EncodedTask:
    """A task with this number for its id, and a body of `size` bytes."""
    return EncodedTask(group.encode(), b"%d" % number, b"x" * size, limits)
