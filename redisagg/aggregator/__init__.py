"""The two faces of an aggregator: `threads` blocks, `aio` awaits; `reading` is what they share."""

from redisagg.aggregator.aio import AsyncAggregator
from redisagg.aggregator.threads import Aggregator

__all__ = ["Aggregator", "AsyncAggregator"]
