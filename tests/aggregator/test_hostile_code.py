"""Merge functions and sinks that raise anything or hang: the flusher goes on and can be stopped."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from redisagg import Aggregator, AsyncAggregator, RetryAfter, Task
from redisagg.errors import FlusherFailed, InvalidConfig, RedisUnavailable
from redisagg.sinks import BlockingSink, CallableSink, DeliverySink, MergedTask
from tests.support.aggregators import Make
from tests.support.proxy import Proxy
from tests.support.servers import wait_until
from tests.support.tasks import await_batches, await_dead, await_led, quick_config


class Mute(Exception):
    """An error whose text can't be read."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class NoError(RetryAfter):
    """One of which nothing can be read, not even whether it is one."""

    def __init__(self) -> None:
        pass

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"NoError has no {name}")

    def __str__(self) -> str:
        raise RuntimeError("no text")


KINDS: dict[str, Callable[[], BaseException]] = {
    "NoError": NoError,
    # Python can't format its traceback.
    "SyntaxError": lambda: SyntaxError("odd", ("file", 1, 1, 5)),  # type: ignore[arg-type]
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "CancelledError": asyncio.CancelledError,
    "StopIteration": StopIteration,
    "GeneratorExit": GeneratorExit,
    "Mute": Mute,
}


def merge(group: str, tasks: list[Task]) -> Task:
    if tasks[0].payload in KINDS:
        raise KINDS[tasks[0].payload]()
    return Task("merged", tasks[0].payload)


async def merge_later(group: str, tasks: list[Task]) -> Task:
    await asyncio.sleep(0)
    return merge(group, tasks)


def merge_returning_coroutine(group: str, tasks: list[Task]) -> Any:
    return merge_later(group, tasks)


def first(group: str, tasks: list[Task]) -> Task:
    return tasks[0]


_delivered: list[Any] = []


def deliver(task: Task, batch_id: str) -> None:
    if task.payload in KINDS:
        raise KINDS[task.payload]()
    _delivered.append(task.payload)


async def deliver_later(task: Task, batch_id: str) -> None:
    await asyncio.sleep(0)
    deliver(task, batch_id)


def deliver_by_coroutine(task: Task, batch_id: str) -> Any:
    return deliver_later(task, batch_id)


class Blocking(BlockingSink):
    def deliver_blocking(self, merged: MergedTask) -> None:
        deliver(merged.task, merged.batch_id)


class Awaiting(DeliverySink):
    async def deliver(self, merged: MergedTask) -> None:
        await deliver_later(merged.task, merged.batch_id)


PLACES: dict[str, dict[str, Any]] = {
    "merge, thread": {"group_aggregator": merge},
    "merge, process": {"group_aggregator": merge, "executor": "process"},
    "merge, loop": {"group_aggregator": merge_later},
    "merge, thread, coroutine": {"group_aggregator": merge_returning_coroutine},
    "sink, function": {"group_aggregator": first, "sink": CallableSink(deliver)},
    "sink, coroutine function": {"group_aggregator": first, "sink": CallableSink(deliver_later)},
    "sink, coroutine": {"group_aggregator": first, "sink": CallableSink(deliver_by_coroutine)},
    "sink, blocking": {"group_aggregator": first, "sink": Blocking()},
    "sink, awaiting": {"group_aggregator": first, "sink": Awaiting()},
    "sink, process": {
        "group_aggregator": first,
        "executor": "process",
        "sink": CallableSink(deliver),
    },
}


CASES = [
    pytest.param(kind, place, id=f"{kind}-{place}")
    for place in PLACES
    for kind in KINDS
    # That sink is called by the same code as others; each case starts processes.
    if place != "sink, process" or kind in ("SystemExit", "CancelledError")
]


@pytest.mark.parametrize(("kind", "place"), CASES)
def test_whatever_is_raised_fails_that_batch_only(make: Make, place: str, kind: str) -> None:
    _delivered.clear()
    agg = make(partitions=1, group_max_size=1, max_attempts=2, shutdown_timeout=2, **PLACES[place])
    with agg:
        agg.add_task(Task("test", kind, "bad"))
        [letter] = await_dead(agg, timeout=20)
        agg.add_task(Task("test", "fine", "good"))
        assert agg.wait_until_idle(20)
        stats = agg.stats()
        assert agg.is_running
    assert (stats.flushed, stats.dead, letter.group_key) == (1, 1, "bad")
    assert kind in letter.error
    if "sink" in PLACES[place]:
        assert _delivered == ["fine"]


