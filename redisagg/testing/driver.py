"""Flushes what is due in the thread of a test, with the parts of a flusher and without one."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from redisagg.config import AggregationConfig
from redisagg.durations import seconds, to_ms
from redisagg.errors import FlusherFailed, RedisAggError
from redisagg.flusher.batch import Batch, Claim, Failure, MergeOutcome
from redisagg.flusher.batch_reports import BatchTrace
from redisagg.flusher.breaker import Breaker, BreakerState
from redisagg.flusher.flusher import new_flusher_id
from redisagg.flusher.leader.requests import Due, LeaderRequests
from redisagg.flusher.merging import Merger, is_async, make_merger
from redisagg.flusher.merging.result_codec import unpack_merged_task
from redisagg.flusher.merging.steps import merge
from redisagg.flusher.parts import Health, Parts
from redisagg.flusher.reporter import Reporter, reporting
from redisagg.namespace import Namespace
from redisagg.operations.steering import flush_all
from redisagg.protocol.keys import PartitionKeys
from redisagg.protocol.scripts import Request, call, command
from redisagg.sinks.base import BlockingSink, MergedTask, Sink
from redisagg.sinks.callable import CallableSink
from redisagg.sinks.limited_calls import Ended
from redisagg.sinks.routing import Router
from redisagg.testing.clock import Clock
from redisagg.transport.aio import AsyncTransport
from redisagg.transport.durability import Durability
from redisagg.transport.endpoint import AsyncClient, Endpoint, aclose

T = TypeVar("T")

_LEASE = 3_600.0
"""Seconds of a lease at least: it is not renewed while a merge runs in the thread of the test."""

_LONGEST_WAIT = 3_650 * 86_400.0
"""Seconds for which `Flushed.next_due` looks ahead."""

_CALM = 30
"""Turns of the event loop after which nothing more comes of what has ended. A few are enough."""

_SPINS = 300
"""Turns after which the wait for a thread or a coroutine of the user sleeps between its looks."""


class Crash(BaseException):
    """A merge function or a sink of a test raises it to have the flusher die at that place.

    Nothing more of that flusher reaches Redis, as if its process were killed. `flush_due` raises
    this exception. Its leases end when the clock has moved by `lease_time`.
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        _crashes.append(self)


_crashes: list[Crash] = []
"""Those that were raised in the flush that runs."""


@dataclass(frozen=True, slots=True)
class BatchFailure:
    """An attempt at a batch that failed."""

    group: str
    """The key of the group of the batch."""
    error: str
    """What was raised, in one line."""
    traceback: str
    """Empty if the attempt does not count."""
    attempt: int
    """The number of the attempt, from 1."""
    buried: bool
    """Whether the batch is a dead letter now; else it is tried again."""
    delay: float = 0.0
    """Seconds until the next attempt."""


class Flushed(list[MergedTask]):
    """The merged tasks of what was flushed, in the order in which their batches left."""

    def __init__(self, merged: Sequence[MergedTask] = ()) -> None:
        super().__init__(merged)
        self.failures: list[BatchFailure] = []
        """The attempts that failed, in order."""
        self.steps = 0
        """How many merges, deliveries and commits have begun."""
        self.next_due: float | None = None
        """Seconds by the clock of the test until more is due; None if nothing waits for a time."""

    def add(self, other: Flushed) -> None:
        """Takes over what another aggregator has flushed."""
        self += other
        self.failures += other.failures
        self.steps += other.steps
        known = [each for each in (self.next_due, other.next_due) if each is not None]
        self.next_due = min(known, default=None)


# --- what is noted of batches --------------------------------------------------------------------


