"""Starting, stopping, closing; what is left of a flusher afterwards."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
import redis

from redisagg import AggregationConfig, Aggregator, AsyncAggregator, Task
from redisagg.errors import InvalidConfig, NamespaceMismatch
from tests.support.aggregators import Make
from tests.support.servers import wait_until
from tests.support.tasks import await_batches, enqueued, numbered, payloads, quick_config


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("redisagg")]


def test_starting_twice_makes_one_flusher(make: Make) -> None:
    agg = make()
    agg.start()
    agg.start()
    wait_until(lambda: len(agg.stats().flushers) == 1, what="a flusher has joined")
    agg.start()
    time.sleep(0.2)
    assert len(agg.stats().flushers) == 1
    agg.stop()
    assert agg.stats().flushers == []
    agg.stop()


def test_a_flusher_can_be_started_again(make: Make) -> None:
    agg = make(group_max_size=1)
    for round_ in range(3):
        agg.start()
        agg.add_task(Task("test", round_, "a"))
        await_batches(agg, round_ + 1)
        agg.stop()
    assert payloads(enqueued(agg)) == [0, 1, 2]
    agg.add_task(Task("test", 3, "a"))
    time.sleep(0.2)
    assert agg.stats().pending == 1


def test_a_plain_stop_leaves_open_groups_open(make: Make) -> None:
    agg = make()
    with agg:
        agg.add_tasks(numbered("a", 2))
    assert make().get_entries()["a"].size == 2
    assert enqueued(make()) == []


def test_a_stop_that_flushes_leaves_nothing(make: Make) -> None:
    agg = make(group_max_size=3, partitions=3, shutdown_timeout=3)
    agg.start()
    agg.add_tasks(Task("test", n, f"g{n % 7}") for n in range(50))
    agg.stop(flush=True)
    assert (agg.stats().pending, agg.stats().in_flight) == (0, 0)
    assert sorted(payloads(enqueued(agg))) == list(range(50))


def test_a_stop_finishes_the_merges_in_hand(make: Make) -> None:
    began = threading.Event()

    def merge(group: str, tasks: list[Task]) -> Task:
        began.set()
        time.sleep(0.5)
        return Task("merged", {"payloads": [task.payload for task in tasks]})

    agg = make(group_aggregator=merge, group_max_size=2)
    agg.start()
    agg.add_tasks(numbered("a", 2))
    assert began.wait(5)
    agg.stop()
    assert payloads(enqueued(agg)) == [0, 1]
    assert agg.stats().in_flight == 0


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_merge_that_does_not_end_is_given_back_after_a_while(make: Make, kind: str) -> None:
    began, end = threading.Event(), threading.Event()

    def hang(group: str, tasks: list[Task]) -> Task:
        began.set()
        end.wait(20)
        return Task("late", {"payloads": []})

    async def hang_later(group: str, tasks: list[Task]) -> Task:
        began.set()
        await asyncio.sleep(20)
        return Task("late", {"payloads": []})

    agg = make(
        group_aggregator=hang if kind == "plain" else hang_later,
        group_max_size=2,
        shutdown_timeout=0.5,
    )
    agg.start()
    agg.add_tasks(numbered("a", 2))
    assert began.wait(5)
    start = time.monotonic()
    agg.stop()
    assert 0.4 < time.monotonic() - start < 3
    [batch] = agg.get_batches()
    assert batch.attempts == 0  # no fault of the batch
    with make(group_max_size=2) as other:
        await_batches(other, 1, timeout=2)
        end.set()
        time.sleep(0.2)
    assert payloads(enqueued(other)) == [0, 1]
    assert enqueued(other)[0].batch_id == batch.batch_id


def test_nothing_is_left_running_after_a_close(make: Make, sync_redis: redis.Redis) -> None:
    def connections() -> set[str]:
        return {each["id"] for each in sync_redis.client_list()}

    before = connections()
    agg = make(group_max_size=1)
    with agg:
        agg.add_tasks(numbered("a", 20))
        await_batches(agg, 20)
    agg.close()
    wait_until(lambda: not our_threads(), timeout=5, what="all threads have ended")
    wait_until(lambda: connections() <= before, timeout=2, what="all connections are closed")


def test_a_clients_own_connections_stay_the_callers(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        with Aggregator("tests", client, config=quick_config(group_max_size=1)) as agg:
            agg.add_task(Task("test", 0, "a"))
            await_batches(agg, 1)
        assert client.connection_pool._available_connections
        assert client.ping()


def test_clients_of_all_kinds_are_taken(redis_url: str) -> None:
    async def use(client: redis.asyncio.Redis) -> None:
        async with AsyncAggregator("tests", client, config=quick_config(group_max_size=1)) as agg:
            await agg.add_task(Task("test", "asyncio", "a"))
            assert await agg.wait_until_idle(5)
        await client.aclose()

    # Replies stay bytes for us even where the caller wants text.
    for decode in (False, True):
        client = redis.Redis.from_url(redis_url, decode_responses=decode)
        with client, Aggregator("tests", client, config=quick_config(group_max_size=1)) as agg:
            agg.add_task(Task("test", f"blocking {decode}", "a"))
            assert agg.wait_until_idle(5)
            assert agg.get_entries(tasks=True) == {}
        asyncio.run(use(redis.asyncio.Redis.from_url(redis_url, decode_responses=decode)))
    with Aggregator("tests", redis_url, config=quick_config()) as agg:
        assert payloads(enqueued(agg)) == [
            *("blocking False", "asyncio", "blocking True", "asyncio")
        ]


def test_other_ways_of_writing_the_settings_are_refused_clearly(redis_url: str) -> None:
    with pytest.raises(InvalidConfig):
        Aggregator("tests", redis_url, config={"group_max_size": 3})  # type: ignore[arg-type]
    with pytest.raises(InvalidConfig):
        Aggregator("{tests}", redis_url)
    with pytest.raises(InvalidConfig):
        Aggregator("tests", "http://localhost")
    with pytest.raises(InvalidConfig):
        Aggregator("tests", object())  # type: ignore[arg-type]


def test_another_number_of_partitions_is_refused_before_anything_is_written(make: Make) -> None:
    make(partitions=2).add_task(Task("test", 0, "a"))
    other = make(partitions=3)
    with pytest.raises(NamespaceMismatch, match="2 partitions"):
        other.add_task(Task("test", 1, "a"))
    with pytest.raises(NamespaceMismatch):
        other.start()
    assert make(partitions=2).stats().pending == 1


def test_two_namespaces_on_one_server_do_not_meet(make: Make) -> None:
    one, two = (make(name=name, group_max_size=2) for name in ("one", "two"))
    with one, two:
        for n in range(2):
            one.add_task(Task("test", f"one {n}", "a"))
            two.add_task(Task("test", f"two {n}", "a"))
        await_batches(one, 1)
        await_batches(two, 1)
    assert payloads(enqueued(one)) == ["one 0", "one 1"]
    assert payloads(enqueued(two)) == ["two 0", "two 1"]


def test_scripts_that_the_server_forgot_are_loaded_again(
    make: Make, sync_redis: redis.Redis
) -> None:
    agg = make(group_max_size=1)
    with agg:
        for n in range(5):
            sync_redis.script_flush()
            agg.add_task(Task("test", n, "a"))
            await_batches(agg, n + 1)
    assert payloads(enqueued(agg)) == list(range(5))


def test_the_defaults_need_no_settings(redis_url: str) -> None:
    with Aggregator("tests", redis_url) as agg:
        assert agg.config == AggregationConfig()
        agg.add_task(Task("test", 0, "a"))
        agg.flush_all()
        await_batches(agg, 1)
        assert agg.sink_keys() == [b"tests-batches"]
