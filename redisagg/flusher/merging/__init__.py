"""Running the merge function: on the event loop if `async`, else in threads or processes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from redisagg.config import AggregationConfig
from redisagg.flusher.merging.loop import LoopMerger
from redisagg.flusher.merging.merger import Merger
from redisagg.flusher.merging.processes import ProcessMerger
from redisagg.flusher.merging.threads import ThreadMerger
from redisagg.sinks.routing import Router


def make_merger(config: AggregationConfig, router: Router) -> Merger:
    """The merger for the function that is configured; to be called on the loop."""
    if is_async(config.group_aggregator):
        return LoopMerger(config, router)
    return (ProcessMerger if config.executor == "process" else ThreadMerger)(config, router)


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine: an `async def`, or an object with such a `__call__`."""
    call = getattr(function, "__call__", None)  # noqa: B004 - not a test for being callable
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)
