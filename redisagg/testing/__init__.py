"""Support for tests: a private Redis server, a kit for your own code, conformance tests for sinks.

docs/testing.md shows the kit, docs/sinks/own.md the conformance tests. `redisagg.testing.plugin`
has the fixtures of the kit, which pytest finds by itself.
"""

from __future__ import annotations

from redisagg.testing.clock import Clock
from redisagg.testing.conformance import Received, SinkConformance
from redisagg.testing.driver import BatchFailure, Crash, Flushed
from redisagg.testing.embedded import EmbeddedRedis
from redisagg.testing.kit import Kit
from redisagg.testing.recording import RecordingSink, assert_batched

__all__ = [
    "BatchFailure",
    "Clock",
    "Crash",
    "EmbeddedRedis",
    "Flushed",
    "Kit",
    "Received",
    "RecordingSink",
    "SinkConformance",
    "assert_batched",
]
