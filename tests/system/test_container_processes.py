"""Producers and flushers in processes, on a Redis in a container."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from redisagg import Aggregator, Task
from tests.support.processes import Processes, running_processes
from tests.support.servers import wait_until
from tests.support.tasks import await_batches, await_led, enqueued, numbered, payloads, quick_config
from tests.support.worker import BEGAN, GATE

pytestmark = pytest.mark.docker


@pytest.fixture
def processes() -> Iterator[Processes]:
    with running_processes() as processes:
        yield processes


def test_two_producers_and_two_flushers_make_one_batch(
    processes: Processes, container_url: str
) -> None:
    config: dict[str, Any] = {"group_grace_period": 1.0, "group_max_size": 1000}
    with Aggregator("tests", container_url, config=quick_config(**config)) as agg:
        processes.flushers(2, container_url, config=config)
        producers = [
            processes.start(
                "producer", container_url, config=config, name=name, groups=["a"], count=50
            )
            for name in ("one", "two")
        ]
        for producer in producers:
            assert producer.read_line() == "ready"
            producer.send_line("go")
        for producer in producers:
            assert producer.read_line() == {"acknowledged": 50, "errors": []}
        await_batches(agg, 1)
        assert agg.wait_until_idle(2)
        [batch] = enqueued(agg)
        assert batch.count == 100


@pytest.mark.parametrize("sink", ["stream://queue", "list://queue?format=json"])
def test_all_tasks_are_enqueued_once_though_a_flusher_is_killed(
    processes: Processes, container_url: str, sink: str
) -> None:
    config: dict[str, Any] = {"group_max_size": 10, "partitions": 8, "lease_time": 1.0}
    agg = Aggregator("tests", container_url, config=quick_config(**config), sink=sink)
    flushers = processes.flushers(2, container_url, config=config, sink=sink)
    await_led(agg)
    producers = [
        processes.start(
            "producer",
            container_url,
            config=config,
            name=name,
            groups=[f"g{n}" for n in range(10)],
            count=1_000,
            chunk=chunk,
        )
        for name, chunk in (("one", 1), ("two", 50))
    ]
    for producer in producers:
        assert producer.read_line() == "ready"
        producer.send_line("go")
    wait_until(lambda: agg.stats().flushed, what="the first batch is enqueued")
    flushers[0].kill()
    for producer in producers:
        assert producer.read_line() == {"acknowledged": 1_000, "errors": []}
    agg.flush_all()
    assert agg.wait_until_idle(20)
    batches = enqueued(agg)
    assert max(batch.count for batch in batches) <= 10
    found = Counter(map(tuple, payloads(batches)))
    assert found == Counter((name, n) for name in ("one", "two") for n in range(1_000))
    agg.close()


def test_what_a_killed_leader_was_merging_is_enqueued_once(
    processes: Processes, container_url: str
) -> None:
    config: dict[str, Any] = {"group_max_size": 2, "partitions": 1, "lease_time": 1.0}
    agg = Aggregator("tests", container_url, config=quick_config(**config))
    [killed] = processes.flushers(1, container_url, config=config, merge="gate")
    agg.add_tasks(numbered("a", 2))
    with redis.Redis.from_url(container_url) as client:
        wait_until(lambda: client.llen(BEGAN) == 1, what="the merge has begun")
        killed.kill()
        client.set(GATE, 1)
    processes.flushers(1, container_url, config=config, merge="gate")
    await_batches(agg, 1, timeout=3)
    assert agg.wait_until_idle(2)
    assert payloads(enqueued(agg)) == [0, 1]
    agg.close()


def test_sigterm_hands_over_and_a_failing_merge_ends_among_the_dead(
    processes: Processes, container_url: str
) -> None:
    def merge(group: str, tasks: list[Task]) -> Task:
        raise RuntimeError("never")

    config: dict[str, Any] = {"group_max_size": 2, "lease_time": 20, "max_attempts": 2}
    [leaver] = processes.flushers(1, container_url, config=config)
    agg = Aggregator("tests", container_url, config=quick_config(**config, group_aggregator=merge))
    await_led(agg)
    with agg:
        leaver.terminate()
        assert leaver.wait() == 0
        agg.add_tasks(numbered("a", 2))
        wait_until(lambda: agg.stats().batches_dead == 1, timeout=5, what="the batch is dead")
        [letter] = agg.dead_letters()
        assert "RuntimeError: never" in letter.error
        assert agg.drop_dead_letter(letter.batch_id) == 2
