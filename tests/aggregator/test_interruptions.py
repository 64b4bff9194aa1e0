"""Callers that are interrupted by exceptions of signal handlers, with a real Redis."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from redisagg import Aggregator, Task
from tests.support.aggregators import Make
from tests.support.interrupting import interrupted_at
from tests.support.servers import wait_until


def ids_in(agg: Aggregator, group: str) -> list[str]:
    state = agg.get_group(group, limit=100_000)
    assert state is not None
    assert state.tasks is not None
    return [stored.task.id for stored in state.tasks if stored.task]


@pytest.mark.parametrize("how", ["add_task", "add_tasks"])
def test_an_interruption_at_any_line_leaves_connections_and_calls_whole(
    make: Make, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("redisagg.producer.threads._PATIENCE", 15)
    agg = make(partitions=1, group_max_size=1_000_000)
    agg.add_task(Task("t", 0, "a", id="before"))
    acknowledged = ["before"]
    maybe: set[str] = set()
    step = 0

    def add(name: str) -> None:
        task = Task("t", 0, "a", id=name)
        acknowledged.append(agg.add_task(task) if how == "add_task" else agg.add_tasks([task])[0])

    with ThreadPoolExecutor(1) as pool:
        while True:
            other = pool.submit(add, f"other-{step}")
            maybe.add(f"main-{step}")
            where = interrupted_at(step, lambda: add(f"main-{step}"), opcodes=False)  # noqa: B023
            other.result(10)
            add(f"later-{step}")
            if where is None:
                break
            step += 1
    assert step > 100
    found = ids_in(agg, "a")
    assert len(set(found)) == len(found)
    assert set(acknowledged) - set(found) == set()
    assert set(found) - set(acknowledged) <= maybe


class TimeLimit(Exception):
    """As that of Celery or rq."""


@pytest.fixture
def on_alarm() -> Iterator[Callable[[type[Exception]], None]]:
    """Sets the exception that SIGALRM raises in the main thread."""

    def set_raised(raised: type[Exception]) -> None:
        def handle(*_: Any) -> None:
            raise raised("time is up")

        signal.signal(signal.SIGALRM, handle)

    before = signal.getsignal(signal.SIGALRM)
    yield set_raised
    signal.signal(signal.SIGALRM, before)


def send_alarm_when_main_thread_reads() -> None:
    """Sends SIGALRM when the main thread waits for a reply.

    Not at any moment: while redis-py takes a connection from its pool it ignores each `OSError`.
    """
    main = threading.main_thread().ident
    assert main is not None

    def reads() -> bool:
        frames = traceback.walk_stack(sys._current_frames()[main])
        names = [frame.f_code.co_name for frame, _ in frames]
        return "read_from_socket" in names[0] and "read_response" in names

    wait_until(reads, what="the main thread waits for a reply")
    signal.pthread_kill(main, signal.SIGALRM)


@pytest.mark.parametrize("raised", [TimeLimit, TimeoutError, ConnectionResetError])
@pytest.mark.parametrize("how", ["add_task", "add_tasks", "stats"])
def test_what_a_handler_raises_reaches_the_caller(
    make: Make,
    sync_redis: redis.Redis,
    on_alarm: Callable[[type[Exception]], None],
    raised: type[Exception],
    how: str,
) -> None:
    agg = make(partitions=1, add_timeout=20)
    agg.add_task(Task("t", 0, "a"))
    on_alarm(raised)
    calls: dict[str, Callable[[], object]] = {
        "add_task": lambda: agg.add_task(Task("t", 1, "a")),
        "add_tasks": lambda: agg.add_tasks([Task("t", 1, "a")]),
        "stats": agg.stats,
    }
    sync_redis.client_pause(20_000, all=False)  # milliseconds; holds all scripts back
    with ThreadPoolExecutor(1) as pool:
        alarm = pool.submit(send_alarm_when_main_thread_reads)
        with pytest.raises(raised, match=r"^time is up$"):
            calls[how]()
        alarm.result(10)
    sync_redis.client_unpause()
    agg.add_task(Task("t", 2, "a"))
    assert agg.stats().pending in (2, 3)
