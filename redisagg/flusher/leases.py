"""Acquires, renews and gives back the leases of partitions.

Each flusher enters itself among the live ones for one lease time. It renews that entry and its
leases three times in a lease time. All flushers compute the same shares from the same list
(`assignment`). The lease of a partition decides who really leads it, so lists that differ for a
moment do no harm.

Each partition is held by an asyncio task of its own, so that on Redis Cluster a master that does
not answer stops only its own partitions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from redisagg import events
from redisagg.config import AggregationConfig
from redisagg.durations import seconds, to_ms
from redisagg.errors import NamespaceMismatch, RedisAggError, StaleLease
from redisagg.flusher.assignment import share
from redisagg.flusher.leader import Leader
from redisagg.flusher.reporter import Reporter
from redisagg.flusher.waiting import cancel_and_wait, wait_for_event
from redisagg.protocol import registration
from redisagg.protocol.keys import MOVER, Keyspace, PartitionKeys
from redisagg.protocol.registration import NamespaceMoved
from redisagg.protocol.scripts import Request, call
from redisagg.texts import logger, redact
from redisagg.transport.aio import AsyncTransport

_log = logger("leases")

# Seconds by which timers aim behind the moment when a lease runs out.
_MARGIN = 0.005

# Seconds that giving back leases may take after the batches in flight had their time.
_RELEASE_TIMEOUT = 0.5

_MOVER = MOVER.decode()


class LeaseKeeper:
    """Keeps the leases of one flusher, and runs a leader for each.

    Args:
        flusher_id: unique among all flushers.
        make_leader: makes the leader for a partition and a fencing token.
        report: reports the leases.
    """

    def __init__(
        self,
        *,
        flusher_id: str,
        keyspace: Keyspace,
        config: AggregationConfig,
        transport: AsyncTransport,
        make_leader: Callable[[PartitionKeys, int], Leader],
        report: Reporter,
    ) -> None:
        self._report = report
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
        """The tasks that acquire, lead and release them, and those of partitions given up."""
        self._mismatch: NamespaceMismatch | None = None
        """Why this flusher can lead no partition."""
        self._woken = asyncio.Event()
        """Set, and replaced, by each `wake`."""

    def wake(self) -> None:
        """The live flushers or the leases may have changed."""
        self._woken.set()
        self._woken = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Keeps leases until `stop` is set, then gives all of them back.

        Raises:
            NamespaceMoved: the namespace was moved; a subclass of the next one.
            NamespaceMismatch: the namespace was made anew with other partitions, or upgraded.
        """
        following = asyncio.create_task(self._follow_flushers())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({following, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                following.result()  # it ends only by an error
            await cancel_and_wait(following)
            await self._hand_over()
        finally:
            self._share = set()
            holding = tuple(self._holding.values())
            for task in (stopping, *holding):
                task.cancel()
            await cancel_and_wait(following)
            await asyncio.gather(*holding, return_exceptions=True)

    # --- the flusher's share -----------------------------------------------------------------

    async def _follow_flushers(self) -> None:
        """Stays among the live flushers, and starts and ends leaders as their number changes."""
        while True:
            woken = self._woken
            if self._mismatch is not None:
                # The others would leave partitions to this flusher that it does not know.
                await self._leave()
                if isinstance(self._mismatch, NamespaceMoved):
                    raise self._mismatch
                with suppress(RedisAggError):
                    noting = registration.note_refusal(self._keyspace, self._mismatch)
                    await self._transport.once(noting)
                raise self._mismatch
            flushers = await self._join()
            if any(each.startswith(_MOVER) for each in flushers):
                self._give_up_share()
            elif flushers:  # else the share stays as it is
                self._set_share(list(flushers))
                if not self._share:
                    await self._look_for_moves()
            others = [ms / 1000 + _MARGIN for each, ms in flushers.items() if each != self._id]
            await wait_for_event(woken, min([self._interval, *others]))

    async def _join(self) -> dict[str, int]:
        """The live flushers, each with the ms until it counts as dead; none if Redis refuses."""
        keys = [self._keyspace.flushers]
        reply = await self._send(
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

    async def _look_for_moves(self) -> None:
        """Reads the record: whoever leads nothing is not told by a lease that can't be acquired."""
        try:
            await self._transport.run(registration.check(self._keyspace))
        except NamespaceMismatch as error:
            self._mismatch = error
            self.wake()
        except RedisAggError as error:
            _log.debug("the record of the namespace can't be read: %s", error)

    def _give_up_share(self) -> None:
        """Lets the leaders finish what is in flight, and then give up their leases."""
        self._share = set()
        for leader in self.leaders.values():
            leader.finish()

    async def _hand_over(self) -> None:
        """Lets the leaders finish, renewing their leases meanwhile, and leaves."""
        self._give_up_share()
        self.wake()
        if self._holding:
            await asyncio.wait(self._holding.values(), timeout=self._hand_over_timeout)
        await self._leave()

    async def _leave(self) -> None:
        await self._send(
            call(
                "leave",
                [self._keyspace.flushers, self._keyspace.status],
                *(self._id, self._keyspace.wake_channel),
            )
        )

    # --- one partition -----------------------------------------------------------------------

    async def _hold(self, number: int) -> None:
        """Leads a partition while it is in the share and its lease can be acquired."""
        partition = self._keyspace.partitions[number]
        try:
            while number in self._share:
                woken = self._woken
                token, wait = await self._acquire(partition)
                if token:
                    await self._lead(partition, token)
                else:
                    await wait_for_event(woken, wait)
        except Exception:
            _log.exception("partition %d can't be led", number)
            await asyncio.sleep(self._interval)  # `_set_share` tries it again
        finally:
            del self._holding[number]

    async def _acquire(self, partition: PartitionKeys) -> tuple[int, float]:
        """Returns a fencing token; or 0, and the seconds until the lease may be free."""
        keys = [partition.state, partition.claims, partition.tasks(b"")]
        reply = await self._send(
            call(
                "acquire",
                keys,
                self._id,
                self._lease_ms,
                partition.label,
                registers=partition.layout,
            )
        )
        if isinstance(reply, NamespaceMismatch):
            self._mismatch = reply
            self.wake()
        if isinstance(reply, RedisAggError) and not isinstance(reply, NamespaceMoved):
            _log.error("partition %d can't be led: %s", partition.number, reply)
        if isinstance(reply, RedisAggError):
            return 0, self._interval
        token, wait_ms = reply
        return token, min(self._interval, wait_ms / 1000 + _MARGIN)

    async def _lead(self, partition: PartitionKeys, token: int) -> None:
        number = partition.number
        leader = self.leaders[number] = self._make_leader(partition, token)
        if number not in self._share:  # it was given up while the request was under way
            leader.finish()
        lease = {"partition": number, "token": token}
        self._report(events.LeaseTaken, **lease)
        leading = asyncio.create_task(leader.run())
        renewing = asyncio.create_task(self._renew(leader))
        try:
            done, _ = await asyncio.wait({leading, renewing}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            await self._release(leader)
            self._report(events.LeaseReleased, **lease)
        except StaleLease as error:
            self._report(events.LeaseLost, **lease, error=str(error))
            _log.warning(
                "the lease of partition %d is lost: %s",
                *(number, error),
                extra={"event": "LeaseLost", **lease},
            )
        except BaseException as error:
            self._report(
                events.LeaseLost, **lease, error=redact(f"{type(error).__name__}: {error}")
            )
            if not isinstance(error, Exception):
                raise
            _log.exception("the leader of partition %d ended", number)
            await asyncio.sleep(self._interval)  # do not spin; the lease runs out meanwhile
        finally:
            del self.leaders[number]
            leading.cancel()
            await cancel_and_wait(renewing)
            await asyncio.gather(leading, return_exceptions=True)

    async def _renew(self, leader: Leader) -> None:
        """Renews the lease until it is cancelled.

        Raises:
            StaleLease: the lease is lost.
        """
        renew = call("renew", [leader.partition.state], leader.token, self._lease_ms)
        while True:
            await asyncio.sleep(self._interval)
            reply = await self._send(renew)
            if isinstance(reply, StaleLease):
                raise reply
            if isinstance(reply, RedisAggError):
                number = leader.partition.number
                _log.error("the lease of partition %d can't be renewed: %s", number, reply)

    async def _release(self, leader: Leader) -> None:
        p = leader.partition
        await self._send(
            call("release", [p.state, p.claims], leader.token, self._keyspace.wake_channel)
        )

    async def _send(self, request: Request) -> Any:
        """The reply, or one of our errors in its place."""
        try:
            [reply] = await self._transport.exchange([request])
        except RedisAggError as error:
            return error
        return reply
