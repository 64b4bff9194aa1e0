"""A reply that is lost: the call was carried out, and must not be carried out twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from redisagg import Aggregator, Task
from redisagg.errors import RedisUnavailable
from redisagg.producer.options import MAX_CALL_TASKS
from redisagg.producer.rounds import STREAM_ROUND_TASKS
from redisagg.protocol.scripts import load
from redisagg.sinks import CallableSink
from tests.support.aggregators import Make
from tests.support.proxy import Proxy
from tests.support.servers import wait_until
from tests.support.tasks import (
    await_asleep,
    await_batches,
    await_dead,
    await_led,
    enqueued,
    numbered,
    payloads,
)

# Seconds within which a call is repeated: far less than a claim or a lease lasts here.
PROMPTLY = 3.0


def warm_up(make: Make) -> None:
    """Has Redis load the usual scripts: the reply to an unknown one would be NOSCRIPT."""
    with make(name="warm-up", group_max_size=1) as agg:
        agg.add_task(Task("test", 0, "a"))
        assert agg.wait_until_idle(5)
        agg.pause()
        agg.resume()
        agg.flush("a")
        agg.flush_all()
        agg.cancel_task("a", "unknown")
        agg.cancel_group("a")


@pytest.fixture(autouse=True)
def _warm(make: Make) -> None:
    warm_up(make)


# --- producers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["add_task", "add_tasks"])
def test_an_add_is_repeated_and_adds_once(make_both: Make, proxy: Proxy, how: str) -> None:
    agg = make_both(url=proxy.url)
    agg.add_task(Task("test", "before", "a"))
    loss = proxy.lose_reply("add")
    tasks = [Task("test", n, f"g{n}") for n in range(10)]  # in both partitions
    if how == "add_tasks":
        assert agg.add_tasks(tasks) == [task.id for task in tasks]
    else:
        assert [agg.add_task(task) for task in tasks] == [task.id for task in tasks]
    loss.wait(0)
    assert agg.stats().pending == 11


@pytest.mark.parametrize("how", ["add_task", "add_tasks"])
def test_an_add_is_not_repeated_even_if_its_tasks_were_flushed_meanwhile(
    make_both: Make, proxy: Proxy, how: str
) -> None:
    agg, direct = make_both(url=proxy.url, group_max_size=3), make_both(group_max_size=3)
    agg.add_task(Task("test", "before", "a"))
    loss = proxy.lose_reply("add", then_cut=True)
    tasks = numbered("a", 1) if how == "add_task" else numbered("a", 5)

    def add() -> None:
        if how == "add_task":
            agg.add_task(tasks[0])
        else:
            agg.add_tasks(tasks)

    with ThreadPoolExecutor(1) as pool, direct:
        adding = pool.submit(add)
        loss.wait()
        direct.flush_all()
        assert direct.wait_until_idle(5)
        assert not adding.done()
        proxy.restore()
        adding.result(10)
        assert direct.wait_until_idle(5)
    assert payloads(enqueued(direct)) == ["before", *range(len(tasks))]


def test_adds_that_shared_a_lost_round_trip_are_each_added_once(
    make_both: Make, proxy: Proxy
) -> None:
    agg, direct = make_both(url=proxy.url), make_both(group_max_size=1)
    agg.add_task(Task("test", "before", "a"))
    loss = proxy.lose_reply("add", then_cut=True)
    with ThreadPoolExecutor(20) as pool:
        adding = [pool.submit(agg.add_task, Task("test", n, f"g{n % 4}")) for n in range(20)]
        loss.wait()
        wait_until(
            lambda: all(each.running() or each.done() for each in adding), what="all threads add"
        )
        with direct:
            direct.flush_all()
            assert direct.wait_until_idle(5)
        proxy.restore()
        for each in adding:
            each.result(10)
    with direct:
        direct.flush_all()
        assert direct.wait_until_idle(5)
    assert sorted(map(str, payloads(enqueued(direct)))) == sorted(["before", *map(str, range(20))])


def test_a_stream_repeats_calls_with_lost_replies_in_order(make_both: Make, proxy: Proxy) -> None:
    agg = make_both(url=proxy.url, group_max_size=100_000)
    agg.add_task(Task("test", "before", "z"))
    many = 3 * STREAM_ROUND_TASKS

    def tasks() -> Iterator[Task]:
        for n in range(many):
            if n % STREAM_ROUND_TASKS == 100:  # the round before this one may be in flight
                losses.append(proxy.lose_reply("add"))
            yield Task("test", n, f"g{n % 10}")

    losses: list[Any] = []
    agg.add_tasks(tasks(), ids=False)
    for loss in losses:
        loss.wait(5)
    assert agg.stats().pending == 1 + many
    for group in range(10):
        state = agg.get_group(f"g{group}", limit=many)
        assert state is not None
        assert state.tasks is not None
        found = [stored.task.payload for stored in state.tasks if stored.task]
        assert found == list(range(group, many, 10))


def test_a_stream_that_raises_leaves_no_call_in_flight(
    make_both: Make, sync_redis: redis.Redis
) -> None:
    def connections() -> set[str]:
        return {client["id"] for client in sync_redis.client_list()}

    agg = make_both(group_max_size=100_000)
    assert agg.stats().pending == 0
    before = connections()

    def tasks() -> Iterator[Task]:
        yield from (Task("test", n, "a") for n in range(MAX_CALL_TASKS + 1))
        raise RuntimeError("no more")

    for more in (1, 2):
        with pytest.raises(RuntimeError, match="no more"):
            agg.add_tasks(tasks())
        assert agg.stats().pending == more * MAX_CALL_TASKS  # a full call was sent
    assert connections() == before  # the connections are in the pool again


def test_a_stream_repeats_a_call_that_was_lost_longer_ago_than_add_timeout(
    make: Make, proxy: Proxy
) -> None:
    agg = make(url=proxy.url, group_max_size=100_000, add_timeout=0.5)
    agg.add_task(Task("test", "before", "z"))

    def tasks() -> Iterator[Task]:
        loss = proxy.lose_reply("add")
        yield from (Task("test", n, "a") for n in range(MAX_CALL_TASKS))
        loss.wait()
        time.sleep(0.6)  # longer than add_timeout, which begins when a call is waited for
        yield Task("test", "last", "a")

    agg.add_tasks(tasks())
    assert agg.stats().pending == 1 + MAX_CALL_TASKS + 1


@pytest.mark.parametrize("how", ["add_task", "add_tasks"])
def test_a_call_is_not_repeated_when_redis_may_have_forgotten_it(
    make_both: Make, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr("redisagg.producer.options._MAX_STORED", 60.5)
    agg = make_both(url=proxy.url, partitions=1, add_timeout=3600)
    agg.add_task(Task("test", "before", "z"))
    proxy.lose_reply("add", then_cut=True)
    task = Task("test", 0, "a")
    start = time.monotonic()
    with pytest.raises(RedisUnavailable, match=r"within 0[.]"):
        agg.add_task(task) if how == "add_task" else agg.add_tasks([task])
    assert time.monotonic() - start < 5
    proxy.restore()
    assert agg.stats().pending == 2


def test_redis_stores_a_call_for_longer_than_it_is_repeated(
    make: Make, sync_redis: redis.Redis
) -> None:
    agg = make(partitions=1, add_timeout=3600)
    agg.add_task(Task("test", 0, "a"))
    [call] = sync_redis.scan_iter("redisagg:*:call:*")
    assert sync_redis.pttl(call) > 2 * 3600 * 1000


def test_all_other_operations_can_be_repeated(make_both: Make, proxy: Proxy) -> None:
    far, direct = make_both(url=proxy.url), make_both()
    ids = direct.add_tasks([*numbered("a", 3), *numbered("b", 2)])

    def lose_reply(script: str, ask: Callable[[], Any]) -> None:
        """Has the reply to the first of two such calls lost."""
        loss = proxy.lose_reply(script)
        ask()
        loss.wait(0)

    steps: list[tuple[str, Callable[[], Any]]] = [
        ("pause", far.pause),
        ("flush", lambda: far.flush("a")),
        ("flush_all", far.flush_all),
        ("cancel_task", lambda: far.cancel_task("a", ids[1])),
        ("cancel_group", lambda: far.cancel_group("b")),
        ("pause", far.resume),
        ("stats", far.stats),
    ]
    for script, ask in steps:
        lose_reply(script, ask)
    assert direct.stats().pending == 2
    assert not direct.stats().paused
    with direct:
        assert direct.wait_until_idle(5)
    assert payloads(enqueued(direct)) == [0, 2]


# --- flushers ------------------------------------------------------------------------------------


@pytest.fixture
def far(make: Make, proxy: Proxy) -> Aggregator:
    """An aggregator behind the proxy, with claims and leases that outlast the test."""
    return make(url=proxy.url, group_max_size=2, merge_timeout=60, lease_time=30, partitions=1)


@pytest.mark.parametrize("script", ["poll", "claim", "commit_stream"])
def test_a_flusher_repeats_a_call_promptly_and_enqueues_once(
    make: Make, far: Aggregator, proxy: Proxy, script: str
) -> None:
    direct = make(group_max_size=2, partitions=1)
    with far:
        await_led(direct)
        loss = proxy.lose_reply(script)
        direct.add_tasks(numbered("a", 20))
        loss.wait(5)
        await_batches(direct, 10, timeout=PROMPTLY)
        assert direct.wait_until_idle(1)
        stats = direct.stats()
    assert payloads(enqueued(direct)) == list(range(20))
    assert (stats.flushed, stats.batches_flushed, stats.dead) == (20, 10, 0)


@pytest.mark.parametrize("script", ["join", "acquire"])
def test_a_flusher_repeats_a_call_while_it_starts(
    make: Make, far: Aggregator, proxy: Proxy, script: str
) -> None:
    direct = make(group_max_size=2, partitions=1)
    loss = proxy.lose_reply(script)
    with far:
        loss.wait(5)
        direct.add_tasks(numbered("a", 2))
        await_batches(direct, 1, timeout=PROMPTLY)
    assert payloads(enqueued(direct)) == [0, 1]


@pytest.mark.parametrize("script", ["release", "leave"])
def test_a_flusher_repeats_a_call_while_it_stops(
    make: Make, far: Aggregator, proxy: Proxy, script: str
) -> None:
    direct = make(group_max_size=2, partitions=1, lease_time=30)
    far.start()
    await_led(direct)
    loss = proxy.lose_reply(script)
    start = time.monotonic()
    far.stop()
    assert time.monotonic() - start < PROMPTLY
    loss.wait(0)
    assert direct.stats().flushers == []
    with direct:
        direct.add_tasks(numbered("a", 2))
        await_batches(direct, 1, timeout=PROMPTLY)


def test_a_lost_reply_to_a_renewal_keeps_the_lease(
    make: Make, proxy: Proxy, sync_redis: redis.Redis
) -> None:
    sync_redis.script_load(load("renew").source.decode())  # a lost NOSCRIPT would be no renewal
    far = make(url=proxy.url, lease_time=1.0, partitions=1, group_max_size=1)
    direct = make(lease_time=1.0, partitions=1, group_max_size=1)
    with far:
        await_led(direct)
        token = direct.stats().partitions[0].token
        for _ in range(2):
            proxy.lose_reply("renew").wait(2)
        direct.add_task(Task("test", 0, "a"))
        await_batches(direct, 1, timeout=PROMPTLY)
        assert direct.stats().partitions[0].token == token


def test_attempts_are_counted_once_when_replies_to_retries_are_lost(
    make: Make, proxy: Proxy, sync_redis: redis.Redis
) -> None:
    calls: list[float] = []

    def merge(group: str, tasks: list[Task]) -> Task:
        calls.append(time.monotonic())
        raise RuntimeError("never")

    config: dict[str, Any] = {"group_max_size": 2, "partitions": 1, "max_attempts": 3}
    far = make(url=proxy.url, group_aggregator=merge, lease_time=30, **config)
    direct = make(**config)
    with make(name="warm-up-2", group_aggregator=merge, **config) as warm:
        warm.add_tasks(numbered("a", 2))
        await_dead(warm)
    calls.clear()
    with far:
        await_led(direct)
        retry, bury = proxy.lose_reply("retry"), proxy.lose_reply("bury")
        direct.add_tasks(numbered("a", 2))
        [letter] = await_dead(direct, timeout=PROMPTLY)
        retry.wait(0)
        bury.wait(PROMPTLY)
        await_asleep(sync_redis, partitions=1)
        stats = direct.stats()
    assert (letter.attempts, len(calls)) == (3, 3)
    assert (stats.dead, stats.batches_dead, stats.in_flight, stats.pending) == (2, 1, 0, 0)


def test_a_callable_sink_is_called_once_when_the_reply_to_its_commit_is_lost(
    make: Make, proxy: Proxy
) -> None:
    calls: list[str] = []

    def deliver(task: Task, batch_id: str) -> None:
        calls.append(batch_id)

    with make(name="warm-up-2", group_max_size=1, sink=CallableSink(deliver)) as warm:
        warm.add_task(Task("test", 0, "a"))
        assert warm.wait_until_idle(5)
    calls.clear()
    direct = make()
    far = make(url=proxy.url, group_max_size=2, lease_time=30, sink=CallableSink(deliver))
    with far:
        await_led(direct)
        loss = proxy.lose_reply("commit")
        far.add_tasks(numbered("a", 2))
        loss.wait(5)
        assert direct.wait_until_idle(PROMPTLY)
    assert len(calls) == 1
    assert direct.stats().batches_flushed == 1


def test_batches_of_a_lost_claim_do_not_wait_for_a_slow_merge(make: Make, proxy: Proxy) -> None:
    began, go_on = threading.Event(), threading.Event()

    def merge(group: str, tasks: list[Task]) -> Task:
        if group == "slow":
            began.set()
            assert go_on.wait(20)
        return Task("merged", {"payloads": [task.payload for task in tasks]})

    far = make(url=proxy.url, group_max_size=2, lease_time=30, partitions=1, group_aggregator=merge)
    direct = make(group_max_size=2, partitions=1)
    with far:
        direct.add_tasks(numbered("slow", 2))
        assert began.wait(5)
        loss = proxy.lose_reply("claim")
        direct.add_tasks(numbered("quick", 6))
        try:
            loss.wait(5)
            await_batches(direct, 3, timeout=PROMPTLY)
        finally:
            go_on.set()
        await_batches(direct, 4, timeout=PROMPTLY)


def test_a_merge_that_runs_when_the_reply_to_a_claim_is_lost_is_committed(
    make: Make, proxy: Proxy
) -> None:
    """The leader recalls what it may have claimed; what it merges is not affected."""
    began, go_on = threading.Event(), threading.Event()

    def merge(group: str, tasks: list[Task]) -> Task:
        if group == "slow":
            began.set()
            assert go_on.wait(10)
        return Task("merged", {"payloads": [task.payload for task in tasks]})

    far = make(url=proxy.url, group_max_size=2, lease_time=30, partitions=1, group_aggregator=merge)
    direct = make(group_max_size=2, partitions=1)
    with far:
        direct.add_tasks(numbered("slow", 2))
        assert began.wait(5)
        loss, recall = proxy.lose_reply("claim"), proxy.hold("recall", replies=True)
        direct.add_tasks(numbered("quick", 6))
        loss.wait(5)
        wait_until(lambda: recall.count, timeout=5, what="the leader recalls its claims")
        go_on.set()
        recall.release()
        await_batches(direct, 4, timeout=PROMPTLY)
        assert direct.wait_until_idle(1)
    batches = enqueued(direct)
    assert payloads([b for b in batches if b.group == "slow"]) == [0, 1]
    assert payloads([b for b in batches if b.group == "quick"]) == [0, 1, 2, 3, 4, 5]
