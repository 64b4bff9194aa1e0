"""Connections that break, hang or are slow, and servers that are down for a while."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
import redis.asyncio.sentinel
import redis.sentinel

from redisagg import Aggregator, Task
from redisagg.errors import RedisUnavailable
from redisagg.testing.embedded import HOST, EmbeddedRedis
from tests.support.aggregators import Make
from tests.support.processes import Processes
from tests.support.proxy import Proxy, running_proxy
from tests.support.servers import wait_until
from tests.support.tasks import await_batches, await_led, enqueued, error_count, numbered, payloads


def seconds_until_unavailable(call: Callable[[], object]) -> float:
    """Makes a call that raises `RedisUnavailable`; returns the seconds until it does."""
    start = time.monotonic()
    with pytest.raises(RedisUnavailable):
        call()
    return time.monotonic() - start


def subscriptions(client: redis.Redis) -> set[str]:
    """The ids of the connections with a subscription."""
    return {each["id"] for each in client.client_list(_type="pubsub")}


def offset(client: redis.Redis) -> int:
    """How far a server has written or read the replication stream."""
    replication: Any = client.info("replication")
    return int(replication.get("slave_repl_offset", replication["master_repl_offset"]))


def leaders(aggregator: Aggregator) -> int:
    """Number of partitions that have a leader."""
    return sum(partition.leader is not None for partition in aggregator.stats().partitions)


def added(aggregator: Aggregator) -> int:
    """Number of tasks that were added so far."""
    stats = aggregator.stats()
    return stats.pending + stats.in_flight + stats.flushed


@pytest.mark.parametrize(("fault", "warm"), [("cut", True), ("stall", True), ("stall", False)])
def test_calls_give_up_after_add_timeout(
    make_both: Make, proxy: Proxy, fault: str, warm: bool
) -> None:
    agg = make_both(url=proxy.url, add_timeout=0.6)
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
        assert seconds_until_unavailable(call) < 0.6 + 1.0
    proxy.restore()
    assert agg.add_task(task) == task.id
    wait_until(lambda: agg.stats().pending == 1 + warm, timeout=5, what="the task was added once")


def test_a_producer_retries_for_all_of_add_timeout(make_both: Make, proxy: Proxy) -> None:
    agg = make_both(url=proxy.url, add_timeout=0.6)
    agg.add_task(Task("test", "before", "a"))
    proxy.cut()
    assert (
        min(seconds_until_unavailable(lambda: agg.add_task(Task("test", 0, "a"))) for _ in range(3))
        > 0.5
    )


def test_each_of_many_callers_gets_the_error(make_both: Make, proxy: Proxy) -> None:
    agg = make_both(url=proxy.url, add_timeout=0.5)
    agg.add_task(Task("test", "before", "a"))
    proxy.cut()
    with ThreadPoolExecutor(20) as pool:
        took = list(
            pool.map(
                lambda n: seconds_until_unavailable(lambda: agg.add_task(Task("test", n, "a"))),
                range(20),
            )
        )
    # A caller that comes during a call waits for that, and then for its own.
    assert max(took) < 2 * 0.5 + 1.0
    proxy.restore()
    agg.add_task(Task("test", "after", "a"))


def test_a_server_that_refuses_connections_is_unavailable(make_both: Make) -> None:
    agg = make_both(url="redis://127.0.0.1:1/0", add_timeout=0.3)
    assert seconds_until_unavailable(lambda: agg.add_task(Task("test", 0, "a"))) < 1.5
    assert seconds_until_unavailable(agg.start) < 1.5
    agg.stop()


def test_an_add_is_retried_until_the_connection_works(make_both: Make, proxy: Proxy) -> None:
    agg = make_both(url=proxy.url, add_timeout=10)
    agg.add_task(Task("test", "before", "a"))
    proxy.cut()
    threading.Timer(0.4, proxy.restore).start()
    start = time.monotonic()
    agg.add_task(Task("test", "during", "a"))
    assert 0.35 < time.monotonic() - start < 4
    assert agg.stats().pending == 2


@pytest.mark.parametrize("library", [redis, redis.asyncio])
def test_calls_on_a_client_without_socket_timeout_give_up_too(
    make_both: Make, proxy: Proxy, library: Any
) -> None:
    client = library.Redis.from_url(proxy.url, socket_timeout=None)
    agg = make_both(url=client, add_timeout=0.6)
    agg.add_task(Task("test", "before", "a"))
    proxy.stall()
    assert seconds_until_unavailable(lambda: agg.add_task(Task("test", 0, "a"))) < 0.6 + 1.0
    assert seconds_until_unavailable(agg.stats) < 0.6 + 1.0


@pytest.mark.parametrize("library", [redis.sentinel, redis.asyncio.sentinel])
@pytest.mark.parametrize("timeout", [None, 5.0])
def test_sentinels_that_are_silent_do_not_outlast_add_timeout(
    make_both: Make, library: Any, timeout: float | None
) -> None:
    with contextlib.ExitStack() as stack:
        places = [
            stack.enter_context(socket.create_server((HOST, 0))).getsockname() for _ in range(3)
        ]
        asked = library.Sentinel(places, sentinel_kwargs={"socket_timeout": None})
        agg = make_both(url=asked.master_for("main", socket_timeout=timeout), add_timeout=0.6)
        assert seconds_until_unavailable(lambda: agg.add_task(Task("test", 0, "a"))) < 0.6 + 1.0
        assert seconds_until_unavailable(agg.stats) < 0.6 + 1.0


def test_an_add_is_retried_after_several_connections_without_an_answer(
    make_both: Make, proxy: Proxy
) -> None:
    agg = make_both(url=proxy.url, add_timeout=1.5)  # a third of it without an answer each
    agg.add_task(Task("test", "before", "a"))
    proxy.stall()
    threading.Timer(1.1, proxy.restore).start()
    agg.add_task(Task("test", "during", "a"))
    assert agg.stats().pending == 2


def test_a_flusher_goes_on_after_a_loss_longer_than_its_lease(make: Make, proxy: Proxy) -> None:
    far = make(url=proxy.url, group_max_size=2, lease_time=0.5)
    near = make(group_max_size=2)
    with far:
        near.add_tasks(numbered("a", 2))
        await_batches(near, 1)
        proxy.cut()
        near.add_tasks(numbered("a", 2, start=2))
        wait_until(lambda: not leaders(near), timeout=5, what="the leases have expired")
        assert near.stats().pending == 2
        proxy.restore()
        await_batches(near, 2, timeout=5)
    assert payloads(enqueued(near)) == [0, 1, 2, 3]


@pytest.mark.parametrize("fault", ["cut", "stall"])
def test_another_flusher_takes_over_from_one_that_is_cut_off(
    make: Make, proxy: Proxy, sync_redis: redis.Redis, fault: str
) -> None:
    merging = threading.Event()
    go_on = threading.Event()

    def slow_merge(group: str, tasks: list[Task]) -> Task:
        merging.set()
        assert go_on.wait(20)
        return Task("slow", {"payloads": [task.payload for task in tasks]})

    far = make(
        url=proxy.url, group_max_size=2, lease_time=1.0, partitions=1, group_aggregator=slow_merge
    )
    near = make(group_max_size=2, lease_time=1.0, partitions=1)
    with far:
        near.add_tasks(numbered("a", 2))
        assert merging.wait(5)
        getattr(proxy, fault)()
        with near:
            await_batches(near, 1, timeout=1.0 + 1.0)
            # The commit of the flusher that was cut off is refused.
            refused = error_count(sync_redis, "STALE")
            go_on.set()
            proxy.restore()
            wait_until(lambda: error_count(sync_redis, "STALE") > refused, what="it is refused")
            near.add_tasks(numbered("a", 2, start=2))
            await_batches(near, 2, timeout=5)
            assert near.wait_until_idle(2)
        assert enqueued(near)[0].type == "test:aggregated"
        assert payloads(enqueued(near)) == [0, 1, 2, 3]


def test_connections_that_do_not_answer_are_replaced(make_both: Make, proxy: Proxy) -> None:
    """As behind a firewall that has forgotten them: no reset comes, new connections work."""
    far = make_both(url=proxy.url, group_max_size=2, lease_time=6, add_timeout=6)
    near = make_both(group_max_size=2)
    with far:
        far.add_tasks(numbered("a", 2))
        await_batches(near, 1)
        tokens = [partition.token for partition in near.stats().partitions]
        proxy.freeze_links()
        far.add_tasks(numbered("a", 2, start=2))
        await_batches(near, 2, timeout=6)
        assert far.wait_until_idle(2)
        # They were replaced soon enough to keep the leases.
        assert [partition.token for partition in near.stats().partitions] == tokens
    assert payloads(enqueued(near)) == [0, 1, 2, 3]


def test_a_subscription_that_does_not_answer_is_replaced(
    make: Make, proxy: Proxy, sync_redis: redis.Redis
) -> None:
    """Else a full group would wait until the leader polls by itself, once a lease time."""
    far = make(url=proxy.url, group_max_size=1, lease_time=4.5)
    near = make(group_max_size=1)
    with far:
        await_led(near)
        wait_until(lambda: subscriptions(sync_redis), what="the flusher listens")
        frozen = subscriptions(sync_redis)
        proxy.freeze_links(listening_only=True)
        wait_until(lambda: subscriptions(sync_redis) - frozen, what="it listens again")
        near.add_task(Task("test", 0, "a"))
        await_batches(near, 1, timeout=1)
    assert payloads(enqueued(near)) == [0]


def test_a_name_that_leads_to_a_new_primary_is_followed(
    make_both: Make, server_binary: Path
) -> None:
    """The old primary becomes a replica and keeps its connections, as behind a proxy."""
    with (
        EmbeddedRedis(server_binary) as old,
        EmbeddedRedis(server_binary) as new,
        running_proxy("127.0.0.1", urlsplit(old.url).port or 0) as proxy,
        old.client() as a,
        new.client() as b,
    ):
        b.replicaof("127.0.0.1", urlsplit(old.url).port)
        agg = make_both(url=proxy.url, group_max_size=1, lease_time=2, add_timeout=10)
        with agg, ThreadPoolExecutor(4) as pool:
            list(pool.map(agg.add_task, numbered("a", 8)))  # leaves idle connections behind
            await_batches(agg, 8)
            wait_until(lambda: offset(a) <= offset(b), what="the replica has the data")
            b.replicaof("NO", "ONE")
            a.replicaof("127.0.0.1", urlsplit(new.url).port)
            proxy.redirect(urlsplit(new.url).port or 0)
            agg.add_tasks(numbered("a", 8, 8))
            await_batches(agg, 16)
            assert sorted(payloads(enqueued(agg))) == list(range(16))
            wait_until(lambda: subscriptions(b) and not subscriptions(a), what="it listens to b")


def test_a_stop_without_redis_ends_after_shutdown_timeout(make_both: Make, proxy: Proxy) -> None:
    agg = make_both(url=proxy.url, shutdown_timeout=0.5, add_timeout=0.5)
    agg.start()
    await_led(agg)
    proxy.cut()
    start = time.monotonic()
    agg.stop()
    assert time.monotonic() - start < 0.5 + 2 + 1.5


def test_all_tasks_are_enqueued_in_order_over_a_slow_network(make: Make, proxy: Proxy) -> None:
    agg = make(url=proxy.url, group_max_size=5, lease_time=1.0)
    with agg:
        proxy.delay(0.05)
        agg.add_tasks(numbered("a", 50))
        assert agg.wait_until_idle(20)
        proxy.restore()
    assert payloads(enqueued(agg)) == list(range(50))


def test_a_flusher_whose_subscription_is_reset_subscribes_again(
    make: Make, sync_redis: redis.Redis
) -> None:
    """Else a full group would wait until the leader polls by itself."""
    agg = make(group_max_size=1, lease_time=60)
    with agg:
        await_led(agg)
        for n in range(3):
            wait_until(lambda: subscriptions(sync_redis), what="the flusher listens")
            assert sync_redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub") == 1
            agg.add_task(Task("test", n, "a"))
            await_batches(agg, n + 1, timeout=3)


def test_random_resets_lose_and_duplicate_no_task(make_both: Make, proxy: Proxy) -> None:
    chance = random.Random(5)
    far = make_both(url=proxy.url, group_max_size=5, lease_time=2.0)
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
            time.sleep(0.005)  # so that several resets happen meanwhile

    near = make_both(group_max_size=5)
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


def test_restarts_of_a_persistent_server_lose_and_duplicate_no_task(
    make: Make, processes: Processes, server_binary: Path
) -> None:
    config: dict[str, Any] = {"group_max_size": 10, "lease_time": 2.0, "add_timeout": 30}
    persistent = {"appendonly": "yes", "appendfsync": "always"}
    with EmbeddedRedis(server_binary, config=persistent) as server:
        agg = make(url=server.url, **config)
        processes.flushers(2, server.url, config=config)
        producers = [
            processes.start(
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
            assert producer.read_line() == "ready"
            producer.send_line("go")
        for end in (server.kill, server.stop):
            wanted = added(agg) + 150
            wait_until(lambda: added(agg) >= wanted, what="150 more tasks are added")  # noqa: B023
            end()
            time.sleep(0.2)  # clients find no server meanwhile
            server.start()
        for producer in producers:
            assert producer.read_line() == {"acknowledged": 600, "errors": []}
        agg.flush_all()
        assert agg.wait_until_idle(20)
        found = Counter(map(tuple, payloads(enqueued(agg))))
        assert found == Counter((name, n) for name in ("one", "two") for n in range(600))
        agg.close()
