"""`health` says within its timeout whether a namespace works; `lifespan` closes what was opened."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import redis

from redisagg import Aggregator, App, AsyncAggregator, Health, Settings, Task
from redisagg.errors import InvalidConfig
from redisagg.testing.embedded import EmbeddedRedis
from tests.support.aggregators import Make
from tests.support.proxy import Proxy
from tests.support.servers import wait_until
from tests.support.tasks import await_batches, numbered, quick_config

WITHIN = 5.0
"""Seconds in which a call with a timeout of half a second has surely returned."""


@pytest.fixture
def app(redis_url: str) -> Iterator[App]:
    """An app with two aggregators."""
    app = App(redis_url, settings=Settings(config=quick_config()))
    for name in ("one", "two"):
        app.aggregator(name)(merge)
    yield app
    app.close()


def merge(group: str, tasks: list[Task]) -> Task:
    return Task("merged", len(tasks))


def test_a_new_namespace_is_reachable_and_has_no_flusher(make_both: Make) -> None:
    assert make_both().health() == Health(reachable=True, led=False, overdue=0.0)


def test_a_namespace_with_a_flusher_is_led(make_both: Make) -> None:
    with make_both() as agg:
        wait_until(lambda: agg.health().led, what="all partitions are led")
        assert agg.health() == Health(reachable=True, led=True, overdue=0.0)
        agg.pause()
        assert agg.health().paused


def test_work_that_nobody_does_is_overdue(make_both: Make) -> None:
    agg = make_both(group_max_size=1)
    agg.add_tasks(numbered("a", 1))
    wait_until(lambda: agg.health().overdue > 0.05, what="the group is overdue")
    assert not agg.health().led


@pytest.mark.timeout(60)
def test_a_silent_redis_is_reported_in_time(make_both: Make, proxy: Proxy) -> None:
    agg = make_both(url=proxy.url, add_timeout=20)
    assert agg.health().reachable
    proxy.stall()
    began = time.monotonic()
    found = agg.health(timeout=0.5)
    assert time.monotonic() - began < WITHIN
    assert (found.reachable, found.led) == (False, False)
    assert "0.5 s" in found.error
    proxy.restore()
    wait_until(lambda: agg.health().reachable, what="Redis answers again")


def test_a_redis_that_is_away_is_reported_in_time(
    make_both: Make, server_binary: Any, tmp_path: Any
) -> None:
    with EmbeddedRedis(server_binary, directory=tmp_path) as server:
        agg = make_both(url=server.url.replace("//", "//:s3cret@"), add_timeout=20)
        server.stop()
        began = time.monotonic()
        found = agg.health(timeout=0.5)
        assert time.monotonic() - began < WITHIN
        assert not found.reachable
        assert found.error
        assert "s3cret" not in found.error


def test_a_connection_that_was_lost_is_replaced(make_both: Make, sync_redis: redis.Redis) -> None:
    agg = make_both()
    assert agg.health().reachable
    sync_redis.client_kill_filter(_type="normal", skipme=True)
    assert agg.health().reachable


def test_another_number_of_partitions_is_an_error(make_both: Make) -> None:
    make_both(partitions=3).add_tasks(numbered("a", 1))
    found = make_both(partitions=2).health()
    assert not found.reachable
    assert "3 partitions" in found.error or "partitions" in found.error


@pytest.mark.parametrize("timeout", [0, "1"])
def test_a_wrong_timeout_is_refused(make_both: Make, app: App, timeout: Any) -> None:
    with pytest.raises(InvalidConfig):
        make_both().health(timeout)
    with pytest.raises(InvalidConfig):
        app.health(timeout)


def test_the_health_of_an_app_is_that_of_the_worst(app: App) -> None:
    one, two = app.aggregators.values()
    two.add(1, group_key="a", flush=True)
    with one:
        wait_until(lambda: one.health().led, what="one is led")
        wait_until(lambda: app.health().overdue > 0, what="two is overdue")
        both = app.health()
        assert (both.reachable, both.led) == (True, False)
        assert asyncio.run(app.ahealth()).overdue >= both.overdue
    with app:
        wait_until(lambda: app.health().led, what="all are led")
        assert asyncio.run(app.ahealth()).led


@pytest.mark.timeout(60)
def test_the_health_of_an_app_is_bounded(proxy: Proxy) -> None:
    app = App(proxy.url, settings=Settings(config=quick_config(add_timeout=20)))
    for name in ("one", "two"):
        app.aggregator(name)(merge)
    assert app.health().reachable
    proxy.stall()
    for ask in (app.health, lambda timeout: asyncio.run(app.ahealth(timeout))):
        began = time.monotonic()
        found = ask(0.5)
        assert time.monotonic() - began < WITHIN
        assert not found.reachable
    proxy.restore()
    app.close()


# --- lifespan ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Aggregator, AsyncAggregator])
async def test_a_lifespan_runs_a_flusher_if_it_is_told_to(redis_url: str, kind: Any) -> None:
    agg = kind("tests", redis_url, config=quick_config())
    async with agg.lifespan(object()):
        assert not agg.is_running
    async with partial(agg.lifespan, flusher=True)(object()):
        assert agg.is_running
    assert not agg.is_running


async def test_a_lifespan_closes_the_connections(redis_url: str, sync_redis: redis.Redis) -> None:
    def mine() -> int:
        return sum(each["name"] == "web" for each in sync_redis.client_list())

    app = App(f"{redis_url}?client_name=web", settings=Settings(config=quick_config()))
    digest = app.aggregator("emails", group_max_size=2)(merge)
    async with app.lifespan():
        assert mine() == 0  # the web application starts though Redis is away
        await digest.aadd(1, group_key="a")
        await asyncio.to_thread(digest.add, 2, group_key="a")
        assert mine() == 2
    wait_until(lambda: mine() == 0, what="the connections are closed")
    async with app.lifespan(flushers=True):
        await asyncio.to_thread(await_batches, digest, 1)
    wait_until(lambda: mine() == 0, what="the connections are closed")
    async with digest.lifespan(flusher=True):
        assert digest.is_running
    assert not digest.is_running


async def test_a_lifespan_with_flushers_fails_without_redis(server_binary: Any) -> None:
    with EmbeddedRedis(server_binary) as server:
        url = server.url
    app = App(url, settings=Settings(config=quick_config(add_timeout=0.2)))
    app.aggregator("emails")(merge)
    async with app.lifespan():
        pass
    with pytest.raises(Exception, match="Redis"):
        async with app.lifespan(flushers=True):
            pass
