"""Batches that fail: their retries, and what can be done with dead letters."""

from __future__ import annotations

import itertools
import threading
import time

import pytest
import redis

from redisagg import Task
from redisagg.errors import UnknownBatch
from tests.support.aggregators import Make
from tests.support.servers import wait_until
from tests.support.tasks import (
    await_asleep,
    await_batches,
    await_dead,
    enqueued,
    numbered,
    payloads,
    server_ms,
)


class FailsAtFirst:
    """A merge function that fails a number of times for each group and records its calls."""

    def __init__(self, failures: int) -> None:
        self.calls: list[tuple[str, float]] = []
        self._failures = failures

    def __call__(self, group: str, tasks: list[Task]) -> Task:
        self.calls.append((group, time.monotonic()))
        if len(self.times(group)) <= self._failures:
            raise RuntimeError(f"attempt {len(self.times(group))}")
        return Task("merged", {"payloads": [task.payload for task in tasks]})

    def times(self, group: str) -> list[float]:
        return [at for called, at in self.calls if called == group]


def test_a_batch_is_tried_again_with_growing_delays_up_to_a_limit(make: Make) -> None:
    merge = FailsAtFirst(4)
    agg = make(
        group_aggregator=merge,
        group_max_size=1,
        max_attempts=5,
        retry_delay=0.1,
        retry_max_delay=0.25,
    )
    with agg:
        agg.add_task(Task("test", 0, "a"))
        await_batches(agg, 1)
    times = merge.times("a")
    gaps = [after - before for before, after in itertools.pairwise(times)]
    # Doubled each time with up to `retry_delay` of jitter, and never more than the limit.
    for gap, least, most in zip(gaps, (0.1, 0.2, 0.25, 0.25), (0.2, 0.25, 0.25, 0.25), strict=True):
        assert least - 0.01 <= gap <= most + 0.4
    assert payloads(enqueued(agg)) == [0]
    assert agg.stats().dead == 0


def test_a_batch_in_retry_can_be_seen_and_keeps_its_id(make: Make, sync_redis: redis.Redis) -> None:
    merge = FailsAtFirst(1)
    agg = make(
        group_aggregator=merge, group_max_size=2, retry_delay=0.7, retry_max_delay=0.7, partitions=3
    )
    with agg:
        added = numbered("a", 2)
        agg.add_tasks(added)
        wait_until(lambda: agg.stats().batches_in_retry == 1, what="the batch waits for a retry")
        [batch] = agg.get_batches(tasks=True)
        assert (batch.group_key, batch.size, batch.attempts, batch.state) == ("a", 2, 1, "retry")
        assert "attempt 1" in batch.error
        assert batch.until is not None
        assert batch.claimed_at + 0.7 <= batch.until <= server_ms(sync_redis) / 1000 + 0.7
        assert batch.tasks is not None
        assert [stored.task for stored in batch.tasks] == added
        stats = agg.stats()
        assert (stats.pending, stats.in_flight, stats.batches_in_flight) == (0, 2, 1)
        state = agg.get_entries()["a"]
        assert (state.size, state.in_flight, state.held, state.due_at) == (0, 2, True, None)
        await_batches(agg, 1)
    assert enqueued(agg)[0].batch_id == batch.batch_id
    assert agg.get_batches() == []


def test_a_retry_survives_the_flusher(make: Make) -> None:
    merge = FailsAtFirst(1)
    first, second = (
        make(group_aggregator=merge, group_max_size=1, retry_delay=0.5, retry_max_delay=0.5)
        for _ in range(2)
    )
    with first:
        first.add_task(Task("test", 0, "a"))
        wait_until(lambda: first.stats().batches_in_retry == 1, what="the batch waits for a retry")
        [batch] = first.get_batches()
    with second:
        await_batches(second, 1)
    assert enqueued(second)[0].batch_id == batch.batch_id
    assert len(merge.calls) == 2


