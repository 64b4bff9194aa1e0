"""Calls of user code: what they raise, their time limit, and the bound on those that hang."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import threading
from collections.abc import Callable, Iterator

import pytest

from redisagg.errors import SinkError, SinkTimeout
from redisagg.sinks.limited_calls import (
    AwaitedCalls,
    Ended,
    ThreadedCalls,
    begins_of_delivery,
    value_of,
)
from tests.support.servers import wait_until


@pytest.fixture
def end() -> Iterator[threading.Event]:
    """An event on which calls hang until the test is over."""
    event = threading.Event()
    yield event
    event.set()


def raise_(error: BaseException) -> None:
    raise error


async def raise_later(error: BaseException) -> None:
    raise error


ERRORS = [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit()]


@pytest.mark.parametrize("error", [*ERRORS, StopIteration(), ValueError()], ids=repr)
def test_what_a_thread_raises_is_handed_over(error: BaseException) -> None:
    ended = asyncio.run(ThreadedCalls("f", 1).run(raise_, error, timeout=5))
    assert ended == Ended(error=error)


@pytest.mark.parametrize("error", [*ERRORS, ValueError()], ids=repr)
def test_what_a_coroutine_raises_is_handed_over(error: BaseException) -> None:
    ended = asyncio.run(AwaitedCalls("f").run(raise_later, error, timeout=5))
    assert ended == Ended(error=error)


def test_only_exceptions_of_a_sink_are_raised_as_they_are() -> None:
    assert value_of(Ended(3), "f", 1) == 3
    with pytest.raises(ValueError, match="no"):
        value_of(Ended(error=ValueError("no")), "f", 1)
    for error in (*ERRORS, StopIteration()):
        with pytest.raises(SinkError, match=f"f raised {type(error).__name__}"):
            value_of(Ended(error=error), "f", 1)
    with pytest.raises(SinkTimeout, match=r"\(1\.5 s\)"):
        value_of(None, "f", 1.5)


async def test_when_all_threads_hang_a_call_is_refused_at_once(end: threading.Event) -> None:
    calls = ThreadedCalls("f", 2)
    hanging = [asyncio.ensure_future(calls.run(end.wait, timeout=0.1)) for _ in range(2)]
    waiting = asyncio.ensure_future(calls.run(int, timeout=0.1))  # for a thread
    assert await asyncio.gather(*hanging) == [None, None]
    with pytest.raises(SinkTimeout, match="2 calls of f hang"):
        await asyncio.wait_for(waiting, 5)
    with pytest.raises(SinkTimeout, match="2 calls of f hang"):
        await asyncio.wait_for(calls.run(int, timeout=0.1), 5)
    assert calls.hung == 2
    end.set()
    await asyncio.to_thread(wait_until, lambda: calls.hung == 0, what="both have ended")
    assert await calls.run(int, timeout=5) == Ended(0)


async def test_a_cancelled_caller_gives_its_place_to_the_next(end: threading.Event) -> None:
    calls = ThreadedCalls("f", 1)
    running = asyncio.ensure_future(calls.run(end.wait, timeout=5))
    await asyncio.sleep(0)
    cancelled, other = (asyncio.ensure_future(calls.run(int, timeout=5)) for _ in range(2))
    await asyncio.sleep(0)
    cancelled.cancel()
    end.set()
    assert await running == Ended(True)
    assert await asyncio.wait_for(other, 5) == Ended(0)


async def test_coroutines_that_ignore_their_cancellation_are_bounded() -> None:
    over = asyncio.Event()

    async def stubborn() -> None:
        while not over.is_set():
            try:
                await over.wait()
            except asyncio.CancelledError:
                continue

    calls = AwaitedCalls("f", most_hung=2)
    assert [await calls.run(stubborn, timeout=0.05) for _ in range(2)] == [None, None]
    with pytest.raises(SinkTimeout, match="2 calls of f hang"):
        await calls.run(stubborn, timeout=0.05)
    over.set()
    await asyncio.to_thread(wait_until, lambda: not calls.full, what="both have ended")


async def test_coroutines_of_a_loop_that_was_closed_do_not_count(end: threading.Event) -> None:
    calls = AwaitedCalls("it", most_hung=1)

    async def ignores() -> None:
        while not end.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    def on_another_loop() -> None:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(calls.run(ignores, timeout=0.01))
        assert calls.full
        loop.close()

    await asyncio.to_thread(on_another_loop)
    assert not calls.full


def test_a_forked_child_has_threads_of_its_own() -> None:
    """Its parent's threads, idle or not, do not exist in it."""
    calls = ThreadedCalls("it", limit=1)
    assert asyncio.run(calls.run(lambda: 1, timeout=5)) == Ended(1)
    child = os.fork()
    if child == 0:
        ended = asyncio.run(calls.run(lambda: 2, timeout=5))
        os._exit(0 if ended == Ended(2) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_pickled_copy_starts_anew() -> None:
    for calls in (ThreadedCalls("f", 2), AwaitedCalls("f")):
        assert pickle.loads(pickle.dumps(calls)).hung == 0


def test_a_call_that_waits_for_a_thread_begins_later(end: threading.Event) -> None:
    """So a permit for it counts from then on, and one that ends meanwhile is not used."""
    began: list[str] = []

    def refuse() -> None:
        raise ValueError("too late")

    async def call(calls: ThreadedCalls, name: str, begins: Callable[[], None]) -> Ended | None:
        begins_of_delivery.set(begins)
        return await calls.run(began.append, name, timeout=5)

    async def test() -> None:
        calls = ThreadedCalls("f", 1)
        first = asyncio.create_task(calls.run(end.wait, timeout=30))
        await asyncio.sleep(0.01)
        late = asyncio.create_task(call(calls, "late", refuse))
        second = asyncio.create_task(call(calls, "second", lambda: began.append("begins")))
        await asyncio.sleep(0.01)
        assert began == []
        end.set()
        await asyncio.gather(first, second)
        with pytest.raises(ValueError, match="too late"):
            await late
        assert began == ["begins", "second"]

    asyncio.run(asyncio.wait_for(test(), 10))
