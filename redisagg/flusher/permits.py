"""Permits: what bounds the work of all flushers of a namespace together, and that of a group.

With `max_concurrency`, `group_concurrency`, `rate_limit` or `group_rate_limit`, a leader takes a
permit for each batch before it claims it. The script `permits` grants them by Redis' clock;
lua/includes/permits.lua explains why no limit is exceeded. What this side does for that:

- A call begins only until the `begin_by` of its permit, by the monotonic clock of this machine,
  counted from before the request for the permit was sent. So a flusher that was suspended begins
  nothing with permits that Redis has given to others since.
- A permit is given back when its call is over, or when it has exceeded `merge_timeout`. Redis takes
  those of a dead flusher back when such a call would be over.
- A call is noted when it is over, or when this process has run for some time since it began; its
  provider has it by then.

A leader that gets no permit leaves the tasks in their groups, and is told when to ask again.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from redisagg.config import AggregationConfig
from redisagg.durations import seconds, to_ms
from redisagg.errors import KeyConflict, RedisAggError
from redisagg.flusher.batch import Batch, Claim, MergeOutcome
from redisagg.flusher.waiting import cancel_and_wait, wait_for_event
from redisagg.protocol.failed_tasks import group_of
from redisagg.protocol.keys import Keyspace, PartitionKeys
from redisagg.protocol.scripts import Request, call
from redisagg.rate_limit import RateLimit
from redisagg.texts import logger
from redisagg.transport.aio import AsyncTransport

_log = logger("permits")

MESSAGE = b"permits"
"""Is published when a permit came back for which another flusher waits."""

# Batches that a flusher with limits merges or delivers at the same time at most, so that the script
# looks at few permits.
_MOST_HELD = 128

# Groups whose permits one call of the script looks at.
_CALL_GROUPS = 64

# Milliseconds for which a group has no permits whose key holds foreign data.
_QUARANTINE_MS = 30_000

# The part of the lease time within which a flusher begins a call. In the rest of it, Redis still
# counts a call of a process that is frozen right before the call.
_BEGIN_WITHIN = 0.5

# A call that has begun and is not over is noted after this part of a window; of a short one after
# up to a second, so that a request has reached its provider by then.
_NOTED_AFTER = 0.02
_NOTED_AFTER_SHORT = 0.25

# How often it is looked at until then. If much more time has passed between two looks than was to
# pass, the process was frozen or had no CPU.
_LOOKS = 4
_LONGEST_LOOK = 1.5

# Milliseconds after which a group is looked at again that has all of its concurrent batches.
_PLACE_WAIT_MS = 200

# Seconds until a call is repeated that Redis refuses.
_REFUSED_WAIT = 0.5

# Seconds that the last call may take when the flusher ends.
_CLOSE_TIMEOUT = 0.3

# The number of batches from which the units of the next ones are estimated, and the largest part
# of a limit for which a permit is taken before a batch is known. Else a small batch would wait
# until as much of the window is free as the largest one needs.
_RECENT = 8
_LARGEST_ESTIMATE = 1 / 4

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
        if self.rate is None or not self.counts_contents:
            return 1
        usual = sorted(self._recent)[len(self._recent) // 2]
        return min(usual, max(1, int(self.rate.limit * _LARGEST_ESTIMATE)))

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
        *("_permits", "begin_by", "begun", "began", "ends_by", "group_key", "group_units"),
        *("group_used", "id", "is_over", "merges_only", "units", "used"),
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
        self.merges_only = False
        """Whether its merge is its only call, and is made in this process."""
        self.began: float | None = None
        """When its last call began, by `time.monotonic`; None if a call may still begin."""
        self.is_over = False

    def begin(self) -> None:
        """Its merge begins; may be called in any thread."""
        self.begun = True
        if self.merges_only:
            self.began = time.monotonic()

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
            self.began = time.monotonic()
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
        self._steps: list[str] = []
        """What is to be told to Redis about the permits of the namespace."""
        self._unused: deque[str] = deque(maxlen=2 * _MOST_HELD)
        """Gives back permits that Redis may have granted, although no reply came."""
        self._group_steps: dict[int, dict[bytes, list[str]]] = {}
        """What is to be told to Redis about those of groups: by partition and key."""
        self._noting: dict[int, asyncio.Task[None]] = {}
        """What tells it, by partition: one whose master is down delays no other."""
        self._waiters: deque[_Waiter] = deque()
        self._blocked_until = 0.0
        """The time by `time.monotonic` before which no further permit is granted, as far as is
        known."""
        self.wait_ms = 0
        """Milliseconds until a further permit of the namespace is granted, as Redis said last."""
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
            if not self._waiters and self._namespace.exists:
                self._steps.append("!")
                self._woken.set()
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
        keys = [partition.permits(group) for group in groups]
        told = self._group_steps.get(partition.number, {})
        before = {key: told.pop(key, []) for key in keys}
        steps: list[str] = []
        for permit, key in zip(permits, keys, strict=True):
            steps.append(" ".join((*before[key], f"+{permit.id}:{units}")))
            permit.group_key = partition, key  # so it is given back, even if the reply is lost
        try:
            replies = await self._call_groups(keys, steps)
        except BaseException:
            self._tell_again(partition.number, before)
            raise
        waits: list[int] = []
        for permit, (granted, wait_ms, by_place) in zip(permits, replies, strict=True):
            if granted:
                permit.group_units = permit.group_used = units
            else:
                permit.group_key = None
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
                [wait_ms] = await self.admit(partition, [permit], [group_of(claim.group)], group)
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
        permit.merges_only = not (self._delivers or self._in_processes)
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

    def cancel(self) -> None:
        """Ends without a word to Redis."""
        for task in (self._sending, *self._noting.values()):
            task.cancel()

    async def close(self) -> None:
        """Tells Redis what is over, within a short time."""
        await cancel_and_wait(self._sending, *self._noting.values())
        self._waiters.clear()
        if self._namespace.exists:
            self._steps.append("!")
        telling = [self._send(), *map(self._tell, list(self._group_steps))]
        try:
            told = asyncio.gather(*telling, return_exceptions=True)
            errors = [each for each in await asyncio.wait_for(told, _CLOSE_TIMEOUT) if each]
        except asyncio.TimeoutError as error:
            errors = [error]
        if errors:
            text = "the flusher ends without giving its permits back; they expire: %r"
            _log.warning(text, errors[0])

    # --- what Redis is told ------------------------------------------------------------------

    def _note_later(self, permit: Permit) -> None:
        """Notes a call that is not over when this process has run for some time since it began."""
        loop, step = asyncio.get_running_loop(), self._noted_after / _LOOKS
        ran, looked = 0.0, time.monotonic()

        def look() -> None:
            nonlocal ran, looked
            if permit.is_over:
                return
            now = time.monotonic()
            if permit.began is not None:
                ran += min(now - max(looked, permit.began), _LONGEST_LOOK * step)
            looked = now
            if ran >= self._noted_after:
                self._note(permit, "=")
            else:
                loop.call_later(min(step, self._noted_after - ran), look)

        loop.call_later(step, look)

    def _note(self, permit: Permit, kind: str) -> None:
        if self._namespace.exists:
            units = "" if kind == "~" else f":{permit.used}"
            self._steps.append(f"{kind}{permit.id}{units}")
        if permit.group_key is not None:
            partition, key = permit.group_key
            units = "" if kind == "~" else f":{permit.group_used}"
            steps = self._group_steps.setdefault(partition.number, {})
            steps.setdefault(key, []).append(f"{kind}{permit.id}{units}")
            self._keep_telling(partition.number)
        self._woken.set()

    def _keep_telling(self, partition: int) -> None:
        """Has a partition told what became of permits of its groups."""
        if partition not in self._noting and not self._sending.done():
            telling = asyncio.create_task(self._tell_until_told(partition))
            self._noting[partition] = telling

            def told(_: asyncio.Task[None]) -> None:
                del self._noting[partition]
                if self._group_steps.get(partition):  # noted since it looked last
                    self._keep_telling(partition)

            telling.add_done_callback(told)

    async def _tell_until_told(self, partition: int) -> None:
        while self._group_steps.get(partition):
            try:
                await self._tell(partition)
            except RedisAggError as error:
                _log.error("no permits of groups in partition %d: %s", partition, error)
                await asyncio.sleep(_REFUSED_WAIT)

    async def _tell(self, partition: int) -> None:
        """Tells a partition once what is known now."""
        steps = self._group_steps.pop(partition, {})
        while steps:
            keys = list(steps)[:_CALL_GROUPS]
            try:
                await self._call_groups(keys, [" ".join(steps[key]) for key in keys])
            except BaseException:
                self._tell_again(partition, steps)
                raise
            for key in keys:
                del steps[key]

    def _tell_again(self, partition: int, steps: Mapping[bytes, list[str]]) -> None:
        """Notes steps that may not have reached Redis; there they do nothing twice."""
        later = self._group_steps.setdefault(partition, {})
        for key, some in steps.items():
            if some:
                later[key] = [*some, *later.get(key, ())]
        self._keep_telling(partition)

    async def _call_groups(
        self, keys: Sequence[bytes], steps: Sequence[str]
    ) -> list[tuple[int, int, int]]:
        """Calls `permits` for groups of one partition, and returns its replies.

        A group whose key holds foreign data has no permits for some time; the others have.
        """
        try:
            replies: list[tuple[int, int, int]] = await self._exchange(
                self._call(self._group, keys, steps, channel=b"")
            )
        except KeyConflict as error:
            if len(keys) == 1:
                _log.error("no permits for the group of %r: %s", keys[0][:128], error)
                return [(0, _QUARANTINE_MS, 0)]
            one_by_one = zip(keys, steps, strict=True)
            return [(await self._call_groups([key], [each]))[0] for key, each in one_by_one]
        return replies

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

    async def _exchange(self, request: Request) -> Any:
        """Sends a request until Redis accepts it; a repeated one does nothing twice.

        Raises:
            KeyConflict: a key of the request holds foreign data.
        """
        while True:
            [reply] = await self._transport.exchange([request])
            if isinstance(reply, KeyConflict):
                raise reply
            if not isinstance(reply, RedisAggError):
                return reply
            _log.error("Redis refuses permits: %s", reply)
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
        """Tells Redis what has changed, and asks for permits of the namespace."""
        steps, self._steps = self._steps, []
        unused = list(self._unused)
        takes = self._next_takes(again=bool(steps))
        begin_by = time.monotonic() + self._lease * _BEGIN_WITHIN
        ends_by = begin_by + self._calls_take
        granted = len(takes)
        if self._namespace.exists and (steps or takes or unused):
            asked = [f"+{permit_id}:{waiter.units}" for waiter, permit_id in takes]
            request = self._call(
                self._namespace,
                [self._keyspace.permits],
                [" ".join([*unused, *steps, *asked])],
                self._keyspace.wake_channel,
            )
            try:
                [(granted, wait_ms, _)] = await self._exchange(request)
            except BaseException:  # Redis may have done so, and granted permits
                self._steps = [*steps, *self._steps]
                self._unused += (f"~{permit_id}" for _, permit_id in takes)
                raise
            self._unused.clear()
            self.wait_ms = wait_ms
            # A flusher that waits has to ask again now and then, or loses its turn.
            wait = min(wait_ms / 1000, self._lease / 2) if takes else 0.0
            self._blocked_until = time.monotonic() + wait if wait else 0.0
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
            if not waiter.future.done():
                waiter.future.set_result(waiter.granted)
        for waiter, _ in takes:
            if waiter.future.cancelled():
                for permit in waiter.granted:
                    permit.end()
