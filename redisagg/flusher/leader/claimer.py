"""Takes what is due in hand, as long as there is room for it and a sink that works."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any

from redisagg.config import AggregationConfig
from redisagg.errors import RedisAggError, RedisUnavailable
from redisagg.flusher.breaker import State
from redisagg.flusher.leader.hand import Hand
from redisagg.flusher.leader.lanes import Lanes
from redisagg.flusher.leader.requests import MAX_CLAIM_BATCHES, Due, DueItem
from redisagg.flusher.leader.session import Asker
from redisagg.flusher.leader.sink_health import KnownSinks, Probe
from redisagg.flusher.merging.merger import Batch, Failure, Merger, Outcome
from redisagg.flusher.waiting import wait_for_event
from redisagg.protocol.keys import PartitionKeys

_log = logging.getLogger("redisagg")

# So often one of the batches that are claimed to try a sink is one that was never tried; more and
# more seldom from then on, since each is one more that is merged and stored.
_FRESH_PROBES = 4


class Claimer:
    """Claims batches for one leader and gives them to the merger.

    Args:
        slot: the hash tag of the partition on a cluster, else None.
        look: set when something may be due, or there is room again.
        idle: longest sleep between two looks, seconds.
    """

    def __init__(
        self,
        *,
        config: AggregationConfig,
        partition: PartitionKeys,
        slot: str | None,
        redis: Asker,
        hand: Hand,
        lanes: Lanes,
        sinks: KnownSinks,
        merger: Merger,
        look: asyncio.Event,
        idle: float,
    ) -> None:
        self.claiming = asyncio.Lock()
        """Held while a claim is under way."""
        self._max_attempts = config.max_attempts
        self._most_in_hand = max(4 * config.concurrency, 4 * MAX_CLAIM_BATCHES)
        self._partition = partition
        self._slot = slot
        self._redis = redis
        self._hand = hand
        self._lanes = lanes
        self._sinks = sinks
        self._merger = merger
        self._look = look
        self._idle = idle
        self._finishing = False

    def finish(self) -> None:
        """Claims nothing more; `run` ends."""
        self._finishing = True
        self._look.set()

    async def run(self) -> None:
        """Claims until it is told to finish.

        Raises:
            StaleLease: the partition has another leader.
        """
        due: Due | None = None  # what to claim next, if the last claim has told
        while not self._finishing:
            self._look.clear()
            states = self._sinks.states()
            if states == {State.OPEN}:
                self._give_way()
            room = self._most_in_hand - len(self._hand)
            if room <= 0:
                await self._look.wait()
                continue
            probe: Probe | None = None
            if states and State.CLOSED not in states:
                probe = self._sinks.reserve()
                if probe is None:
                    await wait_for_event(self._look, self._sinks.pause())
                    continue
            async with self.claiming:
                due = await self._claim_due(due, min(room, MAX_CLAIM_BATCHES), probe)
            if probe is not None:
                probe.end()
            if due is not None and due.wait_ms != 0:
                sleep = self._idle if due.wait_ms < 0 else due.wait_ms / 1000
                await wait_for_event(self._look, sleep)
                due = None

    def _give_way(self) -> None:
        """Gives back what is not merged yet, since there is no sink for it."""
        for job in self._lanes.fronts():
            if not job.outcome and not job.probing and job.give_up():
                self._lanes.fail(job, Failure.of_sink_down(self._sinks.pause()))

    async def _claim_due(self, due: Due | None, limit: int, probe: Probe | None) -> Due | None:
        """Takes what is due into hand; returns what is due then, None if it has to be asked for."""
        polled = limit
        if probe is not None:
            due, polled = None, self._most_in_hand + MAX_CLAIM_BATCHES
        calls = self._redis.calls
        while True:
            try:
                due = due or Due.of(await self._redis.ask(calls.poll(polled)))
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
                number = self._partition.number
                _log.warning("the reply to a claim was lost in partition %d", number)
                await self._redis.ask(calls.recall(self._hand.jobs))
                due = None

    def _chosen(self, items: list[DueItem], probe: Probe) -> tuple[list[DueItem], int]:
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
        held = [item for item in items if item.batch_id in self._hand]
        return held, [item for item in items if item.batch_id not in self._hand]

    async def _claim(self, items: list[DueItem], limit: int, *, probing: bool) -> Due | None:
        calls = self._redis.calls
        held, items = self._apart(items)
        if held:  # slow merges: their claims ran out although they are still in hand
            await self._redis.ask(calls.extend(item.batch_id for item in held))
        if not items:
            return None
        # With the poll that comes after it, so that the next claim is on its way before the merges
        # of this one keep the interpreter busy.
        requests = [calls.claim(items, limit), calls.poll(MAX_CLAIM_BATCHES)]
        claimed, due = await self._redis.ask_together(requests, once=True)
        for batch in claimed:
            self._take(batch, probing=probing)
        return None if isinstance(due, RedisAggError) else Due.of(due)

    def _take(self, claimed: Any, *, probing: bool) -> None:
        """Takes a batch in hand, as the script's reply has it, and has it merged."""
        batch_id, group, attempt, _created, error, merged, entries = claimed
        if not batch_id:
            _log.error("group %r can't be claimed: %r", group[:64], error)
            return
        job = Batch(batch_id, group, attempt, merged, entries, self._slot, self._lanes.merged)
        job.probing = probing
        self._hand.take(job)
        self._lanes.join(job)
        if self._lanes.has_unsettled(group):
            job.abandoned = True  # it goes back with those that are behind the failed one
        elif attempt <= self._max_attempts:
            self._merger.submit(job)
        else:  # none of them came to an end, else it would be among the dead letters
            why = error.decode(errors="replace") or "its flusher died each time"
            job.end(Outcome(Failure(why, "")))
