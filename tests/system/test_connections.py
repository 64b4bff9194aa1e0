"""More connections at a time than the pools of redis-py allow by default, which is 100."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest
import redis
from redis.sentinel import Sentinel

from redisagg import Aggregator, AsyncAggregator, Task
from redisagg.transport import outages
from tests.support.tasks import quick_config
from tests.system.test_cluster import url_of as cluster_url_of
from tests.system.test_sentinel import url_of as sentinel_url_of

CALLS = 150


@pytest.fixture(autouse=True)
def log_every_lost_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """In production the second of two short outages is not logged."""
    monkeypatch.setattr(outages, "_BETWEEN", 0.0)


@pytest.fixture(params=["one Redis", "sentinel", "cluster"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "one Redis":
        return str(request.getfixturevalue("redis_url"))
    if request.param == "cluster":
        return cluster_url_of(request.getfixturevalue("cluster_url"))
    addresses = request.getfixturevalue("sentinel_addresses")
    return sentinel_url_of(addresses, request.getfixturevalue("sentinel").service_name)


async def test_150_coroutines_read_at_a_time_without_retries(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    agg = AsyncAggregator("tests", url, config=quick_config())
    await agg.add_task(Task("test", 1, "a"))
    with caplog.at_level(logging.WARNING):
        groups = await asyncio.gather(*(agg.get_group("a") for _ in range(CALLS)))
    await agg.close()
    assert [group.size for group in groups if group] == [1] * CALLS
    assert caplog.messages == []  # a retry would be logged


def test_150_threads_read_at_a_time_without_retries(
    redis_url: str, sync_redis: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    agg = Aggregator("tests", redis_url, config=quick_config())
    agg.add_task(Task("test", 1, "a"))
    together = threading.Barrier(CALLS)
    found = []

    def ask() -> None:
        together.wait()
        found.append(agg.get_group("a"))

    with caplog.at_level(logging.WARNING):
        threads = [threading.Thread(target=ask) for _ in range(CALLS)]
        sync_redis.client_pause(500)  # ms in which all threads wait for their replies
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    agg.close()
    assert [group.size for group in found if group] == [1] * CALLS
    assert caplog.messages == []


def test_a_flusher_leads_128_partitions_without_retries(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    agg = Aggregator(
        "tests", redis_url, config=quick_config(partitions=128, group_max_size=10, lease_time=10)
    )
    agg.add_tasks((Task("test", n, f"g{n // 10}") for n in range(20_000)), ids=False)
    with caplog.at_level(logging.WARNING), agg:
        assert agg.wait_until_idle(30)
    assert agg.stats().flushed == 20_000
    assert caplog.messages == []


@pytest.mark.parametrize("behind", ["Redis", "Sentinel"])
def test_no_number_reaches_hiredis_on_a_client_that_is_handed_in(
    behind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """hiredis 3.5 crashes if a signal handler raises while it formats a number."""
    hiredis = pytest.importorskip("hiredis")
    options: dict[str, Any] = {"db": 3, "protocol": 3, "socket_timeout": 5}
    if behind == "Redis":
        url = request.getfixturevalue("redis_url")
        client = redis.Redis.from_url(url, **{**options, "db": 0})
    else:
        places = request.getfixturevalue("sentinel_addresses")
        service = request.getfixturevalue("sentinel").service_name
        asked = Sentinel(places, sentinel_kwargs={"protocol": 3, "socket_timeout": 5})
        client = asked.master_for(service, **options)
    client.ping()
    agg = Aggregator("tests", client, config=quick_config())
    handed: list[Any] = []
    real = hiredis.pack_command

    def pack_command(args: tuple[Any, ...]) -> Any:
        handed.extend(args)
        return real(args)

    monkeypatch.setattr(hiredis, "pack_command", pack_command)
    monkeypatch.setattr("redisagg.transport.round_trip.pack_command", pack_command)
    client.connection_pool.disconnect()
    agg.add_task(Task("test", 1, "a"))
    agg.add_tasks([Task("test", 2, "a")])
    assert agg.stats().pending == 2
    agg.close()
    client.close()
    assert b"HELLO" in handed
    assert {type(each) for each in handed} == {bytes}
