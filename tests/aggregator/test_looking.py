"""Reading groups, batches in flight and counts, and cancelling waiting tasks."""

from __future__ import annotations

import threading
from dataclasses import fields
from typing import Any

import pytest
import redis

from redisagg import Task
from redisagg.errors import (
    InvalidConfig,
    InvalidGroupKey,
    KeyConflict,
    NamespaceMismatch,
    UnknownBatch,
)
from redisagg.protocol.keys import Keyspace
from redisagg.transport.threads import Transport
from redisagg.views import Counts
from tests.support.aggregators import Make
from tests.support.servers import wait_until
from tests.support.tasks import await_batches, enqueued, numbered, payloads


def _ms(client: redis.Redis) -> int:
    """The time of Redis in ms."""
    seconds, microseconds = client.time()
    return seconds * 1000 + microseconds // 1000


class Gate:
    """A merge function that waits until it is opened."""

    def __init__(self) -> None:
        self._open = threading.Event()

    def __call__(self, group: str, tasks: list[Task]) -> Task:
        assert self._open.wait(20)
        return Task("merged", {"payloads": [task.payload for task in tasks]})

    def open(self) -> None:
        """Lets all merges end, present and future ones."""
        self._open.set()


@pytest.fixture
def gate() -> Any:
    """A gate that is opened at the end of the test at the latest."""
    gate = Gate()
    yield gate
    gate.open()


def test_open_groups_show_size_times_and_priority(make_both: Make, sync_redis: redis.Redis) -> None:
    agg = make_both(group_grace_period=100, group_max_delay=1000, partitions=5)
    before = float(".".join(map(str, sync_redis.time())))
    agg.add_tasks([*numbered("a", 2), *numbered("ü:{b}", 1, priority=4)])
    agg.add_task(Task("test", 2, "a"))
    states = agg.get_groups()
    assert {key: state.size for key, state in states.items()} == {"a": 3, "ü:{b}": 1}
    state = states["a"]
    assert state.first_task_at is not None
    assert state.last_task_at is not None
    assert before - 1 <= state.first_task_at <= state.last_task_at <= before + 10
    assert state.due_at == pytest.approx(state.last_task_at + 100, abs=0.01)
    assert (state.in_flight, state.priority, state.held, state.tasks) == (0, 0, False, None)
    assert states["ü:{b}"].priority == 4


def test_tasks_are_shown_on_request(make_both: Make) -> None:
    agg = make_both()
    added = [*numbered("a", 3, headers={"x": "y"}), *numbered("b", 1)]
    agg.add_tasks(added)
    shown = agg.get_groups(tasks=True)
    stored = [each.task for key in ("a", "b") for each in shown[key].tasks or ()]
    assert stored == added
    assert agg.get_groups(tasks=True) == agg.get_entries(tasks=True) == shown
    group = agg.get_group("a")
    assert group is not None
    assert group == shown["a"]
    assert agg.get_group("nobody") is None
    with pytest.raises(InvalidGroupKey):
        agg.get_group("")


def test_many_groups_are_all_listed(make_both: Make) -> None:
    agg = make_both(partitions=3)
    keys = {f"group {n}" for n in range(3_000)}
    agg.add_tasks(Task("test", None, key) for key in keys)
    assert set(agg.get_groups()) == keys
    assert agg.stats().groups == 3_000


@pytest.mark.parametrize("due", [False, True])
def test_groups_are_read_in_pages(make_both: Make, due: bool) -> None:
    agg = make_both(partitions=3)
    keys = {f"group {n}" for n in range(2_000)}
    agg.add_tasks(Task("test", None, key, max_size=1 if due else None) for key in keys)
    agg.add_tasks(numbered("other", 1, max_size=2 if due else None))
    sizes, found, place = [], set[str](), None
    while True:
        page = agg.read_groups(place, tasks=True, due=due)
        sizes.append(len(page.states))
        found.update(state.group_key for state in page.states)
        assert all(len(state.tasks or ()) == 1 for state in page.states)
        if (place := page.next) is None:
            break
    assert found == (keys if due else {*keys, "other"})
    assert max(sizes) <= 1_000
    assert len(sizes) > 4


