"""What else may happen while the thousands of tasks of a merge are being enqueued.

Lost replies, dead flushers and refused slices are in `test_fan_out`, for each kind of queue.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import redis

from redisagg import Aggregator, Partial, Task
from redisagg.sinks import ListSink
from redisagg.testing.embedded import HOST, EmbeddedRedis
from tests.support.aggregators import Make
from tests.support.proxy import Proxy, running_proxy
from tests.support.servers import wait_until
from tests.support.tasks import await_dead, numbered

ENTRIES = 10_000
QUEUE = "tests-out"
# A lease that ends on a busy machine has the tasks merged again, which is no fault.
CONFIG: dict[str, Any] = {"group_max_size": 1, "partitions": 1, "lease_time": 3}


class FanOut:
    """Merges the first task of the group into ENTRIES tasks, and each later one into one."""

    def __init__(self) -> None:
        self.merges: list[int] = []

    def __call__(self, group: str, tasks: list[Task]) -> list[Task]:
        number = tasks[0].payload
        self.merges.append(number)
        return [Task("out", [number, n]) for n in range(1 if number else ENTRIES)]


EXPECTED = [[0, n] for n in range(ENTRIES)] + [[1, 0]]
"""The payloads that leave if the group has two tasks."""


def queue() -> ListSink:
    return ListSink(QUEUE, format="json")


def queued(client: redis.Redis) -> list[Any]:
    """The payloads of the queue, oldest first."""
    raw: Any = client.lrange(QUEUE, 0, -1)
    return [json.loads(entry)["payload"] for entry in raw]


def assert_all_once(client: redis.Redis) -> None:
    """Everything left once and in order, and no stored merge result is left behind."""
    assert queued(client) == EXPECTED
    assert list(client.scan_iter("*result:*")) == []


def half_way(client: redis.Redis) -> None:
    wait_until(lambda: 0 < client.llen(QUEUE) < ENTRIES, what="some entries are enqueued")


def test_slices_go_on_when_redis_reaches_its_maxmemory(make: Make, server_binary: Path) -> None:
    """What waits has to leave before Redis has room again."""
    with EmbeddedRedis(server_binary) as server, running_proxy(HOST, server.port) as slow:
        client = redis.Redis.from_url(server.url)
        with make(url=slow.url, sink=queue(), group_aggregator=FanOut(), **CONFIG) as agg:
            slow.delay(0.01)
            agg.add_tasks(numbered("g", 2))
            half_way(client)
            client.config_set("maxmemory", 1)
            assert client.llen(QUEUE) < ENTRIES
            slow.restore()
            assert agg.wait_until_idle(30)
        assert_all_once(client)


def test_a_flusher_that_stops_between_slices_ends_and_the_next_one_goes_on(
    make: Make, proxy: Proxy, sync_redis: redis.Redis
) -> None:
    merge = FanOut()
    config = {**CONFIG, "shutdown_timeout": 0.3}
    agg = make(url=proxy.url, sink=queue(), group_aggregator=merge, **config)
    agg.start()
    proxy.delay(0.03)
    agg.add_tasks(numbered("g", 2))
    half_way(sync_redis)
    agg.stop()
    assert sync_redis.llen(QUEUE) < ENTRIES
    proxy.restore()
    with make(sink=queue(), group_aggregator=merge, **CONFIG) as after:
        assert after.wait_until_idle(8)
    assert_all_once(sync_redis)
    assert sorted(merge.merges) == [0, 1]


@pytest.mark.parametrize("holds", [None, "foreign"])
def test_a_batch_whose_stored_result_is_spoilt_fails_alone(
    make: Make, proxy: Proxy, sync_redis: redis.Redis, holds: str | None
) -> None:
    """Somebody else removed the key of its result, or put another type there."""
    config = {**CONFIG, "max_attempts": 2, "retry_delay": 0.1, "group_aggregator": FanOut()}
    make(url=proxy.url, sink=queue(), **{**config, "shutdown_timeout": 1}).start()
    proxy.delay(0.01)
    make(sink=queue(), **config).add_tasks(numbered("g", 2))
    half_way(sync_redis)
    proxy.cut()
    [key] = sync_redis.scan_iter("*result:*")
    sync_redis.delete(key)
    if holds:
        sync_redis.set(key, holds)
    with make(sink=queue(), **config) as agg:
        [letter] = await_dead(agg, timeout=30)
        assert agg.wait_until_idle(20)
        assert queued(sync_redis)[-1] == [1, 0]  # the next batch of the group
        agg.drop_dead_letter(letter.batch_id)
    assert list(sync_redis.scan_iter("*result:*")) == []


# --- tasks that fail alone and are tried again ---------------------------------------------------

TASKS = 2_000
FAILS = {"group_max_size": TASKS, "on_task_failure": "retry", "retry_delay": 0.2}


class FailingOnce:
    """Fails each odd payload once, and merges each other one into a task of its own."""

    def __init__(self) -> None:
        self.failed: set[int] = set()
        self.whole = 0
        """The number of merges of the whole batch."""

    def __call__(self, group: str, tasks: list[Task]) -> Partial:
        new = {t.id: t.payload for t in tasks if t.payload % 2 and t.payload not in self.failed}
        self.whole += len(tasks) == TASKS
        self.failed.update(new.values())
        rest = [Task("out", task.payload) for task in tasks if task.id not in new]
        return Partial(rest, dict.fromkeys(new, "odd"))


def add_all(agg: Aggregator) -> None:
    for start in range(0, TASKS, 500):
        agg.add_tasks(numbered("g", 500, start=start))


def assert_each_once(agg: Aggregator, client: redis.Redis) -> None:
    assert sorted(queued(client)) == list(range(TASKS))
    stats = agg.stats()
    assert (stats.flushed, stats.dead, stats.stored_bytes, stats.groups) == (TASKS, 0, 0, 0)
    assert list(client.scan_iter("*result:*")) == list(client.scan_iter("*tasks:*")) == []


def test_lost_replies_make_no_second_batch_of_failed_tasks(
    make: Make, proxy: Proxy, sync_redis: redis.Redis
) -> None:
    merge, config = FailingOnce(), {**CONFIG, **FAILS}
    with make(url=proxy.url, sink=queue(), group_aggregator=merge, **config) as agg:
        add_all(make(sink=queue(), group_aggregator=merge, **config))
        for _ in range(5):  # two slices of the rest, and then of the failed tasks
            proxy.lose_reply("commit_list").wait(20)
        assert agg.wait_until_idle(30)
        assert_each_once(agg, sync_redis)
    assert merge.whole == 1


@pytest.mark.parametrize("batches", [0, 1, 3])
def test_another_flusher_goes_on_with_the_failed_tasks(
    make: Make, proxy: Proxy, sync_redis: redis.Redis, batches: int
) -> None:
    """One flusher is cut off between the calls that make batches of them."""
    merge, config = FailingOnce(), {**CONFIG, **FAILS}
    with make(url=proxy.url, sink=queue(), group_aggregator=merge, **config):
        agg = make(sink=queue(), group_aggregator=merge, **config)
        add_all(agg)
        for _ in range(2 + batches - 1):
            proxy.lose_reply("commit_list").wait(20)
        proxy.lose_reply("commit_list", then_cut=True).wait(20)
        assert merge.whole == 1
        with agg:
            assert agg.wait_until_idle(40)
            assert_each_once(agg, sync_redis)
        proxy.restore()
    assert merge.whole == 1
