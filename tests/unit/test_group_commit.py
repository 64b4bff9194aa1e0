"""Group commit over a transport that is not there: who sends, what shares a round trip."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from redisagg.errors import AggregatorFull, KeyConflict, RedisUnavailable
from redisagg.producer import aio
from redisagg.producer.aio import AsyncGroupCommitter
from redisagg.producer.options import MAX_CALL_BYTES, AddOptions
from redisagg.producer.partitioned import partitioned_add
from redisagg.producer.rounds import AddResults, Round
from redisagg.producer.sequences import CallSequence
from redisagg.producer.threads import GroupCommitter
from redisagg.protocol.entries import EncodedTask
from tests.support.encoded import encoded, options_for

OPTIONS = options_for()


def ids(round_: Round[Any]) -> list[int]:
    """The ids of a round's tasks, all of one group."""
    [request] = round_.requests(CallSequence())
    return [int(each) for each in request.args[10::2]]


def accepted(round_: Round[Any]) -> AddResults[Any]:
    return round_.results([[len(round_)]])


class Exchange:
    """Stands for Redis: a round trip ends when the one that begins with this task is answered.

    Args:
        answer: returns the results of a round.
    """

    def __init__(self, answer: Callable[[Round[Any]], AddResults[Any]] = accepted) -> None:
        self.rounds: list[list[int]] = []
        self.senders: list[int] = []
        self._answer = answer
        self._answered = [threading.Event() for _ in range(20)]

    def __call__(self, round_: Round[EncodedTask]) -> AddResults[EncodedTask]:
        self.senders.append(threading.get_ident())
        self.rounds.append(ids(round_))
        assert self._answered[ids(round_)[0]].wait(60)
        return self._answer(round_)

    def answer(self, *firsts: int) -> None:
        """Answers the round trips that begin with these tasks, now or when they are sent."""
        for first in firsts:
            self._answered[first].set()


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Prepared:
    """A round that `Exchange` sends."""

    def __init__(self, exchange: Exchange, round_: Round[EncodedTask]) -> None:
        self._exchange = exchange
        self._round = round_

    def exchange(self) -> AddResults[EncodedTask]:
        return self._exchange(self._round)

    def release(self) -> None:
        pass


class Threads:
    """Adds each task in a thread of its own, one after the other."""

    def __init__(self, exchange: Exchange, options: AddOptions = OPTIONS) -> None:
        self.committer = GroupCommitter(options, partial(Prepared, exchange))
        self._exchange = exchange
        self._pool = ThreadPoolExecutor(20)

    def send(self, *numbers: int) -> list[Future[None]]:
        """Adds tasks, each of which is sent at once."""
        return [self._add(number, lambda n: [n] in self._exchange.rounds) for number in numbers]

    def gather(self, *numbers: int, size: int = 1) -> list[Future[None]]:
        """Adds tasks, each of which waits in a commit group."""
        return [self._add(number, self._waits, size) for number in numbers]

    def start(self, number: int, size: int = 1) -> Future[None]:
        """Adds a task in a thread of its own."""
        return self._pool.submit(self.committer.add, encoded("a", number, size=size))

    def _add(self, number: int, arrived: Callable[[int], bool], size: int = 1) -> Future[None]:
        future = self.start(number, size)
        wait_until(lambda: arrived(number))
        return future

    def _waits(self, number: int) -> bool:
        return any(int(each.task.id) == number for each in list(self.committer._of_process._queue))


def test_callers_that_come_meanwhile_share_the_next_round_trip() -> None:
    exchange = Exchange()
    threads = Threads(exchange)
    futures = threads.send(0, 1)  # two round trips, of one task each
    futures += threads.gather(2, 3, 4)
    assert exchange.rounds == [[0], [1]]
    exchange.answer(0)
    wait_until(lambda: len(exchange.rounds) == 3)
    assert exchange.rounds[2] == [2, 3, 4]
    assert len(set(exchange.senders)) == 3  # each sent by one of its own callers
    exchange.answer(1, 2)
    assert [future.result(10) for future in futures] == [None] * 5


def test_a_second_round_trip_waits_for_as_many_tasks_as_are_in_flight() -> None:
    exchange = Exchange()
    threads = Threads(exchange)
    futures = [*threads.send(0, 1), *threads.gather(2, 3, 4)]
    exchange.answer(0, 1)
    wait_until(lambda: exchange.rounds == [[0], [1], [2, 3, 4]])
    wait_until(lambda: futures[0].done() and futures[1].done())
    futures += threads.gather(5, 6)
    assert len(exchange.rounds) == 3
    futures.append(threads.start(7))
    wait_until(lambda: len(exchange.rounds) == 4)
    assert exchange.rounds[3] == [5, 6, 7]
    exchange.answer(2, 5)
    assert [future.result(10) for future in futures] == [None] * 8


def test_a_full_round_is_left_to_its_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redisagg.producer.threads.COMMIT_ROUND_TASKS", 2)
    exchange = Exchange()
    threads = Threads(exchange)
    futures = [*threads.send(0, 1), *threads.gather(2, 3, 4, 5, 6)]
    exchange.answer(*range(7))
    assert [future.result(10) for future in futures] == [None] * 7
    assert sorted(exchange.rounds) == [[0], [1], [2, 3], [4, 5], [6]]


