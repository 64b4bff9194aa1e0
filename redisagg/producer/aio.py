"""Adding from coroutines of one event loop: group commit by up to two sender tasks.

The first add starts a sender. It runs in the next turn of the event loop, so all coroutines that
add in the same turn share its round trip. A sender ends when no tasks are left.

A second sender keeps Redis and the event loop busy at the same time: many tasks are sent in two
halves, and while Redis works on one half, the callers of the other add their next tasks.

Whoever shuts an event loop down may cancel all its tasks, these senders too, though not all that
wait for them. Then another one goes on, and sends the same numbered calls again.
"""

from __future__ import annotations

import asyncio
import copy
import math
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import closing, suppress
from itertools import chain
from typing import TypeAlias, TypeVar, cast

from redisagg.errors import AggregatorFull, RedisUnavailable
from redisagg.producer.options import FORGOTTEN, AddOptions
from redisagg.producer.partitioned import partitioned_add
from redisagg.producer.room import Attempt, Line, Lines
from redisagg.producer.rounds import COMMIT_ROUND_TASKS, AddResults, Round, W, was_moved
from redisagg.producer.sequences import SequencePool
from redisagg.producer.stream import NO_RESULTS, Receive, Send, Step, Steps, Stream
from redisagg.protocol.entries import EncodedTask
from redisagg.transport.aio import AsyncTransport
from redisagg.transport.uncancelled import Uncancelled

T = TypeVar("T")

_Future: TypeAlias = "asyncio.Future[None]"
_Exchange: TypeAlias = Callable[[], Awaitable[AddResults[_Future]]]

# How many round trips of a committer may be in flight.
_MAX_SENDERS = 2

# From how many tasks on they are sent in two halves. With fewer tasks, most would be alone in the
# call for their partition, and a call of one task costs Redis as much as a call of three.
_MIN_TASKS_TO_SPLIT = 16


class AsyncGroupCommitter:
    """Adds the tasks of many coroutines by group commit.

    Args:
        options: what all calls have in common.
        prepare: numbers the calls of a round. Returns a function that sends it and returns its
            results, and raises nothing; if it was cancelled, it can be called again.
    """

    def __init__(
        self,
        options: AddOptions,
        prepare: Callable[[Round[_Future]], _Exchange],
    ) -> None:
        self._options = options
        self._prepare = prepare
        self._loop = asyncio.get_running_loop()
        self._tasks: deque[EncodedTask] = deque()
        self._futures: deque[_Future] = deque()  # of these tasks
        self._senders: set[asyncio.Task[None]] = set()
        self._in_flight = 0
        self._interrupted: list[tuple[Round[_Future], _Exchange]] = []
        """The rounds whose sender was cancelled."""

    def add(self, task: EncodedTask) -> _Future:
        """Adds a task.

        Returns:
            A future that is done when Redis has acknowledged the task, or fails with a
            `RedisAggError` if it was refused or Redis could not be reached.
        """
        future: _Future = self._loop.create_future()
        self._tasks.append(task)
        self._futures.append(future)
        if len(self._senders) < _MAX_SENDERS:
            self._start_sender()
        return future

    def _start_sender(self) -> None:
        sender = asyncio.create_task(self._send_gathered())
        self._senders.add(sender)
        sender.add_done_callback(self._replace_if_cancelled)

    def _replace_if_cancelled(self, sender: asyncio.Task[None]) -> None:
        if not sender.cancelled():
            return
        self._senders.discard(sender)  # it may have been cancelled before its first step
        # Those whose callers were all cancelled too are not sent.
        self._interrupted = [each for each in self._interrupted if _awaited(each[0].waiters())]
        if not _awaited(self._futures):
            self._tasks.clear()
            self._futures.clear()
        if (self._interrupted or self._tasks) and len(self._senders) < _MAX_SENDERS:
            self._start_sender()

    async def _send_gathered(self) -> None:
        """Sends rounds until no task is left."""
        try:
            if self._options.linger:
                await asyncio.sleep(self._options.linger)
            while self._interrupted or self._tasks:
                await self._send(*(self._interrupted.pop(0) if self._interrupted else self._next()))
        finally:
            # Not by a done callback: it would run after the callers of this round have added their
            # next tasks, which would then have no sender.
            self._senders.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    def _next(self) -> tuple[Round[_Future], _Exchange]:
        """Takes the tasks for the next round trip: all, or half of them if none is in flight."""
        count = len(self._tasks)
        if count >= _MIN_TASKS_TO_SPLIT and not self._in_flight:
            # The other sender takes the rest. From then on the two halves alternate: the callers of
            # one add their next tasks while Redis works on the other.
            count = count // 2
        round_: Round[_Future] = Round(self._options, COMMIT_ROUND_TASKS)
        while len(round_) < count and not round_.full:
            round_.put(self._tasks.popleft(), self._futures.popleft())
        return round_, self._prepare(round_)

    async def _send(self, round_: Round[_Future], exchange: _Exchange) -> None:
        self._in_flight += 1
        try:
            self._set_results(await exchange())
        except asyncio.CancelledError:
            self._interrupted.append((round_, exchange))
            raise
        finally:
            self._in_flight -= 1

    @staticmethod
    def _set_results(results: AddResults[_Future]) -> None:
        for futures, error in results:
            for future in futures:
                if future.done():  # its caller was cancelled
                    continue
                if error is None:
                    future.set_result(None)
                else:
                    future.set_exception(copy.copy(error))  # each caller gets its own


