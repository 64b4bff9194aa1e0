"""Enqueues merged batches, many in one call."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from redisagg.flusher.leader.hand import Hand
from redisagg.flusher.leader.lanes import Lanes
from redisagg.flusher.leader.queue import CommitQueue, Failed
from redisagg.flusher.leader.requests import MAX_COMMIT_BATCHES, MAX_COMMIT_BYTES
from redisagg.flusher.leader.session import Asker
from redisagg.flusher.leader.settling import Settler
from redisagg.flusher.leader.sink_health import KnownSinks, failure_at
from redisagg.flusher.merging.merger import Batch, Commit, Failure, Outcome
from redisagg.transport.failures import error_from_reply

_log = logging.getLogger("redisagg")


@dataclass(frozen=True, slots=True, kw_only=True)
class Committer:
    """Works off the queue of one leader."""

    redis: Asker
    hand: Hand
    lanes: Lanes
    queue: CommitQueue
    sinks: KnownSinks
    settler: Settler

    async def run(self) -> None:
        """Commits until it is cancelled.

        Raises:
            StaleLease: the partition has another leader.
        """
        while True:
            await self.queue.wait()
            while (head := self.queue.head) is not None:
                if isinstance(head, Failed):
                    self.queue.remove(head)
                    await self.settler.settle(head)
                else:
                    await self._commit_next(head)

    async def _commit_next(self, head: Batch) -> None:
        jobs, admitted = self._next_commit()
        if jobs:
            await self._commit(jobs, admitted)
            return
        commit = _outcome(head).commit
        assert commit is not None  # else there was no breaker to keep it out
        failure = Failure.of_sink_down(self.sinks.breaker_for(commit).pause())
        await self.settler.settle(self._failed(head, failure))

    def _next_commit(self) -> tuple[list[Batch], int]:
        """The jobs at the head of the queue that fit into one call: all for one queue.

        There are none if that queue is down. With them, the number that its breaker gave.
        """
        jobs: list[Batch] = []
        commit: Commit | None = None
        size, admitted = 0, 0
        for item in self.queue:
            full = len(jobs) == MAX_COMMIT_BATCHES or size > MAX_COMMIT_BYTES
            if full or isinstance(item, Failed):
                break
            mine = _outcome(item).commit
            if mine is not None:
                commit = commit or mine
                if not mine.goes_with(commit):
                    break
                admission = self.sinks.breaker_for(mine).admit(reserved=item.probing)
                if admission is None:
                    break
                admitted = admission
                size += sum(map(len, mine.arguments))
            jobs.append(item)
        return jobs, admitted

    async def _commit(self, jobs: list[Batch], admitted: int) -> None:
        for job in jobs:
            if undecodable := _outcome(job).undecodable:
                await self._set_aside(job, undecodable)
                undecodable.clear()
        batches = [(job.batch_id, job.group, _outcome(job).commit) for job in jobs]
        replies = await self.redis.ask(self.redis.calls.commit(batches))
        refused: dict[bytes, Failed] = {}  # by group
        for job, reply in zip(jobs, replies, strict=True):
            commit = _outcome(job).commit
            if reply in (b"OK", b"GONE"):  # gone: the reply to an earlier commit was lost
                self.queue.remove(job)
                self.hand.forget([job])
                if commit is not None and reply == b"OK":
                    self.sinks.breaker_for(commit).succeeded()
            elif reply != b"ORDER":
                assert commit is not None  # else there was nothing to refuse
                error = error_from_reply(reply.decode(errors="replace"))
                breaker = self.sinks.breaker_for(commit)
                failure = failure_at(breaker, job.batch_id, admitted, error)
                refused[job.group] = self._failed(job, failure)
            elif job.group not in refused:  # else it is behind the refused one
                self.queue.remove(job)
                await self.settler.put_off(job)
        for failed in refused.values():
            await self.settler.settle(failed)

    def _failed(self, job: Batch, failure: Failure) -> Failed:
        """Takes a job that failed out of the queue, and all behind it in its group."""
        self.lanes.block(job.group)
        return self.queue.take_out(job, failure)

    async def _set_aside(self, job: Batch, undecodable: list[tuple[int, str]]) -> None:
        places = [place for place, _ in undecodable]
        error = f"{len(places)} stored tasks can't be decoded; the first: {undecodable[0][1]}"
        _log.error("group %r: %s", job.group[:64], error)
        calls = self.redis.calls
        await self.redis.ask(calls.set_aside(job.batch_id, job.group, places, error))


def _outcome(job: Batch) -> Outcome:
    """The outcome of a job that is in the queue, and so has one."""
    assert job.outcome is not None
    return job.outcome