def test_groups_are_sent_in_order_even_if_a_later_one_has_more_tasks() -> None:
    exchange = Exchange()
    threads = Threads(exchange)
    futures = [*threads.send(0, 1), *threads.gather(2, 3, 4)]
    exchange.answer(0, 1)
    wait_until(lambda: exchange.rounds == [[0], [1], [2, 3, 4]])
    wait_until(lambda: futures[0].done() and futures[1].done())
    futures += threads.gather(5, size=MAX_CALL_BYTES)  # fills a group by itself
    futures += threads.gather(6, 7, 8)
    exchange.answer(2, 5, 6)
    assert [future.result(10) for future in futures] == [None] * 9
    assert exchange.rounds[3:] == [[5], [6, 7, 8]]


def test_callers_that_come_while_a_sender_lingers_count_as_in_flight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lingered = threading.Event()
    clock = SimpleNamespace(sleep=lambda seconds: lingered.wait(60))
    monkeypatch.setattr("redisagg.producer.threads.time", clock)
    exchange = Exchange()
    threads = Threads(exchange, options_for(linger=0.1))
    futures = threads.gather(0, 1, 2)
    lingered.set()
    wait_until(lambda: exchange.rounds == [[0, 1, 2]])
    futures += threads.gather(3, 4)
    futures.append(threads.start(5))
    wait_until(lambda: len(exchange.rounds) == 2)
    assert exchange.rounds[1] == [3, 4, 5]
    exchange.answer(0, 3)
    assert [future.result(10) for future in futures] == [None] * 6


def refused(round_: Round[EncodedTask]) -> AddResults[EncodedTask]:
    """Refuses all tasks, with one error for even and one for odd ids."""
    errors = [KeyConflict("even"), AggregatorFull("odd")]
    tasks = [task for waiters, _ in accepted(round_) for task in waiters]
    for remainder, error in enumerate(errors):
        yield [task for task in tasks if int(task.id) % 2 == remainder], error


def test_each_caller_gets_the_error_of_its_task_as_an_object_of_its_own() -> None:
    exchange = Exchange(refused)
    threads = Threads(exchange)
    futures = [*threads.send(0, 1), *threads.gather(2, 3, 4)]
    exchange.answer(0, 1, 2)
    errors = [future.exception(10) for future in futures]
    kinds = [KeyConflict, AggregatorFull, KeyConflict, AggregatorFull, KeyConflict]
    assert [type(error) for error in errors] == kinds
    assert len(set(map(id, errors))) == 5


class Interrupted(BaseException):
    """Such as KeyboardInterrupt, which pytest would take for its own."""


def test_another_caller_sends_the_round_of_one_that_was_interrupted() -> None:
    interruptions = [Interrupted()]

    def answer(round_: Round[EncodedTask]) -> AddResults[EncodedTask]:
        if ids(round_)[0] == 2 and interruptions:
            raise interruptions.pop()
        return accepted(round_)

    exchange = Exchange(answer)
    threads = Threads(exchange)
    first = threads.send(0, 1)
    group = threads.gather(2, 3, 4)
    exchange.answer(0, 1)
    assert [future.result(10) for future in first] == [None] * 2
    exchange.answer(2)
    errors = [future.exception(10) for future in group]
    assert sorted(type(error).__name__ for error in errors) == ["Interrupted", *["NoneType"] * 2]
    assert exchange.rounds[2:] == [[2, 3, 4]] * 2
    [last] = threads.send(5)
    exchange.answer(5)
    assert last.result(10) is None


def test_a_forked_child_does_not_wait_for_its_parents_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exchange = Exchange()
    threads = Threads(exchange)
    threads.send(0, 1)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    [last] = threads.send(2)
    exchange.answer(0, 1, 2)
    assert last.result(10) is None


class AsyncExchange:
    """As `Exchange`, for coroutines; round trips are answered in their order."""

    def __init__(self, answer: Callable[[Round[Any]], AddResults[Any]] = accepted) -> None:
        self.rounds: list[list[int]] = []
        self._answer = answer
        self._unanswered: list[asyncio.Future[None]] = []

    async def __call__(self, round_: Round[Any]) -> AddResults[Any]:
        self.rounds.append(ids(round_))
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unanswered.append(answered)
        await answered
        return self._answer(round_)

    async def answer(self, count: int = 1) -> None:
        """Answers the oldest round trips; returns when their callers could go on."""
        for _ in range(count):
            self._unanswered.pop(0).set_result(None)
        await let_others_run()


async def let_others_run() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_coroutines_that_add_in_one_turn_share_a_round_trip() -> None:
    exchange = AsyncExchange()
    committer = AsyncGroupCommitter(OPTIONS, partial(partial, exchange))
    futures = [committer.add(encoded("a", n)) for n in range(5)]
    await let_others_run()
    assert exchange.rounds == [[0, 1, 2, 3, 4]]
    assert not any(future.done() for future in futures)
    await exchange.answer()
    assert [future.result() for future in futures] == [None] * 5


