"""Support for tests: a private Redis server, and conformance tests for your own sinks.

docs/sinks/own.md shows how to use the conformance tests.
"""

from __future__ import annotations

from redisagg.testing.conformance import Received, SinkConformance
from redisagg.testing.embedded import EmbeddedRedis

__all__ = ["EmbeddedRedis", "Received", "SinkConformance"]
