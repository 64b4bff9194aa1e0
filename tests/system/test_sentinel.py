"""A primary that is found through Sentinels, by client and by URL, and failovers."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import Any

import pytest
import redis
import redis.asyncio.sentinel
from redis.sentinel import Sentinel

from redisagg import AsyncAggregator, RedisAggError, Task
from tests.support.aggregators import Make
from tests.support.processes import Processes
from tests.support.servers import SentinelTopology, wait_until
from tests.support.tasks import await_led, enqueued, numbered, payloads, quick_config


def url_of(addresses: list[tuple[str, int]], service: str) -> str:
    places = ",".join(f"{host}:{port}" for host, port in addresses)
    return f"redis+sentinel://{places}/{service}"


def test_a_url_names_the_sentinels(
    make_both: Make, sentinel: SentinelTopology, sentinel_addresses: list[tuple[str, int]]
) -> None:
    agg = make_both(url=url_of(sentinel_addresses, sentinel.service_name), group_max_size=5)
    with agg:
        agg.add_tasks(numbered("a", 20))
        assert agg.wait_until_idle(10)
        assert payloads(enqueued(agg)) == list(range(20))
    with sentinel.primary.client() as primary:
        assert primary.xlen("tests-batches") == 4


def test_a_url_may_have_a_database_behind_the_service(
    make_both: Make, sentinel: SentinelTopology, sentinel_addresses: list[tuple[str, int]]
) -> None:
    agg = make_both(url=url_of(sentinel_addresses, sentinel.service_name) + "/3", group_max_size=1)
    with agg:
        agg.add_task(Task("test", 0, "a"))
        assert agg.wait_until_idle(10)
    with redis.Redis(port=sentinel.primary.port, db=3) as primary:
        assert primary.xlen("tests-batches") == 1


def test_clients_of_a_sentinel_can_be_handed_over(
    make: Make, sentinel: SentinelTopology, sentinel_addresses: list[tuple[str, int]]
) -> None:
    client: Any = Sentinel(sentinel_addresses).master_for(sentinel.service_name)
    agg = make(url=client, group_max_size=5)
    with agg:
        agg.add_tasks(numbered("a", 10))
        assert agg.wait_until_idle(10)
        assert payloads(enqueued(agg)) == list(range(10))

    async def use_asyncio() -> None:
        manager = redis.asyncio.sentinel.Sentinel(sentinel_addresses)
        client = manager.master_for(sentinel.service_name)
        async with AsyncAggregator("tests", client, config=quick_config(group_max_size=5)) as other:
            await other.add_tasks(numbered("b", 10))
            assert await other.wait_until_idle(10)
        await client.aclose()
        for each in manager.sentinels:
            await each.aclose()

    asyncio.run(use_asyncio())
    assert len(enqueued(agg)) == 4
    client.close()


@pytest.mark.parametrize("by", [pytest.param("order", marks=pytest.mark.slow), "kill"])
def test_adds_and_flushers_go_on_after_a_failover(
    make_both: Make,
    processes: Processes,
    sentinel: SentinelTopology,
    sentinel_addresses: list[tuple[str, int]],
    by: str,
) -> None:
    """Tasks that were replicated before it, or are added after it, are enqueued once.

    Between these some are lost: replication is asynchronous, and for about a second the old primary
    does not know of its successor and still acknowledges writes.
    """
    url = url_of(sentinel_addresses, sentinel.service_name)
    config: dict[str, Any] = {"group_max_size": 5, "lease_time": 2.0, "add_timeout": 30}
    agg = make_both(url=url, **config)
    processes.flushers(2, url, config=config)
    await_led(agg)
    done = threading.Event()
    offered, errors = 0, []

    def produce() -> None:
        nonlocal offered
        while not done.wait(0.02):
            try:
                agg.add_task(Task("test", ["during", offered], f"g{offered % 3}"))
            except RedisAggError as error:
                errors.append(error)
            offered += 1

    agg.add_tasks(Task("test", ["before", n], "open") for n in range(3))
    with sentinel.primary.client() as primary:
        assert primary.wait(2, 5_000) == 2
    producer = threading.Thread(target=produce)
    producer.start()

    def await_adds(count: int) -> None:
        wanted = offered + count
        wait_until(lambda: offered >= wanted, what=f"{count} more tasks are added")

    try:
        await_adds(10)
        if by == "order":
            sentinel.failover()
        else:
            sentinel.wait_for_failover(sentinel.kill_primary())
        await_adds(10)
    finally:
        done.set()
        producer.join()
    assert errors == []
    after = [Task("test", ["after", n], f"g{n % 3}") for n in range(100)]
    agg.add_tasks(after)
    agg.flush_all()
    assert agg.wait_until_idle(20)
    found = Counter(map(tuple, payloads(enqueued(agg))))
    assert all(count == 1 for count in found.values())
    expected = {("before", n) for n in range(3)} | {("after", n) for n in range(100)}
    assert expected <= set(found)
    during = sorted(n for name, n in found if name == "during")
    print(f"{len(during)} of {offered} tasks that were added around the failover are enqueued")
    assert during


def test_flushers_find_the_new_primary_without_adds(
    make: Make,
    processes: Processes,
    sentinel: SentinelTopology,
    sentinel_addresses: list[tuple[str, int]],
) -> None:
    url = url_of(sentinel_addresses, sentinel.service_name)
    config: dict[str, Any] = {"group_grace_period": 3.0, "lease_time": 2.0}
    agg = make(url=url, **config)
    processes.flushers(1, url, config=config)
    await_led(agg)
    agg.add_tasks(numbered("a", 3))
    with sentinel.primary.client() as primary:
        assert primary.wait(2, 5_000) == 2
    sentinel.failover()
    wait_until(lambda: len(enqueued(agg)) == 1, timeout=10, what="the group is enqueued when due")
    assert payloads(enqueued(agg)) == [0, 1, 2]
