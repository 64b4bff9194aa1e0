"""Merging by a plain function in processes, for merges that are heavy on the CPU."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from redisagg.config import AggregationConfig, GroupAggregator
from redisagg.errors import MergeError
from redisagg.flusher.batch import Batch, Claim, Failure, MergeOutcome
from redisagg.flusher.merging.merger import TaskMerger
from redisagg.flusher.merging.steps import merge
from redisagg.sinks.routing import Router

_log = logging.getLogger("redisagg")

# Set once in each worker process.
_function: GroupAggregator
_router: Router


def _start_worker(pickled: bytes) -> None:
    global _function, _router
    _function, _router = pickle.loads(pickled)


def _merge_in_worker(claim: Claim) -> MergeOutcome:
    return merge(_function, _router, claim)


class ProcessMerger(TaskMerger):
    """Calls the merge function in worker processes, as many as there are cores.

    The function and the sink are handed to the workers by pickle, so both must be importable. When
    a merge ends its worker, or a worker has to be killed, the pool loses all its workers. Their
    batches are then merged once more, one at a time, so that only the guilty one fails.
    """

    def __init__(self, config: AggregationConfig, router: Router) -> None:
        super().__init__(config, router)
        # Pickled now: a sink that has been opened may hold what can't be pickled.
        self._pickled = pickle.dumps((self.function, router))
        self._workers = min(self.concurrency, os.cpu_count() or 1)
        self._slots = asyncio.Semaphore(self._workers)
        self._alone = asyncio.Lock()
        self._pool = self._new_pool(self._workers)

    def close(self) -> None:
        super().close()
        _kill(self._pool)

    def _new_pool(self, workers: int) -> ProcessPoolExecutor:
        # Not forked: a flusher has threads, and a fork would copy their locks as they are.
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(workers, context, _start_worker, (self._pickled,))

    async def _work(self, batch: Batch) -> None:
        async with self._slots:
            if not batch.begin():
                return
            pool = self._pool
            try:
                outcome = await self._merge(pool, batch.claim)
            except BrokenProcessPool:
                if self._pool is pool:  # the first one to notice
                    self._pool = self._new_pool(self._workers)
                outcome = await self._merge_alone(batch.claim)
        batch.end_merge(outcome)

    async def _merge_alone(self, claim: Claim) -> MergeOutcome:
        async with self._alone:
            pool = self._new_pool(1)
            try:
                return await self._merge(pool, claim)
            except BrokenProcessPool:
                _log.error("a merge of group %r ended its process", claim.group[:64])
                return MergeOutcome(Failure.of(MergeError("the merge function ended its process")))
            finally:
                _kill(pool)

    async def _merge(self, pool: ProcessPoolExecutor, claim: Claim) -> MergeOutcome:
        """Merges a batch in a pool.

        Raises:
            BrokenProcessPool: a worker of the pool has died.
        """
        try:
            submitted = pool.submit(_merge_in_worker, claim)
        except RuntimeError as error:  # another merge had the pool killed just now
            raise BrokenProcessPool from error
        merging = asyncio.wrap_future(submitted)
        try:
            return await asyncio.wait_for(merging, self.timeout)
        except asyncio.TimeoutError:  # not the built-in one before Python 3.11
            _log.warning("a merge of group %r is killed after merge_timeout", claim.group[:64])
            _kill(pool)
            return self.timed_out()
        except BrokenProcessPool:
            raise
        except Exception as error:  # the outcome could not be pickled
            return MergeOutcome(Failure.of(error))


def _kill(pool: ProcessPoolExecutor) -> None:
    """Ends a pool and its workers at once."""
    for process in list((pool._processes or {}).values()):
        process.kill()
    pool.shutdown(wait=False, cancel_futures=True)
