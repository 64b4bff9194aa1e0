"""The permits of a flusher: what it asks Redis for, and what it tells Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from redisagg import AggregationConfig, RateLimit, Task
from redisagg.errors import KeyConflict, RedisReadOnly, RedisUnavailable
from redisagg.flusher.batch import Batch, Claim, State
from redisagg.flusher.leader.permits import LeaderPermits
from redisagg.flusher.leader.requests import DueItem
from redisagg.flusher.permits import Permits
from redisagg.protocol.keys import Keyspace
from redisagg.protocol.scripts import Request
from redisagg.transport.aio import AsyncTransport
from tests.support.claims import claim_of

SPACE = Keyspace("tests", 1)


class FakeTransport:
    """Answers calls of `permits` as it is told, and else grants everything."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.times: list[float] = []
        """When each of the steps came."""
        self.calls = 0
        self.replies: list[Any] = []
        self.held_back: set[bytes] = set()
        """Keys of which no call gets a reply."""
        self.conflicts: set[bytes] = set()
        """Keys that hold foreign data."""

    async def exchange(self, requests: Sequence[Request]) -> list[Any]:
        self.calls += 1
        await asyncio.sleep(0)
        if any(self.held_back.intersection(request.keys) for request in requests):
            await asyncio.sleep(60)
        return [self._reply(request) for request in requests]

    def sent(self, kinds: str) -> list[str]:
        """The steps of some kinds."""
        return [each for call in self.steps for each in call.split() if each[0] in kinds]

    def _reply(self, request: Request) -> Any:
        if self.conflicts.intersection(request.keys):
            return KeyConflict("foreign data")
        all_steps = [str(each) for each in request.args[8:]]
        self.steps += all_steps
        self.times += [time.monotonic()] * len(all_steps)
        if self.replies:
            reply = self.replies.pop(0)
            return reply if isinstance(reply, Exception) else [reply]
        return [(steps.count("+"), 0, 0) for steps in all_steps]


def make(
    transport: FakeTransport, most: int = 8, sink_timeout: float = 0.0, **config: Any
) -> Permits:
    return Permits(
        flusher_id="me",
        keyspace=SPACE,
        config=AggregationConfig(**config),
        transport=cast(AsyncTransport, transport),
        most=most,
        sink_timeout=sink_timeout,
    )


async def soon(permits: Permits) -> None:
    """Lets the permits be sent."""
    for _ in range(20):
        await asyncio.sleep(0)


async def await_true(condition: Callable[[], object]) -> None:
    """Waits until a condition holds; `run` bounds the wait."""
    while not condition():  # noqa: ASYNC110 -- nothing announces it
        await asyncio.sleep(0.001)


def batch_of(group: bytes = b"g", tasks: int = 1) -> Batch:
    claim = Claim(b"b", group, 1, b"", b"", [b"entry"] * tasks, tasks, tasks, 0, None)
    return Batch(claim, lambda batch: None)


def run(test: Any) -> None:
    asyncio.run(asyncio.wait_for(test(), 10))


def test_what_is_given_back_ends_the_wait() -> None:
    async def test() -> None:
        transport = FakeTransport()
        permits = make(transport, rate_limit=RateLimit(1, per=60))
        transport.replies = [[1, 60_000, 0]]
        [permit] = await permits.take(2)
        permit.end()  # nobody waits now
        await soon(permits)
        [permit] = await permits.take(1)
        assert [step[0] for step in transport.steps] == ["+", "~", "+"]
        permit.begin()
        permit.end()
        await permits.close()
        assert transport.steps[-1].startswith("-")

    run(test)


@pytest.mark.parametrize(("label", "merged"), [(b"", False), (b"-", False), (b"1-1", True)])
def test_a_batch_above_a_limit_may_not_be_merged(label: bytes, merged: bool) -> None:
    """A stored merge result that was never whole is none."""

    async def test() -> None:
        permits = make(FakeTransport(), group_max_size=2, rate_limit=RateLimit(2, 60, of="tasks"))
        claim = claim_of([Task("t", n, "g") for n in range(3)])._replace(result=label)
        assert bool(permits.excess(claim)) is not merged
        await permits.close()

    run(test)


def test_no_more_are_held_than_are_merged() -> None:
    async def test() -> None:
        transport = FakeTransport()
        permits = make(transport, most=3, group_concurrency=1)
        first = await permits.take(9)
        assert len(first) == 3
        waiting = asyncio.ensure_future(permits.take(9))
        await soon(permits)
        assert not waiting.done()
        for permit in first[:2]:
            permit.end()
            permit.end()
        assert len(await waiting) == 2
        assert transport.steps == []  # there is no limit of the namespace
        await permits.close()

    run(test)


