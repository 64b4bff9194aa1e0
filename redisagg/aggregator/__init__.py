"""The two faces of an aggregator: `threads` for blocking code, `aio` for asyncio.

`base` holds the state and the methods that both share, `reading` reads the queue of merged tasks.
"""

from redisagg.aggregator.aio import AsyncAggregator
from redisagg.aggregator.threads import Aggregator

__all__ = ["Aggregator", "AsyncAggregator"]
