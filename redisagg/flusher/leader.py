"""Leading one partition for the time of one lease: claim, merge, commit.

Batches of a group are claimed in order and leave in order. Between those points they are merged
side by side: each waits in its group's lane until it is at the front.

Nothing here is needed for safety: every script checks the fencing token and the order itself. A
leader that is wrong about anything is refused, and what it held is claimed again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from redisagg.config import AggregationConfig
from redisagg.durations import seconds, to_ms
from redisagg.errors import RedisAggError, RedisUnavailable, StaleLease
from redisagg.flusher.backoff import retry_delay
from redisagg.flusher.merging.base import Commit, Failure, Job, Merger, Outcome
from redisagg.flusher.waiting import end, wait_for_event
from redisagg.protocol.keys import Keyspace, PartitionKeys
from redisagg.protocol.scripts import Request, call
from redisagg.sinks.routing import Deliveries
from redisagg.transport.aio import AsyncTransport
from redisagg.transport.failures import refusal

_log = logging.getLogger("redisagg")

# What one claim may bring, so that it keeps Redis busy for a few milliseconds at most.
_CLAIM_BATCHES = 64
_CLAIM_TASKS = 2_000
_CLAIM_BYTES = 2 * 1024 * 1024

# What one commit may carry, likewise.
_COMMIT_BATCHES = 64
_COMMIT_BYTES = 1024 * 1024

# How long a group is left alone whose keys hold a foreign type, ms.
_LEFT_ALONE_MS = 30_000

# Between two attempts at something that Redis refuses for a reason that may go away, seconds.
_REFUSED_WAIT = 0.5

# How soon a batch that came out of order is looked at again, seconds.
_ORDER_WAIT = 0.2


# For a batch of which nothing is enqueued by the commit.
_NOTHING = Commit("commit", (), ())


@dataclass(slots=True, eq=False)
class _Failed:
    """A failed job in the queue to Redis, behind what is older in its group."""

    job: Job
    failure: Failure
    followers: list[Job] = field(default_factory=list)
    """Jobs behind it that have left their lane."""


class Leader:
    """The leader of one partition.

    Args:
        partition: which one.
        token: the fencing token of the lease.
        merger, deliveries: the ones that all leaders of a flusher share.
        idle: longest sleep between two looks, seconds; news come sooner.
    """

    def __init__(
        self,
        *,
        keyspace: Keyspace,
        partition: PartitionKeys,
        token: int,
        config: AggregationConfig,
        transport: AsyncTransport,
        merger: Merger,
        deliveries: Deliveries,
        idle: float,
    ) -> None:
        self.partition = partition
        self.token = token
        self._merger = merger
        self._deliveries = deliveries
        self._keyspace = keyspace
        self._config = config
        self._transport = transport
        self._idle_ms = to_ms(idle)
        # A claim outlives the merge; what a dead leader held is freed by its lease, not by this.
        self._claim_ms = to_ms(seconds(config.merge_timeout) + seconds(config.lease_time))
        self._dedupe_ms = to_ms(config.dedupe_window)
        self._most_in_hand = max(4 * config.concurrency, 4 * _CLAIM_BATCHES)
        self._in_hand: dict[bytes, Job] = {}
        self._lanes: dict[bytes, deque[Job]] = {}
        self._queue: deque[Job | _Failed] = deque()
        self._delivering: set[asyncio.Task[None]] = set()
        self._blocked: set[bytes] = set()
        """Groups with a failed job that waits in the queue: those behind it must not overtake."""
        self._claiming = asyncio.Lock()
        self._finishing = False
        self._look = asyncio.Event()  # something may be due, or there is room again
        self._queued = asyncio.Event()  # something waits to be committed
        self._empty = asyncio.Event()  # nothing is in hand
        self._empty.set()

    # --- its life --------------------------------------------------------------------------

    async def run(self) -> None:
        """Leads until `finish` is called or the lease is lost.

        Raises:
            StaleLease: the partition has another leader; everything in hand is void.
        """
        claiming = asyncio.create_task(self._claim_all())
        committing = asyncio.create_task(self._commit_all())
        try:
            # Claiming ends when it is told to finish.
            done, _ = await asyncio.wait(
                {claiming, committing}, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                task.result()
            drained = asyncio.create_task(self._drain())
            done, _ = await asyncio.wait({drained, committing}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for job in self._in_hand.values():
                job.abandoned = True
            for delivery in self._delivering:
                delivery.cancel()
            await end(claiming, committing)

    def look(self) -> None:
        """Something may have become due."""
        self._look.set()

    def finish(self) -> None:
        """Claims nothing more, finishes what is in hand, and ends."""
        self._finishing = True
        self._look.set()

    async def _drain(self) -> None:
        if not await wait_for_event(self._empty, seconds(self._config.shutdown_timeout)):
            _log.warning("%d batches in hand are given back unfinished", len(self._in_hand))
            await self._give_back(list(self._in_hand.values()), 0)

    # --- claiming --------------------------------------------------------------------------

    async def _claim_all(self) -> None:
        p = self.partition
        keys = [p.state, p.groups, p.batches, p.claims, p.retry, p.due, p.ready]
        while not self._finishing:
            self._look.clear()
            room = self._most_in_hand - len(self._in_hand)
            if room <= 0:
                await self._look.wait()
                continue
            async with self._claiming:
                next_ms = await self._claim_due(keys, min(room, _CLAIM_BATCHES))
            if next_ms != 0:
                sleep_ms = self._idle_ms if next_ms < 0 else next_ms
                await wait_for_event(self._look, sleep_ms / 1000)

    async def _claim_due(self, keys: list[bytes], limit: int) -> int:
        """Takes what is due into hand; returns the ms until more is, as `poll` does."""
        while True:
            try:
                next_ms, flat = await self._ask(
                    call("poll", keys, self.token, limit, self._idle_ms)
                )
                items = list(zip(flat[::2], flat[1::2], strict=True))
                if items:
                    await self._claim(keys, items, limit)
                    return 0
                return int(next_ms)
            except RedisUnavailable:
                # Whether batches were claimed is unknown: all but those in hand are free again,
                # and named first by the next poll.
                p = self.partition
                _log.warning("the reply to a claim was lost in partition %d", p.number)
                args = (self.token, self._claim_ms, *self._in_hand)
                await self._ask(call("recall", [p.state, p.claims], *args))

    async def _claim(self, keys: list[bytes], items: list[tuple[bytes, bytes]], limit: int) -> None:
        held = [batch_id for batch_id, _ in items if batch_id in self._in_hand]
        if held:  # slow merges: their claims ran out although they are still in hand
            p = self.partition
            await self._ask(call("extend", [p.state, p.claims], self.token, self._claim_ms, *held))
            items = [item for item in items if item[0] not in self._in_hand]
        if not items:
            return
        args: list[Any] = [self.token, self._claim_ms, self.partition.label]
        args += (limit, _CLAIM_TASKS, _CLAIM_BYTES, _LEFT_ALONE_MS, self._dedupe_ms)
        all_keys = [*keys, self.partition.seen, self.partition.seen_before]
        for batch_id, group in items:
            args += (batch_id, group)
            all_keys += (self.partition.tasks(group), self.partition.ids(group))
        claimed = await self._ask(call("claim", all_keys, *args), once=True)
        slot = self.partition.slot if self._transport.clustered else None
        for batch_id, group, attempt, _created, error, entries in claimed:
            if not batch_id:
                _log.error("group %r can't be claimed: %r", group[:64], error)
                continue
            job = Job(batch_id, group, attempt, entries, slot, self._merged)
            self._take(job)
            if attempt <= self._config.max_attempts:
                self._merger.submit(job)
            else:  # none of them came to an end, else it would be among the dead letters
                why = error.decode(errors="replace") or "its flusher died each time"
                job.end(Outcome(Failure(why, "")))

    def _take(self, job: Job) -> None:
        self._in_hand[job.batch_id] = job
        self._empty.clear()
        self._lanes.setdefault(job.group, deque()).append(job)

    # --- what becomes of a merged batch -----------------------------------------------------

    def _merged(self, job: Job) -> None:
        if job.batch_id in self._in_hand:
            self._advance(job.group)

    def _advance(self, group: bytes) -> None:
        """Sends on what is merged at the front of a group's lane."""
        if group in self._blocked:
            return
        lane = self._lanes.get(group)
        while lane and (outcome := lane[0].outcome):
            job = lane[0]
            if outcome.failure is not None:
                lane.popleft()
                self._blocked.add(group)
                self._enqueue(_Failed(job, outcome.failure))
                return
            if outcome.deliveries:
                job.outcome = None  # the lane goes on when it has been delivered
                delivery = asyncio.create_task(self._deliver(job, outcome))
                self._delivering.add(delivery)
                delivery.add_done_callback(self._delivering.discard)
                return
            lane.popleft()
            self._enqueue(job)
        if not lane:
            self._lanes.pop(group, None)

    async def _deliver(self, job: Job, outcome: Outcome) -> None:
        try:
            for batch in outcome.deliveries:
                await self._deliveries.deliver(batch)
        except BaseException as error:  # a sink may end in CancelledError or SystemExit too
            if job.abandoned:
                raise  # it is this delivery that was cancelled
            outcome = Outcome(Failure.of(error))
        else:
            outcome.deliveries = []
        if not job.abandoned:
            job.outcome = outcome
            self._advance(job.group)

    def _enqueue(self, item: Job | _Failed) -> None:
        self._queue.append(item)
        self._queued.set()

    def _forget(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._in_hand.pop(job.batch_id, None)
        if not self._in_hand:
            self._empty.set()
        self._look.set()

    # --- committing ------------------------------------------------------------------------

    async def _commit_all(self) -> None:
        while True:
            await self._queued.wait()
            self._queued.clear()
            while self._queue:
                head = self._queue[0]
                if isinstance(head, _Failed):
                    self._queue.popleft()
                    await self._settle_failure(head)
                else:
                    await self._commit(self._next_commit())

    def _next_commit(self) -> list[Job]:
        """The jobs at the head of the queue that fit into one call: all for one queue."""
        jobs: list[Job] = []
        commit: Commit | None = None
        size = 0
        for item in self._queue:
            if isinstance(item, _Failed) or len(jobs) == _COMMIT_BATCHES or size > _COMMIT_BYTES:
                break
            mine = _outcome(item).commit
            if mine is not None:
                commit = commit or mine
                if not mine.goes_with(commit):
                    break
                size += sum(map(len, mine.arguments))
            jobs.append(item)
        return jobs

    async def _commit(self, jobs: list[Job]) -> None:
        for job in jobs:
            if undecodable := _outcome(job).undecodable:
                await self._set_aside(job, undecodable)
                undecodable.clear()
        replies = await self._ask(self._commit_request(jobs))
        refused: dict[bytes, _Failed] = {}  # by group
        for job, reply in zip(jobs, replies, strict=True):
            if reply in (b"OK", b"GONE"):  # gone: the reply to an earlier commit was lost
                self._queue.remove(job)
                self._forget([job])
            elif reply != b"ORDER":
                error = refusal(reply.decode(errors="replace"))
                refused[job.group] = _Failed(job, Failure.of(error))
                self._blocked.add(job.group)
                self._queue.remove(job)
            elif job.group in refused:
                refused[job.group].followers.append(job)
                self._queue.remove(job)
            else:
                self._queue.remove(job)
                await self._give_back([job], _ORDER_WAIT)
        for failed in refused.values():
            await self._settle_failure(failed)

    def _commit_request(self, jobs: list[Job]) -> Request:
        p = self.partition
        keys = [p.state, p.groups, p.batches, p.claims, p.due, p.ready]
        args: list[Any] = [self.token]
        commits = [_outcome(job).commit or _NOTHING for job in jobs]
        common = next((each for each in commits if each is not _NOTHING), _NOTHING)
        keys += common.queue_keys
        args += common.options
        for job, commit in zip(jobs, commits, strict=True):
            keys += (p.tasks(job.group), *commit.entry_keys)
            args += (job.batch_id, len(commit.arguments), *commit.arguments)
        return call(common.script, keys, *args)

    async def _set_aside(self, job: Job, undecodable: list[tuple[int, str]]) -> None:
        p = self.partition
        letter = job.batch_id + b"-undecodable"
        keys = [p.state, p.groups, p.batches, p.dead, p.tasks(job.group), p.dead_tasks(letter)]
        places = [place for place, _ in undecodable]
        error = f"{len(places)} stored tasks can't be decoded; the first: {undecodable[0][1]}"
        _log.error("group %r: %s", job.group[:64], error)
        await self._ask(
            call("set_aside", keys, self.token, job.batch_id, letter, error.encode(), *places)
        )

    async def _settle_failure(self, failed: _Failed) -> None:
        """Buries a failed job or gives it back; those behind it may go on then, or wait with it."""
        if failed.job.attempt >= self._config.max_attempts:
            await self._bury(failed.job, failed.failure)
            self._queue.extendleft(reversed(failed.followers))
        else:
            # Not while a claim is under way: it may bring more that has to wait.
            async with self._claiming:
                await self._wait_with(failed)
        self._blocked.discard(failed.job.group)
        self._advance(failed.job.group)

    async def _bury(self, job: Job, failure: Failure) -> None:
        p = self.partition
        keys = [p.state, p.groups, p.batches, p.claims, p.dead]
        keys += (p.tasks(job.group), p.dead_tasks(job.batch_id))
        reply = await self._ask(
            call(
                "bury",
                keys,
                self.token,
                job.batch_id,
                _bytes(failure.error),
                _bytes(failure.traceback),
            )
        )
        if reply == b"ORDER":
            await self._give_back([job], _ORDER_WAIT)
            return
        _log.error(
            "batch %s of group %r is among the dead letters after %d attempts: %s",
            job.batch_id.decode(),
            job.group[:64],
            job.attempt,
            failure.error,
        )
        self._forget([job])

    async def _wait_with(self, failed: _Failed) -> None:
        """Gives a failed job back, and all behind it in its group, to be claimed again later."""
        job, failure = failed.job, failed.failure
        lane = self._lanes.pop(job.group, deque())
        followers = [*failed.followers, *lane]
        for follower in followers:
            follower.abandoned = True
        delay = retry_delay(self._config, job.attempt)
        _log.warning(
            "batch %s of group %r failed (attempt %d of %d), next in %.1f s: %s",
            job.batch_id.decode(),
            job.group[:64],
            job.attempt,
            self._config.max_attempts,
            delay,
            failure.error,
        )
        args: list[Any] = [job.batch_id, to_ms(delay), 1, _bytes(failure.error)]
        await self._retry([job, *followers], args, delay)

    async def _give_back(self, jobs: list[Job], delay: float) -> None:
        """Returns jobs that did not fail, to be claimed again."""
        for job in jobs:
            job.abandoned = True
            lane = self._lanes.get(job.group)
            if lane and job in lane:
                lane.remove(job)
        await self._retry(jobs, [], delay)

    async def _retry(self, jobs: list[Job], args: list[Any], delay: float) -> None:
        p = self.partition
        for job in jobs[len(args) // 4 :]:
            args += (job.batch_id, to_ms(delay), 0, b"")
        keys = [p.state, p.groups, p.batches, p.claims, p.retry, p.due, p.ready]
        await self._ask(call("retry", keys, self.token, *args))
        self._forget(jobs)

    # --- talking to Redis -------------------------------------------------------------------

    async def _ask(self, request: Request, *, once: bool = False) -> Any:
        """The reply to a request; waits as long as Redis refuses for reasons that may go away."""
        while True:
            [reply] = await self._transport.exchange([request], once=once)
            if not isinstance(reply, RedisAggError):
                return reply
            if isinstance(reply, StaleLease):
                raise reply
            _log.error("partition %d: %s failed: %s", self.partition.number, _name(request), reply)
            await asyncio.sleep(_REFUSED_WAIT)


def _outcome(job: Job) -> Outcome:
    """The outcome of a job that is in the queue, and so has one."""
    assert job.outcome is not None
    return job.outcome


def _name(request: Request) -> str:
    return request.script.name if request.script else "a command"


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