class _Trace(BatchTrace):
    """Notes what becomes of a batch, beside the events."""

    __slots__ = ("_attempt", "_group", "_merged", "_outcome")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._merged: dict[str, bytes] = {}
        self._outcome: MergeOutcome | None = None

    @property
    def _notes(self) -> _Reporter:
        reporter = self._reports.report
        assert isinstance(reporter, _Reporter)
        return reporter

    def begin(self) -> None:
        super().begin()
        self._notes.begun += 1

    def merged(self, claim: Claim, outcome: MergeOutcome) -> None:
        super().merged(claim, outcome)
        self._merged, self._outcome = dict(outcome.merged), outcome

    def enqueued(self, claim: Claim, outcome: MergeOutcome) -> None:
        super().enqueued(claim, outcome)
        self._leave(self._merged)

    def given_back(self, delay: float, failure: Failure | None) -> None:
        super().given_back(delay, failure)
        self._leave_delivered()
        self._note(failure, delay=delay)

    def split(self, delay: float, failure: Failure) -> None:
        super().split(delay, failure)
        self._note(failure, delay=delay)

    def buried(self, attempts: int, failure: Failure) -> None:
        super().buried(attempts, failure)
        self._leave_delivered()
        self._note(failure, buried=True)

    def _leave(self, merged: dict[str, bytes]) -> None:
        self._notes.flushed += map(unpack_merged_task, merged.values())

    def _leave_delivered(self) -> None:
        if self._outcome is not None:
            left = self._outcome.merged.keys()
            self._leave({key: each for key, each in self._merged.items() if key not in left})

    def _note(self, failure: Failure | None, *, delay: float = 0.0, buried: bool = False) -> None:
        if failure is None or not failure.error:
            return
        facts = self.facts
        self._notes.flushed.failures.append(
            BatchFailure(
                *(facts.group_key, failure.error, failure.traceback, facts.attempt, buried, delay)
            )
        )


class _Reporter(Reporter):
    """Reports the events of the aggregator, and notes what was flushed."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.of_batches = self.makes_events = True
        self.make_trace = _Trace
        self.flushed = Flushed()
        self.begun = 0
        """How many steps of batches have begun."""


# --- where merges run ----------------------------------------------------------------------------


class ThisThread:
    """Runs coroutines on an event loop of its own, and plain functions of the user beside it.

    While such a function runs, no event loop runs in this thread: as in the threads of a flusher,
    it may call `asyncio.run`, or Django's ORM.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._calls: deque[Callable[[], None]] = deque()
        self._wanted: asyncio.Future[None] | None = None
        self._raised: BaseException | None = None
        self._client: AsyncClient | None = None

    def close(self) -> None:
        """Closes the connection and the event loop."""
        if self._client is not None:
            self._loop.run_until_complete(aclose(self._client))
        self._loop.close()

    def client(self, endpoint: Endpoint) -> AsyncClient:
        """Returns the client for the event loop; it is made for the first endpoint."""
        if self._client is None:
            self._client = endpoint.asyncio()
        return self._client

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine to its end, and the functions that it hands over.

        Raises:
            FlusherFailed: an event loop runs in this thread.
            BaseException: what ended a function of the user, if it is neither an `Exception` nor
                one of those that a flusher takes for a failure.
        """
        if _loop_runs():
            main.close()
            raise FlusherFailed(
                "an event loop runs in this thread; await aflush_due or adrain in its place"
            )
        task = self._loop.create_task(main)
        try:
            while not task.done():
                self._wanted = self._loop.create_future()
                if not self._calls:
                    either: set[asyncio.Future[Any]] = {task, self._wanted}
                    waiting = asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                    self._loop.run_until_complete(waiting)
                while self._calls:
                    self._calls.popleft()()
                    if self._raised is not None:
                        raised, self._raised = self._raised, None
                        raise raised
        except BaseException:
            self._calls.clear()
            task.cancel()
            with contextlib.suppress(BaseException):
                self._loop.run_until_complete(task)
            raise
        finally:
            self._wanted = None
        return task.result()

    def hand_over(self, work: Callable[[], None]) -> None:
        """Has a function called beside the event loop."""
        self._calls.append(work)
        if self._wanted is not None and not self._wanted.done():
            self._wanted.set_result(None)

    def reports(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls a function of the user; what is meant to end the test is raised by `run` too."""
        try:
            return function(*args)
        except (Exception, SystemExit, asyncio.CancelledError):
            raise
        except BaseException as error:
            self._raised = error
            raise

    async def call(self, function: Callable[..., Any], *args: Any, timeout: float) -> Ended:
        """Calls a function of the user beside the event loop; as `ThreadedCalls.run`."""
        ended: asyncio.Future[Ended] = self._loop.create_future()

        def work() -> None:
            try:
                result = Ended(self.reports(function, *args))
            except BaseException as error:
                result = Ended(error=error)
            if not ended.done():
                ended.set_result(result)

        self.hand_over(work)
        return await ended

    def make_merger(self, config: AggregationConfig, router: Router) -> Merger:
        """Makes the merger for the configured function."""
        if is_async(config.group_aggregator):
            return make_merger(config, router)
        return _Merger(config, router, self)

    @contextlib.contextmanager
    def calling(self, sink: object) -> Iterator[None]:
        """Has a sink that calls plain functions in threads call them here."""
        if isinstance(sink, CallableSink):
            attribute = "_threads"
        elif isinstance(sink, BlockingSink):
            attribute = "_delivery_threads"
        else:
            yield
            return
        known = getattr(sink, attribute)
        setattr(sink, attribute, _Calls(self))
        try:
            yield
        finally:
            setattr(sink, attribute, known)


