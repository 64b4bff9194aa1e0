"""Permits: what bounds the work of all flushers of a namespace together, and that of a group.

With `max_concurrency`, `group_concurrency`, `rate_limit` or `group_rate_limit`, a leader takes a
permit for each batch before it claims it. The script `permits` grants them by Redis' clock;
lua/includes/permits.lua explains why no limit is exceeded. What this side does for that:

- A call begins only until the `begin_by` of its permit, by the monotonic clock of this machine,
  counted from before the request for the permit was sent. So a flusher that was suspended begins
  nothing with permits that Redis has given to others since.
- A permit is given back when its call is over, or when it has exceeded `merge_timeout`. Redis takes
  those of a dead flusher back when such a call would be over.
- A call is noted when it is over, or some time after it began; its provider has it by then.

A leader that gets no permit leaves the tasks in their groups, and is told when to ask again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from redisagg.config import AggregationConfig
from redisagg.durations import seconds, to_ms
from redisagg.errors import RedisAggError
from redisagg.flusher.batch import Batch, Claim, MergeOutcome
from redisagg.flusher.waiting import cancel_and_wait, wait_for_event
from redisagg.protocol.keys import Keyspace, PartitionKeys
from redisagg.protocol.scripts import Request, call
from redisagg.rate_limit import RateLimit
from redisagg.transport.aio import AsyncTransport

_log = logging.getLogger("redisagg")

MESSAGE = b"permits"
"""Is published when a permit came back for which another flusher waits."""

# Batches that a flusher with limits merges or delivers at the same time at most, so that the script
# looks at few permits.
_MOST_HELD = 128

# The part of the lease time by which a flusher is more careful than Redis.
_MARGIN = 0.05

# A call that has begun and is not over is noted after this part of a window; of a short one after
# up to a second, so that a request has reached its provider by then.
_NOTED_AFTER = 0.02
_NOTED_AFTER_SHORT = 0.25

# Milliseconds after which a group is looked at again that has all of its concurrent batches.
_PLACE_WAIT_MS = 200

# Seconds until a call is repeated that Redis refuses.
_REFUSED_WAIT = 0.5

# Seconds that the last call may take when the flusher ends.
_CLOSE_TIMEOUT = 0.3

# The number of batches from which the units of the next ones are estimated.
_RECENT = 8

# Seconds of a delivery to a sink that a function chooses, before any is known.
_SINK_TIMEOUT = 30.0


class _Limit:
    """One limit: of the namespace, or of each group."""

    def __init__(self, concurrency: int | None, rate: RateLimit | None) -> None:
        self.concurrency = concurrency
        self.rate = rate
        self._recent: deque[int] = deque([1], maxlen=_RECENT)

    @property
    def exists(self) -> bool:
        return self.concurrency is not None or self.rate is not None

    @property
    def estimate(self) -> int:
        """The units for which a permit is taken before the batch is known."""
        return max(self._recent) if self.counts_contents else 1

    @property
    def counts_contents(self) -> bool:
        """Whether the units depend on the contents of a batch."""
        return self.rate is not None and self.rate.of != "batches"

    def units_of(self, claim: Claim) -> int:
        """The units of a batch, at most those of a whole window."""
        if self.rate is None or self.rate.of == "batches":
            return 1
        units = min(self.contents_of(claim), self.rate.limit)
        self._recent.append(units)
        return units

    def contents_of(self, claim: Claim) -> int:
        """The tasks or the weight of a batch, as the limit counts them; 1 at least."""
        by_tasks = self.rate is not None and self.rate.of == "tasks"
        return max(1, claim.task_count if by_tasks else claim.weight)

    def arguments(self) -> tuple[int, ...]:
        rate = self.rate
        rule = (rate.limit, rate.per_ms, rate.burst_units) if rate else (0, 1, 1)
        return (self.concurrency or 0, *rule)


class Permit:
    """Permission to merge and deliver one batch; belongs to the event loop of its flusher.

    Args:
        begin_by: the time by `time.monotonic` until which its call may begin.
        ends_by: the time at which Redis takes it back.
        units: those that the namespace has granted.
    """

    __slots__ = (
        *("_permits", "begin_by", "begun", "ends_by", "group_key", "group_units", "group_used"),
        *("id", "is_over", "last_begun", "units", "used"),
    )

    def __init__(
        self, permits: Permits, permit_id: str, units: int, begin_by: float, ends_by: float
    ) -> None:
        self._permits = permits
        self.id = permit_id
        self.begin_by = begin_by
        self.ends_by = ends_by
        self.units = self.used = units
        self.group_key: tuple[PartitionKeys, bytes] | None = None
        self.group_units = self.group_used = 0
        self.begun = False
        """Whether a call may have begun."""
        self.last_begun = False
        """Whether no further call will begin."""
        self.is_over = False

    def merge_over(self, outcome: MergeOutcome | None) -> None:
        """The merge is over. None if its batch is not delivered."""
        if outcome is None or outcome.failure is not None or not outcome.deliveries:
            self.end()

    def may_deliver(self, timeout: float, *, last: bool) -> bool:
        """Whether a delivery may begin that takes at most so many seconds; notes that it does."""
        self._permits.longest_delivery = max(self._permits.longest_delivery, timeout)
        if self.is_over or time.monotonic() + timeout > self.ends_by:
            return False
        self.begun = True
        if last:
            self.last_begun = True
        return True

    def end(self) -> None:
        """No call of its batch runs any more, or has exceeded its time limit."""
        self._permits.end(self)


@dataclass(slots=True, eq=False)
class _Waiter:
    """A leader, or a batch, that waits for permits."""

    want: int
    units: int
    future: asyncio.Future[list[Permit]]
    granted: list[Permit] = field(default_factory=list)


class Permits:
    """The permits of one flusher.

    Args:
        flusher_id: unique among all flushers.
        most: the number of batches that the flusher merges at the same time.
        sink_timeout: seconds that a delivery takes at most; 0 if the only sink is a queue in Redis;
            None if a function chooses the sink.
    """

    def __init__(
        self,
        *,
        flusher_id: str,
        keyspace: Keyspace,
        config: AggregationConfig,
        transport: AsyncTransport,
        most: int,
        sink_timeout: float | None,
    ) -> None:
        self._flusher_id = flusher_id
        self._keyspace = keyspace
        self._transport = transport
        self._most = min(most, _MOST_HELD)
        self._namespace = _Limit(config.max_concurrency, config.rate_limit)
        self._group = _Limit(config.group_concurrency, config.group_rate_limit)
        self._lease = seconds(config.lease_time)
        self._merge_timeout = seconds(config.merge_timeout)
        self._delivers = sink_timeout != 0
        self._in_processes = config.executor == "process"
        self.longest_delivery = _SINK_TIMEOUT if sink_timeout is None else sink_timeout
        """Seconds that a delivery takes at most, as far as is known."""
        self.group_concurrency = config.group_concurrency
        rates = [each.rate for each in (self._namespace, self._group) if each.rate]
        self.needs_weight = any(rate.of == "weight" for rate in rates)
        """Whether claims have to tell the weight of batches."""
        self.limits_groups = self._group.exists
        """Whether groups have limits of their own."""
        per = min((seconds(each.per) for each in rates), default=0.0)
        self._noted_after = max(_NOTED_AFTER * per, min(_NOTED_AFTER_SHORT * per, 1.0))
        self._prefix = os.urandom(5).hex()
        self._number = 0
        self._held = 0
        """How many permits are not over."""
        self._steps: dict[bytes, list[str]] = {}
        """What is to be told to Redis, by the key of the limit."""
        self._partition_of: dict[bytes, int] = {}
        """The partition of each key of a group in `_steps`."""
        self._waiters: deque[_Waiter] = deque()
        self._blocked_until = 0.0
        """The time by `time.monotonic` before which no further permit is granted, as far as is
        known."""
        self._woken = asyncio.Event()
        self._sending = asyncio.create_task(self._send_all())

    # --- for leaders -------------------------------------------------------------------------

    async def take(self, want: int, units: int | None = None) -> list[Permit]:
        """Takes 1 to `want` permits, as soon as there is one.

        Args:
            units: those of each permit; None to estimate them.
        """
        future: asyncio.Future[list[Permit]] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(want, units or self._namespace.estimate, future)
        self._waiters.append(waiter)
        self._woken.set()
        try:
            return await future
        except asyncio.CancelledError:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            for permit in waiter.granted:
                permit.end()
            raise

    async def admit(
        self,
        partition: PartitionKeys,
        permits: Sequence[Permit],
        groups: Sequence[bytes],
        units: int | None = None,
    ) -> list[int]:
        """Takes permits of groups, one for each permit of the namespace.

        Args:
            permits: those of the namespace; the group of each is that at its place in `groups`.
            units: those of each permit; None to estimate them.

        Returns:
            For each group 0, or the milliseconds after which it may get a permit.
        """
        units = units or self._group.estimate
        steps: list[str] = []
        for permit, group in zip(permits, groups, strict=True):
            key = partition.permits(group)
            steps.append(" ".join((*self._steps.pop(key, ()), f"+{permit.id}:{units}")))
        keys = [partition.permits(group) for group in groups]
        [replies] = await self._exchange([self._call(self._group, keys, steps, channel=b"")])
        waits: list[int] = []
        for permit, key, (granted, wait_ms, by_place) in zip(permits, keys, replies, strict=True):
            if granted:
                permit.group_key = partition, key
                permit.group_units = permit.group_used = units
            waits.append(min(wait_ms, _PLACE_WAIT_MS) if by_place else wait_ms)
        return waits

    def excess(self, claim: Claim) -> str:
        """Says which limit a batch alone exceeds, so that it can never be merged; or nothing."""
        if claim.stored_result or claim.has_result:
            return ""  # it has been merged
        for limit, name in ((self._namespace, "rate_limit"), (self._group, "group_rate_limit")):
            rate = limit.rate
            if rate is None or rate.of == "batches":
                continue
            if (contents := limit.contents_of(claim)) > rate.limit:
                what = "tasks" if rate.of == "tasks" else "units of weight"
                return (
                    f"the batch has {contents:,} {what}, more than {name} allows at all "
                    f"({rate.limit:,}); raise the limit, and requeue the batch"
                )
        return ""

    def fits(self, permit: Permit, claim: Claim) -> bool:
        """Whether a permit is enough for a batch; notes how many of its units the batch uses."""
        permit.used = self._namespace.units_of(claim)
        permit.group_used = self._group.units_of(claim)
        enough = permit.used <= permit.units or not self._namespace.exists
        return enough and (permit.group_used <= permit.group_units or not self._group.exists)

    async def take_exactly(self, partition: PartitionKeys, claim: Claim) -> Permit:
        """Takes a permit for one batch that is known, as soon as it is granted."""
        namespace, group = self._namespace.units_of(claim), self._group.units_of(claim)
        while True:
            [permit] = await self.take(1, namespace)
            if not self._group.exists:
                return permit
            try:
                [wait_ms] = await self.admit(partition, [permit], [claim.group], group)
            except BaseException:
                permit.end()
                raise
            if not wait_ms:
                return permit
            permit.end()
            await asyncio.sleep(wait_ms / 1000)

    def use(self, permit: Permit, batch: Batch) -> None:
        """Hands a batch its permit."""
        batch.permit = permit
        batch.claim = batch.claim._replace(begin_by=permit.begin_by)
        # The merge is its only call, and begins when the batch says so.
        permit.last_begun = not (self._delivers or self._in_processes)
        if self._noted_after:
            self._note_later(permit)

    def end(self, permit: Permit) -> None:
        """A permit is over."""
        if permit.is_over:
            return
        permit.is_over = True
        self._held -= 1
        self._note(permit, "-" if permit.begun else "~")
        if self._waiters:
            self._woken.set()

    def wake(self) -> None:
        """A permit may have come back to Redis."""
        self._blocked_until = 0.0
        if self._waiters:
            self._woken.set()

    async def close(self) -> None:
        """Tells Redis what is over, within a short time."""
        await cancel_and_wait(self._sending)
        try:
            await asyncio.wait_for(self._send(), _CLOSE_TIMEOUT)
        except (asyncio.TimeoutError, RedisAggError):
            _log.warning("the flusher ends without giving its permits back; they expire")

    # --- what Redis is told ------------------------------------------------------------------

    def _note_later(self, permit: Permit) -> None:
        """Notes a call that has begun and is not over after a part of the window."""

        def note() -> None:
            if permit.is_over:
                return
            if permit.begun and permit.last_begun:
                self._note(permit, "=")
            else:
                self._note_later(permit)

        asyncio.get_running_loop().call_later(self._noted_after, note)

    def _note(self, permit: Permit, kind: str) -> None:
        if self._namespace.exists:
            units = "" if kind == "~" else f":{permit.used}"
            self._steps.setdefault(self._keyspace.permits, []).append(f"{kind}{permit.id}{units}")
        if permit.group_key is not None:
            partition, key = permit.group_key
            units = "" if kind == "~" else f":{permit.group_used}"
            self._steps.setdefault(key, []).append(f"{kind}{permit.id}{units}")
            self._partition_of[key] = partition.number
        self._woken.set()

    @property
    def _calls_take(self) -> float:
        """Seconds that the merge and the deliveries of a batch take together at most."""
        delivery = self._lease + self.longest_delivery if self._delivers else 0.0
        return self._merge_timeout + delivery

    def _call(
        self, limit: _Limit, keys: Sequence[bytes], steps: Iterable[str], channel: bytes
    ) -> Request:
        spans = (to_ms(self._lease), to_ms(self._lease + self._calls_take))
        return call("permits", keys, self._flusher_id, *spans, *limit.arguments(), channel, *steps)

    async def _exchange(self, requests: Sequence[Request]) -> list[Any]:
        """Sends requests until Redis accepts all of them; a repeated one does nothing twice."""
        while True:
            replies = await self._transport.exchange(requests)
            refused = next((each for each in replies if isinstance(each, RedisAggError)), None)
            if refused is None:
                return replies
            _log.error("Redis refuses permits: %s", refused)
            await asyncio.sleep(_REFUSED_WAIT)

    async def _send_all(self) -> None:
        while True:
            self._woken.clear()
            try:
                await self._send()
            except RedisAggError as error:
                _log.error("no permits: %s", error)
                await asyncio.sleep(_REFUSED_WAIT)
            if self._waiters and self._held < self._most:
                left = self._blocked_until - time.monotonic()
                await wait_for_event(self._woken, max(0.0, left))
            else:
                await self._woken.wait()

    async def _send(self) -> None:
        """Tells Redis what has changed, and asks for permits."""
        steps, self._steps = self._steps, {}
        partition_of, self._partition_of = self._partition_of, {}
        steps_sent = dict(steps)
        own = list(steps.pop(self._keyspace.permits, ()))
        takes = self._next_takes(again=bool(own))
        begin_by = time.monotonic() + self._lease * (1 - _MARGIN)
        ends_by = begin_by + self._calls_take
        requests: list[Request] = []
        if self._namespace.exists and (own or takes):
            own += [f"+{permit_id}:{waiter.units}" for waiter, permit_id in takes]
            channel = self._keyspace.wake_channel
            requests.append(
                self._call(self._namespace, [self._keyspace.permits], [" ".join(own)], channel)
            )
        by_partition: dict[int, list[bytes]] = {}
        for key in steps:
            by_partition.setdefault(partition_of[key], []).append(key)
        requests += [
            self._call(self._group, keys, [" ".join(steps[key]) for key in keys], channel=b"")
            for keys in by_partition.values()
        ]
        granted = len(takes)
        if requests:
            try:
                replies = await self._exchange(requests)
            except BaseException:  # the same steps may be sent again
                for key, some in steps_sent.items():
                    self._steps[key] = [*some, *self._steps.get(key, ())]
                self._partition_of |= partition_of
                raise
            if self._namespace.exists and takes:
                [[granted, wait_ms, _]] = replies[0]
                self._blocked_until = time.monotonic() + wait_ms / 1000 if wait_ms else 0.0
            elif own:
                self._blocked_until = 0.0  # something was given back since Redis said so
        self._grant(takes[:granted], begin_by, ends_by)

    def _next_takes(self, *, again: bool) -> list[tuple[_Waiter, str]]:
        """The permits to ask for, in turns of those who wait.

        Args:
            again: whether the same call gives something back, so that permits may be granted
                earlier than Redis has said.
        """
        if time.monotonic() < self._blocked_until and not again:
            return []
        takes: list[tuple[_Waiter, str]] = []
        left = [each.want for each in self._waiters]
        while any(left) and len(takes) < self._most - self._held:
            for place, waiter in enumerate(self._waiters):
                if left[place] and len(takes) < self._most - self._held:
                    left[place] -= 1
                    self._number += 1
                    takes.append((waiter, f"{self._prefix}.{self._number}"))
        return takes

    def _grant(self, takes: Sequence[tuple[_Waiter, str]], begin_by: float, ends_by: float) -> None:
        for waiter, permit_id in takes:
            permit = Permit(self, permit_id, waiter.units, begin_by, ends_by)
            self._held += 1
            waiter.granted.append(permit)
        for waiter in [each for each in self._waiters if each.granted]:
            self._waiters.remove(waiter)
            waiter.future.set_result(waiter.granted)
        for waiter, _ in takes:
            if waiter.future.cancelled():
                for permit in waiter.granted:
                    permit.end()