def test_those_who_wait_take_turns() -> None:
    async def test() -> None:
        transport = FakeTransport()
        permits = make(transport, max_concurrency=5)
        transport.replies = [[3, 5, 1]]
        takes = [asyncio.ensure_future(permits.take(4)) for _ in range(2)]
        assert [len(each) for each in await asyncio.gather(*takes)] == [2, 1]
        await permits.close()

    run(test)


def test_a_waiter_that_is_cancelled_keeps_nothing() -> None:
    async def test() -> None:
        transport = FakeTransport()
        permits = make(transport, max_concurrency=1)
        transport.replies = [[0, 60_000, 1]]
        waiting = asyncio.ensure_future(permits.take(1))
        await soon(permits)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        permits.wake()
        assert len(await permits.take(8)) == 8
        await permits.close()

    run(test)


def test_a_refusal_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redisagg.flusher.permits._REFUSED_WAIT", 0.001)

    async def test() -> None:
        transport = FakeTransport()
        permits = make(transport, max_concurrency=1)
        transport.replies = [RedisReadOnly("a replica")]
        [permit] = await permits.take(1)
        permit.begin()
        transport.replies = [RedisReadOnly("a replica")]
        permit.end()
        await await_true(lambda: len(transport.steps) == 4)
        sent = [step[0] for step in transport.steps]
        assert sent == ["+", "+", "-", "-"]
        assert transport.steps[0] == transport.steps[1]  # with the same id
        await permits.close()

    run(test)


# --- when a call is noted -------------------------------------------------------------------------

NOTED_AFTER = 0.25  # of RateLimit(1, per=1), seconds


@pytest.mark.parametrize("delivers", [False, True])
def test_a_call_is_noted_some_time_after_it_began(delivers: bool) -> None:
    async def test() -> None:
        transport = FakeTransport()
        permits = make(transport, rate_limit=RateLimit(1, per=1), sink_timeout=float(delivers))
        [permit] = await permits.take(1)
        batch = batch_of()
        permits.use(permit, batch)
        await asyncio.sleep(0.8 * NOTED_AFTER)  # the batch waits for its turn
        assert batch.begin()
        if delivers:
            await asyncio.sleep(0.8 * NOTED_AFTER)
            assert permit.may_deliver(1, last=True)
        began = time.monotonic()
        await await_true(lambda: transport.sent("="))
        assert transport.times[-1] - began >= NOTED_AFTER - 0.01
        permit.end()
        await permits.close()

    run(test)


def test_a_call_of_a_process_that_was_frozen_is_noted_later() -> None:
    async def test() -> None:
        transport = FakeTransport()
        permits = make(transport, rate_limit=RateLimit(1, per=1))
        [permit] = await permits.take(1)
        batch = batch_of()
        permits.use(permit, batch)
        assert batch.begin()
        time.sleep(2 * NOTED_AFTER)  # noqa: ASYNC251 -- as if nothing of this process ran
        thawed = time.monotonic()
        await await_true(lambda: transport.sent("="))
        assert transport.times[-1] - thawed >= NOTED_AFTER / 2
        permit.end()
        await permits.close()

    run(test)


def test_a_call_begins_within_half_a_lease() -> None:
    async def test() -> None:
        transport = FakeTransport()
        permits = make(transport, max_concurrency=1, lease_time=4)
        before = time.monotonic()
        [permit] = await permits.take(1)
        assert before + 1.9 < permit.begin_by <= transport.times[0] + 2
        await permits.close()

    run(test)


# --- what is unusable, or gone --------------------------------------------------------------------


def test_a_group_with_foreign_data_stops_no_other() -> None:
    async def test() -> None:
        transport = FakeTransport()
        permits = make(transport, group_concurrency=1)
        [partition] = SPACE.partitions
        first = await permits.take(1)
        assert await permits.admit(partition, first, [b"foreign"]) == [0]
        transport.conflicts = {partition.permits(b"foreign")}
        first[0].end()  # which nobody can be told
        granted = await permits.take(3)
        waits = await permits.admit(partition, granted, [b"g", b"foreign", b"h"])
        assert waits[::2] == [0, 0]
        assert waits[1] >= 10_000
        for permit in granted:
            permit.end()
        await await_true(lambda: len(transport.sent("~")) == 2)
        await permits.close()

    run(test)