def _loop_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class _Merger(Merger):
    """Calls the merge function in the thread of the test, one batch after the other."""

    def __init__(self, config: AggregationConfig, router: Router, thread: ThisThread) -> None:
        super().__init__(config, router)
        self._thread = thread
        self._loop = asyncio.get_running_loop()
        self._closed = False

    def submit(self, batch: Batch) -> None:
        self._thread.hand_over(partial(self._merge, batch))

    def close(self) -> None:
        self._closed = True

    def _merge(self, batch: Batch) -> None:
        if not self._closed and batch.begin():
            function = partial(self._thread.reports, self.function)
            outcome = merge(function, self.router, batch.claim, informed=self.informed)
            self._loop.call_soon(batch.end_merge, outcome)  # when the event loop runs again


@dataclass(frozen=True, slots=True)
class _Calls:
    """In place of the `ThreadedCalls` of a sink."""

    thread: ThisThread

    async def run(self, function: Callable[..., Any], *args: Any, timeout: float) -> Ended:
        return await self.thread.call(function, *args, timeout=timeout)


# --- the driver ----------------------------------------------------------------------------------


class _Transport(AsyncTransport):
    """Knows whether calls are under way."""

    def __init__(self, client: Any, timeout: float) -> None:
        super().__init__(client, timeout)
        self.quiet = asyncio.Event()
        """Whether none is."""
        self.quiet.set()
        self._under_way = 0

    async def exchange(
        self,
        requests: Sequence[Request],
        *,
        once: bool = False,
        durability: Durability | None = None,
        repeat_until: float | None = None,
    ) -> list[Any]:
        if _crashes:
            await asyncio.Event().wait()  # the dead send nothing
        self._under_way += 1
        self.quiet.clear()
        try:
            return await super().exchange(
                requests, once=once, durability=durability, repeat_until=repeat_until
            )
        finally:
            self._under_way -= 1
            if not self._under_way:
                self.quiet.set()


@dataclass(slots=True)
class _Round:
    """Leaders of the partitions in which something is due."""

    parts: Parts
    transport: _Transport
    running: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def is_settled(self) -> bool:
        leaders = self.parts.leaders.values()
        return self.transport.quiet.is_set() and all(each.is_settled for each in leaders)

    async def settle(self) -> None:
        """Waits until all that is left waits for time to pass, or a leader has ended."""
        calm = spins = 0
        while calm < _CALM and not any(task.done() for task in self.running):
            await self.transport.quiet.wait()
            spins += 1
            await asyncio.sleep(0 if spins < _SPINS else 0.001)
            calm = calm + 1 if self.is_settled else 0
            if _crashes:
                raise _crashes[0]


