"""Moving a namespace to another name or another number of partitions, while it is in use."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import redis

from redisagg import Aggregator, Partial, Policy, Results, RetryAfter, Task, Unrecoverable
from redisagg.errors import (
    InvalidConfig,
    NamespaceInUse,
    NamespaceMismatch,
    RedisUnavailable,
    ResultTimeout,
    TaskFailed,
)
from redisagg.operations.moving import Moved, Mover
from redisagg.protocol.keys import Keyspace
from redisagg.protocol.operations import Operation, ask
from redisagg.protocol.scripts import call
from redisagg.sinks import CallableSink
from redisagg.transport.endpoint import close, endpoint_of
from redisagg.transport.threads import Transport
from tests.support.aggregators import Make
from tests.support.moving import move, moved_in_use
from tests.support.proxy import Proxy
from tests.support.servers import wait_until
from tests.support.tasks import await_dead, await_led, error_count
from tests.support.tasks import enqueued as read

LAYOUTS = [("tests", 5), ("tests", 2), ("other", 4), ("other", 3)]
"""From 4 partitions of the namespace ``tests``."""


@pytest.fixture
def transport(redis_url: str) -> Iterator[Transport]:
    client = endpoint_of(redis_url).answering_within(5).blocking()
    yield Transport(client, 10)
    close(client)


def tasks_of(agg: Aggregator) -> dict[str, list[str]]:
    """The ids of the waiting tasks by group."""
    return {
        key: [each.task.id for each in state.tasks or () if each.task]
        for key, state in agg.get_groups(tasks=True).items()
    }


def bytes_in(client: redis.Redis, name: str) -> int:
    """The bytes of all tasks, as the states count them."""
    keys = client.keys(f"redisagg:{{{name}:*}}:state")
    return sum(int(client.hget(key, "bytes") or 0) for key in keys)


@pytest.mark.parametrize(("name", "partitions"), LAYOUTS)
def test_what_waits_is_moved_as_it_is(
    make_both: Make, transport: Transport, sync_redis: redis.Redis, name: str, partitions: int
) -> None:
    agg = make_both(partitions=4, group_grace_period=3600, group_max_delay=7200)
    agg.add_tasks(Task("t", n, f"g{n % 30}", f"id{n}") for n in range(120))
    agg.add_tasks(Task("t", n, "large", f"id{n}", priority=n % 3) for n in range(1500))
    agg.add_tasks(Task("t", "x" * 100_000, "heavy", f"id{n}") for n in range(8))
    agg.pause("g7")
    before, stats = agg.get_groups(tasks=True), agg.stats()
    size = bytes_in(sync_redis, "tests")
    moved, _ = move(transport, name, partitions)
    assert moved is not None
    assert moved.layout == (name, partitions)
    wanted = make_both(name=name, partitions=partitions)
    assert wanted.get_groups(tasks=True) == before
    after = wanted.stats()
    assert (after.pending, after.groups) == (stats.pending, stats.groups)
    assert bytes_in(sync_redis, name) == size > 0
    assert len(after.partitions) == partitions
    # The ids still wait, and the producer of before follows by itself.
    agg.add_tasks(Task("t", n, f"g{n % 30}", f"id{n}") for n in range(121))
    agg.add_task(Task("t", 1, "large", "id1499"))
    assert wanted.stats().pending == stats.pending + 1
    assert tasks_of(wanted)["g0"][-1] == "id120"


def enqueued(agg: Aggregator) -> dict[str, list[int]]:
    """The payloads of all tasks that were enqueued, by group."""
    found: dict[str, list[int]] = {}
    cursor = None
    while True:
        page = agg.read_sink(cursor)
        for batch in page.batches:
            found.setdefault(batch.group, []).extend(batch.payload)
        if not page.batches:
            return found
        cursor = page.cursor


@pytest.mark.parametrize(
    ("new", "partitions", "stride"),
    [
        ("tests", 3, 5),
        ("other", 4, 7),
        pytest.param("tests", 6, 1, marks=pytest.mark.slow),
        pytest.param("other", 3, 1, marks=pytest.mark.slow),
    ],
)
def test_nothing_is_lost_doubled_or_reordered_whenever_the_mover_dies(
    transport: Transport, redis_url: str, new: str, partitions: int, stride: int
) -> None:
    steps = itertools.count(1, stride)
    in_use = moved_in_use(
        transport, redis_url, "stream://queue", ("tests", 4), (new, partitions), steps
    )
    with in_use as (last, added, kills):
        last.flush_all()
        assert last.wait_until_idle(20)
        found = enqueued(last)
        assert kills > 3
        assert found == {group: list(range(n)) for group, n in added.items()}


def test_what_failed_is_moved_too(make: Make, transport: Transport) -> None:
    """Dead letters, batches that wait for another attempt, and results that are stored apart."""

    def merge(group: str, tasks: list[Task]) -> Any:
        if group.startswith("dead"):
            raise Unrecoverable("no")
        if group.startswith("odd"):
            return Partial(None, failed={tasks[0].id: "odd"})
        return [Task("merged", "x" * 30_000) for _ in tasks]

    def deliver(task: Task, batch_id: str) -> None:
        raise RetryAfter(300)

    options: dict[str, Any] = {"partitions": 4, "group_aggregator": merge, "group_max_size": 3}
    options |= {"on_task_failure": "retry", "retry_delay": 300, "retry_max_delay": 300}
    agg = make(sink=CallableSink(deliver), **options)
    with agg:
        agg.add_tasks(Task("t", n, f"dead{n % 9}", f"id{n}") for n in range(27))
        agg.add_tasks(Task("t", n, f"late{n % 9}", f"id{n}") for n in range(27))
        agg.add_tasks(Task("t", n, f"odd{n % 9}", f"id{n}") for n in range(27))
        dead = await_dead(agg, 9)
        wait_until(lambda: agg.stats().batches_in_retry == 18, timeout=10, what="all are refused")
    before = agg.get_batches()
    moved, _ = move(transport, "other", 3)
    assert moved is not None
    assert moved.dead_letters == 9
    there = make(name="other", sink=CallableSink(deliver), **{**options, "partitions": 3})
    assert [each.batch_id for each in there.dead_letters()] == [each.batch_id for each in dead]
    assert there.get_batches() == before
    stats = there.stats()
    assert (stats.in_flight, stats.batches_in_retry, stats.dead) == (36, 18, 27)
    assert {there.locate(f"odd{n}", f"id{n}").state for n in range(9)} == {"in_batch"}
    letter = there.get_dead_letter(dead[4].batch_id)
    assert letter is not None
    assert len(letter.tasks or ()) == 3
    assert there.drop_dead_letter(dead[0].batch_id) == 3
    some = [each.task.id for each in letter.tasks or () if each.task]
    assert there.requeue_dead_letter(letter.batch_id, only=some[:1]) == 1
    assert there.requeue_dead_letter(dead[5].batch_id) == 3
    assert there.stats().dead == 20


def test_the_rest_of_a_namespace_is_moved(
    make: Make, transport: Transport, sync_redis: redis.Redis
) -> None:
    options: dict[str, Any] = {"partitions": 4, "dedupe_window": 60, "group_max_size": 1}
    with make(**options) as agg:
        agg.add_tasks(Task("t", n, f"g{n}", f"id{n}") for n in range(20))
        assert agg.wait_until_idle(10)
        agg.set_policy("*", Policy(max_size=7))
    agg.pause(by="somebody")
    flushed = agg.stats().flushed
    late = make(**options)
    late.add_task(Task("t", 0, "g0", "id0"))
    for name, partitions in [("other", 3), ("other", 1), ("other", 5), ("tests", 4)]:
        moved, _ = move(transport, name, partitions, old=agg.name)
        assert moved is not None
        agg = make(name=name, **{**options, "partitions": partitions})
        stats = agg.stats()
        assert stats.paused
        assert (stats.flushed, stats.batches_flushed) == (flushed, flushed)
        assert agg.policies() == {"*": Policy(max_size=7)}
        agg.add_tasks(Task("t", n, f"g{n}", f"id{n}") for n in range(20))
        assert agg.stats().pending == 0  # all ids are known
        agg.add_task(Task("t", 1, "waits", name + str(partitions)))
        assert agg.cancel_group("waits") == 1
        told = [each for each in late.get_troubles() if each.cause == "paused"]
        assert "somebody" in told[0].text
        assert late.name == name
    client: Any = sync_redis
    assert client.hget("redisagg:{other}:meta", "schema") == b"moved tests"
    left = client.keys("redisagg:{other*")
    kinds = {key.rsplit(b":", 1)[-1] for key in left if b":call:" not in key}
    assert kinds == {b"state", b"meta", b"policies"}


@pytest.mark.parametrize(("name", "partitions"), [("tests", 5), ("other", 4)])
def test_a_call_whose_reply_was_lost_before_a_move_is_not_carried_out_again(
    make_both: Make, transport: Transport, proxy: Proxy, name: str, partitions: int
) -> None:
    agg = make_both(url=proxy.url, partitions=4, group_max_size=1, add_timeout=20)
    agg.add_task(Task("t", "before", "b"))
    loss = proxy.lose_reply("add", then_cut=True)
    with ThreadPoolExecutor(1) as pool, make_both(partitions=4, group_max_size=1) as flusher:
        adding = pool.submit(agg.add_tasks, [Task("t", n, f"g{n}", f"id{n}") for n in range(30)])
        loss.wait()
        wait_until(lambda: flusher.stats().flushed > 1, timeout=10, what="some are flushed")
        move(transport, name, partitions)
        proxy.restore()
        adding.result(20)
        assert flusher.wait_until_idle(10)
        found = sorted(each.payload["payloads"][0] for each in read(flusher) if each.group != "b")
        assert found == list(range(30))


def test_who_comes_late_is_refused_and_follows(make: Make, transport: Transport) -> None:
    """Also after the namespace has come back, and if the caller read the record before."""
    late = [make(partitions=4) for _ in range(3)]
    for each in late:
        each.add_task(Task("t", 0, "a", "first"))
    move(transport, "other", 5)
    assert late[0].add_task(Task("t", 1, "a", "second"))
    move(transport, "tests", 3, old="other")
    late[1].add_tasks(Task("t", 2, f"g{n}") for n in range(20))
    move(transport, "tests", 4)
    late[2].add_task(Task("t", 3, "a", "third"))
    agg = make(partitions=3)  # a number of before
    agg.add_task(Task("t", 3, "a", "third"))
    assert agg.stats().pending == 23
    assert tasks_of(agg)["a"] == ["first", "second", "third"]
    with pytest.raises(NamespaceMismatch, match="created with 4 partitions, not 9"):
        make(partitions=9).add_task(Task("t", 0, "a"))


def test_adds_wait_while_the_namespace_is_frozen(
    make_both: Make, transport: Transport, sync_redis: redis.Redis
) -> None:
    agg = make_both(partitions=4, add_timeout=20)
    agg.add_task(Task("t", 0, "a", "first"))
    move(transport, "tests", 5, die_at=6)
    with ThreadPoolExecutor(2) as pool:
        adds: list[Future[Any]] = [
            pool.submit(agg.add_task, Task("t", 1, "a", "second")),
            pool.submit(agg.add_tasks, [Task("t", 1, "b", "third")]),
        ]
        wait_until(lambda: error_count(sync_redis, "FROZEN") > 3, timeout=10, what="both wait")
        assert not any(add.done() for add in adds)
        with pytest.raises(RedisUnavailable, match="the namespace is being moved"):
            make_both(partitions=4, add_timeout=1).add_task(Task("t", 1, "a"))
        move(transport, "tests", 5)
        for add in adds:
            add.result(20)
    assert agg.stats().pending == 3


def test_a_move_that_can_not_be_made_changes_nothing(make: Make, transport: Transport) -> None:
    agg = make(partitions=4)
    agg.add_task(Task("t", 0, "a"))
    make(name="other").add_task(Task("t", 0, "a"))
    with pytest.raises(InvalidConfig, match="has 4 partitions already"):
        move(transport, "tests", 4)
    with pytest.raises(InvalidConfig, match="there is no namespace 'none'"):
        move(transport, "x", 4, old="none")
    with pytest.raises(InvalidConfig, match="from 1 to 4096"):
        move(transport, "tests", 0)
    with pytest.raises(NamespaceInUse, match="there is a namespace 'other' already"):
        move(transport, "other", 4)
    agg.add_task(Task("t", 0, "a"))
    move(transport, "new", 5, die_at=4)
    with pytest.raises(NamespaceInUse, match="to 'new' with 5 partitions was begun"):
        move(transport, "new", 6)
    moved, _ = move(transport, "new", None)
    assert moved is not None
    assert moved.layout == ("new", 5)
    assert move(transport, "new", 5)[0] == Moved(moved.layout)  # nothing is left to do
    assert agg.stats().pending == 2


def test_batches_in_flight_are_finished_first(make: Make, transport: Transport) -> None:
    merged: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def merge(group: str, tasks: list[Task]) -> Task:
        merged.append(group)
        begun.set()
        assert go_on.wait(20)
        return Task("merged", len(tasks))

    with ThreadPoolExecutor(1) as pool, make(group_aggregator=merge, group_max_size=1) as agg:
        agg.add_task(Task("t", 1, "a"))
        assert begun.wait(10)
        moving = pool.submit(move, transport, "other", 5)
        wait_until(
            lambda: len(transport.run(all_flushers("tests"))) == 2, timeout=10, what="it has begun"
        )
        agg.add_task(Task("t", 1, "b", max_size=5))  # nothing is frozen yet
        assert merged == ["a"]
        go_on.set()
        moved, _ = moving.result(20)
        agg.flush_all()
        assert agg.wait_until_idle(10)
        assert agg.name == "other"
        assert merged == ["a", "b"]
        assert moved is not None
        assert moved.groups == 1


def all_flushers(name: str) -> Operation[list[bytes]]:
    """The flushers and the movers of a namespace."""
    return ask(call("flushers", [Keyspace(name, 1).flushers]))


def test_a_flusher_that_does_not_finish_is_not_waited_for(make: Make, transport: Transport) -> None:
    """What it commits later is refused, and the batch is merged once more."""
    merges: list[str] = []
    go_on = threading.Event()

    def merge(group: str, tasks: list[Task]) -> Task:
        merges.append(group)
        if len(merges) == 1:
            assert go_on.wait(20)
        return Task("merged", len(tasks))

    options: dict[str, Any] = {"group_aggregator": merge, "group_max_size": 1}
    with make(**options, sink="stream://queue") as agg:
        agg.add_task(Task("t", 1, "a"))
        wait_until(lambda: bool(merges), timeout=10, what="it is being merged")
        mover = Mover(transport, "tests", "tests", 5, drain=0.1)
        assert mover.run().groups == 1
        with make(partitions=5, **{**options, "sink": "stream://queue"}) as other:
            assert other.wait_until_idle(10)
            go_on.set()
            assert merges == ["a", "a"]
            agg.add_task(Task("t", 2, "b"))
            assert other.wait_until_idle(10)
            assert [each.group for each in read(other)] == ["a", "b"]


@pytest.mark.parametrize(("name", "partitions"), [("tests", 5), ("other", 4)])
def test_outcomes_are_found_after_a_move(
    make_both: Make, transport: Transport, name: str, partitions: int
) -> None:
    def merge(group: str, tasks: list[Task]) -> Results:
        return Results({task.id: task.payload for task in tasks})

    options: dict[str, Any] = {"partitions": 4, "group_aggregator": merge}
    agg = make_both(**options)
    with agg:
        receipts = [agg.submit(Task("t", n, f"g{n}", f"id{n}")) for n in range(20)]
        agg.flush_all()
        assert agg.wait_until_idle(10)
        late = [agg.submit(Task("t", n, f"late{n}", f"id{n}")) for n in range(5)]
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(late[0].result, 20)
            move(transport, name, partitions)
            agg.flush_all()
            assert waiting.result(20) == 0
        assert [each.result(10) for each in late] == list(range(5))
    there = make_both(name=name, **{**options, "partitions": partitions})
    again = [there.receipt(f"g{n}", f"id{n}") for n in range(20)]
    assert [each.result(0) for each in again] == list(range(20))
    assert [each.result(0) for each in receipts] == list(range(20))


def test_a_newer_outcome_wins_when_groups_return(make: Make, transport: Transport) -> None:
    """The outcome of before a dead letter was requeued must not be left where its group was."""
    mended = threading.Event()

    def merge(group: str, tasks: list[Task]) -> Results:
        if not mended.is_set():
            raise Unrecoverable("not yet")
        return Results({task.id: task.payload for task in tasks})

    agg = make(partitions=4, group_aggregator=merge)
    with agg:
        receipts = [agg.submit(Task("t", n, f"g{n}", f"id{n}")) for n in range(20)]
        agg.flush_all()
        dead = await_dead(agg, 20)
        for receipt in receipts:
            with pytest.raises(TaskFailed, match="not yet"):
                receipt.result(10)
        steps = itertools.count(1)  # movers die at each of them
        while move(transport, "tests", 1, die_at=next(steps))[0] is None:
            pass
        mended.set()
        there = make(partitions=1)
        for letter in dead:
            there.requeue_dead_letter(letter.batch_id)
        assert there.wait_until_idle(10)
        move(transport, "tests", 4)
        back = make(partitions=4)
        again = [back.receipt(f"g{n}", f"id{n}") for n in range(20)]
        assert [each.result(10) for each in again] == list(range(20))


def test_a_process_that_only_waits_for_outcomes_follows(
    make_both: Make, transport: Transport
) -> None:
    def merge(group: str, tasks: list[Task]) -> Results:
        return Results({task.id: task.payload for task in tasks})

    options: dict[str, Any] = {"partitions": 4, "group_aggregator": merge}
    agg, waiting = make_both(**options), make_both(**options)
    with agg:
        agg.add_tasks(Task("t", n, f"g{n}", f"early{n}") for n in range(20))
        receipts = [waiting.receipt(f"g{n}", f"id{n}") for n in range(20)]
        with pytest.raises(ResultTimeout):
            receipts[0].result(0)
        move(transport, "tests", 5)
        for n in range(20):
            agg.submit(Task("t", n, f"g{n}", f"id{n}"))
        agg.flush_all()
        assert [each.result(10) for each in receipts] == list(range(20))


def test_what_a_failover_has_lost_of_a_move_is_mended(
    make: Make, transport: Transport, sync_redis: redis.Redis
) -> None:
    agg = make(partitions=6)
    agg.add_tasks(Task("t", n, f"g{n}", f"id{n}") for n in range(20))
    move(transport, "tests", 3)
    agg.add_task(Task("t", 1, "g1", "last"))
    lost: Any = sync_redis
    lost.hset("redisagg:{tests:1}:state", "schema", "frozen somebody")  # thaw
    lost.hdel("redisagg:{tests:4}:state", "schema")  # retire
    moved, _ = move(transport, "tests", 3)
    assert moved is not None
    assert moved.layout == ("tests", 3)
    agg.add_tasks(Task("t", n, f"g{n}", f"new{n}") for n in range(20))
    assert agg.stats().pending == 41
    assert lost.hgetall("redisagg:{tests:4}:state") == {b"schema": b"moved"}
    with pytest.raises(InvalidConfig, match="3 partitions already"):
        move(transport, "tests", 3)


def test_a_flusher_without_a_partition_follows_too(make: Make, transport: Transport) -> None:
    """Nothing of its own is refused, so nothing else would tell it."""
    made = [make(partitions=1, lease_time=1) for _ in range(6)]
    with contextlib.ExitStack() as stack:
        for each in made:
            stack.enter_context(each)
        wait_until(lambda: len(made[0].stats().flushers) == 6, timeout=10, what="all have joined")
        await_led(made[0])
        move(transport, "tests", 12)
        wait_until(
            lambda: len({each.leader for each in made[0].stats().partitions} - {None}) == 6,
            timeout=10,
            what="each leads some of the new partitions",
        )
        assert len(made[0].stats().partitions) == 12
