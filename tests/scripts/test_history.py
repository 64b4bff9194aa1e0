"""The scripts `sample` and `record`: what goes into the history of a namespace, and only once."""

from __future__ import annotations

import struct
from typing import Any, TypeAlias

import msgpack
import pytest
import redis

from redisagg.protocol.history import COARSE, FINE, Ring, points, sample
from redisagg.protocol.history import record as record_request
from redisagg.protocol.keys import Keyspace
from redisagg.transport.threads import Transport
from tests.scripts.test_errors_write_nothing import Call, prepare
from tests.support.tasks import server_ms

SPACE = Keyspace("tests", 1)
P = SPACE.partitions[0]
SAMPLE = Call(
    "sample", [P.state, P.groups, P.batches, P.claims, P.retry, P.suspects, P.due, P.ready], []
)

Client: TypeAlias = Any


def record(client: Client, *samples: list[int], partitions: int = 4) -> int:
    """Records samples: the number of the partition, and the eight values."""
    values = [partitions, *(value for each in samples for value in each)]
    reply = Call("record", [SPACE.samples, SPACE.history], values).on(client)
    assert isinstance(reply, int), reply
    return reply


def sample_at(
    time: int,
    added: int = 0,
    out: int = 0,
    batches: int = 0,
    failed: int = 0,
    *,
    pending: int = 0,
    dead: int = 0,
    overdue: int = 0,
    number: int = 0,
) -> list[int]:
    return [number, time, added, out, batches, failed, pending, dead, overdue]


def summed(client: Client, ring: Ring = FINE) -> list[int]:
    """The sums and maxima of all steps: in, out, batches, failures, pending, dead, overdue."""
    raw = client.getrange(SPACE.history, ring.first, ring.last)
    found = [list(map(int, point[1:])) for point in points(raw, ring, server_ms(client))]
    columns = list(zip(*found, strict=True)) or [()] * 7
    return [*map(sum, columns[:4]), *(max(each, default=0) for each in columns[4:])]


def test_a_sample_tells_what_has_happened_in_a_partition(sync_redis: redis.Redis) -> None:
    client: Client = sync_redis
    assert SAMPLE.on(client)[1:] == [0] * 7
    calls = prepare(client)
    state = {name: int(client.hget(P.state, name) or 0) for name in ("waiting", "claimed", "dead")}
    time, added, out, batches, failed, pending, dead, overdue = SAMPLE.on(client)
    assert time == pytest.approx(server_ms(client), abs=2000)
    assert (added, out, batches) == (36, 0, 0)
    assert (pending, dead) == (state["waiting"] + state["claimed"], state["dead"]) == (33, 3)
    assert failed == 2  # one batch was buried, and one is tried again
    assert 0 <= overdue < 20_000
    # Nothing of this adds a task.
    for name in ("drop", "cancel_task", "cancel_group", "commit"):
        reply = calls[name].on(client)
        assert not isinstance(reply, Exception), reply
    _, added, out, batches, failed, pending, dead, _ = SAMPLE.on(client)
    assert (added, out, batches, failed, dead) == (36, 6, 2, 2, 0)


def test_what_was_counted_since_the_last_sample_is_added(sync_redis: redis.Redis) -> None:
    now = server_ms(sync_redis)
    record(sync_redis, sample_at(now, 100, 60, 6, 1))
    assert summed(sync_redis) == [0, 0, 0, 0, 0, 0, 0]
    record(sync_redis, sample_at(now + 1, 150, 100, 9, 2, pending=50, dead=3, overdue=700))
    record(sync_redis, sample_at(now + 2, 151, 101, 10, 2, pending=10, overdue=50))
    for ring in (FINE, COARSE):
        assert summed(sync_redis, ring) == [51, 41, 4, 1, 50, 3, 700]


def test_a_partition_that_was_never_seen_counts_from_now_on_with_the_tasks_that_it_has(
    sync_redis: redis.Redis,
) -> None:
    now = server_ms(sync_redis)
    record(sync_redis, sample_at(now, 1_000, 893, 80, 7, pending=100, dead=7))
    assert summed(sync_redis) == [107, 0, 0, 0, 100, 7, 0]


def test_a_call_that_comes_again_late_or_from_another_flusher_adds_nothing(
    sync_redis: redis.Redis,
) -> None:
    now = server_ms(sync_redis)
    first, second = sample_at(now, 10, pending=10), sample_at(now + 5, 30, pending=20, overdue=9)
    record(sync_redis, first)
    record(sync_redis, second)
    client: Client = sync_redis
    before = client.get(SPACE.history), client.hgetall(SPACE.samples)
    for late in (second, first, sample_at(now + 4, 5_000, pending=7_000, overdue=10_000)):
        record(sync_redis, late)
    assert (client.get(SPACE.history), client.hgetall(SPACE.samples)) == before
    assert summed(sync_redis) == [30, 0, 0, 0, 20, 0, 9]


def test_the_pending_tasks_of_all_partitions_are_summed(sync_redis: redis.Redis) -> None:
    now = server_ms(sync_redis)
    record(sync_redis, *(sample_at(now, 9, pending=n, dead=1, number=n) for n in range(4)))
    record(sync_redis, sample_at(now + 1, 9, pending=50, number=3), sample_at(now + 1, number=0))
    assert summed(sync_redis) == [10, 0, 0, 0, 53, 4, 0]


def test_counts_that_start_anew_add_nothing(sync_redis: redis.Redis) -> None:
    """The data of the partition were lost."""
    now = server_ms(sync_redis)
    record(sync_redis, sample_at(now, 100, 90, 9))
    record(sync_redis, sample_at(now + 1, 5, 0, 0))
    record(sync_redis, sample_at(now + 2, 8, 2, 1))
    assert summed(sync_redis)[:3] == [3, 2, 1]


