"""Batches of which some tasks fail alone: `Partial`."""

from __future__ import annotations

from typing import Any, cast

import pytest
import redis

from redisagg import Partial, Task
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
    count = 60_000
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
