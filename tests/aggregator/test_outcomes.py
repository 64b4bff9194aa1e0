"""Failures that say more: `Unrecoverable`, `RetryAfter` and `Unavailable`."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from redisagg import RetryAfter, Task, Unavailable, Unrecoverable
from redisagg.sinks import CallableSink
from tests.support.aggregators import Make
from tests.support.servers import wait_until
from tests.support.tasks import await_dead, enqueued, numbered

EXECUTORS = ("thread", "process", "loop")


def refuse(group: str, tasks: list[Task]) -> None:
    raise Unrecoverable("no such tenant")


async def refuse_later(group: str, tasks: list[Task]) -> None:
    raise Unrecoverable("no such tenant")


class Raising:
    """A merge function or sink that raises what `error` returns, if it returns something."""

    def __init__(self, error: Callable[[], Exception | None]) -> None:
        self.error = error
        self.times: list[float] = []
        self.calls = Counter[str]()
        self._lock = threading.Lock()

    def __call__(self, group: str, tasks: list[Task]) -> Task:
        self._call(group)
        return Task("merged", [task.payload for task in tasks])

    def sink(self, task: Task, batch_id: str) -> None:
        self._call(str(task.group_key))

    def _call(self, group: str) -> None:
        with self._lock:
            self.times.append(time.monotonic())
            self.calls[group] += 1
            error = self.error()
        if error is not None:
            raise error


def first(count: int, error: Callable[[], Exception]) -> Raising:
    """One that raises in its first calls."""
    raising = Raising(lambda: error() if len(raising.times) <= count else None)
    return raising


@pytest.mark.parametrize("executor", EXECUTORS)
def test_an_unrecoverable_merge_is_a_dead_letter_at_once(make: Make, executor: str) -> None:
    function: Any = refuse_later if executor == "loop" else refuse
    kind = "process" if executor == "process" else "thread"
    with make(group_aggregator=function, executor=kind, group_max_size=2, retry_delay=60) as agg:
        agg.add_tasks(numbered("a", 2))
        [letter] = await_dead(agg, timeout=30)
    assert letter.attempts == 1
    assert letter.error == "Unrecoverable: no such tenant"


def test_an_unrecoverable_delivery_says_nothing_about_the_sink(make: Make) -> None:
    raising = Raising(lambda: Unrecoverable("refused for good"))
    sink = CallableSink(raising.sink)
    with make(sink=sink, group_max_size=1, retry_delay=60, retry_max_delay=60) as agg:
        agg.add_tasks(Task("test", n, f"group {n}") for n in range(12))
        letters = await_dead(agg, 12)
    assert {letter.attempts for letter in letters} == {1}
    assert len(raising.times) == 12


def test_retry_after_is_not_counted_and_keeps_its_time(make: Make) -> None:
    merge = first(4, lambda: RetryAfter(0.3))
    with make(group_aggregator=merge, group_max_size=1, max_attempts=1) as agg:
        agg.add_tasks(numbered("a", 2))
        wait_until(lambda: len(enqueued(agg)) == 2, what="both batches arrived")
        assert agg.stats().batches_dead == 0
        assert [batch.payload for batch in enqueued(agg)] == [[0], [1]]
    assert merge.times[-1] - merge.times[0] >= 0.3


def test_retry_after_shows_its_reason(make: Make) -> None:
    merge = Raising(lambda: RetryAfter(60, reason="the shop is shut"))
    with make(group_aggregator=merge, group_max_size=1) as agg:
        agg.add_tasks(numbered("a", 1))
        wait_until(lambda: agg.stats().batches_in_retry == 1, what="the batch waits")
        [batch] = agg.get_batches()
    assert batch.error == "RetryAfter: the shop is shut"
    assert batch.attempts == 0


@pytest.mark.parametrize("where", ["merge", "sink"])
def test_retry_after_of_the_aggregator_stops_calls_for_all_groups(make: Make, where: str) -> None:
    raising = first(1, lambda: RetryAfter(0.8, "aggregator"))
    merged = where == "merge"
    config: dict[str, Any] = {"group_aggregator": raising} if merged else {}
    sink = CallableSink(lambda task, batch_id: None) if merged else CallableSink(raising.sink)
    with make(sink=sink, group_max_size=1, max_attempts=1, partitions=1, **config) as agg:
        agg.add_tasks(numbered("a", 1))
        wait_until(lambda: len(raising.times) == 1, what="the first call")
        agg.add_tasks(Task("test", n, f"group {n}") for n in range(20))
        assert agg.wait_until_idle(20)
        assert agg.stats().batches_dead == 0
    assert len(raising.times) == 22
    assert raising.times[1] - raising.times[0] >= 0.8


@pytest.mark.parametrize("where", ["merge", "sink"])
def test_what_is_unavailable_costs_no_attempt_and_is_left_alone(make: Make, where: str) -> None:
    away = True
    raising = Raising(lambda: Unavailable("connection refused") if away else None)
    merged = where == "merge"
    config: dict[str, Any] = {"group_aggregator": raising} if merged else {}
    sink = CallableSink(lambda task, batch_id: None) if merged else CallableSink(raising.sink)
    with make(
        **config,
        sink=sink,
        group_max_size=1,
        max_attempts=1,
        retry_delay=0.4,
        retry_max_delay=0.4,
        concurrency=2,
    ) as agg:
        agg.add_tasks(Task("test", n, f"group {n}") for n in range(200))
        wait_until(lambda: len(raising.times) >= 5, what="five batches failed")
        time.sleep(1.5)  # the breaker lets 8 batches through each 0.4 s, of 200 that wait
        assert len(raising.times) < 300
        away = False
        assert agg.wait_until_idle(20)
        stats = agg.stats()
    assert stats.batches_dead == 0
    assert stats.flushed == 200


def test_one_batch_that_calls_the_provider_away_holds_back_no_other(make: Make) -> None:
    def merge(group: str, tasks: list[Task]) -> Task:
        if group == "bad":
            raise Unavailable("for this one only")
        return Task("merged", [task.payload for task in tasks])

    with make(group_aggregator=merge, group_max_size=1, max_attempts=1) as agg:
        agg.add_tasks(numbered("bad", 1))
        wait_until(lambda: agg.stats().batches_in_retry == 1, what="the bad batch waits")
        agg.add_tasks(Task("test", n, f"group {n}") for n in range(50))
        wait_until(lambda: len(enqueued(agg)) == 50, what="the others arrived")
        assert agg.stats().batches_dead == 0
