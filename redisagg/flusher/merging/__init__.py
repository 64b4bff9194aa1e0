"""Runs the merge function: on the event loop if it is `async`, else in threads or processes."""

from __future__ import annotations

from redisagg.config import AggregationConfig
from redisagg.flusher.merging.loop import LoopMerger
from redisagg.flusher.merging.merger import Merger
from redisagg.flusher.merging.processes import ProcessMerger, check_process_can_start_workers
from redisagg.flusher.merging.threads import ThreadMerger
from redisagg.merge_function import is_async
from redisagg.sinks.routing import Router

__all__ = ["Merger", "check_executor", "is_async", "make_merger"]


def check_executor(config: AggregationConfig) -> None:
    """Checks whether the configured function can be run in this process.

    Raises:
        InvalidConfig: ``executor="process"`` in a process that can't have worker processes.
    """
    if config.executor == "process" and not is_async(config.group_aggregator):
        check_process_can_start_workers()


def make_merger(config: AggregationConfig, router: Router) -> Merger:
    """Makes the merger for the configured function; to be called on the event loop."""
    if is_async(config.group_aggregator):
        return LoopMerger(config, router)
    return (ProcessMerger if config.executor == "process" else ThreadMerger)(config, router)
