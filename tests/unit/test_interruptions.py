"""Interruptions of adding threads: an exception at each instruction, while other threads add."""

from __future__ import annotations

import ctypes
import itertools
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
import redis.exceptions as rx
import tenacity

from redisagg.errors import AggregatorFull, KeyConflict
from redisagg.producer.rounds import AddResults, Round
from redisagg.producer.sequences import CallSequence, SequencePool
from redisagg.producer.threads import CommitGroup, GroupCommitter, _Caller, _ProcessCommitter
from redisagg.protocol.entries import EncodedTask
from redisagg.transport.interruptions import interruption_of
from redisagg.transport.threads import _NO_INTERRUPTION
from tests.support.encoded import encoded, options_for
from tests.support.interrupting import Interruption, interrupted_at

OPTIONS = options_for()


class Redis:
    """Carries out numbered calls once each, as the script `add` does. Refuses odd ids."""

    def __init__(self) -> None:
        self.pool = SequencePool()
        self._last: dict[bytes, _Done] = {}
        """By sequence."""
        self._lock = threading.Lock()

    @property
    def carried_out(self) -> list[int]:
        """The ids in all calls that were carried out."""
        found: list[int] = []
        for done in self._last.values():
            each: _Done | None = done
            while each is not None:
                found += each.ids
                each = each.before
        return found

    def call(self, request: Any) -> Any:
        time.sleep(0.0005)
        key, number = request.keys[4], int(request.args[0])
        with self._lock:
            last = self._last.get(key)
            if last is not None and number <= last.number:
                return last.reply if number == last.number else KeyConflict("LATE")
            # Each task has a section of its own: 5 arguments.
            ids = list(map(int, request.args[10::5]))
            reply = [1 if each % 2 == 0 else b"FULL too much" for each in ids]
            done = _Done(number, reply, ids, last)
            # One step of the interpreter: an interruption of the caller can't fall into the midst
            # of a call, which is carried out in another process.
            self._last[key] = done
            return reply


class _Done(NamedTuple):
    """A call that was carried out."""

    number: int
    reply: list[Any]
    ids: list[int]
    before: _Done | None
    """The call before it of the same sequence."""


class Prepared:
    def __init__(self, server: Redis, round_: Round[EncodedTask]) -> None:
        self._server, self._round = server, round_
        self._sequence: CallSequence = server.pool.take()
        self._requests = round_.requests(self._sequence)

    def exchange(self) -> AddResults[EncodedTask]:
        return self._round.results([self._server.call(each) for each in self._requests])

    def release(self) -> None:
        self._server.pool.give_back(self._sequence)


PARTS = 4
"""The instructions are tried in so many tests, which run side by side."""

TWICE = "also on its way out"
TRIED = [
    # Every second instruction is tried in each run, the others in long ones.
    pytest.param(how, first, marks=pytest.mark.slow if how == TWICE and first % 2 else ())
    for how in ("once", TWICE)
    for first in range(PARTS)
]