def _awaited(futures: Iterable[_Future]) -> bool:
    return not all(future.done() for future in futures)


class AsyncAdder:
    """Adds tasks for any number of coroutines of one event loop, that on which it is made.

    Args:
        options: what all calls have in common.
        transport: makes the round trips.
        sequences: numbers the calls; several adders may share them.
    """

    def __init__(
        self, options: AddOptions, transport: AsyncTransport, sequences: SequencePool
    ) -> None:
        self.options = options
        self.sequences = sequences
        self._transport = transport
        self.add = partitioned_add(
            lambda: AsyncGroupCommitter(options, self.prepare),
            options.keyspace,
            clustered=transport.clustered,
        )
        """As `AsyncGroupCommitter.add`."""
        self.lines = Lines(options, math.inf)

    async def add_in_turn(
        self, task: EncodedTask, full_timeout: float, refusal: AggregatorFull | None = None
    ) -> None:
        """Adds a task behind those of its group that wait for room; as that of `ThreadAdder`."""
        now = time.monotonic()
        woken = asyncio.Event()
        ticket = self.lines.enter(task.group, task, now + full_timeout, woken.set)
        try:
            if refusal is not None:
                ticket.line.refused_outside(refusal, now)
            while (step := ticket.step(time.monotonic())) is not None:
                if isinstance(step, Attempt):
                    await self._send_attempt(ticket.line, step)
                    continue
                timer = asyncio.get_running_loop().call_later(step, woken.set)
                try:
                    await woken.wait()
                finally:
                    timer.cancel()
                woken.clear()
        finally:
            self.lines.leave(task.group, ticket, time.monotonic())
        if ticket.error is not None:
            raise copy.copy(ticket.error)  # each caller gets its own

    async def _send_attempt(self, line: Line, attempt: Attempt) -> None:
        # An earlier sender may have prepared and sent it, and then was cancelled.
        if "prepared" not in attempt.once:
            attempt.once["prepared"] = self.prepare(attempt.round)
        line.settle(attempt, await attempt.once["prepared"](), time.monotonic())

    def prepare(self, round_: Round[W]) -> Callable[[], Awaitable[AddResults[W]]]:
        """Numbers the calls of a round; returns as `prepare` of `AsyncGroupCommitter`."""
        sequence = self.sequences.take()
        requests = round_.requests(sequence)
        repeat_until = time.monotonic() + self.options.repeatable
        followers: list[Callable[[], Awaitable[AddResults[W]]]] = []

        async def exchange() -> AddResults[W]:
            try:
                if time.monotonic() > repeat_until:  # an earlier sender was cancelled
                    raise RedisUnavailable(FORGOTTEN)
                replies = await self._transport.exchange(
                    requests, durability=self.options.durability, repeat_until=repeat_until
                )
                if was_moved(replies):
                    if not followers:  # else an earlier sender was cancelled
                        followers.extend(map(self.prepare, round_.follow(replies)))
                    followed = [list(await each()) for each in followers]
                    results: AddResults[W] = chain(round_.results(replies), *followed)
                else:
                    results = round_.results(replies)
            except Exception as error:
                results = round_.failed(error)
            # Not in `finally`: calls that were cancelled are sent again, or not used any more.
            self.sequences.give_back(sequence)
            return results

        return exchange


class AsyncStream:
    """Adds many tasks of one caller, in order; carries out the steps of a `Stream`.

    Args:
        adder: what sends the rounds.
        progress: called after each round with the number of tasks acknowledged so far.
        full_timeout: seconds for which tasks wait for room; 0 for not at all.
    """

    def __init__(
        self,
        adder: AsyncAdder,
        progress: Callable[[int], object] | None,
        full_timeout: float,
    ) -> None:
        self._adder = adder
        self._stream = Stream(adder.options, progress, full_timeout, adder.lines)
        self._in_flight: Uncancelled[AddResults[EncodedTask]] | None = None

    async def put(self, task: EncodedTask) -> None:
        """Takes one more task; sends a round if that fills it. Raises as `ThreadStream.put`."""
        filling = self._stream.filling
        filling.put(task, task)
        if filling.full:
            await self._carry_out(self._stream.send())

    async def finish(self) -> None:
        """Sends the rest and waits until all is acknowledged. Raises as `ThreadStream.finish`."""
        await self._carry_out(self._stream.finish())

    async def close(self) -> None:
        """Waits for the round in flight, if there is one, and ignores its results."""
        await self._receive()

    async def _carry_out(self, steps: Steps) -> None:
        with closing(steps), suppress(StopIteration):
            step = next(steps)
            while True:
                step = steps.send(await self._carry_out_step(step))

    async def _carry_out_step(self, step: Step) -> AddResults[EncodedTask]:
        if isinstance(step, Receive):
            return await self._receive()
        if isinstance(step, Send):
            self._in_flight = Uncancelled(self._adder.prepare(step.round_))
            await asyncio.sleep(0)  # lets it be sent before the next round is filled
        else:
            await asyncio.sleep(step.seconds)
        return NO_RESULTS

    async def _receive(self) -> AddResults[EncodedTask]:
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is None:
            return NO_RESULTS
        try:
            return await in_flight.result()
        except asyncio.CancelledError:
            in_flight.cancel()
            raise


async def aiter_of(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    """Iterates over either kind of iterable."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
