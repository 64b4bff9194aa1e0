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
from redisagg.errors import MergeError, MergeTimeout
from redisagg.flusher.backoff import retry_delay
from redisagg.flusher.batch import Batch, Claim, Failure, MergeOutcome
from redisagg.flusher.merging.turns import Turns
from redisagg.merge_function import wants_info
from redisagg.sinks.routing import Router
from redisagg.texts import group_text, logger

_log = logger("merges")


class Merger(ABC):
    """Merges batches, at most `concurrency` at a time."""

    def __init__(self, config: AggregationConfig, router: Router) -> None:
        self._config = config
        self.function = config.group_aggregator
        self.informed = self.function is not None and wants_info(self.function)
        """Whether it takes the info about its batch."""
        self.timeout = seconds(config.merge_timeout)
        self.concurrency = config.concurrency
        self.most = config.concurrency
        """The number of batches that are merged at the same time."""
        self.router = router
        self.most_hung = 2 * config.concurrency
        """The number of merges that may hang beyond their timeout before no further one begins."""

    async def prepare(self) -> None:  # noqa: B027 - most have nothing to start
        """Starts what merges need, before the flusher claims anything; raises nothing."""

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

    def refused(self, claim: Claim, hung: int) -> MergeOutcome:
        """The outcome of a merge that did not begin because `hung` others hang.

        The attempt does not count, since the batch is not to blame.
        """
        _log.error(
            "group '%s' is not merged: %d merges hang beyond merge_timeout; end them, or restart "
            "the flusher",
            *(group_text(claim.group), hung),
        )
        error = MergeError(
            f"{hung} merges hang beyond merge_timeout ({self.timeout:g} s), so no further one is "
            "begun; give what the merge function waits for a timeout, and restart the flusher"
        )
        return self.not_begun(claim, error)

    def not_begun(self, claim: Claim, error: Exception) -> MergeOutcome:
        """The outcome of a merge that could not begin; the attempt does not count."""
        return MergeOutcome(Failure.of(error, retry_delay(self._config, claim.attempt)))


class TaskMerger(Merger):
    """A merger that has an asyncio task for each batch that is merged.

    Args:
        most: the number of batches that are merged at the same time.
    """

    def __init__(self, config: AggregationConfig, router: Router, most: int) -> None:
        super().__init__(config, router)
        self.most = most
        self._turns: Turns[Batch] = Turns()
        self._running: set[asyncio.Task[None]] = set()
        self._closed = False

    def submit(self, batch: Batch) -> None:
        self._turns.put(batch.group, batch)
        self._start_next()

    def _start_next(self) -> None:
        while self._turns and len(self._running) < self.most:
            self._start(self._turns.pop())

    def _start(self, batch: Batch) -> None:
        def done(task: asyncio.Task[None]) -> None:
            self._running.discard(task)
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            if error is not None and not self._closed:  # else the batch would stay in hand for ever
                _log.error("a merge of group '%s' ended: %r", group_text(batch.group), error)
                if batch.begin():
                    batch.end_merge(MergeOutcome(Failure.of(error)))
            if not self._closed:
                self._start_next()

        task = asyncio.create_task(self._work(batch))
        self._running.add(task)
        task.add_done_callback(done)

    def close(self) -> None:
        self._closed = True
        for task in self._running:
            task.cancel()

    @abstractmethod
    async def _work(self, batch: Batch) -> None:
        """Merges one batch."""
