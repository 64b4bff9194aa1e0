"""For tests of your own sinks; docs/sinks/own.md says how to use it."""

from __future__ import annotations

from redisagg.testing.conformance import Received, SinkConformance

__all__ = ["Received", "SinkConformance"]
