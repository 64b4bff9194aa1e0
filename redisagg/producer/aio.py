"""Adding from coroutines."""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeAlias, TypeVar, cast

import tenacity

from redisagg.producer.room import patience
from redisagg.producer.rounds import (
    COMMIT_ROUND_TASKS,
    Outcomes,
    Round,
    Tally,
    Terms,
    W,
    stream_round,
)
from redisagg.producer.sequences import Lanes
from redisagg.protocol.entries import EncodedTask
from redisagg.transport.aio import AsyncTransport
from redisagg.transport.durability import Durability

T = TypeVar("T")

_Future: TypeAlias = "asyncio.Future[None]"

# While Redis works on one round trip, the next one is put together.
_SENDERS = 2

# From how many tasks on they are sent in two halves, so that Redis and we needn't wait for each
# other. Of fewer, each would make a call of its own, which costs Redis as much as one for three.
_ENOUGH_FOR_TWO = 16


class _Queue:
    """Tasks that share round trips, and those who wait for them.

    Args:
        exchange: sends what has gathered, and raises nothing.
        linger: seconds for which a call waits for company; 0 for none.
    """

    def __init__(
        self,
        terms: Terms,
        exchange: Callable[[Round[_Future]], Awaitable[Outcomes[_Future]]],
        linger: float,
    ) -> None:
        self._terms = terms
        self._exchange = exchange
        self._linger = linger
        self._tasks: deque[EncodedTask] = deque()
        self._futures: deque[_Future] = deque()  # of these tasks
        self._senders: set[asyncio.Task[None]] = set()
        self._on_wire = 0

    def add(self, task: EncodedTask) -> _Future:
        """As `AsyncAdder.add`."""
        future: _Future = asyncio.get_running_loop().create_future()
        self._tasks.append(task)
        self._futures.append(future)
        if len(self._senders) < _SENDERS:
            self._senders.add(asyncio.create_task(self._send_waiting()))
        return future

    async def _send_waiting(self) -> None:
        try:
            if self._linger:
                await asyncio.sleep(self._linger)
            while self._tasks:
                self._tell(await self._send(self._gather()))
        finally:
            # At once: by a callback it would come only after those who were told have added their
            # next tasks, and nobody would send these.
            self._senders.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    def _gather(self) -> Round[_Future]:
        """What is to go out now."""
        many = len(self._tasks)
        if many >= _ENOUGH_FOR_TWO and not self._on_wire:
            # The other sender takes the rest. From then on the two halves take turns: the callers
            # of one go on while Redis works on the other.
            many = many // 2
        together: Round[_Future] = Round(self._terms, COMMIT_ROUND_TASKS)
        while len(together) < many and not together.full:
            together.put(self._tasks.popleft(), self._futures.popleft())
        return together

    async def _send(self, together: Round[_Future]) -> Outcomes[_Future]:
        self._on_wire += 1
        try:
            return await self._exchange(together)
        finally:
            self._on_wire -= 1

    @staticmethod
    def _tell(outcomes: Outcomes[_Future]) -> None:
        for futures, error in outcomes:
            for future in futures:
                if future.done():  # its caller was cancelled
                    continue
                if error is None:
                    future.set_result(None)
                else:
                    future.set_exception(copy.copy(error))  # each caller gets its own


class AsyncAdder:
    """Adds tasks for any number of coroutines of one event loop.

    Args:
        linger: seconds for which a call waits for company; 0 for none.
        durability: what an add waits for besides the primary's reply.
    """

    def __init__(
        self,
        terms: Terms,
        transport: AsyncTransport,
        linger: float,
        durability: Durability | None,
    ) -> None:
        self.lanes = Lanes()
        self.terms = terms
        self._transport = transport
        self._durability = durability
        # The partitions of a cluster don't wait for each other: one of its masters may be down.
        count = len(terms.keyspace.partitions) if transport.clustered else 1
        self._queues = [_Queue(terms, self.exchange, linger) for _ in range(count)]
        self.add = self._add_by_partition if transport.clustered else self._queues[0].add
        """A future that is done when Redis has acknowledged the task, or refused it."""

    async def exchange(self, together: Round[W]) -> Outcomes[W]:
        """Sends a round and tells what became of it; raises nothing."""
        lane = self.lanes.take()
        try:
            replies = await self._transport.exchange(
                together.requests(lane), durability=self._durability
            )
        except Exception as error:
            return together.failed(error)
        finally:
            self.lanes.give_back(lane)
        return together.outcomes(replies)

    def _add_by_partition(self, task: EncodedTask) -> _Future:
        partition, *_ = self.terms.keyspace.place(task[0])
        return self._queues[partition.number].add(task)


class AsyncStream:
    """As `threads.ThreadStream`, for coroutines."""

    def __init__(
        self,
        adder: AsyncAdder,
        progress: Callable[[int], object] | None,
        full_timeout: float,
    ) -> None:
        self._adder = adder
        self._tally = Tally(progress, waits=full_timeout > 0)
        self._full_timeout = full_timeout
        self._next = stream_round(self._adder.terms)
        self._on_wire: asyncio.Task[Outcomes[EncodedTask]] | None = None

    async def put(self, task: EncodedTask) -> None:
        """As `ThreadStream.put`."""
        self._next.put(task, task)
        if self._next.full:
            await self._settle()
            self._on_wire = asyncio.create_task(self._adder.exchange(self._next))
            self._next = stream_round(self._adder.terms)
            await asyncio.sleep(0)  # lets it be sent before the next one is put together

    async def finish(self) -> None:
        """As `ThreadStream.finish`."""
        await self._settle()
        if self._next:
            await self._count(await self._adder.exchange(self._next))
        self._tally.raise_refusal()

    async def close(self) -> None:
        """As `ThreadStream.close`."""
        if self._on_wire is not None:
            await self._on_wire

    async def _settle(self) -> None:
        on_wire, self._on_wire = self._on_wire, None
        if on_wire is not None:
            await self._count(await on_wire)

    async def _count(self, outcomes: Outcomes[EncodedTask]) -> None:
        """As `ThreadStream._count`."""
        tally = self._tally
        tally.count(outcomes)
        if tally.without_room:
            async for attempt in tenacity.AsyncRetrying(**patience(self._full_timeout)):
                with attempt:
                    together = stream_round(self._adder.terms, tally.without_room)
                    tally.count(await self._adder.exchange(together))
                    tally.check_room()


async def aiter_of(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    """The items of either kind of iterable."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