def test_a_requeued_dead_letter_keeps_its_batch_id_and_counts_attempts_anew(make: Make) -> None:
    merge = FailsAtFirst(3)
    agg = make(group_aggregator=merge, group_max_size=2, max_attempts=2)
    with agg:
        agg.add_tasks(numbered("a", 2))
        [letter] = await_dead(agg)
        assert agg.requeue_dead_letter(letter.batch_id) == 2
        # It fails once more and then passes.
        await_batches(agg, 1)
        assert agg.wait_until_idle(5)
        stats = agg.stats()
    [batch] = enqueued(agg)
    assert batch.batch_id == letter.batch_id
    assert payloads([batch]) == [0, 1]
    assert len(merge.calls) == 4
    assert (stats.dead, stats.batches_dead, stats.flushed, stats.in_flight) == (0, 0, 2, 0)
    assert agg.dead_letters() == []
    assert agg.get_dead_letter(letter.batch_id) is None


def test_dead_letters_are_listed_shown_and_dropped(make: Make) -> None:
    agg = make(group_aggregator=FailsAtFirst(99), group_max_size=2, max_attempts=1)
    with agg:
        for n, group in enumerate(["a", "b", "c"], start=1):
            agg.add_tasks(numbered(group, 2))
            await_dead(agg, n)
        letters = agg.dead_letters()
        assert [letter.group_key for letter in letters] == ["a", "b", "c"]
        assert all(letter.tasks is None for letter in letters)
        shown = agg.get_dead_letter(letters[1].batch_id)
        assert shown is not None
        assert shown.tasks is not None
        assert [stored.task.payload for stored in shown.tasks if stored.task] == [0, 1]
        assert all(stored.arrived_at <= shown.claimed_at for stored in shown.tasks)
        assert agg.drop_dead_letter(letters[1].batch_id) == 2
        assert [letter.group_key for letter in agg.dead_letters()] == ["a", "c"]
        assert (agg.stats().dead, agg.stats().batches_dead) == (4, 2)


@pytest.mark.parametrize("batch_id", ["", "nonsense", "0-1-2", "0" * 12 + "-0-00000001", "ü\ud800"])
def test_an_unknown_dead_letter_is_a_clear_error(make: Make, batch_id: str) -> None:
    agg = make()
    assert agg.get_dead_letter(batch_id) is None
    with pytest.raises(UnknownBatch):
        agg.requeue_dead_letter(batch_id)
    with pytest.raises(UnknownBatch):
        agg.drop_dead_letter(batch_id)


def test_a_batch_that_is_buried_makes_way_for_the_rest_of_its_group(make: Make) -> None:
    def merge(group: str, tasks: list[Task]) -> Task:
        if tasks[0].payload == 0:
            raise RuntimeError("the first batch never passes")
        return Task("merged", {"payloads": [task.payload for task in tasks]})

    agg = make(group_aggregator=merge, group_max_size=2, max_attempts=2)
    with agg:
        agg.add_tasks(numbered("a", 7))
        await_batches(agg, 2)
        [letter] = await_dead(agg)
        agg.flush("a")
        await_batches(agg, 3)
    assert letter.tasks is not None
    assert [stored.task.payload for stored in letter.tasks if stored.task] == [0, 1]
    assert payloads(enqueued(agg)) == [2, 3, 4, 5, 6]


def test_a_dead_letter_requeued_during_a_merge_is_enqueued_before_it(
    make: Make, sync_redis: redis.Redis
) -> None:
    """The batch in flight finds another one before it when it is committed."""
    dead_once = threading.Event()
    in_flight, go_on = threading.Event(), threading.Event()

    def merge(group: str, tasks: list[Task]) -> Task:
        numbers = [task.payload for task in tasks]
        if numbers[0] == 0 and not dead_once.is_set():
            dead_once.set()
            raise RuntimeError("once")
        if numbers[0] == 2:
            in_flight.set()
            assert go_on.wait(10)
        return Task("merged", {"payloads": numbers})

    agg = make(group_aggregator=merge, group_max_size=2, max_attempts=1)
    with agg:
        agg.add_tasks(numbered("a", 2))
        [letter] = await_dead(agg)
        agg.add_tasks(numbered("a", 5, start=2))
        assert in_flight.wait(5)
        agg.requeue_dead_letter(letter.batch_id)
        await_asleep(sync_redis)
        go_on.set()
        agg.flush("a")
        await_batches(agg, 4)
        stats = agg.stats()
    assert payloads(enqueued(agg)) == [0, 1, 2, 3, 4, 5, 6]
    assert enqueued(agg)[0].batch_id == letter.batch_id
    assert (stats.dead, stats.pending, stats.in_flight, stats.flushed) == (0, 0, 0, 7)
