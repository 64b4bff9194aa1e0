"""Merging by an `async` function, on the event loop of the flusher."""

from __future__ import annotations

import asyncio
from typing import Any

from redisagg.config import AggregationConfig
from redisagg.flusher.batch import Batch, Claim, Failure, MergeOutcome
from redisagg.flusher.merging.merger import TaskMerger
from redisagg.flusher.merging.steps import prepare, route_result
from redisagg.sinks.routing import Router


class LoopMerger(TaskMerger):
    """Awaits the merge function."""

    def __init__(self, config: AggregationConfig, router: Router) -> None:
        super().__init__(config, router)
        self._slots = asyncio.Semaphore(self.concurrency)

    async def _work(self, batch: Batch) -> None:
        async with self._slots:
            if not batch.begin():
                return
            outcome = await self._merge(batch.claim)
        batch.end_merge(outcome)

    async def _merge(self, claim: Claim) -> MergeOutcome:
        outcome = MergeOutcome()
        try:
            group, tasks = prepare(claim, outcome, self.router)
            if tasks:
                merging: Any = asyncio.ensure_future(self.function(group, tasks))  # type: ignore[arg-type]
                if not await self._ends(merging):
                    return self.timed_out()
                route_result(claim, outcome, self.router, tasks, merging.result())
        except _Closed:
            raise
        except BaseException as error:  # a merge may end in CancelledError or SystemExit too
            outcome.failure = Failure.of(error)
        return outcome

    async def _ends(self, merging: asyncio.Future[Any]) -> bool:
        """Whether a merge ends in time; cancels it if not."""
        try:
            await asyncio.wait({merging}, timeout=self.timeout)
        except asyncio.CancelledError:  # not the merge's own: this merger is closed
            merging.cancel()
            raise _Closed from None
        if merging.done():
            return True
        merging.cancel()
        return False


class _Closed(asyncio.CancelledError):
    """The merger was closed while a merge ran."""
