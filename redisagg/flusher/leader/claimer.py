"""Polls a partition and claims what is due, while there is room and a sink that works."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Iterable
from typing import Any

from redisagg.errors import RedisAggError, RedisUnavailable
from redisagg.flusher.batch import Batch, Claim
from redisagg.flusher.batch_reports import BatchReports
from redisagg.flusher.breaker import Breaker, BreakerState
from redisagg.flusher.budget import Isolation
from redisagg.flusher.leader.inflight import InFlight
from redisagg.flusher.leader.permits import LeaderPermits
from redisagg.flusher.leader.requests import MAX_CLAIM_BATCHES, MAX_CLAIM_BYTES, Due, DueItem
from redisagg.flusher.leader.session import LeaseSession
from redisagg.flusher.leader.sink_health import Probe, SinkHealth, reserve_probe
from redisagg.flusher.waiting import wait_for_event
from redisagg.protocol.failed_tasks import group_of
from redisagg.protocol.scripts import Request
from redisagg.texts import group_text, logger

_log = logger("batches")

# One of the first so many probes of a sink is a batch that was never tried. Later ones are rarer,
# since each of them is merged and stored in vain if the sink is still down.
_FRESH_PROBES = 4

# Seconds until the next claim after lost replies, the first time and at most.
_FIRST_BACKOFF = 0.2
_LONGEST_BACKOFF = 5.0

# Seconds of a wait for permits after which it is asked again what is due.
_SHORT_WAIT = 0.01

_SLOT = Claim._fields.index("slot")

# After each lost reply a claim asks for half as much, down to 1/64.
_MOST_HALVINGS = 6


class Claimer:
    """Claims batches for one leader.

    Args:
        merges: the breaker of the merge function.
        isolation: permits one suspect in flight.
        slot: the hash tag of the partition on a cluster, else None.
        on_claimed: called with each batch that is to be merged.
        on_merged: called on the event loop with each batch whose merge has ended.
        on_failed: called when a failed batch is to be reported to Redis.
        idle: seconds between two polls at most.
        permits: take part if something limits all flushers together.
        reports: report each batch, if somebody listens.
    """

    def __init__(
        self,
        *,
        session: LeaseSession,
        inflight: InFlight,
        sinks: SinkHealth,
        merges: Breaker,
        isolation: Isolation,
        slot: str | None,
        on_claimed: Callable[[Batch], None],
        on_merged: Callable[[Batch], None],
        on_failed: Callable[[], None],
        idle: float,
        permits: LeaderPermits | None = None,
        reports: BatchReports | None = None,
    ) -> None:
        self._permits = permits
        self._reports = reports
        self._session = session
        self._inflight = inflight
        self._sinks = sinks
        self._merges = merges
        self._isolation = isolation
        self._slot = slot
        self._on_claimed = on_claimed
        self._on_merged = on_merged
        self._on_failed = on_failed
        self._idle = idle
        self._woken = asyncio.Event()
        self._finishing = asyncio.Event()
        self._suspect: bytes | None = None
        """The id of the suspect that is in flight here, with the permit for it."""
        self._suspects_wait: dict[bytes, float] = {}
        """By the ids of suspects whose groups wait for permits, until when by `time.monotonic`."""
        self._halvings = 0
        """How many replies were lost lately."""

    def wake(self) -> None:
        """Something may be due, or there may be room again."""
        self._woken.set()

    def breakers_changed(self) -> None:
        """A breaker has opened or closed: what must not be merged now goes back at once."""
        self._give_back_unmerged()
        self.wake()

    def finish(self) -> None:
        """Makes `run` end without another claim."""
        self._finishing.set()
        self.wake()

    async def run(self) -> None:
        """Claims until `finish` is called.

        Raises:
            StaleLease: the partition has another leader.
        """
        try:
            await self._run()
        finally:
            self._end_suspect()
            if self._permits is not None:
                self._permits.release()

    async def _run(self) -> None:
        due: Due | None = None  # the poll that came with the last claim
        while not self._finishing.is_set():
            self._woken.clear()
            if self._suspect is not None and self._suspect not in self._inflight:
                self._end_suspect()
            self._give_back_unmerged()
            room = self._inflight.room
            if not room or not self._inflight.may_claim():
                if self._permits is not None:
                    self._permits.release()
                await self._woken.wait()
                continue
            if self._permits is not None and not self._permits.count:
                due = await self._await_permits(due, room)
                continue
            probe: Probe | None = None
            if (pause := self._pause()) is not None:
                probe = self._reserve_probe()
                if probe is None:
                    if self._permits is not None:
                        self._permits.release()
                    await wait_for_event(self._woken, pause)
                    continue
            self._inflight.claim_begun()
            lost = False
            try:
                due = await self._claim_due(due, room, probe)
            except RedisUnavailable:
                # Batches may have been claimed. All but those in flight are freed, and the next
                # poll names them first.
                lost, due = True, None
                _log.warning(
                    "the reply to a claim was lost in partition %d", self._session.partition
                )
                requests = self._session.requests
                await self._session.send(requests.recall(self._inflight.ids))
            finally:
                if self._permits is not None:
                    self._permits.release()
                if self._inflight.claim_ended():
                    self._on_failed()
            if probe is not None:
                probe.end()
            await self._back_off(lost)
            if due is not None and due.wait_ms != 0:
                sleep = self._idle if due.wait_ms < 0 else due.wait_ms / 1000
                await wait_for_event(self._woken, sleep)
                due = None

    async def _await_permits(self, due: Due | None, room: int) -> Due | None:
        """Waits until something is due, and then for permits to claim it.

        Returns:
            What is due; None if it has to be asked for, since time has passed.
        """
        assert self._permits is not None
        if due is None:
            poll = self._session.requests.poll(min(room, MAX_CLAIM_BATCHES), self._inflight.closed)
            due = self._due_of(await self._session.send(poll))
        if not due.items and due.suspect is None:
            if due.wait_ms != 0:
                sleep = self._idle if due.wait_ms < 0 else due.wait_ms / 1000
                await wait_for_event(self._woken, sleep)
            return None
        asked_at = time.monotonic()
        want = len(due.items) + (due.suspect is not None)
        await self._permits.take(min(room, want), self._finishing)
        return due if time.monotonic() - asked_at < _SHORT_WAIT else None

    def _pause(self) -> float | None:
        """Seconds for which only batches that test the sinks are merged; None if one works.

        The breaker of the merge function counts as one of a sink of all batches.
        """
        if self._merges.state is not BreakerState.CLOSED:
            return self._merges.pause()
        states = self._sinks.states()
        return self._sinks.pause() if states and BreakerState.CLOSED not in states else None

    def _reserve_probe(self) -> Probe | None:
        """Permission to claim a few batches for what is down; None if none is free now."""
        if self._merges.state is not BreakerState.CLOSED:
            return reserve_probe(self._merges)
        return self._sinks.reserve()

    def _give_back_unmerged(self) -> None:
        """Gives back batches whose merge has not begun, if no sink works."""
        pause = self._pause()
        if pause is not None and self._inflight.sinks_down(pause):
            self._on_failed()

    async def _back_off(self, lost: bool) -> None:
        """Waits after a lost reply, longer after each; the next claim asks for less."""
        if not lost:
            self._halvings = max(0, self._halvings - 1)
            return
        delay = min(_FIRST_BACKOFF * 2**self._halvings, _LONGEST_BACKOFF)
        self._halvings = min(self._halvings + 1, _MOST_HALVINGS)
        await wait_for_event(self._finishing, delay * random.uniform(0.5, 1))

    async def _claim_due(self, due: Due | None, room: int, probe: Probe | None) -> Due | None:
        """Claims what is due; returns the next poll, or None if it has to be asked for.

        Raises:
            RedisUnavailable: the reply to the claim was lost.
        """
        polled = limit = min(room, max(1, MAX_CLAIM_BATCHES >> self._halvings))
        if self._permits is not None:
            limit = min(limit, self._permits.count)
        if probe is not None:
            # Enough to find batches beyond those that are in flight.
            due, polled = None, len(self._inflight) + self._inflight.room + MAX_CLAIM_BATCHES
        if due is None:
            poll = self._session.requests.poll(polled, self._inflight.closed)
            due = self._due_of(await self._session.send(poll))
        items = due.items
        if probe is not None:
            items, chosen = self._choose(items, probe)
            limit = chosen if self._permits is None else min(chosen, self._permits.count)
            probe.left -= limit
        elif due.suspect is not None and self._take_permit(due.suspect):
            items = [due.suspect, *items]
        if items:
            return await self._claim(items, limit, probing=probe is not None)
        return due if due.wait_ms != 0 else None

    def _take_permit(self, suspect: DueItem) -> bool:
        """Whether the suspect may be claimed."""
        if self._suspect is not None or not self._isolation.take(self.wake):
            return False
        self._suspect = suspect.batch_id
        return True

    def _note_waiting_suspect(self, put_off: Iterable[tuple[DueItem, int]]) -> None:
        now = time.monotonic()
        for item, wait_ms in put_off:
            if item.batch_id and item.batch_id == self._suspect:
                self._suspects_wait[item.batch_id] = now + wait_ms / 1000

    def _due_of(self, reply: Any) -> Due:
        """What a poll says, without a suspect whose group waits for a permit."""
        due = Due.of(reply)
        if due.suspect is None or not self._suspects_wait:
            return due
        now = time.monotonic()
        waits = {batch_id: at for batch_id, at in self._suspects_wait.items() if at > now}
        self._suspects_wait = waits
        if due.suspect.batch_id not in waits:
            return due
        left = math.ceil((waits[due.suspect.batch_id] - now) * 1000)
        return Due(min(due.wait_ms, left), due.items, None)

    def _end_suspect(self) -> None:
        """Gives the permit for a suspect back, if there is one here."""
        if self._suspect is not None:
            self._suspect = None
            self._isolation.give_back()

    def _choose(self, items: list[DueItem], probe: Probe) -> tuple[list[DueItem], int]:
        """What to claim to try a sink, and how many batches that may be.

        Now and then this is a batch that was never tried. Those that were may all hold something
        that the sink refuses, and the sink would never be found to work. If a function chooses the
        sink of a batch, it is so each time, and any of them: it may be for a sink that works, about
        which nothing is known yet.
        """
        held, others = self._split(items)
        returned = [item for item in others if item.batch_id]
        older = {item.group for item in returned}  # no task of these groups may go before those
        fresh = [item for item in others if not item.batch_id and item.group not in older]
        if self._sinks.only_one:
            at_first = int(random.random() * probe.breaker.times_opened < _FRESH_PROBES)
        else:
            at_first = 1
            random.shuffle(fresh)
        chosen = [*fresh[:at_first], *returned, *fresh[at_first:]][: probe.left]
        return held + chosen, len(chosen)

    def _split(self, items: list[DueItem]) -> tuple[list[DueItem], list[DueItem]]:
        """The items that are in flight here, and the others."""
        ids = self._inflight.ids
        held = [item for item in items if item.batch_id in ids]
        return held, [item for item in items if item.batch_id not in ids] if held else items

    async def _claim(self, items: list[DueItem], limit: int, *, probing: bool) -> Due | None:
        requests = self._session.requests
        held, items = self._split(items)
        if held:  # their claims ran out while slow merges still run
            await self._session.send(requests.extend(item.batch_id for item in held))
        closed = self._inflight.closed
        if closed:
            items = [item for item in items if item.batch_id or item.group not in closed]
        if not items:
            return None
        # The next poll travels behind the claim, so that the next claim is on its way before the
        # merges of this one keep the interpreter busy.
        most = min(MAX_CLAIM_BYTES, self._inflight.bytes_left) >> self._halvings
        poll = requests.poll(MAX_CLAIM_BATCHES, closed)
        if self._permits is not None and self._permits.limits_groups:
            return await self._claim_one_each(items, max(1, most), poll, probing)
        together = [requests.claim(items, limit, max(1, most)), poll]
        if self._reports is not None:
            self._reports.claiming()
        claimed, due = await self._session.send_all(together, once=True)
        pause = self._pause()
        for reply in claimed:
            self._take(reply, probing, pause)
        if self._suspect is not None and self._suspect not in self._inflight:
            self._end_suspect()  # an older batch of its group has to go first
        return None if isinstance(due, RedisAggError) else self._due_of(due)

    async def _claim_one_each(
        self, items: list[DueItem], most: int, poll: Request, probing: bool
    ) -> Due | None:
        """Claims one batch of each group that gets a permit of its own."""
        assert self._permits is not None
        requests = self._session.requests
        allowed, put_off = await self._permits.admit(items)
        together = [requests.claim([item], 1, most) for item in allowed]
        if put_off:
            self._note_waiting_suspect(put_off)
            together.append(requests.put_off(put_off))
        if self._reports is not None:
            self._reports.claiming()
        *replies, due = await self._session.send_all([*together, poll], once=True)
        place, pause = 0, self._pause()
        for claimed in replies[: len(allowed)]:
            left = self._permits.count
            if not isinstance(claimed, RedisAggError) and claimed:
                self._take(claimed[0], probing, pause, place)
            if self._permits.count == left:
                place += 1  # its permit goes back
        if self._suspect is not None and self._suspect not in self._inflight:
            self._end_suspect()
        return None if isinstance(due, RedisAggError) else self._due_of(due)

    def _take(self, reply: list[Any], probing: bool, pause: float | None, place: int = 0) -> None:
        """Puts a claimed batch in flight.

        Args:
            pause: as in `InFlight.claimed`: a breaker may have opened since the claim was sent.
            place: that of its permit, if it needs one.
        """
        reply.insert(_SLOT, self._slot)  # a reply may go on behind it
        claim = Claim(*reply)
        if not claim.batch_id:
            _log.error(
                "group '%s' can't be claimed: %r",
                *(group_text(group_of(claim.group)), claim.error),
                extra={"event": "GroupRefused", "group_key": group_text(group_of(claim.group))},
            )
            return
        batch = Batch(claim, self._on_merged, probing)
        if self._reports is not None:
            self._reports.trace(batch)
        if not self._inflight.claimed(batch, pause):
            return
        if self._permits is not None:
            self._permits.hand_over(batch, self._on_claimed, place=place)
        else:
            self._on_claimed(batch)
