"""The permits of one leader: taken before a claim, and handed to the batches that it brings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from redisagg.flusher.batch import Batch, Failure, MergeOutcome, State
from redisagg.flusher.leader.requests import DueItem
from redisagg.flusher.permits import Permit, Permits
from redisagg.protocol.failed_tasks import group_of
from redisagg.protocol.keys import PartitionKeys
from redisagg.texts import group_text, logger

_log = logger("permits")

# Seconds until a batch is claimed again for which permits could not be asked.
_PAUSE_WITHOUT_PERMIT = 1.0


class LeaderPermits:
    """Takes permits for one leader.

    Args:
        permits: those of the flusher.
    """

    def __init__(self, permits: Permits, partition: PartitionKeys) -> None:
        self.limits_groups = permits.limits_groups
        """Whether groups have limits of their own."""
        self._permits = permits
        self._partition = partition
        self._granted: list[Permit] = []
        """Permits for the next claim."""
        self._waiting: set[asyncio.Task[None]] = set()
        """Batches that are larger than was expected, and wait for a permit that is enough."""

    @property
    def count(self) -> int:
        """The number of batches that may be claimed now."""
        return len(self._granted)

    @property
    def waiting(self) -> int:
        """The number of claimed batches that wait for a permit that is enough."""
        return len(self._waiting)

    async def take(self, want: int, finishing: asyncio.Event) -> None:
        """Takes 1 to `want` permits for the next claim, or none if the leader ends."""
        taking = asyncio.ensure_future(self._permits.take(max(1, want)))
        ending = asyncio.ensure_future(finishing.wait())
        try:
            await asyncio.wait({taking, ending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ending.cancel()
            if not taking.cancel() and not taking.cancelled():
                self._granted += taking.result()

    def release(self) -> None:
        """Gives the permits back that no batch has."""
        granted, self._granted = self._granted, []
        for permit in granted:
            permit.end()

    def close(self) -> None:
        """The leader has ended."""
        self.release()
        for waiting in self._waiting:
            waiting.cancel()

    async def admit(
        self, items: Sequence[DueItem]
    ) -> tuple[list[DueItem], list[tuple[DueItem, int]]]:
        """Takes permits of groups for the items whose turn it is, one for each group.

        Returns:
            The items that may be claimed, each of which gives one batch; the permits that were
            granted are in this order. And those that have to wait, with the milliseconds.
        """
        first: dict[bytes, DueItem] = {}
        others = [
            item for item in items if first.setdefault(group_of(item.group), item) is not item
        ]
        groups = list(first)[: self.count]
        permits = self._granted[: len(groups)]
        waits = await self._permits.admit(self._partition, permits, groups)
        wait_of = {group: wait for group, wait in zip(groups, waits, strict=True) if wait}
        allowed = [first[group] for group in groups if group not in wait_of]
        admitted = [permit for permit, wait in zip(permits, waits, strict=True) if not wait]
        self._granted = admitted + [each for each in self._granted if each not in admitted]
        put_off = [(first[group], wait) for group, wait in wait_of.items()]
        of_others = ((item, wait_of.get(group_of(item.group))) for item in others)
        put_off += [(item, wait) for item, wait in of_others if wait]
        return allowed, put_off

    def hand_over(self, batch: Batch, merge: Callable[[Batch], None], *, place: int = 0) -> None:
        """Has a claimed batch merged by its permit.

        Args:
            merge: begins the merge soon.
            place: the place of its permit among those that were granted.
        """
        permit, claim = self._granted.pop(place), batch.claim
        if excess := self._permits.excess(claim):
            permit.end()
            splits = claim.task_count > 1
            failure = Failure(excess, "", 0.0 if splits else None, not splits, splits=splits)
            if batch.begin():
                batch.end_merge(MergeOutcome(failure))
        elif not (claim.entries or claim.stored_result):
            permit.end()  # it is read first, which may take longer than the permit lasts
            merge(batch)
        elif self._permits.fits(permit, claim):
            self._permits.use(permit, batch)
            merge(batch)
        else:
            permit.end()
            self.merge_later(batch, merge)

    def merge_later(self, batch: Batch, merge: Callable[[Batch], None]) -> None:
        """Has a batch merged as soon as it has a permit that is enough."""
        waiting = asyncio.create_task(self._wait(batch, merge))
        self._waiting.add(waiting)
        waiting.add_done_callback(self._waiting.discard)

    async def _wait(self, batch: Batch, merge: Callable[[Batch], None]) -> None:
        try:
            permit = await self._permits.take_exactly(self._partition, batch.claim)
        except Exception as error:  # the next claim may get a permit
            _log.error(
                "no permit for a batch of group '%s': %r", group_text(group_of(batch.group)), error
            )
            if batch.begin():
                batch.end_merge(MergeOutcome(Failure("", "", _PAUSE_WITHOUT_PERMIT)))
            return
        if batch.state is State.CLAIMED:
            self._permits.use(permit, batch)
            merge(batch)
        else:
            permit.end()
