"""Many flushers in one process: they share connections and a thread, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import Any

import pytest
import redis

from redisagg import Aggregator, Task
from redisagg.flusher.connections import shared_connections
from redisagg.flusher.flusher import Flusher
from redisagg.protocol.scripts import command
from redisagg.sinks import CallableSink
from redisagg.transport.endpoint import endpoint_of
from tests.support.aggregators import KINDS, Make, making
from tests.support.proxy import Proxy
from tests.support.servers import wait_until
from tests.support.tasks import await_batches, await_led, quick_config

COUNT = 20
SHARED = 33
"""The most connections of all flushers of a process to one Redis, the listener among them."""


def flusher_threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("redisagg-flusher")]


@pytest.mark.parametrize("kind", KINDS)
def test_connections_do_not_grow_with_the_namespaces(
    redis_url: str, sync_redis: redis.Redis, kind: str
) -> None:
    before = len(sync_redis.client_list())
    config = quick_config(partitions=16, group_max_size=1)
    with making(kind) as make:
        aggs = [make(f"tests-{n}", redis_url, config=config) for n in range(COUNT)]
        for agg in aggs:
            agg.start()
        for agg in aggs:
            agg.add_task(Task("test", 0, "a"))
        for agg in aggs:
            await_batches(agg, 1)
        # Each aggregator has a producer, which uses two connections at most.
        assert len(sync_redis.client_list()) - before <= SHARED + 2 * COUNT
        if kind == "threads":
            assert flusher_threads() == ["redisagg-flushers"]
        for agg in aggs:
            agg.stop()
    wait_until(lambda: not flusher_threads(), timeout=5, what="the thread has ended")
    wait_until(
        lambda: len(sync_redis.client_list()) <= before, timeout=5, what="all are disconnected"
    )


@pytest.mark.parametrize("same_name", [False, True])
def test_flushers_start_and_stop_in_any_order(
    make_both: Make, sync_redis: redis.Redis, same_name: bool
) -> None:
    """With this lease time only wake-ups make a leader look again soon."""
    names = ("tests", "tests" if same_name else "tests-2")
    one, two = (make_both(name=name, group_max_size=1, lease_time=60) for name in names)

    def works(agg: Aggregator) -> None:
        await_led(agg)
        flushed = agg.stats().flushed
        for n in range(3):
            agg.add_task(Task("test", n, f"g{n}"))
        wait_until(lambda: agg.stats().flushed == flushed + 3, timeout=5, what="it flushes")

    one.start()
    works(one)
    two.start()
    works(two)
    works(one)
    one.stop()
    works(two)
    one.start()
    works(one)
    two.stop()
    works(one)
    assert len(sync_redis.pubsub_channels()) == 1
    one.stop()
    two.start()
    works(two)


def test_the_end_of_a_flusher_ends_no_other(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = Flusher.run

    async def ends(self: Flusher, *arguments: Any) -> None:
        if self.keyspace.name == "bad":
            raise SystemExit(3)
        await run(self, *arguments)

    monkeypatch.setattr("redisagg.flusher.run.Flusher.run", ends)
    good, bad = make(name="good", group_max_size=1), make(name="bad")
    good.start()
    bad.start()
    wait_until(lambda: not bad.is_running, timeout=5, what="it has ended")
    good.add_task(Task("test", 0, "a"))
    await_batches(good, 1)
    assert good.is_running
    assert "the flusher of 'bad' ended" in caplog.text


@pytest.mark.parametrize("place", ["merge", "sink", "route"])
def test_user_code_that_blocks_its_event_loop_delays_no_other_flusher(
    make: Make, place: str
) -> None:
    blocking, end = threading.Event(), threading.Event()

    async def block(*_: Any) -> Any:
        blocking.set()
        end.wait(20)

    def returns_coroutine(*_: Any) -> Any:
        return block()

    routed = CallableSink(block)
    kinds: dict[str, dict[str, Any]] = {
        "merge": {"group_aggregator": block},
        "sink": {"sink": CallableSink(returns_coroutine)},
        "route": {"sink": lambda task: routed},
    }
    bad = make(name="bad", group_max_size=1, shutdown_timeout=0.1, **kinds[place])
    good = make(name="good", group_max_size=1, shutdown_timeout=1)
    try:
        bad.start()
        good.start()
        await_led(good)
        bad.add_task(Task("test", 0, "a"))
        assert blocking.wait(5)
        began = time.monotonic()
        good.add_task(Task("test", 0, "a"))
        await_batches(good, 1)
        good.stop()
        assert time.monotonic() - began < 3
    finally:
        end.set()


async def test_connections_that_are_lost_in_silence_cost_one_timeout(proxy: Proxy) -> None:
    """As a firewall loses them. Else later calls would meet the other lost ones, and wait again."""
    timeout, at_a_time = 1.0, 4
    async with shared_connections(endpoint_of(proxy.url).answering_within(timeout), 5) as shared:
        ping = [command("PING")]

        async def ping_all() -> list[list[Any]]:
            return await asyncio.gather(*(shared.leases.exchange(ping) for _ in range(at_a_time)))

        await ping_all()
        proxy.freeze_links()
        assert await shared.leases.exchange(ping) == [b"PONG"]
        began = time.monotonic()
        assert await ping_all() == [[b"PONG"]] * at_a_time
        assert time.monotonic() - began < timeout / 2
        proxy.restore()


async def test_no_subscribing_goes_on_that_lost_its_cancellation(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()

    async def subscribe(*_: Any) -> None:
        begun.set()
        with contextlib.suppress(asyncio.CancelledError):  # as `asyncio.wait_for` before 3.12
            await asyncio.sleep(60)

    monkeypatch.setattr("redis.asyncio.client.PubSub.subscribe", subscribe)
    before = asyncio.all_tasks()
    async with shared_connections(endpoint_of(redis_url), 5) as shared:
        shared.listener.add(b"channel", lambda _: None)
        await asyncio.wait_for(begun.wait(), 5)
    assert asyncio.all_tasks() == before
