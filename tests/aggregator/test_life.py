"""Starting, stopping and closing aggregators, and what a flusher leaves behind."""

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
from tests.support.tasks import (
    await_batches,
    await_led,
    await_server_ms,
    enqueued,
    lease_expiries,
    numbered,
    payloads,
    quick_config,
)


def our_threads() -> list[str]:
    """The names of the threads that aggregators have started."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("redisagg")]


def test_starting_twice_makes_one_flusher(make_both: Make, sync_redis: redis.Redis) -> None:
    agg = make_both(lease_time=0.6)
    agg.start()
    agg.start()
    await_led(agg)
    agg.start()
    # A second flusher would join at once, and take one of the two partitions.
    await_server_ms(sync_redis, max(lease_expiries(sync_redis)))
    assert len(agg.stats().flushers) == 1
    assert len({partition.leader for partition in agg.stats().partitions}) == 1
    agg.stop()
    assert agg.stats().flushers == []
    agg.stop()


def test_a_flusher_can_be_started_again(make_both: Make) -> None:
    agg = make_both(group_max_size=1)
    for round_ in range(3):
        agg.start()
        agg.add_task(Task("test", round_, "a"))
        await_batches(agg, round_ + 1)
        agg.stop()
    assert payloads(enqueued(agg)) == [0, 1, 2]
    agg.add_task(Task("test", 3, "a"))
    stats = agg.stats()
    assert stats.pending == 1
    assert stats.flushers == []
    assert [partition.leader for partition in stats.partitions] == [None, None]


def test_a_plain_stop_leaves_open_groups_open(make_both: Make) -> None:
    agg = make_both()
    with agg:
        agg.add_tasks(numbered("a", 2))
    assert make_both().get_entries()["a"].size == 2
    assert enqueued(make_both()) == []


def test_a_stop_that_flushes_leaves_nothing(make_both: Make) -> None:
    agg = make_both(group_max_size=3, partitions=3, shutdown_timeout=3)
    agg.start()
    agg.add_tasks(Task("test", n, f"g{n % 7}") for n in range(50))
    agg.stop(flush=True)
    assert (agg.stats().pending, agg.stats().in_flight) == (0, 0)
    assert sorted(payloads(enqueued(agg))) == list(range(50))


def test_a_stop_finishes_the_merges_in_flight(make_both: Make) -> None:
    began, go_on = threading.Event(), threading.Event()

    def merge(group: str, tasks: list[Task]) -> Task:
        began.set()
        assert go_on.wait(10)
        return Task("merged", {"payloads": [task.payload for task in tasks]})

    agg = make_both(group_aggregator=merge, group_max_size=2)
    agg.start()
    agg.add_tasks(numbered("a", 2))
    await_led(agg)
    assert began.wait(5)
    stopping = threading.Thread(target=agg.stop)
    stopping.start()
    wait_until(lambda: leases(agg) == 1, what="the lease of the other partition is given back")
    go_on.set()
    stopping.join(10)
    assert payloads(enqueued(agg)) == [0, 1]
    assert agg.stats().in_flight == 0
    assert leases(agg) == 0


def leases(aggregator: Aggregator) -> int:
    """Number of partitions that have a leader."""
    return sum(partition.leader is not None for partition in aggregator.stats().partitions)


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_merge_that_does_not_end_is_given_back_after_shutdown_timeout(
    make_both: Make, kind: str
) -> None:
    began, end, ended = threading.Event(), threading.Event(), threading.Event()

    def hang(group: str, tasks: list[Task]) -> Task:
        began.set()
        end.wait(20)
        ended.set()
        return Task("late", {"payloads": []})

    async def hang_later(group: str, tasks: list[Task]) -> Task:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    agg = make_both(
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
    with make_both(group_max_size=2) as other:
        await_batches(other, 1, timeout=2)
        end.set()
        assert ended.wait(5)
    assert payloads(enqueued(other)) == [0, 1]
    assert enqueued(other)[0].batch_id == batch.batch_id


def test_nothing_is_left_running_after_a_close(make_both: Make, sync_redis: redis.Redis) -> None:
    def connections() -> set[str]:
        return {each["id"] for each in sync_redis.client_list()}

    before = connections()
    agg = make_both(group_max_size=1)
    with agg:
        agg.add_tasks(numbered("a", 20))
        await_batches(agg, 20)
    agg.close()
    wait_until(lambda: not our_threads(), timeout=5, what="all threads have ended")
    wait_until(lambda: connections() <= before, timeout=2, what="all connections are closed")
    assert payloads(enqueued(make_both())) == list(range(20))


def test_a_client_that_was_handed_over_is_not_closed(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url, socket_timeout=5) as client:
        with Aggregator("tests", client, config=quick_config(group_max_size=1)) as agg:
            agg.add_task(Task("test", 0, "a"))
            await_batches(agg, 1)
        assert client.connection_pool._available_connections
        assert client.ping()


def test_clients_of_all_kinds_can_be_handed_over(redis_url: str) -> None:
    async def use(client: redis.asyncio.Redis) -> None:
        async with AsyncAggregator("tests", client, config=quick_config(group_max_size=1)) as agg:
            await agg.add_task(Task("test", "asyncio", "a"))
            assert await agg.wait_until_idle(5)
        await client.aclose()

    # The aggregator reads bytes even if the client decodes replies.
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


def test_arguments_of_a_wrong_type_or_form_are_refused(redis_url: str) -> None:
    with pytest.raises(InvalidConfig):
        Aggregator("tests", redis_url, config={"group_max_size": 3})  # type: ignore[arg-type]
    with pytest.raises(InvalidConfig):
        Aggregator("{tests}", redis_url)
    with pytest.raises(InvalidConfig):
        Aggregator("tests", "http://localhost")
    with pytest.raises(InvalidConfig):
        Aggregator("tests", object())  # type: ignore[arg-type]


def test_another_number_of_partitions_is_refused_before_anything_is_written(
    make_both: Make,
) -> None:
    make_both(partitions=2).add_task(Task("test", 0, "a"))
    other = make_both(partitions=3)
    with pytest.raises(NamespaceMismatch, match="2 partitions"):
        other.add_task(Task("test", 1, "a"))
    with pytest.raises(NamespaceMismatch):
        other.start()
    assert make_both(partitions=2).stats().pending == 1


def test_two_namespaces_on_one_server_share_nothing(make: Make) -> None:
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
    make_both: Make, sync_redis: redis.Redis
) -> None:
    agg = make_both(group_max_size=1)
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
