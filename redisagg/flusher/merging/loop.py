"""Merging by an `async` function, on the event loop of the flusher."""

from __future__ import annotations

import asyncio
from typing import Any

from redisagg.config import AggregationConfig
from redisagg.flusher.merging.merger import Batch, Failure, Merger, Outcome, prepare, settle
from redisagg.sinks.routing import Router


class LoopMerger(Merger):
    """Awaits the merge function."""

    def __init__(self, config: AggregationConfig, router: Router) -> None:
        super().__init__(config, router)
        self._slots = asyncio.Semaphore(self.concurrency)
        self._running: set[asyncio.Task[None]] = set()

    def submit(self, job: Batch) -> None:
        task = asyncio.create_task(self._work(job))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def close(self) -> None:
        for task in self._running:
            task.cancel()

    async def _work(self, job: Batch) -> None:
        async with self._slots:
            outcome = await self._merge(job) if job.begin() else Outcome()
        job.end(outcome)

    async def _merge(self, job: Batch) -> Outcome:
        outcome = Outcome()
        try:
            group, tasks = prepare(job, outcome, self.router)
            if tasks:
                merging: Any = asyncio.ensure_future(self.function(group, tasks))  # type: ignore[arg-type]
                if not await self._ends(merging):
                    return self.timed_out()
                settle(job, outcome, self.router, tasks, merging.result())
        except _Closed:
            raise
        except BaseException as error:  # a merge may end in CancelledError or SystemExit too
            outcome.failure = Failure.of(error)
        return outcome

    async def _ends(self, merging: asyncio.Future[Any]) -> bool:
        """Whether a merge ends in time; stops it if not."""
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
