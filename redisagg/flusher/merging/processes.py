"""Merging by a plain function, in processes: for merges that are heavy on the CPU."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

from redisagg.config import AggregationConfig, GroupAggregator
from redisagg.errors import MergeError
from redisagg.flusher.merging.blocking import merge
from redisagg.flusher.merging.merger import Batch, Failure, Merger, Outcome
from redisagg.sinks.routing import Router

_log = logging.getLogger("redisagg")

_function: GroupAggregator
_router: Router


def _start(pickled: bytes) -> None:
    """Prepares a worker process."""
    global _function, _router
    _function, _router = pickle.loads(pickled)


def _merge(job: Batch) -> Outcome:
    """The work of a worker process."""
    return merge(_function, _router, job)


def _nothing(_: Batch) -> None:
    """Stands for `Batch.done` in a worker process, where nobody waits."""


class ProcessMerger(Merger):
    """Calls the merge function in worker processes, as many as there are cores.

    The function and the sink are handed to them by pickle, so both have to be importable. A
    worker that a merge killed, or that had to be killed, takes all others with it; what they were
    at is then merged once more, one job after the other, so that only the guilty one fails.
    """

    def __init__(self, config: AggregationConfig, router: Router) -> None:
        super().__init__(config, router)
        # Now, not when a worker is started: a sink that has been opened may hold what can't be.
        self._pickled = pickle.dumps((self.function, router))
        self._workers = min(self.concurrency, os.cpu_count() or 1)
        self._slots = asyncio.Semaphore(self._workers)
        self._alone = asyncio.Lock()
        self._pool = self._new_pool(self._workers)
        self._running: set[asyncio.Task[None]] = set()

    def submit(self, job: Batch) -> None:
        task = asyncio.create_task(self._work(job))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def close(self) -> None:
        for task in self._running:
            task.cancel()
        _kill(self._pool)

    def _new_pool(self, workers: int) -> ProcessPoolExecutor:
        # Not forked: a flusher has threads, whose locks a fork would copy as they are.
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(workers, context, _start, (self._pickled,))

    async def _work(self, job: Batch) -> None:
        async with self._slots:
            pool = self._pool
            try:
                outcome = await self._merge(pool, job) if job.begin() else Outcome()
            except BrokenProcessPool:
                if self._pool is pool:  # the first to notice
                    self._pool = self._new_pool(self._workers)
                outcome = await self._merge_alone(job)
        job.end(outcome)

    async def _merge_alone(self, job: Batch) -> Outcome:
        async with self._alone:
            pool = self._new_pool(1)
            try:
                return await self._merge(pool, job)
            except BrokenProcessPool:
                _log.error("a merge of group %r ended its process", job.group[:64])
                return Outcome(Failure.of(MergeError("the merge function ended its process")))
            finally:
                _kill(pool)

    async def _merge(self, pool: ProcessPoolExecutor, job: Batch) -> Outcome:
        """The outcome of a merge in this pool.

        Raises:
            BrokenProcessPool: a worker has died.
        """
        try:
            submitted = pool.submit(_merge, replace(job, done=_nothing))
        except RuntimeError as error:  # another merge had it killed, and nobody has noticed yet
            raise BrokenProcessPool from error
        merging = asyncio.wrap_future(submitted)
        try:
            return await asyncio.wait_for(merging, self.timeout)
        except asyncio.TimeoutError:  # the built-in one only since Python 3.11
            _log.warning("a merge of group %r is killed after merge_timeout", job.group[:64])
            _kill(pool)
            return self.timed_out()
        except BrokenProcessPool:
            raise
        except Exception as error:  # the outcome could not be pickled
            return Outcome(Failure.of(error))


def _kill(pool: ProcessPoolExecutor) -> None:
    """Ends a pool at once, whatever its workers are at."""
    for process in list((pool._processes or {}).values()):
        process.kill()
    pool.shutdown(wait=False, cancel_futures=True)