def test_a_group_that_cools_down_is_in_no_page(make: Make) -> None:
    agg = make(partitions=1, group_min_interval=600, group_max_size=1)
    with agg:
        agg.add_task(Task("test", 0, "g"))
        assert agg.wait_until_idle(10)
    assert agg.stats().groups == 1
    assert agg.read_groups().states == []


def test_the_groups_that_are_due_next_come_first(make_both: Make, sync_redis: redis.Redis) -> None:
    agg = make_both(partitions=3, group_max_delay=9_000)
    keys = [f"group {n}" for n in range(700)]
    agg.add_tasks(Task("test", None, key, grace_period=100 + n) for n, key in enumerate(keys))
    for limit in (1, 50, 699):
        assert list(agg.get_groups(limit=limit)) == keys[:limit]
    assert list(agg.get_groups(limit=5_000)) == keys
    assert agg.get_groups(due=True) == {}
    late = ["group 500", "group 9", "group 650"]
    for key in late:
        agg.flush(key)
    assert set(agg.get_groups(due=True)) == set(agg.get_groups(limit=3)) == set(late)
    assert len(agg.get_groups(due=True, limit=2)) == 2
    [(key, shown)] = agg.get_groups(limit=1, tasks=True).items()
    assert key in late
    assert len(shown.tasks or ()) == 1
    # A task that moves the due time back does not move the group in the index.
    soon = Task("test", None, "soon", grace_period=0.01)
    agg.add_tasks([soon, Task("test", None, "soon", grace_period=8_000)])
    index = Keyspace("tests", 3).partition_of(b"soon").due
    wait_until(
        lambda: _ms(sync_redis) > (sync_redis.zscore(index, "soon") or 0), what="it seems to be due"
    )
    assert set(agg.get_groups(due=True)) == set(late)
    for wrong in (0, -1, "3", 1.5, True):
        with pytest.raises(InvalidConfig):
            agg.get_groups(limit=wrong)  # type: ignore[arg-type]


def test_groups_in_flight_are_listed_after_those_that_wait(make_both: Make, gate: Gate) -> None:
    agg = make_both(group_aggregator=gate, group_max_size=2, partitions=1)
    with agg:
        agg.add_tasks(numbered("a", 2))
        wait_until(lambda: agg.stats().in_flight == 2, what="a batch is in flight")
        agg.add_tasks(numbered("b", 1))
        assert list(agg.get_groups(limit=10)) == ["b", "a"]
        assert list(agg.get_groups(limit=1)) == ["b"]
        gate.open()


def test_a_group_is_read_in_pages(make_both: Make) -> None:
    agg = make_both(group_max_size=10_000)
    added = numbered("a", 1_234)
    agg.add_tasks(added)

    def read(**page: int) -> list[Any]:
        group = agg.get_group("a", **page)
        assert group is not None
        assert group.size == 1_234
        return [stored.task for stored in group.tasks or ()]

    assert read() == added[:1_000]
    assert read(offset=1_000) == added[1_000:]
    assert read(offset=700, limit=2) == added[700:702]
    assert read(limit=0) == read(offset=9_999) == []
    for wrong in ({"offset": -1}, {"limit": -1}, {"limit": 0.5}):
        with pytest.raises(InvalidConfig):
            agg.get_group("a", **wrong)