class Driver:
    """Flushes what is due of one aggregator.

    Args:
        namespace: what it flushes.
        clock: the clock by which its scripts count.
    """

    def __init__(self, namespace: Namespace, clock: Clock) -> None:
        self._namespace = namespace
        self._keyspace = namespace.keyspace
        # What waits for a permit when all else is done goes back at once.
        self._config = replace(namespace.config, shutdown_timeout=0.001, executor="thread")
        self._id = new_flusher_id()
        self._parts: Parts | None = None
        self._report: Reporter | None = None
        self._health = Health(
            self._config, self._breakers_changed, self._breaker_changed, clock.monotonic
        )

    @property
    def sink(self) -> Sink | Any:
        """The destination of merged tasks."""
        return self._namespace.sink

    def looks(self) -> list[Request]:
        """The requests whose replies are 0 where nothing waits and no batch is in flight."""
        return [command(b"EXISTS", each.groups, each.batches) for each in self._keyspace.partitions]

    async def flush_due(self, client: AsyncClient, thread: ThisThread | None = None) -> Flushed:
        """Flushes what is due by the clock, and what becomes due by it.

        Args:
            client: for this event loop.
            thread: calls plain functions of the user; None for threads, as in a flusher.

        Raises:
            FlusherFailed: a flusher leads a partition.
            RedisAggError: Redis can't be used.
        """
        of_flusher = (self._keyspace, self._config, self._id, self._namespace.observers)
        make = make_merger if thread is None else thread.make_merger
        calling = contextlib.nullcontext() if thread is None else thread.calling(self.sink)
        try:
            async with reporting(*of_flusher, on_loop=True, kind=_Reporter) as report:
                assert isinstance(report, _Reporter)
                self._report = report
                with calling:
                    return await self._flush(self._transport(client), report, make)
        finally:
            self._report = self._parts = None

    async def flush_all(self, client: AsyncClient) -> None:
        """Makes all waiting tasks due."""
        await self._transport(client).run(flush_all(self._keyspace))

    def _transport(self, client: AsyncClient) -> _Transport:
        return _Transport(client, seconds(self._config.add_timeout))

    async def _flush(
        self,
        transport: _Transport,
        report: _Reporter,
        make: Callable[[AggregationConfig, Router], Merger],
    ) -> Flushed:
        _crashes.clear()
        tokens: dict[PartitionKeys, int] = {}
        parts = self._parts = Parts(
            flusher_id=self._id,
            keyspace=self._keyspace,
            config=self._config,
            sink=self._namespace.sink,
            transport=transport,
            report=report,
            health=self._health,
            make=make,
        )
        try:
            begun, blocked = -1, 0.0
            while True:
                await self._acquire(transport, tokens)
                busy, wait = await self._poll(transport, tokens)
                if not busy or begun == report.begun:
                    break
                begun = report.begun
                blocked = await self._lead(
                    _Round(parts, transport), {each: tokens[each] for each in busy}
                )
            report.flushed.next_due = blocked if busy and blocked else wait
            report.flushed.steps = report.begun
            return report.flushed
        finally:
            parts.merger.close()
            if _crashes:
                await self._die(parts, transport, tokens)
            else:
                await parts.close()
                await self._release(transport, tokens)

    async def _die(
        self, parts: Parts, transport: AsyncTransport, tokens: dict[PartitionKeys, int]
    ) -> None:
        """Leaves all in Redis as a killed process would; its leases last for `lease_time`."""
        _crashes.clear()
        parts.abandon()
        self._id = new_flusher_id()
        lease_ms = to_ms(seconds(self._config.lease_time))
        await transport.exchange([call("renew", [p.state], tokens[p], lease_ms) for p in tokens])

    def _blocked(self, parts: Parts) -> float:
        """Seconds until a limit or a breaker lets through what is due."""
        waits = [parts.permits.wait_ms / 1000] if parts.permits is not None else []
        breakers = (self._health.merges, *self._health.sinks)
        waits += [each.pause() for each in breakers if each.state is not BreakerState.CLOSED]
        return max(waits, default=0.0)

    async def _acquire(self, transport: AsyncTransport, tokens: dict[PartitionKeys, int]) -> None:
        """Takes the leases of further partitions in which something waits.

        Args:
            tokens: the fencing tokens of those that are led; gets those of the others.
        """
        replies = _checked(await transport.exchange(self.looks()))
        there = zip(self._keyspace.partitions, replies, strict=True)
        wanted = [each for each, count in there if count and each not in tokens]
        if not wanted:
            return
        lease_ms = to_ms(max(_LEASE, seconds(self._config.lease_time)))
        replies = await transport.exchange(
            [
                call(
                    "acquire",
                    [each.state, each.claims, each.tasks(b"")],
                    *(self._id, lease_ms, each.label),
                    registers=self._keyspace.layout,
                )
                for each in wanted
            ]
        )
        waits: list[int] = []
        for partition, reply in zip(wanted, _checked(replies), strict=True):
            token, wait_ms = reply
            if token:
                tokens[partition] = token
            else:
                waits.append(wait_ms)
        if waits:
            raise FlusherFailed(
                f"a flusher of {self._keyspace.name!r} leads {len(waits)} of its partitions; stop "
                "it before flush_due, or, if its process was killed, advance the clock by "
                f"{max(waits) / 1000:g} seconds, when its leases end"
            )

    async def _release(self, transport: AsyncTransport, tokens: dict[PartitionKeys, int]) -> None:
        channel = self._keyspace.wake_channel
        requests = [call("release", [p.state, p.claims], tokens[p], channel) for p in tokens]
        if requests:
            with contextlib.suppress(RedisAggError):  # it may be what ended the flush
                await transport.exchange(requests)

    async def _poll(
        self, transport: AsyncTransport, tokens: dict[PartitionKeys, int]
    ) -> tuple[list[PartitionKeys], float | None]:
        """The partitions in which something is due, and seconds until it is in another one."""
        requests = [
            LeaderRequests(partition, token, self._config, _LONGEST_WAIT).poll(1, ())
            for partition, token in tokens.items()
        ]
        busy: list[PartitionKeys] = []
        waits: list[float] = []
        for partition, reply in zip(
            tokens, _checked(await transport.exchange(requests)), strict=True
        ):
            due = Due.of(reply)
            if due.items or due.suspect is not None or due.wait_ms == 0:
                busy.append(partition)
            elif 0 < due.wait_ms < to_ms(_LONGEST_WAIT):
                waits.append(due.wait_ms / 1000)
        return busy, min(waits, default=None)

    async def _lead(self, round_: _Round, tokens: dict[PartitionKeys, int]) -> float:
        """Leads partitions until nothing more can be done in them now; returns `_blocked`."""
        leaders = round_.parts.leaders
        leaders.update({p.number: round_.parts.make_leader(p, tokens[p]) for p in tokens})
        round_.running = [asyncio.create_task(each.run()) for each in leaders.values()]
        try:
            await round_.settle()
            blocked = self._blocked(round_.parts)
            for leader in leaders.values():
                leader.finish()
            await asyncio.gather(*round_.running)
            return blocked
        finally:
            for task in round_.running:
                task.cancel()
            await asyncio.gather(*round_.running, return_exceptions=True)
            leaders.clear()

    def _breakers_changed(self) -> None:
        if self._parts is not None:
            self._parts.breakers_changed()

    def _breaker_changed(
        self, breaker: Breaker, state: BreakerState, span: float, reason: str
    ) -> None:
        if self._report is not None:
            self._report.breaker(breaker, state, span, reason)


async def busy(client: AsyncClient, drivers: Sequence[Driver]) -> list[Driver]:
    """Returns the drivers of those aggregators in which something waits or is in flight."""
    if not drivers:
        return []
    looks = [each.looks() for each in drivers]
    transport = drivers[0]._transport(client)
    replies = iter(_checked(await transport.exchange([each for some in looks for each in some])))
    there = [sum(next(replies) for _ in some) for some in looks]
    return [driver for driver, count in zip(drivers, there, strict=True) if count]


def _checked(replies: list[Any]) -> list[Any]:
    for reply in replies:
        if isinstance(reply, RedisAggError):
            raise reply
    return replies
