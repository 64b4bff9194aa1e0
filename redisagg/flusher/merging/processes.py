"""Merging by a plain function in processes, for merges that are heavy on the CPU."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from redisagg.config import AggregationConfig, GroupAggregator
from redisagg.errors import InvalidConfig, MergeError
from redisagg.flusher.batch import Batch, Claim, Failure, MergeOutcome
from redisagg.flusher.merging.merger import TaskMerger
from redisagg.flusher.merging.steps import merge
from redisagg.merge_function import wants_info
from redisagg.sinks.routing import Router
from redisagg.texts import group_text, logger

_log = logger("merges")

_GUARD = (
    "a script that runs a flusher with executor='process' has to do so below "
    "`if __name__ == '__main__':`, since each worker process imports the script"
)

# Seconds after which a worker process counts as one that does not start. On a busy machine its
# imports may take longer than `merge_timeout`, which counts from then on.
_START_TIMEOUT = 60.0

# Set once in each worker process.
_function: GroupAggregator
_informed: bool
_router: Router


def check_process_can_start_workers() -> None:
    """Checks whether this process may have worker processes.

    Raises:
        InvalidConfig: it is a daemonic process, or a worker process that imports the main script.
    """
    process = multiprocessing.current_process()
    if getattr(process, "_inheriting", False):  # set while a spawned process imports the script
        raise InvalidConfig(_GUARD)
    if process.daemon:
        raise InvalidConfig(
            "executor='process' can't be used in a daemonic process, such as a Celery worker's, "
            "which may have no children; use executor='thread', or run the flusher in a process "
            "of its own"
        )


def _start_worker(pickled: bytes) -> None:
    global _function, _router, _informed
    # Ctrl-C and some supervisors signal all processes of a group, but this one has to finish its
    # merge. It ends when its flusher ends it, or has ended.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="redisagg-parent", daemon=True).start()
    _function, _router = pickle.loads(pickled)
    _informed = wants_info(_function)


def _end_with_parent() -> None:
    """Ends this process when its parent has died, even by SIGKILL."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _check_worker() -> None:
    """Is called in a worker process, which shows that it has started."""


def _merge_in_worker(claim: Claim) -> MergeOutcome:
    return merge(_function, _router, claim, informed=_informed)


class _PoolKilled(Exception):
    """The worker processes of a pool have ended, by themselves or by us."""


class _NotStarted(MergeError):
    """No worker process has started in time, so nothing was merged."""


class _Pool:
    """Worker processes, which start when they are needed, or by `start`.

    Raises:
        OSError: the system allows no further pipe or lock.
    """

    def __init__(self, workers: int, pickled: bytes) -> None:
        # Not forked: a flusher has threads, and a fork would copy their locks as they are.
        context = multiprocessing.get_context("spawn")
        self._executor = ProcessPoolExecutor(workers, context, _start_worker, (pickled,))
        self._workers = workers
        self._starting: asyncio.Task[None] | None = None
        self._killed = False

    async def run(self, function: Callable[..., Any], *args: Any, timeout: float) -> Any:
        """Calls a function in a worker process.

        Raises:
            _PoolKilled: the pool has lost its workers.
            asyncio.TimeoutError: the call took too long; it still runs.
            MergeError: no worker process can be started.
            Exception: the result can't be pickled.
        """
        try:
            submitted = self._executor.submit(function, *args)
        except BrokenProcessPool as error:
            raise _PoolKilled from error
        except Exception as error:
            if self._killed:
                raise _PoolKilled from error
            raise MergeError(f"no worker process can be started: {error!r}") from error
        try:
            return await asyncio.wait_for(asyncio.wrap_future(submitted), timeout)
        except BrokenProcessPool as error:
            raise _PoolKilled from error

    async def start(self) -> None:
        """Starts the worker processes, unless that was done, and waits until there is one.

        Raises:
            _NotStarted: none has started in time.
            Exception: as `run`.
        """
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
            # Nobody may wait any more when it fails.
            self._starting.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.wait({self._starting})
        self._starting.result()

    async def _start(self) -> None:
        calls = (self.run(_check_worker, timeout=_START_TIMEOUT) for _ in range(self._workers))
        try:
            await asyncio.gather(*calls)
        except asyncio.TimeoutError:
            text = f"no worker process has started in {_START_TIMEOUT:g} s"
            raise _NotStarted(text) from None

    @property
    def has_workers(self) -> bool:
        """Whether at least one worker process has been started."""
        return bool(self._executor._processes)

    def kill(self) -> None:
        """Ends the pool and its workers at once."""
        self._killed = True
        for process in list((self._executor._processes or {}).values()):
            process.kill()
        # Calls that wait are not cancelled: they would not end in `_PoolKilled`.
        self._executor.shutdown(wait=False)


