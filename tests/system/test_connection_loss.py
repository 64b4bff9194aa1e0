"""Connections that break, hang or slow down, and servers that go away and come back."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis

from redisagg import Task
from redisagg.errors import RedisUnavailable
from redisagg.testing.embedded import EmbeddedRedis
from tests.support.aggregators import Make
from tests.support.processes import Crew
from tests.support.proxy import Proxy
from tests.support.servers import wait_until
from tests.support.tasks import await_batches, await_led, enqueued, numbered, payloads


def refused(call: Callable[[], object]) -> float:
    """Seconds until the call raises `RedisUnavailable`."""
    start = time.monotonic()
    with pytest.raises(RedisUnavailable):
        call()
    return time.monotonic() - start


@pytest.mark.parametrize(("fault", "warm"), [("cut", True), ("stall", True), ("stall", False)])
def test_calls_give_up_after_add_timeout(make: Make, proxy: Proxy, fault: str, warm: bool) -> None:
    agg = make(url=proxy.url, add_timeout=0.6)
    task = Task("test", 0, "a")
    if warm:  # else the very first call, which makes the connection, is the one that fails
        agg.add_task(Task("test", "before", "a"))
    getattr(proxy, fault)()
    calls: list[Callable[[], object]] = [
        lambda: agg.add_task(task),
        lambda: agg.add_tasks([task]),
        agg.stats,
    ]
    for call in calls:
        assert refused(call) < 0.6 + 1.0
    proxy.restore()
    assert agg.add_task(task) == task.id
    wait_until(lambda: agg.stats().pending == 1 + warm, timeout=5, what="the task was added once")


def test_a_producer_keeps_trying_until_the_end(make: Make, proxy: Proxy) -> None:
    agg = make(url=proxy.url, add_timeout=0.6)
    agg.add_task(Task("test", "before", "a"))
    proxy.cut()
    assert min(refused(lambda: agg.add_task(Task("test", 0, "a"))) for _ in range(3)) > 0.5


def test_many_callers_each_learn_that_redis_is_away(make: Make, proxy: Proxy) -> None:
    agg = make(url=proxy.url, add_timeout=0.5)
    agg.add_task(Task("test", "before", "a"))
    proxy.cut()
    with ThreadPoolExecutor(20) as pool:
        took = list(
            pool.map(lambda n: refused(lambda: agg.add_task(Task("test", n, "a"))), range(20))
        )
    # Those who come while a call is on the wire wait for it, and then for their own.
    assert max(took) < 2 * 0.5 + 1.0
    proxy.restore()
    agg.add_task(Task("test", "after", "a"))


def test_a_server_that_is_not_there_is_an_error_of_ours(make: Make) -> None:
    agg = make(url="redis://127.0.0.1:1/0", add_timeout=0.3)
    assert refused(lambda: agg.add_task(Task("test", 0, "a"))) < 1.5
    assert refused(agg.start) < 1.5
    agg.stop()


def test_a_producer_rides_out_a_short_loss(make: Make, proxy: Proxy) -> None:
    agg = make(url=proxy.url, add_timeout=10)
    agg.add_task(Task("test", "before", "a"))
    proxy.cut()
    threading.Timer(0.7, proxy.restore).start()
    start = time.monotonic()
    agg.add_task(Task("test", "during", "a"))
    assert 0.6 < time.monotonic() - start < 4
    assert agg.stats().pending == 2


def test_a_flusher_rides_out_a_loss_longer_than_its_lease(
    make_one_kind: Make, proxy: Proxy
) -> None:
    far = make_one_kind(url=proxy.url, group_max_size=2, lease_time=0.5)
    near = make_one_kind(group_max_size=2)
    with far:
        near.add_tasks(numbered("a", 2))
        await_batches(near, 1)
        proxy.cut()
        near.add_tasks(numbered("a", 2, start=2))
        time.sleep(1.2)
        assert near.stats().pending == 2
        proxy.restore()
        await_batches(near, 2, timeout=5)
    assert payloads(enqueued(near)) == [0, 1, 2, 3]


@pytest.mark.parametrize("fault", ["cut", "stall"])
def test_another_flusher_takes_over_from_one_that_is_cut_off(
    make_one_kind: Make, proxy: Proxy, fault: str
) -> None:
    merging = threading.Event()
    go_on = threading.Event()

    def slow_merge(group: str, tasks: list[Task]) -> Task:
        merging.set()
        assert go_on.wait(20)
        return Task("slow", {"payloads": [task.payload for task in tasks]})

    far = make_one_kind(
        url=proxy.url, group_max_size=2, lease_time=1.0, partitions=1, group_aggregator=slow_merge
    )
    near = make_one_kind(group_max_size=2, lease_time=1.0, partitions=1)
    with far:
        near.add_tasks(numbered("a", 2))
        assert merging.wait(5)
        getattr(proxy, fault)()
        with near:
            await_batches(near, 1, timeout=1.0 + 1.0)
            # What the one that was cut off brings then is not wanted any more.
            go_on.set()
            proxy.restore()
            time.sleep(0.5)
            near.add_tasks(numbered("a", 2, start=2))
            await_batches(near, 2, timeout=5)
            assert near.wait_until_idle(2)
        assert enqueued(near)[0].type == "test:aggregated"
        assert payloads(enqueued(near)) == [0, 1, 2, 3]


def test_connections_that_went_silent_are_noticed_and_replaced(make: Make, proxy: Proxy) -> None:
    """As behind a firewall that forgot them: no reset ever comes, new connections work."""
    far = make(url=proxy.url, group_max_size=2, lease_time=3, add_timeout=3)
    near = make(group_max_size=2)
    with far:
        far.add_tasks(numbered("a", 2))
        await_batches(near, 1)
        tokens = [partition.token for partition in near.stats().partitions]
        proxy.freeze_links()
        far.add_tasks(numbered("a", 2, start=2))
        await_batches(near, 2, timeout=3)
        assert far.wait_until_idle(2)
        # Noticed soon enough to keep the leases.
        assert [partition.token for partition in near.stats().partitions] == tokens
    assert payloads(enqueued(near)) == [0, 1, 2, 3]


def test_a_silent_subscription_is_replaced(make_one_kind: Make, proxy: Proxy) -> None:
    """Else a full group would wait until the leader looks by itself, which it does once a lease."""
    far = make_one_kind(url=proxy.url, group_max_size=1, lease_time=9)
    near = make_one_kind(group_max_size=1)
    with far:
        await_led(near)
        proxy.freeze_links(listening_only=True)
        time.sleep(6.5)
        near.add_task(Task("test", 0, "a"))
        await_batches(near, 1, timeout=1)


def test_a_stop_while_redis_is_away_takes_no_longer_than_it_may(make: Make, proxy: Proxy) -> None:
    agg = make(url=proxy.url, shutdown_timeout=0.5, add_timeout=0.5)
    agg.start()
    await_led(agg)
    proxy.cut()
    start = time.monotonic()
    agg.stop()
    assert time.monotonic() - start < 0.5 + 2 + 1.5


def test_a_slow_network_changes_nothing_but_time(make: Make, proxy: Proxy) -> None:
    agg = make(url=proxy.url, group_max_size=5, lease_time=1.0)
    with agg:
        proxy.delay(0.05)
        agg.add_tasks(numbered("a", 50))
        assert agg.wait_until_idle(20)
        proxy.restore()
    assert payloads(enqueued(agg)) == list(range(50))


def test_a_listener_that_lost_its_connection_listens_again(
    make: Make, sync_redis: redis.Redis
) -> None:
    """Else a full group would wait until the leader looks by itself."""
    agg = make(group_max_size=1, lease_time=60)
    with agg:
        await_led(agg)
        time.sleep(0.2)
        for n in range(3):
            assert sync_redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub") == 1
            agg.add_task(Task("test", n, "a"))
            await_batches(agg, n + 1, timeout=3)
            time.sleep(0.2)  # time to subscribe again


def test_random_resets_lose_and_double_nothing(make: Make, proxy: Proxy) -> None:
    chance = random.Random(5)
    far = make(url=proxy.url, group_max_size=5, lease_time=2.0)
    done = threading.Event()

    def reset_now_and_then() -> None:
        while not done.wait(chance.uniform(0.02, 0.15)):
            proxy.reset()

    def produce(name: str) -> None:
        for n in range(150):
            if n % 10 == 0:
                far.add_tasks(Task("test", (name, n, m), f"g{n % 7}") for m in range(4))
            else:
                far.add_task(Task("test", (name, n, 0), f"g{n % 7}"))
            time.sleep(0.005)

    near = make(group_max_size=5)
    with far, ThreadPoolExecutor(4) as pool:
        await_led(near)
        nemesis = pool.submit(reset_now_and_then)
        try:
            list(pool.map(produce, ["one", "two", "three"]))
        finally:
            done.set()
        nemesis.result()
        near.flush_all()
        assert near.wait_until_idle(20)
    found = Counter(map(tuple, payloads(enqueued(near))))
    expected = {
        (name, n, m)
        for name in ("one", "two", "three")
        for n in range(150)
        for m in range(4 if n % 10 == 0 else 1)
    }
    assert found == Counter(expected)
    assert near.stats().dead == 0


def test_a_server_restarted_in_mid_run_loses_and_doubles_nothing(
    make_one_kind: Make, crew: Crew, server_binary: Path
) -> None:
    config: dict[str, Any] = {"group_max_size": 10, "lease_time": 2.0, "add_timeout": 30}
    persistent = {"appendonly": "yes", "appendfsync": "always"}
    with EmbeddedRedis(server_binary, config=persistent) as server:
        agg = make_one_kind(url=server.url, **config)
        crew.flushers(2, server.url, config=config)
        producers = [
            crew.start(
                "producer",
                server.url,
                config=config,
                name=name,
                groups=[f"g{n}" for n in range(5)],
                count=600,
                chunk=chunk,
                pause=pause,
            )
            for name, chunk, pause in (("one", 1, 0.002), ("two", 10, 0.02))
        ]
        for producer in producers:
            assert producer.hear() == "ready"
            producer.say("go")
        for restart in (server.kill, server.stop):
            time.sleep(0.4)
            restart()
            time.sleep(0.2)
            server.start()
        for producer in producers:
            assert producer.hear() == {"acknowledged": 600, "errors": []}
        agg.flush_all()
        assert agg.wait_until_idle(20)
        found = Counter(map(tuple, payloads(enqueued(agg))))
        assert found == Counter((name, n) for name in ("one", "two") for n in range(600))
        agg.close()