def test_no_command_reads_many_bytes(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    exchange = Transport.exchange

    def measured(self: Transport, requests: Any, **options: Any) -> list[Any]:
        nonlocal largest
        replies = exchange(self, requests, **options)
        read = [sum(map(len, each)) for each in replies if isinstance(each, list) and _flat(each)]
        largest = max([largest, *read])
        return replies

    agg = make(partitions=1, group_max_size=10_000, add_timeout=20)
    agg.add_tasks(Task("test", b"x" * 100_000, "a") for _ in range(100))
    monkeypatch.setattr(Transport, "exchange", measured)
    [shown] = agg.get_groups(tasks=True).values()
    assert len(shown.tasks or ()) == 100
    whole = agg.get_group("a")
    assert whole == shown
    assert 100_000 <= largest <= 1_200_000


def _flat(reply: list[Any]) -> bool:
    return all(isinstance(each, bytes) for each in reply)


def test_tasks_in_a_claimed_batch_stay_in_sight(make_both: Make, gate: Gate) -> None:
    agg = make_both(group_aggregator=gate, group_max_size=2, partitions=1)
    with agg:
        added = numbered("a", 5)
        agg.add_tasks(added)
        wait_until(lambda: agg.stats().in_flight == 4, what="two batches are in flight")
        stats = agg.stats()
        assert (stats.pending, stats.batches_in_flight, stats.batches_in_retry) == (1, 2, 0)
        batches = agg.get_batches(tasks=True)
        assert [batch.state for batch in batches] == ["claimed", "claimed"]
        assert [batch.attempts for batch in batches] == [1, 1]
        in_batches = [s.task for batch in batches for s in batch.tasks or ()]
        assert in_batches == added[:4]
        assert [batch.tasks for batch in agg.get_batches()] == [None, None]
        state = agg.get_group("a")
        assert state is not None
        assert (state.size, state.in_flight) == (1, 4)
        assert [stored.task for stored in state.tasks or ()] == added[4:]
        gate.open()
        await_batches(agg, 2)
    assert agg.get_batches() == []


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of requests in each round trip of blocking aggregators."""
    found: list[int] = []
    exchange = Transport.exchange

    def counted(self: Transport, requests: Any, **options: Any) -> list[Any]:
        found.append(len(requests))
        return exchange(self, requests, **options)

    monkeypatch.setattr(Transport, "exchange", counted)
    return found


def test_many_batches_are_read_in_few_round_trips(make: Make, gate: Gate, trips: list[int]) -> None:
    agg = make(group_aggregator=gate, group_max_size=2, partitions=1)
    added = {f"g{n}": numbered(f"g{n}", 2) for n in range(75)}
    with agg:
        agg.add_tasks(task for tasks in added.values() for task in tasks)
        wait_until(lambda: agg.stats().batches_in_flight == 75, what="75 batches are in flight")
        trips.clear()
        batches = agg.get_batches(tasks=True)
        # All batches, with the record of the namespace; of 64 their times and groups, then their
        # tasks; the same of the others.
        assert trips == [2, 3 * 64, 64, 3 * 11, 11]
        found = {batch.group_key: [each.task for each in batch.tasks or ()] for batch in batches}
        assert found == added
        assert [batch.batch_id for batch in batches] == sorted(each.batch_id for each in batches)
        trips.clear()
        assert len(agg.get_batches()) == 75
        assert trips == [2, 2 * 64, 2 * 11]
        gate.open()
        await_batches(agg, 75)


def test_the_counts_of_all_partitions_add_up(make_both: Make) -> None:
    agg = make_both(partitions=4, group_max_size=5)
    agg.add_tasks(Task("test", n, f"g{n % 20}") for n in range(60))
    idle = agg.stats()
    assert (idle.pending, idle.groups, idle.flushers) == (60, 20, [])
    assert [p.leader for p in idle.partitions] == [None] * 4
    assert [p.partition for p in idle.partitions] == [0, 1, 2, 3]
    assert sum(p.pending for p in idle.partitions) == 60
    with agg:
        agg.flush_all()
        assert agg.wait_until_idle(10)
        stats = agg.stats()
        [flusher] = stats.flushers
        assert {p.leader for p in stats.partitions} == {flusher}
    assert (stats.flushed, stats.batches_flushed, stats.groups) == (60, 20, 0)
    for count in fields(Counts):
        parts = [getattr(partition, count.name) for partition in stats.partitions]
        assert getattr(stats, count.name) == sum(parts)
    after = agg.stats()
    assert (after.flushers, {p.leader for p in after.partitions}) == ([], {None})


def test_looking_at_a_namespace_creates_nothing(make_both: Make, sync_redis: redis.Redis) -> None:
    agg = make_both(partitions=3)
    assert agg.get_groups(tasks=True) == agg.get_entries() == {}
    assert (agg.get_batches(tasks=True), agg.dead_letters(tasks=True)) == ([], [])
    assert (agg.get_group("a"), agg.get_dead_letter("1-0-1")) == (None, None)
    assert agg.read_sink().batches == []
    assert (agg.stats().pending, agg.stats().flushers, agg.wait_until_idle(1)) == (0, [], True)
    assert agg.flush("a") == agg.flush_all() == agg.cancel_group("a") == 0
    assert agg.cancel_task("a", "1") is False
    for action in (agg.requeue_dead_letter, agg.drop_dead_letter):
        with pytest.raises(UnknownBatch):
            action("1-0-1")
    assert sync_redis.keys() == []
    other = make_both(partitions=5)
    other.add_task(Task("test", 1, "a"))
    with pytest.raises(NamespaceMismatch):
        agg.get_groups()


@pytest.mark.parametrize("field", ["schema", "partitions"])
def test_a_foreign_record_of_the_namespace_is_named(
    make_both: Make, sync_redis: redis.Redis, field: str
) -> None:
    meta = "redisagg:{tests}:meta"
    sync_redis.hset(meta, mapping={"schema": 1, "partitions": 2})
    sync_redis.hset(meta, field, "many")
    agg = make_both()
    with pytest.raises(KeyConflict, match="b'many'"):
        agg.stats()
    with pytest.raises(KeyConflict, match="b'many'"):
        agg.add_task(Task("test", 1, "a"))


def test_a_pause_holds_for_tasks_that_are_added_later(make_both: Make) -> None:
    agg = make_both(partitions=3)
    agg.pause()
    assert agg.stats().paused
    agg.resume()
    assert not agg.stats().paused


def test_a_dead_flusher_is_not_listed(make_both: Make, sync_redis: redis.Redis) -> None:
    agg = make_both()
    agg.add_task(Task("test", 1, "a"))
    now = _ms(sync_redis)
    sync_redis.zadd("redisagg:{tests}:flushers", {"dead": now - 1, "alive": now + 9_000})
    assert agg.stats().flushers == ["alive"]


def test_a_waiting_task_can_be_cancelled_once(make_both: Make) -> None:
    agg = make_both()
    ids = agg.add_tasks(numbered("a", 4))
    assert agg.cancel_task("a", ids[1]) is True
    assert agg.cancel_task("a", ids[1]) is False
    assert agg.cancel_task("a", "no such id") is False
    assert agg.cancel_task("b", ids[0]) is False
    assert agg.stats().pending == 3
    with agg:
        agg.flush("a")
        await_batches(agg, 1)
        assert agg.cancel_task("a", ids[0]) is False
    assert payloads(enqueued(agg)) == [0, 2, 3]


def test_cancelling_the_last_task_leaves_nothing_behind(
    make_both: Make, sync_redis: redis.Redis
) -> None:
    agg = make_both()
    [task_id] = agg.add_tasks(numbered("a", 1))
    assert agg.cancel_task("a", task_id)
    agg.add_tasks(numbered("b", 3))
    assert agg.cancel_group("b") == 3
    assert agg.cancel_group("b") == 0
    assert agg.get_groups() == {}
    assert agg.stats().pending == 0
    assert not sync_redis.keys("*tasks:*")
    assert not sync_redis.keys("*ids:*")


def test_tasks_that_a_batch_holds_cannot_be_cancelled(make_both: Make, gate: Gate) -> None:
    agg = make_both(group_aggregator=gate, group_max_size=2)
    with agg:
        ids = agg.add_tasks(numbered("a", 3))
        wait_until(lambda: agg.stats().in_flight == 2, what="a batch is in flight")
        assert agg.cancel_task("a", ids[0]) is False
        assert agg.cancel_group("a") == 1
        assert agg.stats().pending == 0
        agg.add_task(Task("test", 3, "a"))
        gate.open()
        agg.flush("a")
        await_batches(agg, 2)
    assert payloads(enqueued(agg)) == [0, 1, 3]


def test_an_id_that_waits_already_is_not_added_again(make_both: Make) -> None:
    agg = make_both(group_max_size=3)
    task = Task("test", 0, "a", id="mine")
    assert [agg.add_task(task), agg.add_task(task)] == ["mine", "mine"]
    assert agg.add_tasks([task, task]) == ["mine", "mine"]
    assert agg.add_task(Task("test", "elsewhere", "b", id="mine")) == "mine"
    assert {key: state.size for key, state in agg.get_groups().items()} == {"a": 1, "b": 1}
    with agg:
        agg.flush("a")
        await_batches(agg, 1)
        agg.add_task(task)  # it waits no more, so this is a new one
        assert agg.get_groups()["a"].size == 1
