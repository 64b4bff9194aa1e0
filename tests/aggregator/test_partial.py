"""Batches of which some tasks fail alone: `Partial`."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any, cast

import pytest
import redis

from redisagg import Aggregator, BatchInfo, Partial, RateLimit, Task
from redisagg.sinks import CallableSink, ListSink, StreamSink
from tests.support.aggregators import Make
from tests.support.servers import wait_until
from tests.support.tasks import await_dead, enqueued, numbered


def only_even(group: str, tasks: list[Task]) -> Partial:
    """Merges the even payloads; the odd ones fail."""
    failed = {task.id: f"{task.payload} is odd" for task in tasks if task.payload % 2}
    good = [task.payload for task in tasks if task.payload % 2 == 0]
    return Partial(Task("even", good), failed)


async def only_even_later(group: str, tasks: list[Task]) -> Partial:
    return only_even(group, tasks)


def all_but_each_hundredth(group: str, tasks: list[Task]) -> Partial:
    good = [task for task in tasks if task.payload % 100]
    return Partial(good, {task.id: "bad" for task in tasks if task.payload % 100 == 0})


@pytest.mark.parametrize("sink", [StreamSink("q"), ListSink("q")], ids=["stream", "list"])
@pytest.mark.parametrize("function", [only_even, only_even_later])
@pytest.mark.parametrize("executor", ["thread", "process"])
def test_failed_tasks_become_dead_letters_of_their_own(
    make_both: Make, sink: Any, function: Any, executor: str
) -> None:
    if executor == "process" and function is only_even_later:
        pytest.skip("an async function runs on the loop")
    with make_both(
        sink=sink, group_aggregator=function, executor=executor, group_max_size=5
    ) as agg:
        agg.add_tasks(numbered("a", 10))
        assert agg.wait_until_idle(30)
        letters = agg.dead_letters(tasks=True)
        stats = agg.stats()
        batches = enqueued(agg)
    assert [batch.payload for batch in batches] == [[0, 2, 4], [6, 8]]
    assert [batch.count for batch in batches] == [3, 2]
    assert [letter.error for letter in letters] == [f"{n} is odd" for n in (1, 3, 5, 7, 9)]
    assert [each.task.payload for letter in letters for each in letter.tasks] == [1, 3, 5, 7, 9]  # type: ignore[union-attr]
    assert {letter.attempts for letter in letters} == {1}
    assert (stats.flushed, stats.dead, stats.pending, stats.in_flight) == (5, 5, 0, 0)
    assert (stats.stored_bytes, stats.groups) == (0, 0)


def test_a_failed_task_can_be_requeued(make_both: Make) -> None:
    fixed: list[int] = []

    def merge(group: str, tasks: list[Task]) -> Partial | Task:
        if fixed:
            return Task("even", [task.payload for task in tasks])
        return only_even(group, tasks)

    with make_both(group_aggregator=merge, group_max_size=4) as agg:
        agg.add_tasks(numbered("a", 4))
        letters = await_dead(agg, 2)
        fixed.append(1)
        assert [agg.requeue_dead_letter(letter.batch_id) for letter in letters] == [1, 1]
        assert agg.wait_until_idle(10)
        stats = agg.stats()
        payloads = sorted(n for batch in enqueued(agg) for n in batch.payload)
    assert payloads == [0, 1, 2, 3]
    assert (stats.flushed, stats.dead, stats.stored_bytes) == (4, 0, 0)


@pytest.mark.parametrize(
    ("returned", "error"),
    [
        (lambda tasks: Partial(None, {"nobody": "x"}), "that the batch does not have"),
        (lambda tasks: Partial(None, {t.id: ValueError("no") for t in tasks}), "ValueError: no"),
        (lambda tasks: Partial(None, cast(Any, [tasks[0].id])), "takes a mapping"),
        (lambda tasks: Partial(cast(Any, [1]), {tasks[0].id: "x"}), "returned int"),
    ],
)
def test_a_wrong_partial_fails_the_attempt(make_both: Make, returned: Any, error: str) -> None:
    with make_both(group_aggregator=lambda group, tasks: returned(tasks), group_max_size=3) as agg:
        agg.add_tasks(numbered("a", 3))
        [letter] = await_dead(agg)
    assert (letter.size, letter.attempts) == (3, 3)
    assert letter.error.startswith("MergeError: ")
    assert error in letter.error


def test_a_partial_without_failures_is_what_it_holds(make_both: Make) -> None:
    with make_both(
        group_aggregator=lambda group, tasks: Partial(Task("all", len(tasks))), group_max_size=3
    ) as agg:
        agg.add_tasks(numbered("a", 3))
        assert agg.wait_until_idle(10)
        [batch] = enqueued(agg)
        assert (batch.payload, agg.stats().dead) == (3, 0)


def test_failed_tasks_wait_for_the_sink_with_the_rest(make_both: Make) -> None:
    """While the sink fails nothing of the batch has left; the merge is not repeated."""
    merges, refused = [], [True]

    def merge(group: str, tasks: list[Task]) -> Partial:
        merges.append(group)
        return only_even(group, tasks)

    def sink(task: Task, batch_id: str) -> None:
        if refused:
            raise ConnectionError("away")

    with make_both(
        sink=CallableSink(sink), group_aggregator=merge, group_max_size=4, max_attempts=1000
    ) as agg:
        agg.add_tasks(numbered("a", 4))
        wait_until(lambda: agg.stats().batches_in_retry == 1, what="the sink fails")
        assert agg.stats().dead == 0
        refused.clear()
        assert agg.wait_until_idle(10)
        assert [letter.error for letter in agg.dead_letters()] == ["1 is odd", "3 is odd"]
        assert agg.stats().flushed == 2
    assert merges == ["a"]


def test_many_failures_of_a_large_batch(make_both: Make) -> None:
    """In slices: of the entries, and of the failed tasks."""
    count = 20_000
    with make_both(
        group_aggregator=all_but_each_hundredth, group_max_size=count, partitions=1
    ) as agg:
        agg.add_tasks(numbered("a", count + 10))
        agg.flush("a")
        wait_until(lambda: agg.stats().batches_in_flight == 0, timeout=100, what="all is done")
        assert agg.wait_until_idle(60)
        letters = agg.dead_letters(tasks=True)
        stats = agg.stats()
    payloads = [each.task.payload for letter in letters for each in letter.tasks]  # type: ignore[union-attr]
    assert sorted(payloads) == list(range(0, count + 10, 100))
    assert (stats.flushed, stats.dead) == (count + 10 - len(payloads), len(payloads))
    assert (stats.stored_bytes, stats.groups) == (0, 0)


def test_nothing_is_left_behind(make_both: Make, sync_redis: redis.Redis) -> None:
    with make_both(group_aggregator=only_even, group_max_size=4) as agg:
        agg.add_tasks(numbered("a", 4))
        for letter in await_dead(agg, 2):
            agg.drop_dead_letter(letter.batch_id)
        assert agg.wait_until_idle(10)
    keys: Any = sync_redis.keys("redisagg:{tests:*")
    assert all(key.endswith(b":state") for key in keys)


# --- from a sink ---------------------------------------------------------------------------------


def merge_with_ids(group: str, tasks: list[Task]) -> Task:
    return Task("merged", [(task.id, task.payload) for task in tasks])


class Inserting:
    """A sink that refuses odd payloads, after its first calls have failed."""

    def __init__(self, failing: int = 0) -> None:
        self.left = failing
        self.rows: list[int] = []

    def __call__(self, task: Task, batch_id: str) -> Partial:
        if self.left > 0:
            self.left -= 1
            raise ConnectionError("away")
        self.rows += [n for _, n in task.payload if n % 2 == 0]
        return Partial(failed={task_id: f"{n} is odd" for task_id, n in task.payload if n % 2})

    async def later(self, task: Task, batch_id: str) -> Partial:
        return self(task, batch_id)


@pytest.mark.parametrize("failing", [0, 2])
@pytest.mark.parametrize("later", [False, True])
def test_a_sink_may_fail_tasks_alone(make_both: Make, failing: int, later: bool) -> None:
    """Also in a later attempt, which has the merge result and not the tasks."""
    insert = Inserting(failing)
    sink = CallableSink(insert.later if later else insert)
    with make_both(
        sink=sink, group_aggregator=merge_with_ids, group_max_size=5, max_attempts=5
    ) as agg:
        agg.add_tasks(numbered("a", 10))
        assert agg.wait_until_idle(20)
        letters, stats = agg.dead_letters(tasks=True), agg.stats()
    assert insert.rows == [0, 2, 4, 6, 8]
    assert [letter.error for letter in letters] == [f"{n} is odd" for n in (1, 3, 5, 7, 9)]
    assert (stats.flushed, stats.dead, stats.stored_bytes) == (5, 5, 0)


def test_a_sink_that_fails_tasks_of_a_large_batch(make: Make) -> None:
    insert = Inserting(1)
    with make(
        sink=CallableSink(insert), group_aggregator=merge_with_ids, group_max_size=3000
    ) as agg:
        agg.add_tasks(numbered("a", 3000))
        assert agg.wait_until_idle(60)
        stats = agg.stats()
    assert insert.rows == list(range(0, 3000, 2))
    assert (stats.flushed, stats.dead, stats.stored_bytes) == (1500, 1500, 0)


@pytest.mark.parametrize(
    ("failed", "error"),
    [
        (lambda ids: {"nobody": "x"}, "that the batch does not have"),
        (lambda ids: dict.fromkeys(ids, "no"), "all tasks failed"),
    ],
)
def test_a_wrong_partial_of_a_sink_fails_the_attempt(make: Make, failed: Any, error: str) -> None:
    def sink(task: Task, batch_id: str) -> Partial:
        return Partial(failed=failed([task_id for task_id, _ in task.payload]))

    with make(sink=CallableSink(sink), group_aggregator=merge_with_ids, group_max_size=3) as agg:
        agg.add_tasks(numbered("a", 3))
        [letter] = await_dead(agg)
    assert (letter.size, letter.attempts) == (3, 3)
    assert error in letter.error


# --- tasks that are tried again ------------------------------------------------------------------


class Flaky:
    """Merges even payloads; the odd ones fail until they have failed often enough.

    Args:
        times: how often each odd payload fails.
    """

    def __init__(self, times: int) -> None:
        self.times = times
        self.failures: Counter[int] = Counter()
        self.merges: list[tuple[str, int, list[int]]] = []
        self.ids: list[str] = []

    def __call__(self, group: str, tasks: list[Task], info: BatchInfo) -> Partial:
        payloads = [task.payload for task in tasks]
        self.merges.append((group, info.attempt, payloads))
        self.ids.append(info.batch_id)
        assert info.group_key == group
        failed = {t.id: "odd" for t in tasks if t.payload % 2 and self.left(t.payload)}
        self.failures.update(t.payload for t in tasks if t.id in failed)
        if failed and len(failed) == len(tasks):
            raise ValueError("all are odd")
        return Partial(Task("done", [t.payload for t in tasks if t.id not in failed]), failed)

    def left(self, payload: int) -> bool:
        return self.failures[payload] < self.times


def done(agg: Aggregator) -> list[int]:
    return sorted(n for batch in enqueued(agg) for n in batch.payload)


@pytest.mark.parametrize("sink", [StreamSink("q"), ListSink("q")], ids=["stream", "list"])
def test_failed_tasks_are_tried_again_in_a_batch_of_their_own(
    make_both: Make, sink: Any, caplog: pytest.LogCaptureFixture
) -> None:
    merge = Flaky(2)
    with make_both(
        sink=sink, group_aggregator=merge, group_max_size=6, on_task_failure="retry"
    ) as agg:
        agg.add_tasks(numbered("a", 6))
        assert agg.wait_until_idle(20)
        stats, batches = agg.stats(), enqueued(agg)
    assert [batch.payload for batch in batches] == [[0, 2, 4], [1, 3, 5]]
    assert merge.merges == [
        ("a", 1, [0, 1, 2, 3, 4, 5]),
        ("a", 2, [1, 3, 5]),
        ("a", 3, [1, 3, 5]),
    ]
    assert {batch.group for batch in batches} == {"a"}
    assert merge.ids[1:] == [f"{merge.ids[0]}-failed-1-1"] * 2
    assert caplog.text.count(" of group 'a' failed") == 2
    assert (stats.flushed, stats.dead, stats.stored_bytes, stats.groups) == (6, 0, 0, 0)
    assert stats.in_flight == stats.batches_in_flight == 0


@pytest.mark.parametrize("all_fail", [False, True])
def test_tasks_that_go_on_failing_are_dead_letters(make_both: Make, all_fail: bool) -> None:
    """Those that fail with others in a batch are one, those that fail alone one each."""
    merge = Flaky(9)
    good = 5 if all_fail else 3  # a payload that fails twice and then succeeds with its batch

    def left(payload: int) -> bool:
        return merge.failures[payload] < (2 if payload == good else 9)

    merge.left = left  # type: ignore[method-assign]
    with make_both(group_aggregator=merge, group_max_size=4, on_task_failure="retry") as agg:
        agg.add_tasks(numbered("a", 4))
        assert agg.wait_until_idle(20)
        letters = agg.dead_letters(tasks=True, group_key="a")
        stats = agg.stats()
        assert done(agg) == ([0, 2] if all_fail else [0, 2, 3])
        dead = [[t.task.payload for t in each.tasks or () if t.task] for each in letters]
        assert sorted(map(sorted, dead)) == ([[1, 3]] if all_fail else [[1]])
        assert {letter.attempts for letter in letters} == {3}
        assert {letter.group_key for letter in letters} == {"a"}
        assert (stats.dead, stats.stored_bytes, stats.groups) == (len(dead[0]), 0, 0)
        # A failure of the whole batch does not count for the tasks that fail alone later.
        attempts = [attempt for _, attempt, _ in merge.merges]
        assert attempts == ([1, 2, 3] if all_fail else [1, 2, 3, 3])
        merge.times = 0
        del merge.left
        for letter in letters:
            agg.requeue_dead_letter(letter.batch_id)
        assert agg.wait_until_idle(20)
        assert done(agg) == [0, 1, 2, 3]
        assert agg.stats().groups == 0


def test_a_group_does_not_wait_for_its_failed_tasks(make_both: Make) -> None:
    merge = Flaky(1)
    config: dict[str, Any] = {"retry_delay": 300, "retry_max_delay": 300}
    with make_both(
        group_aggregator=merge, group_max_size=2, on_task_failure="retry", **config
    ) as agg:
        agg.add_tasks(numbered("a", 6))
        wait_until(lambda: done(agg) == [0, 2, 4], what="the others are done")
        batches = agg.get_batches(tasks=True)
        assert {(each.group_key, each.state, each.size, each.error) for each in batches} == {
            ("a", "retry", 1, "odd")
        }
        tasks = [t.task.payload for each in batches for t in each.tasks or () if t.task]
        assert sorted(tasks) == [1, 3, 5]
        assert agg.get_groups() == {}
        assert agg.get_group("a") is None
        stats = agg.stats()
        assert (stats.in_flight, stats.batches_in_retry, stats.dead) == (3, 3, 0)
        assert stats.stored_bytes == sum(each.bytes for each in batches)


def test_a_single_attempt_leaves_dead_letters(make_both: Make) -> None:
    config: dict[str, Any] = {"on_task_failure": "retry", "max_attempts": 1}
    with make_both(group_aggregator=Flaky(9), group_max_size=4, **config) as agg:
        agg.add_tasks(numbered("a", 4))
        assert [letter.size for letter in await_dead(agg, 2)] == [1, 1]


def test_many_failed_tasks_are_tried_again_in_several_batches(make_both: Make) -> None:
    merge = Flaky(1)
    with make_both(
        group_aggregator=merge, group_max_size=2000, on_task_failure="retry", partitions=1
    ) as agg:
        for start in range(0, 2000, 500):
            agg.add_tasks(numbered("a", 500, start=start))
        assert agg.wait_until_idle(60)
        stats = agg.stats()
        assert done(agg) == list(range(2000))
    sizes = [len(payloads) for _, _, payloads in merge.merges]
    assert sizes == [2000, 200, 200, 200, 200, 200]
    assert (stats.flushed, stats.dead, stats.stored_bytes, stats.groups) == (2000, 0, 0, 0)


@pytest.mark.parametrize("failing", [0, 2])
def test_tasks_that_a_sink_failed_are_tried_again(make_both: Make, failing: int) -> None:
    rows: list[int] = []
    refused: set[int] = set()
    left = [None] * failing

    def insert(task: Task, batch_id: str) -> Partial:
        if left:
            left.pop()
            raise ConnectionError("away")
        new = {n: task_id for task_id, n in task.payload if n % 2 and n not in refused}
        refused.update(new)
        if len(new) == len(task.payload):
            raise ValueError("all are odd")
        rows.extend(n for _, n in task.payload if n not in new)
        return Partial(failed=dict.fromkeys(new.values(), "odd"))

    with make_both(
        sink=CallableSink(insert),
        group_aggregator=merge_with_ids,
        group_max_size=5,
        max_attempts=5,
        on_task_failure="retry",
    ) as agg:
        agg.add_tasks(numbered("a", 10))
        assert agg.wait_until_idle(20)
        stats = agg.stats()
    assert sorted(rows) == list(range(10))
    assert (stats.flushed, stats.dead, stats.stored_bytes, stats.groups) == (10, 0, 0, 0)


def test_failed_tasks_are_isolated_in_their_batch(make: Make) -> None:
    """The half that fails is alone in the end; its other task is done."""
    merge = Flaky(9)
    merge.left = lambda payload: payload == 3 or merge.failures[payload] < 1  # type: ignore[method-assign]

    def strict(group: str, tasks: list[Task], info: BatchInfo) -> Partial:
        if "-failed-" in info.batch_id and any(task.payload == 3 for task in tasks):
            raise ValueError("not 3")
        return merge(group, tasks, info)

    with make(
        group_aggregator=strict, group_max_size=6, on_task_failure="retry", isolate_failures=True
    ) as agg:
        agg.add_tasks(numbered("a", 6))
        assert agg.wait_until_idle(20)
        [letter] = agg.dead_letters(tasks=True)
        assert [each.task.payload for each in letter.tasks or () if each.task] == [3]
        assert (letter.group_key, done(agg)) == ("a", [0, 1, 2, 4, 5])


def test_a_paused_group_keeps_its_failed_tasks(make: Make) -> None:
    merge = Flaky(1)
    paused: list[Aggregator] = []

    def pausing(group: str, tasks: list[Task], info: BatchInfo) -> Partial:
        if group == "a" and not paused:
            paused.append(agg)
            agg.pause("a")
        return merge(group, tasks, info)

    with make(group_aggregator=pausing, group_max_size=2, on_task_failure="retry") as agg:
        agg.add_tasks([*numbered("a", 2), *numbered("b", 2, start=10)])
        wait_until(lambda: len(merge.merges) == 3, what="b is done")
        wait_until(lambda: agg.stats().batches_in_retry == 1, what="a waits")
        wait_until(lambda: len(agg.get_batches()) == 1, what="b has left")
        [batch] = agg.get_batches()
        wait_until(
            lambda: (agg.get_batches()[0].until or 0) > (batch.until or 0) + 1,
            what="the pause is seen",
        )
        assert [group for group, *_ in merge.merges].count("a") == 1
        agg.resume("a")
        assert agg.wait_until_idle(20)
        assert done(agg) == [0, 1, 10, 11]


@pytest.mark.parametrize("limit", ["group_concurrency", "group_rate_limit"])
def test_failed_tasks_count_for_the_limits_of_their_group(make: Make, limit: str) -> None:
    running: list[int] = []
    most: list[int] = []
    merge = Flaky(1)

    def slow(group: str, tasks: list[Task], info: BatchInfo) -> Partial:
        running.append(1)
        most.append(len(running))
        time.sleep(0.02)
        running.pop()
        return merge(group, tasks, info)

    config: dict[str, Any] = {"group_concurrency": 1}
    if limit == "group_rate_limit":
        config = {"group_rate_limit": RateLimit(6, per=3600)}
    with make(group_aggregator=slow, group_max_size=2, on_task_failure="retry", **config) as agg:
        agg.add_tasks(numbered("a", 12))
        if limit == "group_concurrency":
            assert agg.wait_until_idle(60)
            assert (max(most), done(agg)) == (1, list(range(12)))
        else:
            wait_until(lambda: len(most) == 6, what="six merges")
            wait_until(lambda: agg.stats().batches_in_retry > 0, what="others wait")
            time.sleep(0.5)
            assert len(most) == 6
