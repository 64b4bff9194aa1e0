"""Leading one partition for the time of one lease: claim, merge, commit.

Batches of a group are claimed in order and leave in order. Between those points they are merged
side by side: each waits in its group's lane until it is at the front.

Nothing here is needed for safety: every script checks the fencing token and the order itself. A
leader that is wrong about anything is refused, and what it held is claimed again.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from redisagg.config import AggregationConfig
from redisagg.durations import seconds
from redisagg.errors import InvalidTask, RedisAggError, RedisUnavailable, StaleLease
from redisagg.flusher.backoff import retry_delay
from redisagg.flusher.breaker import Breaker, Breakers, State
from redisagg.flusher.calls import (
    MAX_CLAIM_BATCHES,
    MAX_COMMIT_BATCHES,
    MAX_COMMIT_BYTES,
    Due,
    DueItem,
    LeaderCalls,
    Returned,
)
from redisagg.flusher.merging.base import Commit, Failure, Job, Merger, Outcome
from redisagg.flusher.waiting import end, wait_for_event
from redisagg.protocol.keys import PartitionKeys
from redisagg.protocol.scripts import Request
from redisagg.sinks.base import Batch, DeliverySink, ScriptSink
from redisagg.sinks.routing import Deliveries
from redisagg.transport.aio import AsyncTransport
from redisagg.transport.failures import refusal

_log = logging.getLogger("redisagg")

# How many batches are claimed at once to try a sink that was down.
_PROBES = 2

# So often one of them is a batch that was never tried; more and more seldom from then on, since
# each is one more that is merged and stored.
_FRESH_PROBES = 4

# Between two attempts at something that Redis refuses for a reason that may go away, seconds.
_REFUSED_WAIT = 0.5

# How soon a batch that came out of order is looked at again, seconds.
_ORDER_WAIT = 0.2


@dataclass(slots=True, eq=False)
class _Failed:
    """A failed job in the queue to Redis, behind what is older in its group."""

    job: Job
    failure: Failure
    followers: list[Job] = field(default_factory=list)
    """Jobs behind it that have left their lane."""

    @property
    def counts(self) -> bool:
        """Whether the batch may be to blame."""
        return self.failure.pause is None

    @property
    def attempt(self) -> int:
        """Which attempt it was: of those to merge it, or of those to enqueue it."""
        merged_now = not self.job.merged and self.job.outcome and self.job.outcome.merged
        return 1 if merged_now else self.job.attempt


@dataclass(slots=True)
class _Probe:
    """The right to claim a few batches, to find out whether a sink works again."""

    breaker: Breaker
    left: int

    def end(self) -> None:
        self.breaker.unreserve(self.left)


class Leader:
    """The leader of one partition.

    Args:
        partition: which one.
        token: the fencing token of the lease.
        merger, deliveries, breakers: the ones that all leaders of a flusher share.
        idle: longest sleep between two looks, seconds; news come sooner.
    """

    def __init__(
        self,
        *,
        partition: PartitionKeys,
        token: int,
        config: AggregationConfig,
        transport: AsyncTransport,
        merger: Merger,
        deliveries: Deliveries,
        breakers: Breakers,
        idle: float,
    ) -> None:
        self.partition = partition
        self.token = token
        self._merger = merger
        self._deliveries = deliveries
        self._breakers = breakers
        self._config = config
        self._transport = transport
        self._slot = partition.slot if transport.clustered else None
        self._idle = idle
        self._calls = LeaderCalls(partition, token, config, idle)
        self._most_in_hand = max(4 * config.concurrency, 4 * MAX_CLAIM_BATCHES)
        self._in_hand: dict[bytes, Job] = {}
        self._lanes: dict[bytes, deque[Job]] = {}
        self._queue: deque[Job | _Failed] = deque()
        self._delivering: set[asyncio.Task[None]] = set()
        self._blocked: set[bytes] = set()
        """Groups with a failed job that waits in the queue: those behind it must not overtake."""
        self._unsettled: dict[bytes, _Failed] = {}
        """By group, failed jobs behind which merges are under way."""
        self._met: dict[Hashable, Breaker] = {}
        """The breakers of the sinks that batches of this partition go to, as far as known."""
        only = deliveries.router.only()
        if only is not None:
            self._breaker_of(only)
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
        due: Due | None = None  # what to claim next, if the last claim has told
        while not self._finishing:
            self._look.clear()
            states = {breaker.state for breaker in self._met.values()}
            if states == {State.OPEN}:
                self._give_way()
            room = self._most_in_hand - len(self._in_hand)
            if room <= 0:
                await self._look.wait()
                continue
            probe: _Probe | None = None
            if states and State.CLOSED not in states:
                probe = self._reserve()
                if probe is None:
                    pause = min(breaker.pause() for breaker in self._met.values())
                    await wait_for_event(self._look, pause)
                    continue
            async with self._claiming:
                due = await self._claim_due(due, min(room, MAX_CLAIM_BATCHES), probe)
            if probe is not None:
                probe.end()
            if due is not None and due.wait_ms != 0:
                sleep = self._idle if due.wait_ms < 0 else due.wait_ms / 1000
                await wait_for_event(self._look, sleep)
                due = None

    def _reserve(self) -> _Probe | None:
        """The right to claim a few batches for a sink that was down; None if there is none now."""
        for breaker in self._met.values():
            if granted := breaker.reserve(_PROBES):
                return _Probe(breaker, granted)
        return None

    def _give_way(self) -> None:
        """Gives back what is not merged yet, since there is no sink for it."""
        for group, lane in list(self._lanes.items()):
            if not lane or group in self._blocked or lane[0].outcome or lane[0].probing:
                continue
            if lane[0].give_up():
                pause = min(breaker.pause() for breaker in self._met.values())
                self._fail(lane.popleft(), Failure("", "", pause))

    async def _claim_due(self, due: Due | None, limit: int, probe: _Probe | None) -> Due | None:
        """Takes what is due into hand; returns what is due then, None if it has to be asked for."""
        polled = limit
        if probe is not None:
            due, polled = None, self._most_in_hand + MAX_CLAIM_BATCHES
        while True:
            try:
                due = due or Due.of(await self._ask(self._calls.poll(polled)))
                items = due.items
                if probe is not None:
                    items, limit = self._chosen(items, probe)
                    probe.left -= limit
                if items:
                    return await self._claim(items, limit, probing=probe is not None)
                return due if due.wait_ms != 0 else None
            except RedisUnavailable:
                # Whether batches were claimed is unknown: all but those in hand are free again,
                # and named first by the next poll.
                _log.warning("the reply to a claim was lost in partition %d", self.partition.number)
                await self._ask(self._calls.recall(self._in_hand))
                due = None

    def _chosen(self, items: list[DueItem], probe: _Probe) -> tuple[list[DueItem], int]:
        """What to claim to try a sink, and how many batches that may be.

        Now and then one that was never tried: those that were may all have something in them that
        the sink does not take, and would keep it from being found to work.
        """
        held, others = self._apart(items)
        fresh = [item for item in others if not item.batch_id]
        returned = [item for item in others if item.batch_id]
        at_first = int(random.random() * probe.breaker.times_opened < _FRESH_PROBES)
        chosen = [*fresh[:at_first], *returned, *fresh[at_first:]][: probe.left]
        return held + chosen, len(chosen)

    def _apart(self, items: list[DueItem]) -> tuple[list[DueItem], list[DueItem]]:
        """Those that are in hand, and those that are not."""
        held = [item for item in items if item.batch_id in self._in_hand]
        return held, [item for item in items if item.batch_id not in self._in_hand]

    async def _claim(self, items: list[DueItem], limit: int, *, probing: bool) -> Due | None:
        held, items = self._apart(items)
        if held:  # slow merges: their claims ran out although they are still in hand
            await self._ask(self._calls.extend(item.batch_id for item in held))
        if not items:
            return None
        # With the poll that comes after it, so that the next claim is on its way before the merges
        # of this one keep the interpreter busy.
        requests = [self._calls.claim(items, limit), self._calls.poll(MAX_CLAIM_BATCHES)]
        claimed, due = await self._ask_together(requests, once=True)
        for batch_id, group, attempt, _created, error, merged, entries in claimed:
            if not batch_id:
                _log.error("group %r can't be claimed: %r", group[:64], error)
                continue
            job = Job(batch_id, group, attempt, merged, entries, self._slot, self._merged)
            job.probing = probing
            self._take(job)
            if group in self._unsettled:
                job.abandoned = True  # it goes back with those that are behind the failed one
            elif attempt <= self._config.max_attempts:
                self._merger.submit(job)
            else:  # none of them came to an end, else it would be among the dead letters
                why = error.decode(errors="replace") or "its flusher died each time"
                job.end(Outcome(Failure(why, "")))
        return None if isinstance(due, RedisAggError) else Due.of(due)

    def _take(self, job: Job) -> None:
        self._in_hand[job.batch_id] = job
        self._empty.clear()
        self._lanes.setdefault(job.group, deque()).append(job)

    # --- what becomes of a merged batch -----------------------------------------------------

    def _merged(self, job: Job) -> None:
        if failed := self._unsettled.pop(job.group, None):
            self._enqueue(failed)
        elif job.batch_id in self._in_hand:
            self._advance(job.group)

    def _advance(self, group: bytes) -> None:
        """Sends on what is merged at the front of a group's lane."""
        if group in self._blocked:
            return
        lane = self._lanes.get(group)
        while lane and (outcome := lane[0].outcome) and not lane[0].delivering:
            job = lane[0]
            if outcome.failure is not None:
                lane.popleft()
                self._fail(job, outcome.failure)
                return
            if outcome.deliveries:
                job.delivering = True  # the lane goes on when it has been delivered
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
            while outcome.deliveries and outcome.failure is None:
                batch = outcome.deliveries[0]
                outcome.failure = await self._deliver_one(job, batch)
                if outcome.failure is None:  # should one behind it fail, it is not sent again
                    del outcome.deliveries[0], outcome.merged[batch.batch_id]
        except BaseException as error:
            if job.abandoned:
                raise  # it is this delivery that was cancelled
            outcome.failure = Failure.of(error)
        if not job.abandoned:
            job.delivering = False
            self._advance(job.group)

    async def _deliver_one(self, job: Job, batch: Batch) -> Failure | None:
        """Delivers a merged task; returns why that failed, if it did."""
        sink = self._deliveries.sink_of(batch.task)
        breaker = self._breaker_of(sink)
        admitted = breaker.admit(reserved=job.probing)
        if admitted is None:
            return Failure("", "", breaker.pause())
        try:
            await self._deliveries.deliver(sink, batch)
        except InvalidTask:  # it says nothing about the queue
            raise
        except BaseException as error:  # a sink may end in CancelledError or SystemExit too
            if job.abandoned:
                raise
            counts = breaker.failed(job.batch_id, admitted)
            return Failure.of(error, None if counts else breaker.pause())
        breaker.succeeded()
        return None

    def _fail(self, job: Job, failure: Failure) -> None:
        """Puts a job into the queue that has failed at the front of its group."""
        self._blocked.add(job.group)
        self._enqueue(_Failed(job, failure))

    # --- breakers --------------------------------------------------------------------------

    def _breaker_of(self, sink: ScriptSink | DeliverySink) -> Breaker:
        if isinstance(sink, DeliverySink):
            return self._met_breaker(id(sink), type(sink).__name__)
        return self._breaker_for(Commit.into(sink, self._slot))

    def _breaker_for(self, commit: Commit) -> Breaker:
        return self._met_breaker(commit.queue, commit.sink)

    def _met_breaker(self, key: Hashable, name: str) -> Breaker:
        breaker = self._met.get(key)
        if breaker is None:
            breaker = self._met[key] = self._breakers.of(key, name)
        return breaker

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
                    await self._commit_next(head)

    async def _commit_next(self, head: Job) -> None:
        jobs, admitted = self._next_commit()
        if jobs:
            await self._commit(jobs, admitted)
            return
        commit = _outcome(head).commit
        assert commit is not None  # else there was no breaker to keep it out
        failure = Failure("", "", self._breaker_for(commit).pause())
        await self._settle_failure(self._failed_in_queue(head, failure))

    def _next_commit(self) -> tuple[list[Job], int]:
        """The jobs at the head of the queue that fit into one call: all for one queue.

        There are none if that queue is down. With them, the number that its breaker gave.
        """
        jobs: list[Job] = []
        commit: Commit | None = None
        size, admitted = 0, 0
        for item in self._queue:
            full = len(jobs) == MAX_COMMIT_BATCHES or size > MAX_COMMIT_BYTES
            if full or isinstance(item, _Failed):
                break
            mine = _outcome(item).commit
            if mine is not None:
                commit = commit or mine
                if not mine.goes_with(commit):
                    break
                admission = self._breaker_for(mine).admit(reserved=item.probing)
                if admission is None:
                    break
                admitted = admission
                size += sum(map(len, mine.arguments))
            jobs.append(item)
        return jobs, admitted

    async def _commit(self, jobs: list[Job], admitted: int) -> None:
        for job in jobs:
            if undecodable := _outcome(job).undecodable:
                await self._set_aside(job, undecodable)
                undecodable.clear()
        batches = [(job.batch_id, job.group, _outcome(job).commit) for job in jobs]
        replies = await self._ask(self._calls.commit(batches))
        refused: dict[bytes, _Failed] = {}  # by group
        for job, reply in zip(jobs, replies, strict=True):
            commit = _outcome(job).commit
            if reply in (b"OK", b"GONE"):  # gone: the reply to an earlier commit was lost
                self._queue.remove(job)
                self._forget([job])
                if commit is not None and reply == b"OK":
                    self._breaker_for(commit).succeeded()
            elif reply != b"ORDER":
                assert commit is not None  # else there was nothing to refuse
                error = refusal(reply.decode(errors="replace"))
                breaker = self._breaker_for(commit)
                counts = breaker.failed(job.batch_id, admitted)
                failure = Failure.of(error, None if counts else breaker.pause())
                refused[job.group] = self._failed_in_queue(job, failure)
            elif job.group not in refused:  # else it is behind the refused one
                self._queue.remove(job)
                await self._give_back([job], _ORDER_WAIT)
        for failed in refused.values():
            await self._settle_failure(failed)

    def _failed_in_queue(self, job: Job, failure: Failure) -> _Failed:
        """Takes a job that failed out of the queue, and all behind it in its group."""
        self._blocked.add(job.group)
        mine = [each for each in self._queue if isinstance(each, Job) and each.group == job.group]
        behind = mine[mine.index(job) + 1 :]
        taken = {id(each) for each in (job, *behind)}
        self._queue = deque(each for each in self._queue if id(each) not in taken)
        return _Failed(job, failure, behind)

    async def _set_aside(self, job: Job, undecodable: list[tuple[int, str]]) -> None:
        places = [place for place, _ in undecodable]
        error = f"{len(places)} stored tasks can't be decoded; the first: {undecodable[0][1]}"
        _log.error("group %r: %s", job.group[:64], error)
        await self._ask(self._calls.set_aside(job.batch_id, job.group, places, error))

    async def _settle_failure(self, failed: _Failed) -> None:
        """Buries a failed job or gives it back; those behind it may go on then, or wait with it."""
        if failed.counts and failed.attempt >= self._config.max_attempts:
            await self._bury(failed)
            self._queue.extendleft(reversed(failed.followers))
        else:
            # Not while a claim is under way: it may bring more that has to wait.
            async with self._claiming:
                lane = self._lanes.get(failed.job.group, ())
                # What is being merged is not merged once more: its outcome goes back with it.
                if [job for job in lane if not job.give_up() and job.outcome is None]:
                    self._unsettled[failed.job.group] = failed
                    return
                await self._wait_with(failed)
        self._blocked.discard(failed.job.group)
        self._advance(failed.job.group)

    async def _bury(self, failed: _Failed) -> None:
        job, failure = failed.job, failed.failure
        reply = await self._ask(self._calls.bury(job.batch_id, job.group, failure))
        if reply == b"ORDER":
            await self._give_back([job], _ORDER_WAIT)
            return
        _log.error(
            "batch %s of group %r is among the dead letters after %d attempts: %s",
            job.batch_id.decode(),
            job.group[:64],
            failed.attempt,
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
        delay = failure.pause
        if delay is None:
            delay = retry_delay(self._config, failed.attempt)
            _log.warning(
                "batch %s of group %r failed (attempt %d of %d), next in %.1f s: %s",
                job.batch_id.decode(),
                job.group[:64],
                failed.attempt,
                self._config.max_attempts,
                delay,
                failure.error,
            )
        await self._retry([job, *followers], delay, failure)

    async def _give_back(self, jobs: list[Job], delay: float) -> None:
        """Returns jobs that did not fail, to be claimed again."""
        for job in jobs:
            job.abandoned = True
            lane = self._lanes.get(job.group)
            if lane and job in lane:
                lane.remove(job)
        await self._retry(jobs, delay)

    async def _retry(self, jobs: list[Job], delay: float, failure: Failure | None = None) -> None:
        """Gives jobs back with what they were merged to.

        Args:
            failure: of the first of them.
        """
        returned = [Returned(job.batch_id, delay, _news(job)) for job in jobs]
        # They all go back in one step, so that their group stays in order; what is too much for
        # that goes ahead.
        if sum(len(each.merged) for each in returned) > MAX_COMMIT_BYTES:
            ahead: list[Returned] = []
            for each in returned:
                ahead.append(each._replace(delay=None))
                size = sum(len(gone.merged) for gone in ahead)
                if size > MAX_COMMIT_BYTES or each is returned[-1]:
                    await self._ask(self._calls.retry(ahead))
                    ahead = []
            returned = [each._replace(merged=b"") for each in returned]
        if failure is not None:
            returned[0] = returned[0]._replace(failure=failure)
        await self._ask(self._calls.retry(returned))
        self._forget(jobs)

    # --- talking to Redis -------------------------------------------------------------------

    async def _ask(self, request: Request) -> Any:
        """The reply to a request; waits as long as Redis refuses for reasons that may go away."""
        [reply] = await self._ask_together([request])
        return reply

    async def _ask_together(self, requests: Sequence[Request], *, once: bool = False) -> list[Any]:
        """As `_ask`, for requests in one round trip; it is the first that must not be refused."""
        while True:
            replies = await self._transport.exchange(requests, once=once)
            refused = replies[0]
            if not isinstance(refused, RedisAggError):
                return replies
            if isinstance(refused, StaleLease):
                raise refused
            name = _name(requests[0])
            _log.error("partition %d: %s failed: %s", self.partition.number, name, refused)
            await asyncio.sleep(_REFUSED_WAIT)


def _outcome(job: Job) -> Outcome:
    """The outcome of a job that is in the queue, and so has one."""
    assert job.outcome is not None
    return job.outcome


def _news(job: Job) -> bytes:
    """What a job was merged to, if Redis does not have it."""
    packed = job.outcome.packed() if job.outcome else b""
    return b"" if packed == job.merged else packed


def _name(request: Request) -> str:
    return request.script.name if request.script else "a command"
