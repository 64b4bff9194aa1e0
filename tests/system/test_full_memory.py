"""Redis has reached its maxmemory: adds are refused, and what waits leaves and frees memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from redisagg import Aggregator, Policy, Task
from redisagg.errors import RedisOutOfMemory
from redisagg.operations import policing
from redisagg.protocol.scripts import load
from redisagg.sinks import CallableSink
from redisagg.testing.embedded import EmbeddedRedis
from tests.support.servers import wait_until
from tests.support.servers.binaries import ServerBinary, discover
from tests.support.tasks import await_led, quick_config

COUNT = 400


class Server:
    """A server whose memory the test fills."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = redis.Redis.from_url(url)

    def fill(self) -> None:
        """Sets maxmemory to a megabyte less than is used."""
        used: Any = self.client.info("memory")
        self.client.config_set("maxmemory", used["used_memory"] - 1_000_000)


@pytest.fixture(params=discover(), ids=lambda binary: binary.label)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    binary: ServerBinary = request.param
    config = {"maxmemory-policy": "noeviction"}
    with EmbeddedRedis(binary.path, config=config) as embedded:
        yield Server(embedded.url)


def merge(group: str, tasks: list[Task]) -> Task:
    return Task("merged", len(tasks))


def aggregator(server: Server, sink: Any, **changes: Any) -> Aggregator:
    settings = {"lease_time": 1, "group_aggregator": merge, **changes}
    return Aggregator("full", server.url, config=quick_config(**settings), sink=sink)


def add_many(agg: Aggregator) -> None:
    agg.add_tasks(Task("test", os.urandom(5_000), f"g{n}") for n in range(COUNT))


def is_refused(agg: Aggregator) -> bool:
    try:
        agg.add_task(Task("test", 1, "a"))
    except RedisOutOfMemory:
        return True
    return False


def sinks() -> dict[str, Any]:
    return {
        "outside": CallableSink(lambda task, batch_id: None),
        "stream": "stream://out",
        "list": "list://out",
        "asynq": "asynq://default",
    }


@pytest.mark.parametrize("sink", sinks())
def test_what_waits_leaves_while_adds_are_refused(server: Server, sink: str) -> None:
    """By a flusher that starts meanwhile: it joins, acquires, renews, claims and commits."""
    agg = aggregator(server, sinks()[sink])
    add_many(agg)
    server.fill()
    assert is_refused(agg)
    assert agg.flush_all() == COUNT
    with agg:
        await_led(agg)
        assert agg.wait_until_idle(20)
    assert agg.stats().flushed == COUNT
    # Redis frees large values in another thread, and buffers of connections later.
    wait_until(lambda: not is_refused(agg), timeout=5, what="adds are accepted again")


def test_batches_that_fail_are_retried_and_buried(server: Server) -> None:
    def fail(group: str, tasks: list[Task]) -> Task:
        raise ValueError(group)

    agg = aggregator(server, "stream://out", group_aggregator=fail, max_attempts=2)
    add_many(agg)
    agg.flush_all()
    server.fill()
    with agg:
        wait_until(lambda: agg.stats().batches_dead == COUNT, timeout=30, what="all are buried")
    letter = agg.dead_letters()[0]
    assert letter.attempts == 2
    assert agg.drop_dead_letter(letter.batch_id) == 1


def test_merge_results_are_stored_while_their_sink_fails(server: Server) -> None:
    works = threading.Event()

    def deliver(task: Task, batch_id: str) -> None:
        if not works.is_set():
            raise ConnectionError("down")

    agg = aggregator(server, CallableSink(deliver))
    add_many(agg)
    agg.flush_all()
    server.fill()
    with agg:
        wait_until(lambda: agg.stats().batches_in_retry, timeout=10, what="a batch is in retry")
        works.set()
        assert agg.wait_until_idle(20)
    assert agg.stats().flushed == COUNT


def test_operators_can_free_memory(server: Server) -> None:
    agg = aggregator(server, "stream://out")
    add_many(agg)
    agg.add_task(Task("test", 1, "g1", id="known"))
    agg.pause()
    agg.pause("g1")
    agg.set_policy("g*", Policy(max_delay=9))
    server.fill()
    with pytest.raises(RedisOutOfMemory):
        agg.pause("g2")
    with pytest.raises(RedisOutOfMemory):
        agg.set_policy("y", Policy(max_size=1))
    before = agg.get_groups(tasks=True)
    with pytest.raises(RedisOutOfMemory):
        agg._run(policing.apply_policy(agg._keyspace, "g*"))
    assert agg.get_groups(tasks=True) == before
    assert agg.remove_policy("g*")
    agg.resume("g1")
    assert agg.cancel_task("g1", "known")
    assert agg.cancel_group("g2") == 1
    assert agg.flush("g3") == 1
    agg.resume()
    assert not agg.stats().paused


def test_no_script_of_a_producer_goes_on(server: Server) -> None:
    for name in ("add", "register"):
        assert b"write_in_full_memory" not in load(name).source