def test_a_sample_of_before_the_clock_was_set_back_is_replaced(sync_redis: redis.Redis) -> None:
    now = server_ms(sync_redis)
    record(sync_redis, sample_at(now + 3_600_000, 100))
    record(sync_redis, sample_at(now, 107))
    assert summed(sync_redis)[0] == 7
    record(sync_redis, sample_at(now, 200))
    assert summed(sync_redis)[0] == 7


def test_samples_of_another_number_of_partitions_are_void(sync_redis: redis.Redis) -> None:
    now = server_ms(sync_redis)
    record(sync_redis, *(sample_at(now, 50, 40, pending=10, number=n) for n in range(4)))
    record(sync_redis, sample_at(now, 90, 70, pending=20), partitions=2)
    assert summed(sync_redis) == [60, 0, 0, 0, 40, 0, 0]
    record(sync_redis, sample_at(now + 1, 95, 75, pending=19), partitions=2)
    record(sync_redis, sample_at(now + 1, 30, pending=30, number=1), partitions=2)
    assert summed(sync_redis)[:3] == [95, 5, 0]
    totals = msgpack.unpackb(sync_redis.hget(SPACE.samples.decode(), ""))
    assert totals[5] == 19 + 30


def test_the_next_call_comes_behind_the_end_of_a_step(sync_redis: redis.Redis) -> None:
    wait = record(sync_redis, sample_at(server_ms(sync_redis), 1))
    assert 0 < wait <= FINE.step_ms
    assert (server_ms(sync_redis) + wait) % FINE.step_ms == pytest.approx(500, abs=400)


def test_memory_is_bounded(sync_redis: redis.Redis) -> None:
    client: Client = sync_redis
    record(sync_redis, *(sample_at(server_ms(client), 2**52, number=n) for n in range(16)))
    assert client.strlen(SPACE.history) == COARSE.last + 1 == 57_600
    assert client.memory_usage(SPACE.history) < 70_000
    assert client.memory_usage(SPACE.samples, samples=0) < 5_000
    for key in (SPACE.samples, SPACE.history):
        assert client.pttl(key) == pytest.approx(31 * 24 * 3_600_000, abs=60_000)


def test_points_of_other_times_and_foreign_bytes_are_left_out(sync_redis: redis.Redis) -> None:
    client: Client = sync_redis
    now = server_ms(client)
    record(sync_redis, sample_at(now, 7, pending=7))
    step = (now - FINE.step_ms // 2) // FINE.step_ms
    for number in (step + 20, step - 2 * FINE.steps + 5):
        place = number % FINE.steps * 64
        client.setrange(SPACE.history, place, struct.pack(">8d", number, *[5] * 7))
    client.setrange(SPACE.history, (step + 9) % FINE.steps * 64, struct.pack(">d", float("nan")))
    assert summed(sync_redis) == [7, 0, 0, 0, 7, 0, 0]
    for foreign in (b"\xff" * 64, struct.pack(">8d", step, *[float("nan")] * 7)):
        client.setrange(SPACE.history, step % FINE.steps * 64, foreign)
        client.hset(SPACE.samples, mapping={"": foreign, "0": foreign, "1": msgpack.packb([1])})
        record(sync_redis, sample_at(server_ms(client), 1, number=2))
        assert summed(sync_redis)[1:] == [0, 0, 0, 0, 0, 0]


def test_a_step_costs_few_commands_while_nothing_happens(sync_redis: redis.Redis) -> None:
    """An idle flusher with 16 partitions is promised at most 60 commands a second."""
    client: Client = sync_redis
    space = Keyspace("tests", 16)
    for p in space.partitions:
        client.hset(p.state, mapping={"waiting": 5, "flushed": 9, "wake": 1 << 50})
    transport = Transport(sync_redis, 1)

    def step() -> None:
        samples = transport.exchange([sample(p) for p in space.partitions])
        transport.exchange([record_request(space, list(enumerate(samples)))])

    step()  # loads the scripts, and begins an hour
    client.config_resetstat()
    step()
    stats = client.info("commandstats")
    spent = sum(row["calls"] for name, row in stats.items() if name != "cmdstat_config|resetstat")
    assert spent <= 60, stats


def test_what_is_due_while_the_leader_sleeps_is_late_only_in_a_pause(
    sync_redis: redis.Redis,
) -> None:
    client: Client = sync_redis
    prepare(client)
    for score, group in ((1_000, b"x"), (2_000, b"y")):
        client.zadd(P.ready, {group: score})
    far = 1 << 50
    client.hset(P.state, mapping={"claimed": 0, "wake": far})
    assert SAMPLE.on(client)[-1] == 0
    client.hset(P.state, "paused", 1)
    assert SAMPLE.on(client)[-1] > 10**11
    client.hdel(P.state, "paused")
    client.hset(P.state, "wake", 0)
    assert SAMPLE.on(client)[-1] > 10**11


@pytest.mark.parametrize("partitions", [1, 256])
def test_a_call_runs_few_commands_however_many_samples_it_has(
    sync_redis: redis.Redis, partitions: int
) -> None:
    client: Client = sync_redis
    now = server_ms(client)
    client.config_resetstat()
    for n in range(5):
        record(
            client, *(sample_at(now + n, n, pending=n, number=each) for each in range(partitions))
        )
    calls = {name: each["calls"] for name, each in client.info("commandstats").items()}
    assert calls.pop("cmdstat_eval") == 5
    assert sum(calls.values()) <= 5 * 12
