"""What the mergers have in common.

A merger runs the merge function for the batches that it is handed, at most `concurrency` at a time.
`Batch.begin` says whether a batch is still to be merged, `Batch.end_merge` takes the outcome.
`steps` has what is done for one batch; `loop`, `threads` and `processes` say where it is done.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod

from redisagg.config import AggregationConfig
from redisagg.durations import seconds
from redisagg.errors import MergeTimeout
from redisagg.flusher.batch import Batch, Failure, MergeOutcome
from redisagg.sinks.routing import Router


class Merger(ABC):
    """Merges batches, at most `concurrency` at a time."""

    def __init__(self, config: AggregationConfig, router: Router) -> None:
        self.function = config.group_aggregator
        self.timeout = seconds(config.merge_timeout)
        self.concurrency = config.concurrency
        self.router = router

    @abstractmethod
    def submit(self, batch: Batch) -> None:
        """Merges the batch soon and calls its `end_merge`; to be called on the event loop."""

    @abstractmethod
    def close(self) -> None:
        """Starts no further merge."""

    def timed_out(self) -> MergeOutcome:
        """The outcome of a merge that exceeded `merge_timeout`."""
        error = MergeTimeout(f"the merge took longer than merge_timeout ({self.timeout:g} s)")
        return MergeOutcome(Failure.of(error))


class TaskMerger(Merger):
    """A merger that has an asyncio task for each batch."""

    def __init__(self, config: AggregationConfig, router: Router) -> None:
        super().__init__(config, router)
        self._running: set[asyncio.Task[None]] = set()

    def submit(self, batch: Batch) -> None:
        task = asyncio.create_task(self._work(batch))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def close(self) -> None:
        for task in self._running:
            task.cancel()

    @abstractmethod
    async def _work(self, batch: Batch) -> None:
        """Merges one batch when it is its turn."""
