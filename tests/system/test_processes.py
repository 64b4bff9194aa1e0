"""Producers and flushers in separate processes, on one namespace."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from typing import Any

import pytest
import redis

from redisagg import Aggregator, Task
from tests.support.aggregators import KINDS, Make
from tests.support.processes import Processes, WorkerProcess
from tests.support.servers import wait_until
from tests.support.tasks import (
    Measured,
    await_batches,
    await_dead,
    await_server_ms,
    enqueued,
    lease_expiries,
    numbered,
    payloads,
)
from tests.support.worker import BEGAN, GATE

PARTITIONS = 16


def leaders(agg: Aggregator) -> Counter[str]:
    """Number of partitions that each process leads, by process id."""
    owners = [partition.leader for partition in agg.stats().partitions]
    return Counter(owner.split(":")[1] for owner in owners if owner)


def await_leaders(agg: Aggregator, shares: list[int], timeout: float = 10) -> None:
    wait_until(
        lambda: sorted(leaders(agg).values()) == shares,
        timeout=timeout,
        what=f"the flushers lead {shares} partitions",
    )


def await_merges(client: redis.Redis, count: int) -> list[int]:
    """Waits until `count` merges have begun at the gate; returns their process ids."""
    wait_until(lambda: client.llen(BEGAN) == count, what=f"{count} merges have begun")
    pids: Any = client.lrange(BEGAN, 0, -1)
    return list(map(int, pids))


def by(agg: Aggregator) -> list[int]:
    """The id of the process that merged each enqueued batch."""
    return [batch.payload["by"] for batch in enqueued(agg)]


def test_two_producers_and_two_flushers_make_one_batch(
    make: Make, processes: Processes, redis_url: str
) -> None:
    config: dict[str, Any] = {
        "group_grace_period": 0.8,
        "group_max_size": 1000,
        "partitions": PARTITIONS,
    }
    agg = make(**config)
    processes.flushers(2, redis_url, config=config)
    producers = [
        processes.start("producer", redis_url, config=config, name=name, groups=["a"], count=50)
        for name in ("one", "two")
    ]
    await_leaders(agg, [8, 8])
    for producer in producers:
        assert producer.read_line() == "ready"
    for producer in producers:
        producer.send_line("go")
    assert [producer.read_line()["acknowledged"] for producer in producers] == [50, 50]
    await_batches(agg, 1)
    assert agg.wait_until_idle(2)
    [batch] = enqueued(agg)
    assert batch.count == 100
    for name in ("one", "two"):
        numbers = [n for producer_name, n in batch.payload["payloads"] if producer_name == name]
        assert numbers == list(range(50))


def test_many_producers_and_flushers_lose_and_duplicate_no_task(
    make: Make, processes: Processes, redis_url: str
) -> None:
    config: dict[str, Any] = {"group_max_size": 10, "partitions": PARTITIONS}
    agg = make(**config)
    processes.flushers(1, redis_url, config=config)
    processes.flushers(1, redis_url, config=config, kind="asyncio")
    groups = [f"g{n}" for n in range(20)]
    producers = [
        processes.start(
            "producer", redis_url, config=config, name=name, groups=groups, count=2_000, chunk=chunk
        )
        for name, chunk in (("one", 1), ("two", 50))
    ]
    for producer in producers:
        assert producer.read_line() == "ready"
        producer.send_line("go")
    for producer in producers:
        assert producer.read_line() == {"acknowledged": 2_000, "errors": []}
    assert agg.wait_until_idle(10)
    batches = enqueued(agg)
    assert [batch.count for batch in batches] == [10] * 400
    found = Counter(map(tuple, payloads(batches)))
    assert found == Counter((name, n) for name in ("one", "two") for n in range(2_000))
    # In each group the tasks of one producer are in the order in which it added them.
    for group in groups:
        of_group = payloads([batch for batch in batches if batch.group == group])
        for name in ("one", "two"):
            numbers = [n for producer_name, n in of_group if producer_name == name]
            assert numbers == sorted(numbers)


def test_partitions_are_shared_evenly_as_flushers_come_and_go(
    make: Make, processes: Processes, redis_url: str, sync_redis: redis.Redis
) -> None:
    config: dict[str, Any] = {"partitions": PARTITIONS, "lease_time": 1.5}
    agg = make(**config)
    [first] = processes.flushers(1, redis_url, config=config)
    await_leaders(agg, [16], timeout=5)
    [second] = processes.flushers(1, redis_url, config=config)
    await_leaders(agg, [8, 8], timeout=5)
    [third] = processes.flushers(1, redis_url, config=config, kind="asyncio")
    await_leaders(agg, [5, 5, 6], timeout=5)
    tokens = [partition.token for partition in agg.stats().partitions]
    expiries = lease_expiries(sync_redis, partitions=PARTITIONS)
    await_server_ms(sync_redis, max(expiries))
    # The leases are renewed and stay where they are: no token has grown.
    assert [partition.token for partition in agg.stats().partitions] == tokens
    second.kill()
    await_leaders(agg, [8, 8], timeout=1.5 + 1)
    first.terminate()
    await_leaders(agg, [16], timeout=1.0)
    assert set(leaders(agg)) == {str(third.pid)}
    assert first.wait() == 0


def test_batches_of_a_killed_leader_are_enqueued_once_within_a_lease_time(
    make: Make,
    processes: Processes,
    redis_url: str,
    sync_redis: redis.Redis,
    measured: Measured,
) -> None:
    lease = 2.0
    config: dict[str, Any] = {"group_max_size": 2, "partitions": PARTITIONS, "lease_time": lease}
    agg = make(**config)
    killed, other = processes.flushers(2, redis_url, config=config, merge="gate")
    await_leaders(agg, [8, 8])
    agg.add_tasks(Task("test", n, f"g{n % 16}") for n in range(32))
    merging = await_merges(sync_redis, 16)
    assert killed.pid in merging
    held = {batch.batch_id for batch in agg.get_batches()}
    killed.kill()
    at = time.monotonic()
    sync_redis.set(GATE, 1)
    await_batches(agg, 16, timeout=lease + 1 + 0.5)
    took = time.monotonic() - at
    assert agg.wait_until_idle(1)
    assert took < lease + 1
    assert Counter(payloads(enqueued(agg))) == Counter(range(32))
    assert set(by(agg)) == {other.pid}
    assert {batch.batch_id for batch in enqueued(agg)} == held  # ids are stable
    measured(f"all batches of a killed leader enqueued after {took:.2f} s, lease time {lease} s")


def test_a_leader_frozen_beyond_its_lease_commits_nothing(
    make: Make, processes: Processes, redis_url: str, sync_redis: redis.Redis
) -> None:
    """It continues during the merge of its successor, with a merged task to commit."""
    config: dict[str, Any] = {"group_max_size": 2, "partitions": 1, "lease_time": 1.0}
    agg = make(**config)
    [frozen] = processes.flushers(1, redis_url, config=config, merge="gate")
    agg.add_tasks(numbered("a", 2))
    assert await_merges(sync_redis, 1) == [frozen.pid]
    frozen.freeze()
    [other] = processes.flushers(1, redis_url, config=config, merge="gate")
    assert await_merges(sync_redis, 2)[-1] == other.pid
    sync_redis.set(f"{GATE}:{frozen.pid}", 1)
    frozen.thaw()
    wait_until(lambda: "lease of partition 0 is lost" in frozen.log, timeout=5, what="it notices")
    assert enqueued(agg) == []
    [batch] = agg.get_batches()
    assert batch.attempts == 1  # the lost lease cost none: nobody reported a failure
    sync_redis.set(GATE, 1)
    await_batches(agg, 1)
    assert agg.wait_until_idle(2)
    assert by(agg) == [other.pid]


def test_an_expired_lease_is_not_used_even_if_nobody_has_taken_it(
    make: Make, processes: Processes, redis_url: str, sync_redis: redis.Redis
) -> None:
    config: dict[str, Any] = {"group_max_size": 2, "partitions": 1, "lease_time": 0.5}
    agg = make(**config)
    [frozen] = processes.flushers(1, redis_url, config=config, merge="gate")
    agg.add_tasks(numbered("a", 2))
    await_merges(sync_redis, 1)
    token = agg.stats().partitions[0].token
    frozen.freeze()
    sync_redis.set(GATE, 1)
    wait_until(lambda: not leaders(agg), timeout=5, what="the lease has expired")
    frozen.thaw()
    await_batches(agg, 1)
    # It has acquired the lease anew, and claimed and merged the batch again.
    assert agg.stats().partitions[0].token > token
    await_merges(sync_redis, 2)
    assert payloads(enqueued(agg)) == [0, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_sigterm_finishes_merges_and_gives_leases_back_at_once(
    make: Make,
    processes: Processes,
    redis_url: str,
    sync_redis: redis.Redis,
    measured: Measured,
    kind: str,
) -> None:
    config: dict[str, Any] = {"group_max_size": 2, "partitions": PARTITIONS, "lease_time": 20}
    agg = make(**config)
    [leaver] = processes.flushers(1, redis_url, config=config, merge="gate", kind=kind)
    await_leaders(agg, [16])
    agg.add_tasks(numbered("a", 2))
    await_merges(sync_redis, 1)
    [other] = processes.flushers(1, redis_url, config=config)
    # All partitions that move do so at once, but for the one with the merge.
    wait_until(
        lambda: leaders(agg)[str(other.pid)] >= 7, timeout=5, what="the other takes its share"
    )
    leaver.terminate()
    wait_until(lambda: leaders(agg)[str(leaver.pid)] == 1, timeout=5, what="it gives leases back")
    assert leaver.running  # its merge has not ended
    at = time.monotonic()
    sync_redis.set(GATE, 1)
    await_leaders(agg, [16], timeout=3)
    measured(f"handed over {time.monotonic() - at:.2f} s after the last merge, lease time 20 s")
    assert leaver.read_line() == "ended"
    assert leaver.wait() == 0
    assert set(leaders(agg)) == {str(other.pid)}
    await_batches(agg, 1)
    assert by(agg) == [leaver.pid]
    assert agg.stats().flushers[0].split(":")[1] == str(other.pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once_and_loses_nothing(
    make: Make,
    processes: Processes,
    redis_url: str,
    sync_redis: redis.Redis,
    number: signal.Signals,
) -> None:
    config: dict[str, Any] = {"group_max_size": 2, "partitions": 2, "lease_time": 1.0}
    agg = make(**config)
    [impatient] = processes.flushers(1, redis_url, config=config, merge="gate")
    agg.add_tasks(numbered("a", 2))
    await_merges(sync_redis, 1)
    await_leaders(agg, [2])
    os.kill(impatient.pid, number)
    wait_until(lambda: leaders(agg).total() == 1, timeout=5, what="it gives the other lease back")
    assert impatient.running
    os.kill(impatient.pid, number)
    assert impatient.wait(1) == 128 + number
    [other] = processes.flushers(1, redis_url, config=config)
    await_batches(agg, 1, timeout=3)
    assert by(agg) == [other.pid]
    assert payloads(enqueued(agg)) == [0, 1]


def test_a_batch_that_kills_its_flusher_each_time_ends_among_the_dead_letters(
    make: Make, processes: Processes, redis_url: str
) -> None:
    """Else it would end one flusher after the other."""
    before_suspicion, attempts = 2, 2  # deaths
    config: dict[str, Any] = {
        "group_max_size": 2,
        "partitions": 1,
        "max_attempts": attempts,
        "lease_time": 0.5,
    }
    agg = make(**config)
    agg.add_tasks([Task("test", "poison", "bad"), Task("test", 1, "bad")])
    for _ in range(before_suspicion + attempts):
        [flusher] = processes.flushers(1, redis_url, config=config, merge="die")
        assert flusher.wait() == 70
    [survivor] = processes.flushers(1, redis_url, config=config, merge="die")
    [letter] = await_dead(agg, timeout=5)
    agg.add_tasks(numbered("good", 2))
    await_batches(agg, 1)
    assert survivor.running
    assert (letter.group_key, letter.size) == ("bad", 2)
    assert letter.attempts == attempts
    assert letter.error


@pytest.mark.parametrize("flusher", [False, True])
def test_a_forked_child_uses_the_aggregator_beside_its_parent(
    make: Make, processes: Processes, redis_url: str, flusher: bool
) -> None:
    config: dict[str, Any] = {"group_max_size": 7, "partitions": 2}
    agg = make(**config)
    parent: WorkerProcess = processes.start("forker", redis_url, config=config, flusher=flusher)
    assert parent.read_line() == 0
    assert parent.wait() == 0
    if not flusher:
        with agg:
            agg.flush_all()
            assert agg.wait_until_idle(10)
    expected = [("before", n) for n in range(20)]
    expected += [(name, n) for name in ("parent", "child") for n in range(200)]
    assert Counter(map(tuple, payloads(enqueued(agg)))) == Counter(expected)
