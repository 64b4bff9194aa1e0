"""A round whose calls are refused since the namespace was moved."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from redisagg.config import AggregationConfig
from redisagg.producer.aio import AsyncAdder
from redisagg.producer.options import AddOptions
from redisagg.producer.rounds import Round
from redisagg.producer.sequences import SequencePool
from redisagg.producer.threads import ThreadAdder
from redisagg.protocol.entries import EncodedTask
from redisagg.protocol.keys import Keyspace, Layout
from redisagg.protocol.registration import NamespaceMoved
from redisagg.protocol.scripts import Request
from redisagg.transport.aio import AsyncTransport
from redisagg.transport.threads import Transport

MOVED = NamespaceMoved(Layout("new", 3), "it was moved")


def tasks() -> list[EncodedTask]:
    limits = [b"1 1 1 0", b"1 1 2 0"]
    own = [None, b"weight=2"]
    return [
        EncodedTask(b"g%d" % (n % 5), b"id%d" % n, b"body", limits[n % 2], own[n % 3 // 2])
        for n in range(40)
    ]


class Server:
    """Replies to calls for the old place that it has moved, and notes the others."""

    clustered = False

    def __init__(self) -> None:
        self.calls: list[tuple[bytes, bytes]] = []
        self.tasks: list[tuple[bytes, bytes]] = []

    def reply(self, request: Request) -> Any:
        if request.keys[0].startswith(b"redisagg:{old:"):
            return MOVED
        assert request.registers == MOVED.layout
        self.calls.append((request.keys[4], request.args[0]))
        args = list(request.args[7:])
        sections = []
        while args:
            group, _, count, *args = args
            number, *three = count.split()
            step = 3 if three else 2
            sections.append(int(number))
            for _ in range(int(number)):
                self.tasks.append((group, args[0]))
                args = args[step:]
        return sections

    def begin(self, requests: Sequence[Request], **_: Any) -> Any:
        return lambda: [self.reply(each) for each in requests]

    async def exchange(self, requests: Sequence[Request], **_: Any) -> list[Any]:
        return [self.reply(each) for each in requests]


def options() -> AddOptions:
    return AddOptions.of(Keyspace("old", 4), AggregationConfig(), None)


def assert_followed(server: Server, results: list[Any]) -> None:
    found = [task for some, error in results for task in some if error is None]
    assert sorted(found) == sorted(tasks())
    for group in {task.group for task in tasks()}:
        wanted = [task.id for task in tasks() if task.group == group]
        assert [each for key, each in server.tasks if key == group][: len(wanted)] == wanted


def test_its_tasks_go_to_the_new_place_in_order_by_calls_that_are_the_same_when_repeated() -> None:
    server = Server()
    adder = ThreadAdder(options(), cast(Transport, server))
    round_: Round[EncodedTask] = Round(adder.options, 500)
    for task in tasks():
        round_.put(task, task)
    numbered = adder.prepare(round_)
    assert_followed(server, list(numbered.exchange()))
    first = list(server.calls)
    assert len(first) == 3
    list(numbered.exchange())  # another thread, after this one was interrupted
    assert server.calls == first * 2
    numbered.release()


def test_the_same_on_an_event_loop() -> None:
    async def main() -> None:
        server = Server()
        adder = AsyncAdder(options(), cast(AsyncTransport, server), SequencePool())
        round_: Round[EncodedTask] = Round(adder.options, 500)
        for task in tasks():
            round_.put(task, task)
        exchange = adder.prepare(round_)
        assert_followed(server, list(await exchange()))
        first = list(server.calls)
        assert len(first) == 3
        await exchange()
        assert server.calls == first * 2

    asyncio.run(main())