@pytest.fixture(params=["once", TWICE])
def interrupted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a caller that is interrupted can still tell the others, or is interrupted again."""
    if request.param != "once" and sys.version_info < (3, 11):
        pytest.skip("CPython 3.10 crashes if another thread looks at the locals of a traced frame")
    if request.param == "once":  # then nobody depends on callers that look after a while
        monkeypatch.setattr("redisagg.producer.threads._PATIENCE", 15)
    else:
        monkeypatch.setattr("redisagg.producer.threads._PATIENCE", 0.01)
        monkeypatch.setattr(_ProcessCommitter, "_give_up", lambda *_: None)


@pytest.mark.parametrize(("interrupted", "first"), TRIED, indirect=["interrupted"])
def test_an_interruption_at_any_instruction_leaves_the_producer_whole(
    interrupted: None, first: int
) -> None:
    step, found, misses = first, 0, 0
    with ThreadPoolExecutor(4) as pool:
        while misses < 32 // PARTS:  # the caller has fewer steps if another one sends its task
            where = _interrupt(step, pool)
            misses = 0 if where else misses + 1
            found += bool(where)
            step += PARTS
    assert found > 250 // PARTS


@pytest.mark.usefixtures("interrupted")
def test_callers_taken_by_a_sender_that_was_interrupted_meanwhile_are_sent_by_one_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interruptions = [Interruption()]

    class InterruptedRound(Round[EncodedTask]):
        def put(self, task: EncodedTask, waiter: EncodedTask) -> None:
            super().put(task, waiter)
            if task.id == b"6" and interruptions:
                raise interruptions.pop()

    monkeypatch.setattr("redisagg.producer.threads.Round", InterruptedRound)
    server = Redis()
    answer = threading.Event()
    committer = GroupCommitter(OPTIONS, lambda round_: Prepared(server, round_))
    call, server.call = server.call, lambda request: answer.wait(10) and call(request)  # type: ignore[method-assign]
    with ThreadPoolExecutor(5) as pool:
        adding = []
        for number, taken in ((0, 1), (2, 2), (4, 3), (6, 4), (8, 5)):  # two are in flight
            adding.append(pool.submit(committer.add, encoded(f"g{number}", number)))
            wait_until(lambda: _callers(committer) == taken)  # noqa: B023
        answer.set()
        kinds = [type(each.exception(10)).__name__ for each in adding]
    assert sorted(kinds) == ["Interruption", *["NoneType"] * 4]


def _callers(committer: GroupCommitter) -> int:
    of_process = committer._of_process
    in_flight = sum(len(each.callers) for each in of_process._unfinished())
    return in_flight + len(of_process._queue)


def test_a_sender_whose_signal_handler_adds_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else another caller sends the round without the tasks that the sender still takes into it."""
    monkeypatch.setattr("redisagg.producer.threads._PATIENCE", 0.01)
    handled: list[str] = []

    class RoundOfSender(Round[EncodedTask]):
        def put(self, task: EncodedTask, waiter: EncodedTask) -> None:
            super().put(task, waiter)
            if task.id == b"6" and not handled:
                handled.append("begun")
                committer.add(encoded("g90", 90))
                handled.append("added")

    monkeypatch.setattr("redisagg.producer.threads.Round", RoundOfSender)
    server = Redis()
    answer = threading.Event()
    call = server.call

    def call_slowly(request: Any) -> Any:
        answer.wait(10)
        if b"90" in request.args:
            time.sleep(0.2)
        return call(request)

    server.call = call_slowly  # type: ignore[method-assign]
    committer = GroupCommitter(OPTIONS, lambda round_: Prepared(server, round_))
    numbers = (0, 2, 4, 6, 8, 10)
    with ThreadPoolExecutor(len(numbers)) as pool:
        adding = []
        for taken, number in enumerate(numbers, 1):
            adding.append(pool.submit(committer.add, encoded(f"g{number}", number)))
            wait_until(lambda: _callers(committer) >= taken)  # noqa: B023
        answer.set()
        assert [each.result(10) for each in adding] == [None] * len(numbers)
    assert handled == ["begun", "added"]
    assert sorted(server.carried_out) == [*numbers, 90]


def test_a_round_that_two_callers_send_at_the_same_time_is_prepared_once() -> None:
    server, prepared = Redis(), []
    group = CommitGroup(_Caller(encoded("g", 0)))
    group.callers.append(group.sender)

    def build() -> Round[EncodedTask]:
        round_: Round[EncodedTask] = Round(OPTIONS, 10)
        round_.put(group.sender.task, group.sender.task)
        return round_

    def prepare(round_: Round[EncodedTask]) -> Prepared:
        own = Prepared(server, round_)
        prepared.append(own)
        if len(prepared) == 1:  # another caller comes in between
            group.complete(group.sender, prepare, build)
        return own

    group.complete(group.sender, prepare, build)
    assert len(prepared) == 2
    assert server.carried_out == [0]
    free = server.pool.drain()
    assert len(free) == len({each.id for each in free}) == 2  # each given back once