async def test_many_coroutines_are_sent_in_two_halves() -> None:
    count = aio._MIN_TASKS_TO_SPLIT
    exchange = AsyncExchange()
    committer = AsyncGroupCommitter(OPTIONS, partial(partial, exchange))
    for n in range(count):
        committer.add(encoded("a", n))
    await let_others_run()
    assert exchange.rounds == [list(range(count // 2)), list(range(count // 2, count))]
    for n in range(count, count + 3):  # both senders are busy: they gather
        committer.add(encoded("a", n))
    await let_others_run()
    assert len(exchange.rounds) == 2
    await exchange.answer()
    assert exchange.rounds[2:] == [[count, count + 1, count + 2]]
    await exchange.answer()
    await exchange.answer()


async def test_a_task_added_while_both_senders_end_is_sent() -> None:
    exchange = AsyncExchange()
    committer = AsyncGroupCommitter(OPTIONS, partial(partial, exchange))

    async def add_both(*numbers: int) -> None:
        for n in numbers:
            await committer.add(encoded("a", n))

    adding = []
    for numbers in ((0, 2), (1,)):
        adding.append(asyncio.create_task(add_both(*numbers)))
        await let_others_run()
    assert exchange.rounds == [[0], [1]]
    await exchange.answer(2)
    assert exchange.rounds == [[0], [1], [2]]
    await exchange.answer()
    assert all(each.done() for each in adding)


async def test_a_cancelled_caller_does_not_keep_the_others_from_their_results() -> None:
    exchange = AsyncExchange(lambda round_: round_.failed(RedisUnavailable("no reply")))
    committer = AsyncGroupCommitter(OPTIONS, partial(partial, exchange))
    futures = [committer.add(encoded("a", n)) for n in range(3)]
    await let_others_run()
    futures[0].cancel()
    await exchange.answer()
    errors = [future.exception() for future in futures[1:]]
    assert [type(error) for error in errors] == [RedisUnavailable] * 2
    assert errors[0] is not errors[1]


def cancel_senders(committer: AsyncGroupCommitter) -> None:
    """Cancels what the committer started for itself, as `asyncio.all_tasks` lets anybody do."""
    for sender in list(committer._senders):
        sender.cancel()


async def test_others_send_a_round_again_whose_sender_was_cancelled() -> None:
    exchange = AsyncExchange()
    prepared: list[Round[Any]] = []

    def prepare(round_: Round[Any]) -> Callable[[], Any]:
        prepared.append(round_)
        return partial(exchange, round_)

    committer = AsyncGroupCommitter(OPTIONS, prepare)
    futures = [committer.add(encoded("a", n)) for n in range(3)]
    await let_others_run()
    futures[0].cancel()  # its caller was cancelled too
    for _ in range(2):
        cancel_senders(committer)
        await let_others_run()
    assert exchange.rounds == [[0, 1, 2]] * 3
    assert len(prepared) == 1  # the calls are numbered once, so Redis carries them out once
    exchange._unanswered[:2] = []
    await exchange.answer()
    assert [future.result() for future in futures[1:]] == [None] * 2


async def test_tasks_whose_sender_was_cancelled_before_its_first_step_are_sent() -> None:
    exchange = AsyncExchange()
    committer = AsyncGroupCommitter(OPTIONS, partial(partial, exchange))
    futures = [committer.add(encoded("a", n)) for n in range(3)]
    cancel_senders(committer)
    await let_others_run()
    assert exchange.rounds == [[0, 1, 2]]
    await exchange.answer()
    assert [future.result() for future in futures] == [None] * 3


@pytest.mark.parametrize("begun", [False, True])
async def test_nothing_is_sent_for_callers_that_were_all_cancelled(begun: bool) -> None:
    exchange = AsyncExchange()
    committer = AsyncGroupCommitter(OPTIONS, partial(partial, exchange))
    for _ in range(2):  # as many times as there may be senders
        futures = [committer.add(encoded("a", n)) for n in range(3)]
        if begun:
            await let_others_run()
        cancel_senders(committer)
        for future in futures:
            future.cancel()
        await let_others_run()
    assert exchange.rounds == ([[0, 1, 2]] * 2 if begun else [])
    exchange._unanswered.clear()
    last = committer.add(encoded("a", 9))
    await let_others_run()
    assert exchange.rounds[-1] == [9]
    await exchange.answer()
    assert last.result() is None


def test_partitions_have_a_committer_each_on_a_cluster_only() -> None:
    class Committer:
        def __init__(self) -> None:
            made.append(self)

        def add(self, task: EncodedTask) -> Committer:
            return self

    keyspace = options_for(4).keyspace
    for clustered, count in ((False, 1), (True, 4)):
        made: list[Committer] = []
        add = partitioned_add(Committer, keyspace, clustered=clustered)
        used: dict[int, set[Committer]] = {}
        for n in range(40):
            task = encoded(f"g{n}")
            used.setdefault(keyspace.partition_of(task.group).number, set()).add(add(task))
        assert len(made) == count
        assert [len(each) for each in used.values()] == [1] * 4
        assert set.union(*used.values()) == set(made)