@pytest.mark.parametrize("place", ["merge, loop", "sink, coroutine function", "sink, awaiting"])
@pytest.mark.parametrize("kind", ["SystemExit", "KeyboardInterrupt"])
def test_an_exit_does_not_end_the_event_loop_of_the_user(
    redis_url: str, place: str, kind: str
) -> None:
    config = dict(PLACES[place])
    sink = config.pop("sink", None)

    async def main() -> tuple[int, int]:
        settings = quick_config(partitions=1, group_max_size=1, max_attempts=1, **config)
        async with AsyncAggregator("tests", redis_url, config=settings, sink=sink) as agg:
            await agg.add_task(Task("test", kind, "bad"))
            await agg.add_task(Task("test", "fine", "good"))
            assert await agg.wait_until_idle(10)
            stats = await agg.stats()
            return stats.flushed, stats.dead

    assert asyncio.run(main()) == (1, 1)


def test_an_exit_in_a_task_of_user_code_does_not_end_the_flusher(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    async def leave() -> None:
        sys.exit(4)

    async def starts_a_task(group: str, tasks: list[Task]) -> Task:
        if group == "bad":
            leaving = asyncio.ensure_future(leave())
            await asyncio.wait({leaving})
        return Task("merged", group)

    agg = make(group_aggregator=starts_a_task, group_max_size=1)
    with agg:
        agg.add_task(Task("test", 0, "bad"))
        await_batches(agg, 1)
        agg.add_task(Task("test", 0, "good"))
        await_batches(agg, 2)
        assert agg.is_running
    assert "the flusher goes on" in caplog.text
    assert "SystemExit: 4" in caplog.text


# --- the end of a flusher ----------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("a bug"), SystemExit(0)], ids=["Exception", "exit"])
def test_what_ends_a_flusher_is_logged_and_raised_by_run(
    make_both: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Any
) -> None:
    began = threading.Event()

    async def ends(*_: Any) -> None:
        began.set()
        await asyncio.sleep(0.05)
        raise error

    monkeypatch.setattr("redisagg.flusher.run.Flusher.run", ends)
    agg = make_both()
    if isinstance(error, ValueError) or isinstance(agg, Aggregator):
        # SystemExit(0), raised as it is, would end the process as if all was well.
        with pytest.raises(ValueError if isinstance(error, ValueError) else FlusherFailed):
            agg.run()
        assert "the flusher of 'tests' ended" in caplog.text
        assert "in ends" in caplog.text
        began.clear()
        agg.start()
        assert began.wait(5)
        wait_until(lambda: not agg.is_running, timeout=5, what="the flusher has ended")


def test_run_raises_when_its_flusher_is_cancelled(redis_url: str) -> None:
    """As frameworks do that cancel `asyncio.all_tasks()`."""

    async def main() -> None:
        agg = AsyncAggregator("tests", redis_url, config=quick_config())
        running = asyncio.create_task(agg.run())
        await asyncio.to_thread(wait_until, lambda: agg.is_running, what="it runs")
        for task in asyncio.all_tasks():
            if "flush_until" in repr(task):
                task.cancel()
        with pytest.raises(FlusherFailed, match="cancelled"):
            await running
        await agg.close()

    asyncio.run(main())


def test_run_that_is_cancelled_stops_its_flusher_first(make: Make, redis_url: str) -> None:
    other = make()

    async def main() -> None:
        agg = AsyncAggregator("tests", redis_url, config=quick_config())
        running = asyncio.create_task(agg.run())
        await asyncio.to_thread(await_led, other)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert not agg.is_running
        assert not (await agg.stats()).flushers  # it has left
        await agg.close()

    asyncio.run(main())


def test_is_running_follows_start_and_stop(make_both: Make) -> None:
    agg = make_both()
    assert not agg.is_running
    agg.start()
    assert agg.is_running
    agg.stop()
    assert not agg.is_running


def test_run_outside_the_main_thread_ends_by_stop(make_both: Make) -> None:
    agg = make_both(group_max_size=1)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            agg.run()
        except BaseException as error:
            errors.append(error)

    running = threading.Thread(target=run)
    running.start()
    wait_until(lambda: agg.is_running, timeout=5, what="it runs")
    with pytest.raises(FlusherFailed, match="runs already"):
        agg.run()
    agg.add_task(Task("test", 0, "a"))
    await_batches(agg, 1)
    agg.stop()
    running.join(5)
    assert not running.is_alive()
    assert not errors
    assert not agg.is_running


def test_a_second_event_loop_in_a_thread_is_refused(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As gevent does it: a thread is a greenlet of a thread that runs a loop already."""
    monkeypatch.setattr("redisagg.flusher.run.asyncio.get_running_loop", lambda: object())
    agg = make()
    with pytest.raises(FlusherFailed, match="gevent"):
        agg.start()
    assert not agg.is_running


def test_a_flusher_without_a_thread_is_an_error(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    agg = make()
    agg.stats()
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(FlusherFailed, match="can't start new thread"):
        agg.start()


# --- calls that hang -----------------------------------------------------------------------------


@pytest.fixture
def end() -> Any:
    """An event on which calls hang until the test is over."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("kind", ["function", "coroutine", "blocking", "awaiting", "open"])
def test_a_delivery_that_hangs_fails_after_the_timeout_of_its_sink(
    make: Make, end: threading.Event, kind: str
) -> None:
    got: list[str] = []

    def hang(task: Task, batch_id: str) -> None:
        if task.payload == "hang":
            end.wait(30)
        got.append(batch_id)

    async def hang_later(task: Task, batch_id: str) -> None:
        if task.payload == "hang":
            await asyncio.Event().wait()
        got.append(batch_id)

    class Blocks(BlockingSink):
        timeout = 0.2

        def deliver_blocking(self, merged: MergedTask) -> None:
            hang(merged.task, merged.batch_id)

    class Awaits(DeliverySink):
        timeout = 0.2

        async def deliver(self, merged: MergedTask) -> None:
            await hang_later(merged.task, merged.batch_id)

    class Opens(Awaits):
        async def open(self, context: Any) -> None:
            await asyncio.Event().wait()

    fine = CallableSink(hang)
    sinks: dict[str, Any] = {
        "function": CallableSink(hang, timeout=0.2),
        "coroutine": CallableSink(hang_later, timeout=0.2),
        "blocking": Blocks(),
        "awaiting": Awaits(),
        "open": Opens(),
    }
    agg = make(
        partitions=1,
        group_max_size=1,
        max_attempts=2,
        group_aggregator=first,
        sink=lambda task: sinks[kind] if task.payload == "hang" else fine,
    )
    with agg:
        agg.add_task(Task("test", "hang", "bad"))
        agg.add_task(Task("test", "fine", "good"))
        [letter] = await_dead(agg)
        wait_until(lambda: len(got) == 1, what="the other group is delivered")
    assert "SinkTimeout" in letter.error
    assert "0.2 s" in letter.error


def test_calls_that_hang_are_bounded_and_stop_no_other_sink(
    make: Make, end: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    running = peak = 0
    lock = threading.Lock()
    got: list[str] = []

    def hang(task: Task, batch_id: str) -> None:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
        end.wait(30)
        with lock:
            running -= 1

    hanging = CallableSink(hang, timeout=0.1, concurrency=3)
    fine = CallableSink(lambda task, batch_id: got.append(batch_id))
    agg = make(
        group_max_size=1,
        max_attempts=4,
        group_aggregator=first,
        sink=lambda task: hanging if task.payload == "hang" else fine,
    )
    with agg:
        agg.add_tasks(Task("test", "hang", f"bad{n}") for n in range(20))
        wait_until(lambda: "3 of 3 hang" in caplog.text, timeout=10, what="all threads hang")
        agg.add_tasks(Task("test", "fine", f"good{n}") for n in range(20))
        wait_until(lambda: len(got) == 20, what="the other groups are delivered")
        errors = [batch.error for batch in agg.get_batches()]
        assert any("3 calls of the function of CallableSink hang" in error for error in errors)
        end.set()  # the sink works again
        assert agg.wait_until_idle(20)
    assert peak == 3


def test_a_wait_for_a_free_thread_is_no_timeout(make: Make) -> None:
    def slow(task: Task, batch_id: str) -> None:
        time.sleep(0.15)

    agg = make(
        group_max_size=1,
        max_attempts=1,
        group_aggregator=first,
        sink=CallableSink(slow, timeout=0.6, concurrency=1),
    )
    with agg:
        agg.add_tasks(Task("test", 0, f"g{n}") for n in range(12))
        assert agg.wait_until_idle(10)
        assert (agg.stats().dead, agg.stats().flushed) == (0, 12)


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_merges_that_hang_are_bounded_and_the_next_ones_fail_at_once(
    make: Make, end: threading.Event, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    began: list[str] = []

    def hang(group: str, tasks: list[Task]) -> Task:
        began.append(group)
        end.wait(30)
        return tasks[0]

    async def hang_later(group: str, tasks: list[Task]) -> Task:
        began.append(group)
        while not end.is_set():
            try:
                await asyncio.sleep(0.5)
            except asyncio.CancelledError:  # it ignores that it is cancelled
                continue
        return tasks[0]

    agg = make(
        partitions=1,
        group_max_size=1,
        concurrency=2,
        merge_timeout=0.1,
        max_attempts=100,
        shutdown_timeout=1,
        group_aggregator=hang if kind == "plain" else hang_later,
    )
    with agg:
        agg.add_tasks(Task("test", 0, f"g{n}") for n in range(30))

        def refused() -> list[str]:
            return [each.error for each in agg.get_batches() if "no further one" in each.error]

        wait_until(lambda: len(refused()) > 10, timeout=20, what="merges are refused")
        assert len(began) <= 3 * 2  # those that hang, and those that run
        assert "merges hang" in refused()[0]
        assert agg.stats().dead == 0  # no fault of these batches
        end.set()
        assert agg.wait_until_idle(20)
    assert "4 of 4" in caplog.text


class _Hangs(DeliverySink):
    """Ignores that it is cancelled, and can't be closed."""

    timeout = 60

    def __init__(self, end: threading.Event, begun: threading.Event) -> None:
        self._end, self._begun = end, begun

    async def deliver(self, merged: MergedTask) -> None:
        self._begun.set()
        await self.close()

    async def close(self) -> None:
        while not self._end.is_set():
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                continue


@pytest.mark.parametrize("kind", ["thread", "loop", "to_thread", "blocked loop", "sink", "close"])
def test_stop_ends_soon_after_shutdown_timeout(make: Make, end: threading.Event, kind: str) -> None:
    begun = threading.Event()

    def hang(*_: Any) -> Any:
        begun.set()
        end.wait(30)

    async def hang_later(*_: Any) -> Any:
        begun.set()
        await asyncio.Event().wait()

    async def hang_in_thread(*_: Any) -> Any:
        await asyncio.to_thread(hang)

    async def block(*_: Any) -> Any:
        hang()

    kinds: dict[str, dict[str, Any]] = {
        "thread": {"group_aggregator": hang},
        "loop": {"group_aggregator": hang_later},
        "to_thread": {"group_aggregator": hang_in_thread},
        "blocked loop": {"group_aggregator": block},
        "sink": {"sink": CallableSink(hang)},
        "close": {"sink": _Hangs(end, begun)},
    }
    agg = make(partitions=1, group_max_size=1, shutdown_timeout=0.5, **kinds[kind])
    agg.start()
    agg.add_task(Task("test", 0, "a"))
    assert begun.wait(10)
    began = time.monotonic()
    agg.stop()
    assert time.monotonic() - began < 0.5 + 2
    assert not agg.is_running


def test_an_async_stop_ends_soon_after_shutdown_timeout(
    redis_url: str, end: threading.Event
) -> None:
    begun = threading.Event()

    async def main() -> float:
        config = quick_config(partitions=1, group_max_size=1, shutdown_timeout=0.5)
        agg = AsyncAggregator("tests", redis_url, config=config, sink=_Hangs(end, begun))
        await agg.start()
        await agg.add_task(Task("test", 0, "a"))
        await asyncio.to_thread(begun.wait, 10)
        began = time.monotonic()
        await agg.stop()
        took = time.monotonic() - began
        end.set()
        await agg.close()
        return took

    assert asyncio.run(main()) < 0.5 + 2


@pytest.mark.parametrize("trouble", ["refused", "frozen"])
def test_a_stop_that_flushes_in_an_outage_stops(
    make_both: Make, proxy: Proxy, trouble: str
) -> None:
    agg = make_both(url=proxy.url, shutdown_timeout=0.5, add_timeout=9, group_max_size=1)
    agg.start()
    await_led(agg)
    if trouble == "refused":
        proxy.cut()
    else:
        proxy.stall()
    began = time.monotonic()
    with pytest.raises(RedisUnavailable):
        agg.stop(flush=True)
    assert time.monotonic() - began < 0.5 + 2
    assert not agg.is_running
    agg.stop()
    proxy.restore()


def test_a_flusher_thread_is_gone_after_a_stop_in_an_outage(make: Make, proxy: Proxy) -> None:
    agg = make(url=proxy.url, shutdown_timeout=0.5, add_timeout=1)
    agg.start()
    await_led(agg)
    proxy.cut()
    with pytest.raises(RedisUnavailable):
        agg.stop(flush=True)

    def flushers() -> list[str]:
        names = [thread.name for thread in threading.enumerate()]
        return [name for name in names if name.startswith("redisagg-flusher")]

    wait_until(lambda: not flushers(), timeout=2, what="its thread has ended")
    proxy.restore()


def test_arguments_of_callable_sinks_are_checked() -> None:
    for wrong in ({"timeout": 0}, {"timeout": "1"}, {"concurrency": 0}, {"concurrency": True}):
        with pytest.raises(InvalidConfig):
            CallableSink(print, **wrong)