class ProcessMerger(TaskMerger):
    """Calls the merge function in worker processes, as many as there are cores.

    The function and the sink are handed to the workers by pickle, so both must be importable. When
    a merge ends its worker, or a worker has to be killed, the pool loses all its workers. Their
    batches are then merged once more, one at a time, so that only the guilty one fails.
    """

    def __init__(self, config: AggregationConfig, router: Router) -> None:
        self._workers = min(config.concurrency, os.cpu_count() or 1)
        super().__init__(config, router, self._workers)
        # Pickled now: a sink that has been opened may hold what can't be pickled.
        self._pickled = pickle.dumps((self.function, router))
        self._alone = asyncio.Lock()
        self._pool: _Pool | None = None

    async def prepare(self) -> None:
        """Starts the worker processes, which takes seconds on a busy machine.

        So the batches of a partition do not wait for them when it changes hands. Whatever fails
        here fails again with the first batch, which then says so.
        """
        try:
            self._pool = _Pool(self._workers, self._pickled)
            await self._pool.start()
        except Exception:
            self._drop(self._pool)

    def close(self) -> None:
        super().close()
        if self._pool is not None:
            self._pool.kill()

    async def _work(self, batch: Batch) -> None:
        if batch.begin():
            batch.end_merge(await self._merge(batch.claim))

    async def _merge(self, claim: Claim) -> MergeOutcome:
        pool = self._pool
        try:
            if pool is None:
                pool = self._pool = _Pool(self._workers, self._pickled)
            return await self._merge_in(pool, claim)
        except _PoolKilled:
            self._drop(pool)
        except _NotStarted as error:
            self._drop(pool)
            return self._not_started(claim, error)
        except Exception as error:  # no worker can be started, or the outcome can't be pickled
            if pool is not None and not pool.has_workers:
                self._drop(pool)
            return MergeOutcome(Failure.of(error))
        if self._config.rate_limit or self._config.group_rate_limit:  # that would be another call
            text = (
                "a worker process ended during the merge; a limited merge is not repeated at once"
            )
            return MergeOutcome(Failure.of(MergeError(text)))
        return await self._merge_alone(claim)

    async def _merge_alone(self, claim: Claim) -> MergeOutcome:
        async with self._alone:
            pool: _Pool | None = None
            try:
                pool = _Pool(1, self._pickled)
                await self._check(pool)
                return await self._merge_in(pool, claim)
            except _NotStarted as error:
                return self._not_started(claim, error)
            except _PoolKilled:
                _log.error("a merge of group '%s' ended its process", group_text(claim.group))
                return MergeOutcome(Failure.of(MergeError("the merge function ended its process")))
            except Exception as error:
                return MergeOutcome(Failure.of(error))
            finally:
                if pool is not None:
                    pool.kill()

    async def _check(self, pool: _Pool) -> None:
        """Starts a worker.

        Raises:
            MergeError: it does not start, or ends before it can merge.
        """
        try:
            await pool.start()
        except _PoolKilled:
            _log.error("a worker process ends before it can merge; see its traceback on stderr")
            raise MergeError(
                "a worker process ended before it could merge, since it can't import the merge "
                f"function or the main script (its traceback is on stderr); {_GUARD}"
            ) from None

    def _not_started(self, claim: Claim, error: _NotStarted) -> MergeOutcome:
        _log.error("group '%s' is not merged: %s", group_text(claim.group), error)
        return self.not_begun(claim, error)

    async def _merge_in(self, pool: _Pool, claim: Claim) -> MergeOutcome:
        """Merges a batch in a pool.

        Raises:
            _PoolKilled: a worker of the pool has died.
            _NotStarted: no worker has started in time.
            Exception: no worker can be started, or the outcome can't be pickled.
        """
        await pool.start()
        try:
            outcome: MergeOutcome = await pool.run(_merge_in_worker, claim, timeout=self.timeout)
            return outcome
        except asyncio.TimeoutError:  # not the built-in one before Python 3.11
            _log.warning(
                "a merge of group '%s' is killed after merge_timeout", group_text(claim.group)
            )
            pool.kill()
            return self.timed_out()

    def _drop(self, pool: _Pool | None) -> None:
        """Makes the next merge start another pool, unless another one has been started already."""
        if pool is not None and self._pool is pool:
            self._pool = None
            pool.kill()
