"""Which flusher leads which partition.

Each flusher enters itself among the live ones for one lease time, and renews both that and its
leases three times as often. All compute the same share from the same list of live flushers; a
partition's lease decides who really leads it, so lists that differ for a moment do no harm.

Each partition is held by a task of its own, so that on Redis Cluster a master that does not answer
stops only the partitions that it has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

from redisagg.config import AggregationConfig
from redisagg.durations import seconds, to_ms
from redisagg.errors import RedisAggError, StaleLease
from redisagg.flusher.leader import Leader
from redisagg.flusher.waiting import end, wait_for_event
from redisagg.protocol.keys import Keyspace, PartitionKeys
from redisagg.protocol.scripts import Request, call
from redisagg.transport.aio import AsyncTransport

_log = logging.getLogger("redisagg")

# Timers aim a little behind the moment when a lease has run out.
_MARGIN = 0.005

# What giving back leases may take when the merges in hand had their time, seconds.
_RELEASE_TIMEOUT = 1.0


def share(flushers: Sequence[str], partitions: int) -> dict[int, str]:
    """Gives each partition to one of the flushers, as evenly as can be, moving few at a change.

    Highest random weight (rendezvous) hashing (Thaler and Ravishankar, 1998), with an upper bound
    for each flusher.
    """
    if not flushers:
        return {}
    least, extra = divmod(partitions, len(flushers))
    room = {each: least + (i < extra) for i, each in enumerate(sorted(flushers))}
    owners = {}
    for partition in range(partitions):
        able = [each for each in room if room[each] > 0]
        owner = max(able, key=lambda each: _weight(each, partition))
        room[owner] -= 1
        owners[partition] = owner
    return owners


def _weight(flusher: str, partition: int) -> bytes:
    return blake2b(f"{partition}:{flusher}".encode(), digest_size=8).digest()


class LeaseKeeper:
    """Acquires, renews and gives back the leases of one flusher, and runs a leader for each.

    Args:
        flusher_id: unique among all flushers.
        make_leader: makes the leader for a partition and a token.
    """

    def __init__(
        self,
        *,
        flusher_id: str,
        keyspace: Keyspace,
        config: AggregationConfig,
        transport: AsyncTransport,
        make_leader: Callable[[PartitionKeys, int], Leader],
    ) -> None:
        self.leaders: dict[int, Leader] = {}
        self._id = flusher_id
        self._keyspace = keyspace
        self._lease_ms = to_ms(config.lease_time)
        self._interval = seconds(config.lease_time) / 3
        self._hand_over_timeout = seconds(config.shutdown_timeout) + _RELEASE_TIMEOUT
        self._transport = transport
        self._make_leader = make_leader
        self._share: set[int] = set()
        """The partitions that this flusher should lead."""
        self._holding: dict[int, asyncio.Task[None]] = {}
        """What acquires, leads and releases each of them, and those that it gives up."""
        self._news = asyncio.Event()
        """Set, and replaced, at the next news."""

    def look(self) -> None:
        """The flushers or the leases have changed."""
        self._news.set()
        self._news = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Keeps leases until `stop` is set, then gives all of them back."""
        following = asyncio.create_task(self._follow_flushers())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({following, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                following.result()  # it never ends but by an error
            await end(following)
            await self._hand_over()
        finally:
            self._share = set()
            holding = tuple(self._holding.values())
            for task in (stopping, *holding):
                task.cancel()
            await end(following)
            await asyncio.gather(*holding, return_exceptions=True)

    # --- the flusher's share -----------------------------------------------------------------

    async def _follow_flushers(self) -> None:
        """Stays among the live flushers, and starts and ends leading as their number changes."""
        while True:
            news = self._news
            flushers = await self._join()
            if flushers:  # else the share stands as it was
                self._set_share(list(flushers))
            others = [ms / 1000 + _MARGIN for each, ms in flushers.items() if each != self._id]
            await wait_for_event(news, min([self._interval, *others]))

    async def _join(self) -> dict[str, int]:
        """The live flushers, with the ms after which each counts as dead; none if Redis refuses."""
        keys = [self._keyspace.flushers]
        reply = await self._ask(
            call("join", keys, self._id, self._lease_ms, self._keyspace.wake_channel)
        )
        if isinstance(reply, RedisAggError):
            _log.error("the flusher can't join the others: %s", reply)
            return {}
        return {reply[i].decode(): int(reply[i + 1]) for i in range(0, len(reply), 2)}

    def _set_share(self, flushers: list[str]) -> None:
        owners = share(flushers, len(self._keyspace.partitions))
        self._share = {number for number, owner in owners.items() if owner == self._id}
        for number, leader in self.leaders.items():
            if number not in self._share:
                leader.finish()
        for number in self._share - self._holding.keys():
            self._holding[number] = asyncio.create_task(self._hold(number))

    async def _hand_over(self) -> None:
        """Lets the leaders finish, renewing their leases meanwhile, and leaves."""
        self._share = set()
        for leader in self.leaders.values():
            leader.finish()
        self.look()
        if self._holding:
            await asyncio.wait(self._holding.values(), timeout=self._hand_over_timeout)
        await self._ask(
            call("leave", [self._keyspace.flushers], self._id, self._keyspace.wake_channel)
        )

    # --- one partition -----------------------------------------------------------------------

    async def _hold(self, number: int) -> None:
        """Leads a partition whenever its lease can be had, for as long as it is in the share."""
        partition = self._keyspace.partitions[number]
        try:
            while number in self._share:
                news = self._news
                token, wait = await self._acquire(partition)
                if token:
                    await self._lead(partition, token)
                else:
                    await wait_for_event(news, wait)
        finally:
            del self._holding[number]

    async def _acquire(self, partition: PartitionKeys) -> tuple[int, float]:
        """A fencing token; or 0, and the seconds until the lease may be free."""
        keys = [partition.state, partition.claims, partition.tasks(b"")]
        reply = await self._ask(call("acquire", keys, self._id, self._lease_ms))
        if isinstance(reply, RedisAggError):
            _log.error("partition %d can't be led: %s", partition.number, reply)
            return 0, self._interval
        token, wait_ms = reply
        return token, min(self._interval, wait_ms / 1000 + _MARGIN)

    async def _lead(self, partition: PartitionKeys, token: int) -> None:
        number = partition.number
        leader = self.leaders[number] = self._make_leader(partition, token)
        if number not in self._share:  # it was given up while the lease was on its way
            leader.finish()
        leading = asyncio.create_task(leader.run())
        renewing = asyncio.create_task(self._renew(leader))
        try:
            done, _ = await asyncio.wait({leading, renewing}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            await self._release(leader)
        except StaleLease as error:
            _log.warning("the lease of partition %d is lost: %s", number, error)
        except Exception:
            _log.exception("the leader of partition %d ended", number)
            await asyncio.sleep(self._interval)  # whatever it is, don't spin; the lease runs out
        finally:
            del self.leaders[number]
            leading.cancel()
            await end(renewing)
            await asyncio.gather(leading, return_exceptions=True)

    async def _renew(self, leader: Leader) -> None:
        """Renews the lease until it is cancelled.

        Raises:
            StaleLease: there is nothing to renew any more.
        """
        renew = call("renew", [leader.partition.state], leader.token, self._lease_ms)
        while True:
            await asyncio.sleep(self._interval)
            reply = await self._ask(renew)
            if isinstance(reply, StaleLease):
                raise reply
            if isinstance(reply, RedisAggError):
                number = leader.partition.number
                _log.error("the lease of partition %d can't be renewed: %s", number, reply)

    async def _release(self, leader: Leader) -> None:
        p = leader.partition
        await self._ask(
            call("release", [p.state, p.claims], leader.token, self._keyspace.wake_channel)
        )

    async def _ask(self, request: Request) -> Any:
        """The reply, or the error of ours in its place."""
        try:
            [reply] = await self._transport.exchange([request])
        except RedisAggError as error:
            return error
        return reply
