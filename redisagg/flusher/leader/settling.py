"""What becomes of batches that were not enqueued: claimed again later, or the dead letters."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from redisagg.config import AggregationConfig
from redisagg.flusher.backoff import retry_delay
from redisagg.flusher.leader.hand import Hand
from redisagg.flusher.leader.lanes import Lanes
from redisagg.flusher.leader.queue import CommitQueue, Failed
from redisagg.flusher.leader.requests import MAX_COMMIT_BYTES, Returned
from redisagg.flusher.leader.session import Asker
from redisagg.flusher.merging.merger import Batch, Failure

_log = logging.getLogger("redisagg")

# How soon a batch that came out of order is looked at again, seconds.
_ORDER_WAIT = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Settler:
    """Gives batches of one leader back, or buries them."""

    config: AggregationConfig
    redis: Asker
    hand: Hand
    lanes: Lanes
    queue: CommitQueue
    claiming: asyncio.Lock
    """Held while a claim is under way."""

    async def settle(self, failed: Failed) -> None:
        """Buries a failed job or gives it back; those behind it may go on then, or wait with it."""
        if failed.counts and failed.attempt >= self.config.max_attempts:
            await self._bury(failed)
            self.queue.put_first(failed.followers)
        else:
            # Not while a claim is under way: it may bring more that has to wait.
            async with self.claiming:
                if self.lanes.postpone(failed):
                    return
                await self._wait_with(failed)
        self.lanes.unblock(failed.job.group)

    async def give_back(self, jobs: Sequence[Batch], delay: float) -> None:
        """Returns jobs that did not fail, to be claimed again in `delay` seconds."""
        for job in jobs:
            job.abandoned = True
            self.lanes.leave(job)
        await self._retry(jobs, delay)

    async def put_off(self, job: Batch) -> None:
        """Returns a job that came before an older one of its group."""
        await self.give_back([job], _ORDER_WAIT)

    async def _bury(self, failed: Failed) -> None:
        job, failure = failed.job, failed.failure
        reply = await self.redis.ask(self.redis.calls.bury(job.batch_id, job.group, failure))
        if reply == b"ORDER":
            await self.put_off(job)
            return
        _log.error(
            "batch %s of group %r is among the dead letters after %d attempts: %s",
            job.batch_id.decode(),
            job.group[:64],
            failed.attempt,
            failure.error,
        )
        self.hand.forget([job])

    async def _wait_with(self, failed: Failed) -> None:
        """Gives a failed job back, and all behind it in its group, to be claimed again later."""
        job, failure = failed.job, failed.failure
        followers = [*failed.followers, *self.lanes.close(job.group)]
        for follower in followers:
            follower.abandoned = True
        delay = failure.pause
        if delay is None:
            delay = retry_delay(self.config, failed.attempt)
            _log.warning(
                "batch %s of group %r failed (attempt %d of %d), next in %.1f s: %s",
                job.batch_id.decode(),
                job.group[:64],
                failed.attempt,
                self.config.max_attempts,
                delay,
                failure.error,
            )
        await self._retry([job, *followers], delay, failure)

    async def _retry(
        self, jobs: Sequence[Batch], delay: float, failure: Failure | None = None
    ) -> None:
        """Gives jobs back with what they were merged to.

        Args:
            failure: of the first of them.
        """
        calls = self.redis.calls
        returned = [Returned(job.batch_id, delay, _news(job)) for job in jobs]
        # They all go back in one step, so that their group stays in order; what is too much for
        # that goes ahead.
        if sum(len(each.merged) for each in returned) > MAX_COMMIT_BYTES:
            ahead: list[Returned] = []
            for each in returned:
                ahead.append(each._replace(delay=None))
                size = sum(len(gone.merged) for gone in ahead)
                if size > MAX_COMMIT_BYTES or each is returned[-1]:
                    await self.redis.ask(calls.retry(ahead))
                    ahead = []
            returned = [each._replace(merged=b"") for each in returned]
        if failure is not None:
            returned[0] = returned[0]._replace(failure=failure)
        await self.redis.ask(calls.retry(returned))
        self.hand.forget(jobs)


def _news(job: Batch) -> bytes:
    """What a job was merged to, if Redis does not have it."""
    packed = job.outcome.packed() if job.outcome else b""
    return b"" if packed == job.merged else packed
