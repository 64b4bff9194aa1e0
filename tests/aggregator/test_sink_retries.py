"""Sinks that fail: retries do not repeat merges, and breakers stop calls while a sink is down."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from redisagg import Task
from redisagg.errors import SinkError
from redisagg.protocol.keys import Keyspace
from redisagg.protocol.records import BatchRecord, batch_record
from redisagg.sinks import CallableSink, DeliverySink, ListSink, MergedTask, StreamSink
from tests.aggregator.test_undecodable import spoil
from tests.support.aggregators import Make
from tests.support.servers import wait_until
from tests.support.tasks import await_dead, enqueued, numbered

LET_THROUGH = 8
"""So many batches at most are let through each time that a breaker is half open."""


class Counting:
    """A merge function that counts its calls by group and first payload."""

    def __init__(self) -> None:
        self.calls = Counter[tuple[str, Any]]()
        self._lock = threading.Lock()

    def __call__(self, group: str, tasks: list[Task]) -> Task:
        with self._lock:
            self.calls[group, tasks[0].payload] += 1
        return Task(
            "merged", [task.payload for task in tasks], headers={"h": "v"}, options={"o": (1, 2)}
        )


class CountingLater(Counting):
    async def __call__(self, group: str, tasks: list[Task]) -> Task:  # type: ignore[override]
        return super().__call__(group, tasks)


def merge_into_file(group: str, tasks: list[Task]) -> Task:
    """For worker processes: writes its calls to the file that the payload names."""
    path, _ = tasks[0].payload
    with open(path, "a") as file:
        file.write(f"{tasks[0].payload[1]}\n")
    return Task("merged", [task.payload[1] for task in tasks])


class Failing(DeliverySink):
    """Fails while `down`, for the groups in `poison`, and a number of times for each batch."""

    def __init__(self, times: int = 0) -> None:
        self.down = False
        self.poison: set[str] = set()
        self.tried = Counter[str]()
        self.delivered: list[MergedTask] = []
        self._times = times

    async def deliver(self, batch: MergedTask) -> None:
        self.tried[batch.batch_id] += 1
        refused = self.tried[batch.batch_id] <= self._times
        if self.down or refused or batch.group in self.poison:
            raise ConnectionError("the queue is away")
        self.delivered.append(batch)

    def payloads(self) -> list[Any]:
        return [payload for batch in self.delivered for payload in batch.task.payload]


@pytest.fixture
def await_probes(caplog: pytest.LogCaptureFixture) -> Callable[[int], None]:
    """Waits until breakers have been half open a number of times since the test began."""
    caplog.set_level("INFO", "redisagg")

    def await_probes(count: int) -> None:
        def probed() -> bool:
            return sum("is tried again" in line for line in caplog.messages) >= count

        wait_until(probed, what=f"a breaker was half open {count} times")

    return await_probes


def records(client: redis.Redis, partitions: int = 2) -> Iterator[BatchRecord]:
    for partition in Keyspace("tests", partitions).partitions:
        found: Any = client.hgetall(partition.batches)
        yield from map(batch_record, found.values())


@pytest.mark.parametrize("merger", [Counting, CountingLater])
def test_a_failing_sink_gets_the_same_merged_task_again_and_nothing_is_merged_again(
    make: Make, merger: type[Counting]
) -> None:
    merge, sink = merger(), Failing(times=3)
    agg = make(sink=sink, group_aggregator=merge, group_max_size=2, max_attempts=4)
    with agg:
        agg.add_tasks(numbered("a", 8))
        assert agg.wait_until_idle(20)
        assert agg.stats().dead == 0
    assert sink.payloads() == list(range(8))
    assert merge.calls == {("a", n): 1 for n in range(0, 8, 2)}
    assert set(sink.tried.values()) == {4}
    [first, *_] = sink.delivered
    assert (first.group, first.count, first.task.group_key) == ("a", 2, "a")
    assert (first.task.type, first.task.headers) == ("merged", {"h": "v"})
    assert first.task.options == {"o": [1, 2]}


def test_merges_in_processes_are_not_repeated_either(make: Make, tmp_path: Path) -> None:
    sink = Failing(times=2)
    noted = tmp_path / "calls"
    agg = make(sink=sink, group_aggregator=merge_into_file, executor="process", group_max_size=1)
    with agg:
        agg.add_tasks(Task("test", (str(noted), n), "a") for n in range(3))
        assert agg.wait_until_idle(30)
    assert sink.payloads() == [0, 1, 2]
    assert sorted(noted.read_text().split()) == ["0", "1", "2"]


def test_a_merged_task_is_kept_when_its_flusher_stops(make: Make, sync_redis: redis.Redis) -> None:
    merge, sink = Counting(), Failing()
    first, second = (
        make(sink=sink, group_aggregator=merge, group_max_size=2, retry_delay=0.3) for _ in range(2)
    )
    sink.down = True
    with first:
        first.add_tasks(numbered("a", 2))
        wait_until(lambda: first.stats().batches_in_retry == 1, what="the batch waits")
        [record] = records(sync_redis)
        assert record.merged
        assert record.attempts == 1
    sink.down = False
    with second:
        assert second.wait_until_idle(10)
    assert sink.payloads() == [0, 1]
    assert merge.calls == {("a", 0): 1}
    assert len(sink.tried) == 1


def test_merges_that_run_behind_a_failing_delivery_are_not_repeated(make: Make) -> None:
    """The first batch fails while those behind it are being merged."""
    merge, sink = Counting(), Failing(times=2)

    def slow(group: str, tasks: list[Task]) -> Task:
        if tasks[0].payload:
            wait_until(lambda: sink.tried, what="the delivery of the first batch has failed")
        return merge(group, tasks)

    agg = make(sink=sink, group_aggregator=slow, group_max_size=1, concurrency=4)
    with agg:
        agg.add_tasks(numbered("a", 8))
        assert agg.wait_until_idle(20)
    assert sink.payloads() == list(range(8))
    assert merge.calls == {("a", n): 1 for n in range(8)}


def test_a_queue_key_of_another_type_that_is_deleted_gets_the_merged_tasks(
    make: Make, sync_redis: redis.Redis
) -> None:
    merge = Counting()
    sync_redis.set("queue", "foreign")
    agg = make(sink="stream://queue", group_aggregator=merge, group_max_size=1, max_attempts=1_000)
    with agg:
        agg.add_tasks([*numbered("a", 3), *numbered("b", 1)])
        wait_until(
            lambda: [record.merged != b"" for record in records(sync_redis)] == [True] * 4,
            what="all merged tasks are stored",
        )
        sync_redis.delete("queue")
        assert agg.wait_until_idle(10)
    found = {(batch.group, *batch.payload) for batch in enqueued(agg)}
    assert found == {("a", 0), ("a", 1), ("a", 2), ("b", 0)}
    assert merge.calls == dict.fromkeys(found, 1)


def test_merged_tasks_of_a_batch_that_were_delivered_are_not_sent_again(make: Make) -> None:
    calls: list[str] = []
    arrived: list[str] = []
    failures = 2

    def merge(group: str, tasks: list[Task]) -> list[Task]:
        calls.append(group)
        return [Task("merged", name) for name in ("first", "second", "third")]

    def deliver(task: Task, batch_id: str) -> None:
        nonlocal failures
        if task.payload == "second" and failures:
            failures -= 1
            raise ConnectionError("the queue is away")
        arrived.append(f"{task.payload} {batch_id[-2:]}")

    agg = make(sink=CallableSink(deliver), group_aggregator=merge, group_max_size=1)
    with agg:
        agg.add_task(Task("test", 0, "a"))
        assert agg.wait_until_idle(10)
    assert calls == ["a"]
    assert arrived == ["first -1", "second -2", "third -3"]


def test_attempts_of_merge_and_sink_are_counted_apart(make: Make) -> None:
    merges = 0

    def merge(group: str, tasks: list[Task]) -> Task:
        nonlocal merges
        merges += 1
        if merges < 3:
            raise RuntimeError("not yet")
        return Task("merged", [0])

    sink = Failing(times=2)
    agg = make(sink=sink, group_aggregator=merge, group_max_size=1, max_attempts=3)
    with agg:
        agg.add_task(Task("test", 0, "a"))
        assert agg.wait_until_idle(10)
        assert agg.stats().dead == 0
    assert merges == 3
    assert list(sink.tried.values()) == [3]
    assert sink.payloads() == [0]


def test_a_batch_whose_sink_always_fails_is_buried_and_merged_anew_when_requeued(
    make: Make,
) -> None:
    merge, sink = Counting(), Failing()
    sink.poison = {"a"}
    agg = make(sink=sink, group_aggregator=merge, group_max_size=2, max_attempts=3)
    with agg:
        agg.add_tasks(numbered("a", 2))
        [letter] = await_dead(agg)
        assert letter.error == "ConnectionError: the queue is away"
        assert letter.attempts == 3
        assert list(sink.tried.values()) == [3]
        assert merge.calls == {("a", 0): 1}
        sink.poison.clear()
        agg.requeue_dead_letter(letter.batch_id)
        assert agg.wait_until_idle(10)
    assert merge.calls == {("a", 0): 2}
    assert sink.payloads() == [0, 1]


def test_a_task_that_a_sink_can_not_write_is_merged_once_and_opens_no_breaker(make: Make) -> None:
    merge = Counting()

    class Picky(StreamSink):
        def arguments(self, batch: MergedTask) -> Any:
            raise SinkError("not this one")

    agg = make(sink=Picky("queue"), group_aggregator=merge, group_max_size=1, max_attempts=2)
    with agg:
        # More failures than open a breaker, but the queue has not failed.
        agg.add_tasks(Task("test", 0, f"g{n}") for n in range(10))
        await_dead(agg, 10)
    assert set(merge.calls.values()) == {1}


def test_a_result_that_can_not_be_packed_is_a_failure_of_the_merge(make: Make) -> None:
    calls: list[str] = []
    sink = Failing()

    def merge(group: str, tasks: list[Task]) -> Task:
        calls.append(group)
        return Task("merged", object())

    agg = make(sink=sink, group_aggregator=merge, group_max_size=1, max_attempts=2)
    with agg:
        agg.add_task(Task("test", 0, "a"))
        [letter] = await_dead(agg)
    assert "PayloadError" in letter.error
    assert len(calls) == 2
    assert not sink.tried


def test_undecodable_tasks_are_set_aside_once_although_the_sink_fails_first(
    make: Make, sync_redis: redis.Redis
) -> None:
    sink = Failing(times=2)
    agg = make(sink=sink, group_aggregator=Counting(), group_max_size=3)
    agg.pause()
    agg.add_tasks(numbered("a", 3))
    spoil(sync_redis, "a", 1, b"rubbish")
    with agg:
        agg.resume()
        assert agg.wait_until_idle(10)
        [letter] = agg.dead_letters(tasks=True)
        assert agg.stats().dead == 1
    assert [stored.raw for stored in letter.tasks or ()] == [b"rubbish"]
    assert sink.payloads() == [0, 2]


@pytest.mark.parametrize("fails", [2, 3])
def test_more_merged_tasks_than_one_call_carries_are_given_back_in_order(
    make: Make, fails: int
) -> None:
    """20 batches of 200 KB wait behind one that fails, or is buried."""
    merge, sink = Counting(), Failing()

    def large(group: str, tasks: list[Task]) -> Task:
        task = merge(group, tasks)
        return Task("merged", task.payload, headers={"large": "x" * 200_000})

    def deliver(task: Task, batch_id: str) -> None:
        sink.tried[batch_id] += 1
        if task.payload[0] == 0:
            wait_until(lambda: len(merge.calls) == 20, what="all batches are merged")
            if sink.tried[batch_id] <= fails:
                raise ConnectionError("for now")
        sink.delivered.append(MergedTask(batch_id, "a", 1, task))

    agg = make(
        sink=CallableSink(deliver),
        group_aggregator=large,
        group_max_size=1,
        partitions=1,
        max_attempts=3,
    )
    with agg:
        agg.add_tasks(numbered("a", 20))
        assert agg.wait_until_idle(20)
        buried = agg.stats().dead
    assert buried == int(fails == 3)
    assert sink.payloads() == list(range(buried, 20))
    assert merge.calls == {("a", n): 1 for n in range(20)}


# --- breakers -----------------------------------------------------------------------------------


def test_a_sink_that_is_down_stops_the_merges_and_costs_no_attempts(
    make: Make, await_probes: Callable[[int], None]
) -> None:
    merge, sink = Counting(), Failing()
    sink.down = True
    agg = make(
        sink=sink,
        group_aggregator=merge,
        group_max_size=2,
        max_attempts=2,
        retry_delay=0.1,
        retry_max_delay=0.3,
    )
    with agg:
        for start in range(0, 20, 2):
            agg.add_tasks(task for n in range(200) for task in numbered(f"g{n}", 2, start=start))
        await_probes(3)
        stats = agg.stats()
        assert (stats.dead, stats.flushed) == (0, 0)
        # How many of the 2,000 were merged before the breaker opened depends on the machine.
        merged, tried = sum(merge.calls.values()), sum(sink.tried.values())
        assert max(merged, tried) < 1_000
        await_probes(6)
        assert sum(merge.calls.values()) <= merged + 3 * LET_THROUGH
        assert sum(sink.tried.values()) <= tried + 3 * LET_THROUGH
        sink.down = False
        assert agg.wait_until_idle(30)
        stats = agg.stats()
        assert (stats.dead, stats.flushed) == (0, 4_000)
    assert set(merge.calls.values()) == {1}
    for n in range(200):
        mine = [batch.task.payload for batch in sink.delivered if batch.group == f"g{n}"]
        assert mine == [[k, k + 1] for k in range(0, 20, 2)]


def test_a_queue_key_of_another_type_stops_the_merges(
    make: Make, sync_redis: redis.Redis, await_probes: Callable[[int], None]
) -> None:
    merge = Counting()
    sync_redis.set("queue", "foreign")
    agg = make(
        sink=ListSink("queue"),
        group_aggregator=merge,
        group_max_size=1,
        max_attempts=2,
        retry_delay=0.1,
        retry_max_delay=0.3,
    )
    agg.add_tasks(Task("test", n, f"g{n}") for n in range(1_000))
    with agg:
        await_probes(3)
        assert agg.stats().dead == 0
        merged = sum(merge.calls.values())
        await_probes(6)
        assert sum(merge.calls.values()) <= merged + 3 * LET_THROUGH
        sync_redis.delete("queue")
        assert agg.wait_until_idle(30)
        assert (agg.stats().dead, agg.stats().flushed) == (0, 1_000)
    assert set(merge.calls.values()) == {1}


def test_claimed_batches_are_given_back_unmerged_when_a_sink_goes_down(
    make: Make, await_probes: Callable[[int], None]
) -> None:
    counting, sink = Counting(), Failing()
    sink.down = True

    def slow(group: str, tasks: list[Task]) -> Task:
        time.sleep(0.02)  # so that the breaker opens before all batches are merged
        return counting(group, tasks)

    agg = make(
        sink=sink,
        group_aggregator=slow,
        group_max_size=1,
        max_attempts=2,
        concurrency=8,
        retry_delay=0.2,
        retry_max_delay=0.4,
    )
    agg.add_tasks(Task("test", n, f"g{n}") for n in range(400))
    with agg:
        await_probes(3)  # after 1 s, in which all 400 could be merged
        assert sum(counting.calls.values()) < 200
        sink.down = False
        assert agg.wait_until_idle(30)
        assert agg.stats().dead == 0
    assert sorted(sink.payloads()) == list(range(400))
    assert set(counting.calls.values()) == {1}


def test_a_batch_that_its_sink_always_refuses_is_buried_and_the_others_are_delivered(
    make: Make,
) -> None:
    merge, sink = Counting(), Failing()
    sink.poison = {"poison"}
    agg = make(
        sink=sink, group_aggregator=merge, group_max_size=1, max_attempts=8, retry_max_delay=0.05
    )
    with agg:
        agg.add_task(Task("test", -1, "poison"))
        for n in range(50):
            agg.add_task(Task("test", n, f"g{n % 5}"))
        [letter] = await_dead(agg)
        assert agg.wait_until_idle(10)
        stats = agg.stats()
    assert letter.group_key == "poison"
    assert sorted(sink.payloads()) == list(range(50))
    assert (stats.dead, stats.flushed) == (1, 50)
    assert merge.calls["poison", -1] == 1


def test_many_batches_that_their_sink_always_refuses_do_not_keep_its_breaker_open(
    make: Make, await_probes: Callable[[int], None]
) -> None:
    """All batches that were tried fail for ever, and a later one finds that the sink works."""
    sink = Failing()
    sink.poison = {f"poison{n}" for n in range(12)}
    agg = make(sink=sink, group_aggregator=Counting(), group_max_size=1, max_attempts=2)
    with agg:
        agg.add_tasks(Task("test", 0, group) for group in sorted(sink.poison))
        wait_until(lambda: len(sink.tried) == 12, what="all of them were tried")
        await_probes(2)
        added = 0
        while agg.stats().batches_dead < 12:
            assert added < 400
            agg.add_task(Task("test", added, "good"))
            added += 1
            time.sleep(0.02)  # the breaker lets few batches through at a time
        assert agg.wait_until_idle(10)
    assert sink.payloads() == list(range(added))


def test_a_sink_that_works_goes_on_beside_one_that_is_down(
    make: Make, await_probes: Callable[[int], None]
) -> None:
    merge = Counting()
    sinks = {"down": Failing(), "up": Failing()}
    sinks["down"].down = True

    def route(task: Task) -> DeliverySink:
        return sinks[str(task.group_key).split(":")[0]]

    agg = make(
        sink=route,
        group_aggregator=merge,
        group_max_size=1,
        max_attempts=2,
        retry_delay=0.1,
        retry_max_delay=0.3,
    )
    with agg:
        agg.add_tasks(
            Task("test", n, f"{kind}:{n % 20}") for n in range(100) for kind in ("up", "down")
        )
        wait_until(
            lambda: len(sinks["up"].delivered) == 100,
            what="all batches for the sink that works are delivered",
        )
        await_probes(3)
        assert agg.stats().dead == 0
        tried = sum(sinks["down"].tried.values())
        await_probes(6)
        assert sum(sinks["down"].tried.values()) <= tried + 3 * LET_THROUGH
        sinks["down"].down = False
        assert agg.wait_until_idle(20)
        assert agg.stats().dead == 0
    assert sorted(sinks["down"].payloads()) == list(range(100))
    assert set(merge.calls.values()) == {1}


def test_a_breaker_that_opens_is_logged_once(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    sink = Failing()
    sink.down = True
    agg = make(
        sink=sink, group_aggregator=Counting(), group_max_size=1, retry_delay=5, retry_max_delay=5
    )
    caplog.set_level("INFO", "redisagg")
    with agg:
        agg.add_tasks(Task("test", n, f"g{n}") for n in range(50))
        wait_until(lambda: "Failing fails" in caplog.text, what="the breaker is open")

        def all_returned() -> bool:
            stats = agg.stats()
            return stats.batches_in_retry == stats.batches_in_flight >= 5

        wait_until(all_returned, what="all claimed batches wait for a retry")
    assert len([line for line in caplog.messages if line.startswith("Failing ")]) == 1


def test_a_stop_while_a_sink_is_down_keeps_the_merged_tasks(make: Make) -> None:
    merge, sink = Counting(), Failing()
    sink.down = True
    first, second = (
        make(sink=sink, group_aggregator=merge, group_max_size=1, max_attempts=2) for _ in range(2)
    )
    with first:
        first.add_tasks(Task("test", n, f"g{n % 30}") for n in range(90))
        wait_until(lambda: first.stats().batches_in_retry >= 5, what="the sink is found down")
    sink.down = False
    with second:
        assert second.wait_until_idle(20)
        assert second.stats().dead == 0
    assert sorted(sink.payloads()) == list(range(90))
    assert set(merge.calls.values()) == {1}


def test_a_batch_that_was_delivered_is_not_again_when_a_dead_letter_is_requeued_before_it(
    make: Make,
) -> None:
    """Its commit finds the requeued batch before it, so it goes back with all tasks delivered."""
    poison = [True]
    delivering, go_on = threading.Event(), threading.Event()
    delivered: list[Any] = []

    def deliver(task: Task, batch_id: str) -> None:
        if task.payload == [0] and poison:
            raise ConnectionError("the queue is away")
        delivered.append(task.payload)
        if task.payload == [1]:
            delivering.set()
            assert go_on.wait(10)

    counting = Counting()
    config: dict[str, Any] = {"group_max_size": 1, "max_attempts": 1}
    with make(group_aggregator=counting, sink=CallableSink(deliver), **config) as agg:
        agg.add_tasks(numbered("a", 1))
        [letter] = await_dead(agg)
        poison.clear()
        agg.add_tasks(numbered("a", 1, start=1))
        assert delivering.wait(5)
        agg.requeue_dead_letter(letter.batch_id)
        go_on.set()
        assert agg.wait_until_idle(10)
    assert sorted(delivered) == [[0], [1]]
    assert counting.calls == {("a", 0): 2, ("a", 1): 1}


def test_a_batch_without_merged_task_is_not_merged_again_with_one_that_failed(make: Make) -> None:
    counting = Counter[int]()

    def merge(group: str, tasks: list[Task]) -> None:
        counting[tasks[0].payload] += 1
        if tasks[0].payload == 0 and counting[0] < 4:
            raise ValueError("no")

    config: dict[str, Any] = {"group_max_size": 1, "max_attempts": 5}
    with make(group_aggregator=merge, retry_delay=0.05, retry_max_delay=0.1, **config) as agg:
        agg.add_tasks(numbered("a", 5))
        assert agg.wait_until_idle(10)
    assert counting == {0: 4, 1: 1, 2: 1, 3: 1, 4: 1}
