"""The permits of a flusher: what it asks Redis for, and what it tells Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from redisagg import AggregationConfig, RateLimit
from redisagg.errors import RedisReadOnly
from redisagg.flusher.permits import Permits
from redisagg.protocol.keys import Keyspace
from redisagg.protocol.scripts import Request
from redisagg.transport.aio import AsyncTransport

SPACE = Keyspace("tests", 1)


class FakeTransport:
    """Answers calls of `permits` as it is told, and else grants everything."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.replies: list[Any] = []

    async def exchange(self, requests: Sequence[Request]) -> list[Any]:
        await asyncio.sleep(0)
        return [self._reply(request) for request in requests]

    def _reply(self, request: Request) -> Any:
        all_steps = [str(each) for each in request.args[8:]]
        self.steps += all_steps
        if self.replies:
            reply = self.replies.pop(0)
            return reply if isinstance(reply, Exception) else [reply]
        return [[steps.count("+"), 0, 0] for steps in all_steps]


def make(transport: FakeTransport, most: int = 8, **config: Any) -> Permits:
    return Permits(
        flusher_id="me",
        keyspace=SPACE,
        config=AggregationConfig(**config),
        transport=cast(AsyncTransport, transport),
        most=most,
        sink_timeout=0.0,
    )


async def soon(permits: Permits) -> None:
    """Lets the permits be sent."""
    for _ in range(20):
        await asyncio.sleep(0)


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
        permit.begun = True
        permit.end()
        await permits.close()
        assert transport.steps[-1].startswith("-")

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
        permit.begun = True
        transport.replies = [RedisReadOnly("a replica")]
        permit.end()
        await asyncio.sleep(0.05)
        sent = [step[0] for step in transport.steps]
        assert sent == ["+", "+", "-", "-"]
        assert transport.steps[0] == transport.steps[1]  # with the same id
        await permits.close()

    run(test)