def test_a_partition_without_a_master_stops_no_other() -> None:
    async def test() -> None:
        transport = FakeTransport()
        space = Keyspace("tests", 2)
        permits = make(transport, max_concurrency=9, group_concurrency=1)
        held = await permits.take(2)
        for permit, partition in zip(held, space.partitions, strict=True):
            assert await permits.admit(partition, [permit], [b"g"]) == [0]
        transport.held_back = {space.partitions[0].permits(b"g")}
        for permit in held:
            permit.begin()
            permit.end()
        assert len(await permits.take(8)) == 8
        await await_true(lambda: len(transport.sent("-")) == 3)  # two of the namespace
        await permits.close()

    run(test)


def test_a_permit_of_a_group_comes_back_if_its_leader_is_cancelled() -> None:
    async def test() -> None:
        transport = FakeTransport()
        permits = make(transport, group_concurrency=1)
        [partition] = SPACE.partitions
        leader = LeaderPermits(permits, partition)
        await leader.take(1, asyncio.Event())
        transport.held_back = {partition.permits(b"g")}
        admitting = asyncio.ensure_future(leader.admit([DueItem(b"", b"g")]))
        await soon(permits)
        admitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await admitting
        leader.release()
        transport.held_back.clear()
        await permits.close()
        assert len(transport.sent("~")) == 1

    run(test)


def test_permits_come_back_for_which_no_reply_came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redisagg.flusher.permits._REFUSED_WAIT", 0.001)

    async def test() -> None:
        transport = FakeTransport()
        permits = make(transport, max_concurrency=3)
        answer = transport.exchange

        async def lost(requests: Sequence[Request]) -> list[Any]:
            await answer(requests)
            transport.exchange = answer  # type: ignore[method-assign]
            raise RedisUnavailable("the reply was lost")

        transport.exchange = lost  # type: ignore[method-assign]
        granted = await permits.take(2)
        first, second = transport.sent("+")[:2]
        for permit in granted:
            permit.end()
        await await_true(lambda: len(transport.sent("~")) == 4)
        assert {f"~{first[1:-2]}", f"~{second[1:-2]}"} <= set(transport.sent("~"))
        await permits.close()

    run(test)


def test_a_waiter_that_is_cancelled_while_it_is_granted_stops_no_other() -> None:
    async def test() -> None:
        transport = FakeTransport()
        permits = make(transport, max_concurrency=1)
        waiting = asyncio.ensure_future(permits.take(1))
        while not transport.calls:  # noqa: ASYNC110 -- one step is decisive
            await asyncio.sleep(0)
        waiting.cancel()  # the reply comes before it ends
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert len(await permits.take(8)) == 8
        await permits.close()

    run(test)


def test_who_waits_asks_again_in_time_and_ends_his_wait() -> None:
    async def test() -> None:
        transport = FakeTransport()
        permits = make(transport, rate_limit=RateLimit(1, per=60), lease_time=0.2)
        transport.replies = [[0, 60_000, 0]] * 9
        waiting = asyncio.ensure_future(permits.take(1))
        await await_true(lambda: len(transport.sent("+")) > 2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await await_true(lambda: transport.steps[-1] == "!")
        transport.steps.clear()
        await permits.close()
        assert transport.sent("!") == ["!"]

    run(test)


def test_a_batch_that_gets_no_permit_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        permits = make(FakeTransport(), max_concurrency=1)
        leader = LeaderPermits(permits, SPACE.partitions[0])

        async def fail(*args: object) -> None:
            raise RedisUnavailable("away")

        monkeypatch.setattr(permits, "take_exactly", fail)
        batch = batch_of()
        leader.merge_later(batch, lambda batch: None)
        await await_true(lambda: batch.state is State.MERGED)
        assert batch.outcome is not None
        assert batch.outcome.failure is not None
        assert not batch.outcome.failure.counts
        await permits.close()

    run(test)


def test_a_large_batch_does_not_make_small_ones_wait() -> None:
    async def test() -> None:
        transport = FakeTransport()
        permits = make(transport, rate_limit=RateLimit(80, per=60, of="tasks"), group_max_size=80)

        async def asked_for(tasks: int) -> int:
            """The units of the next permit, after a batch of so many tasks."""
            [permit] = await permits.take(1)
            permits.fits(permit, batch_of(tasks=tasks).claim)
            permit.end()
            await permits.take(1)
            return int(transport.sent("+")[-1].split(":")[1])

        assert await asked_for(80) <= 20
        for _ in range(3):
            assert await asked_for(2) <= 20
        assert await asked_for(2) == 2
        assert await asked_for(80) == 2
        await permits.close()

    run(test)
