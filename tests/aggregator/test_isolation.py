"""Batches that are split until the tasks that fail are alone: `isolate_failures`."""

from __future__ import annotations

import math
import threading
from collections.abc import Collection
from typing import Any

import pytest
import redis

from redisagg import RetryAfter, Task, Unrecoverable
from redisagg.sinks import CallableSink
from tests.support.aggregators import Make
from tests.support.servers import wait_until
from tests.support.tasks import await_dead, enqueued, numbered, payloads


class Insert:
    """A merge function that fails if a bad payload is among its tasks, and does not say which."""

    def __init__(self, bad: Collection[int], error: type[Exception] = ValueError) -> None:
        self.bad = set(bad)
        self.error = error
        self.calls: list[list[int]] = []
        self._lock = threading.Lock()

    def __call__(self, group: str, tasks: list[Task]) -> Task:
        numbers = [task.payload for task in tasks]
        with self._lock:
            self.calls.append(numbers)
        if self.bad & set(numbers):
            raise self.error("constraint violated")
        return Task("inserted", {"group": group, "count": len(tasks), "payloads": numbers})


@pytest.mark.parametrize("bad", [0, 37, 63, 99])
def test_one_bad_task_is_found_within_few_merges(make_both: Make, bad: int) -> None:
    count, insert = 100, Insert([bad])
    with make_both(
        group_aggregator=insert, isolate_failures=True, group_max_size=count, max_attempts=1
    ) as agg:
        agg.add_tasks(numbered("a", count))
        [letter] = await_dead(agg)
        assert agg.wait_until_idle(20)
        done, stats = payloads(enqueued(agg)), agg.stats()
    assert [each.task.payload for each in letter.tasks or () if each.task] == [bad]
    assert (letter.size, letter.error) == (1, "ValueError: constraint violated")
    assert done == [n for n in range(count) if n != bad]  # in order
    assert len(insert.calls) - 1 <= 2 * math.ceil(math.log2(count))
    assert (stats.flushed, stats.dead, stats.stored_bytes, stats.groups) == (99, 1, 0, 0)


@pytest.mark.parametrize("error", [ValueError, Unrecoverable])
def test_several_bad_tasks_and_batches_behind_them(make: Make, error: type[Exception]) -> None:
    bad = [3, 4, 21, 55, 199]
    insert = Insert(bad, error)
    with make(group_aggregator=insert, isolate_failures=True, group_max_size=50) as agg:
        agg.add_tasks(numbered("a", 200))
        letters = await_dead(agg, len(bad), timeout=30)
        agg.flush("a")
        assert agg.wait_until_idle(30)
        done, stats = payloads(enqueued(agg)), agg.stats()
    dead = [each.task.payload for letter in letters for each in letter.tasks or () if each.task]
    assert sorted(dead) == bad
    assert done == [n for n in range(200) if n not in bad]
    assert (stats.flushed, stats.dead, stats.stored_bytes) == (195, 5, 0)


def test_a_large_batch_is_split_too(make: Make) -> None:
    """One that is read in slices."""
    count = 5_000
    insert = Insert([4_321])
    with make(
        group_aggregator=insert, isolate_failures=True, group_max_size=count, dedupe_window=60
    ) as agg:
        agg.add_tasks(numbered("a", count))
        [letter] = await_dead(agg, timeout=30)
        assert agg.wait_until_idle(30)
        done, stats = payloads(enqueued(agg)), agg.stats()
    assert [each.task.payload for each in letter.tasks or () if each.task] == [4_321]
    assert done == [n for n in range(count) if n != 4_321]
    assert (stats.flushed, stats.dead, stats.stored_bytes, stats.groups) == (4_999, 1, 0, 0)


def test_the_bad_task_can_be_requeued(make: Make) -> None:
    insert = Insert([1])
    with make(group_aggregator=insert, isolate_failures=True, group_max_size=4) as agg:
        agg.add_tasks(numbered("a", 4))
        [letter] = await_dead(agg)
        insert.bad.clear()
        assert agg.requeue_dead_letter(letter.batch_id) == 1
        assert agg.wait_until_idle(10)
        assert sorted(payloads(enqueued(agg))) == [0, 1, 2, 3]


def test_what_is_tried_again_later_is_not_split(make: Make) -> None:
    insert = Insert([1])
    insert.error = lambda text: RetryAfter(0.05, reason=text)  # type: ignore[assignment]
    with make(group_aggregator=insert, isolate_failures=True, group_max_size=4) as agg:
        agg.add_tasks(numbered("a", 4))
        wait_until(lambda: len(insert.calls) > 5, what="it is tried again")
        insert.bad.clear()
        assert agg.wait_until_idle(10)
    assert all(len(call) == 4 for call in insert.calls)


def test_a_failure_of_the_sink_splits_nothing(make: Make) -> None:
    def sink(task: Task, batch_id: str) -> None:
        raise ConnectionError("away")

    insert = Insert([])
    with make(
        sink=CallableSink(sink), group_aggregator=insert, isolate_failures=True, group_max_size=4
    ) as agg:
        agg.add_tasks(numbered("a", 4))
        [letter] = await_dead(agg)
    assert (letter.size, letter.attempts, len(insert.calls)) == (4, 3, 1)


def test_without_the_setting_nothing_is_split(make: Make, sync_redis: redis.Redis) -> None:
    insert: Any = Insert([1])
    with make(group_aggregator=insert, group_max_size=4) as agg:
        agg.add_tasks(numbered("a", 4))
        [letter] = await_dead(agg)
    assert (letter.size, letter.attempts, len(insert.calls)) == (4, 3, 3)