@pytest.mark.serial
@pytest.mark.skipif(
    sys.gettrace() is not None,
    reason="CPython 3.11 hangs: while an exception waits for one thread, a traced one can't go on",
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interruptions_in_quick_succession_leave_the_producer_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Some come while a caller is on its way out after the one before."""
    monkeypatch.setattr("redisagg.producer.threads._PATIENCE", 0.02)
    server = Redis()
    committer = GroupCommitter(OPTIONS, lambda round_: Prepared(server, round_))
    stop = threading.Event()
    numbers = itertools.count(1_000_000, 2)

    def add(number: int) -> None:
        committer.add(encoded(f"g{number}", number))

    def add_until_stopped() -> None:
        while not stop.is_set():
            try:
                while not stop.is_set():
                    add(next(numbers))
            except Interruption:
                continue

    def interrupt(victim: threading.Thread) -> None:
        assert victim.ident is not None
        thread = ctypes.c_ulong(victim.ident)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(Interruption))

    victims: list[threading.Thread] = []
    excepthook, threading.excepthook = threading.excepthook, lambda _: None
    # That of pytest runs in the thread of a victim too, and fails the test if it is interrupted.
    monkeypatch.setattr("sys.unraisablehook", lambda _: None)
    try:
        with ThreadPoolExecutor(3) as pool:
            others = [
                pool.submit(outcomes, add, range(first, first + 2000))
                for first in (0, 10_000, 20_000)
            ]
            # On a machine with other load the others hardly get on meanwhile.
            end = time.monotonic() + 3
            while time.monotonic() < end and not all(other.done() for other in others):
                # An exception outside the `try` ends a victim; another one takes its place.
                victims = [each for each in victims if each.is_alive()]
                while len(victims) < 2:
                    victims.append(threading.Thread(target=add_until_stopped))
                    victims[-1].start()
                for victim in victims:
                    interrupt(victim)
                time.sleep(random.uniform(0, 0.002))
            stop.set()
    finally:
        stop.set()
        for victim in victims:
            victim.join(10)
        threading.excepthook = excepthook
    assert not any(victim.is_alive() for victim in victims)
    for other in others:
        assert other.result() == ["added", "full"] * 1000
    assert len(set(server.carried_out)) == len(server.carried_out)
    assert set(server.carried_out) >= {n + i for n in (0, 10_000, 20_000) for i in range(2000)}


def _interrupt(step: int, pool: ThreadPoolExecutor) -> str | None:
    server = Redis()
    committer = GroupCommitter(OPTIONS, lambda round_: Prepared(server, round_))

    def add(number: int) -> None:
        # Each task in a group of its own, so that it is accepted or refused by itself.
        committer.add(encoded(f"g{number}", number))

    started = threading.Barrier(4)

    def add_both(number: int) -> list[str]:
        started.wait(10)
        return outcomes(add, (number, number + 1))

    others = [pool.submit(add_both, number) for number in (10, 20, 30)]
    started.wait(10)
    where = interrupted_at(step, lambda: add(0), opcodes=True)
    for other in others:
        assert result(other, where) == ["added", "full"], where
    # Those that come later, in the thread that was interrupted and in others.
    assert result(pool.submit(outcomes, add, (40, 41)), where) == ["added", "full"]
    assert outcomes(add, (50, 51)) == ["added", "full"]
    carried_out = sorted(set(server.carried_out) - {0})
    assert carried_out == [10, 11, 20, 21, 30, 31, 40, 41, 50, 51], where
    assert len(set(server.carried_out)) == len(server.carried_out), where
    return where


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def outcomes(add: Callable[[int], object], numbers: Iterable[int]) -> list[str]:
    found = []
    for number in numbers:
        try:
            add(number)
            found.append("added")
        except AggregatorFull:
            found.append("full")
    return found


def result(future: Future[Any], where: str | None) -> Any:
    try:
        return future.result(10)
    except TimeoutError:
        raise AssertionError(f"an add hangs after an interruption at {where}") from None


class TimeLimit(Exception):
    """As that of Celery or rq."""


@pytest.mark.parametrize("raised", [TimeLimit, TimeoutError, lambda: OSError("time is up")])
def test_what_a_signal_handler_raises_is_told_from_an_error_of_redis(
    raised: Callable[[], Exception],
) -> None:
    def handle(*_: object) -> None:
        raise raised()

    def read() -> None:  # as redis-py does
        try:
            signal.raise_signal(signal.SIGALRM)
        except OSError as error:
            raise rx.ConnectionError(f"while reading: {error}") from error

    before = signal.signal(signal.SIGALRM, handle)
    try:
        with pytest.raises((TimeLimit, rx.ConnectionError)) as found:
            read()
        interruption = interruption_of(found.value)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert type(interruption) is type(raised())


@pytest.mark.parametrize(
    "error",
    [
        rx.ConnectionError("lost"),
        rx.RedisClusterException("no node"),
        TimeoutError("timed out"),
        AggregatorFull("full"),
    ],
)
def test_errors_of_redis_are_no_interruptions(error: Exception) -> None:
    assert interruption_of(error) is None


def test_an_interruption_is_not_retried() -> None:
    retry = _NO_INTERRUPTION["retry"]
    for error, expected in ((rx.ConnectionError("lost"), True), (TimeoutError(), False)):
        state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
        state.set_exception((type(error), error, None))
        assert retry(state) is expected
