"""Answers to submitted tasks, script by script; a leader may die between any two of them."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
import redis

from redisagg import Results, Task, TaskFailed
from redisagg.flusher.batch import Failure, MergeOutcome
from redisagg.flusher.leader.requests import LeaderRequests, Returned
from redisagg.flusher.merging.result_codec import pack_result
from redisagg.protocol.answers import pack_answer, unpack_answer
from redisagg.protocol.keys import Keyspace
from tests.scripts.test_slices import Client, claim, die, lead, send
from tests.support.aggregators import Make
from tests.support.tasks import await_dead

P = Keyspace("tests", 1).partitions[0]
FAILURE = Failure("no", "Traceback")
RECORD = pack_answer("result", "b", 7)
Answers = list[tuple[bytes, int, bytes]]


def submitted(make: Make, groups: str = "g", count: int = 2, **config: Any) -> Any:
    """An aggregator without a flusher, and receipts of tasks of groups that are full."""
    agg = make(partitions=1, group_max_size=count, lease_time=2, **config)
    tasks = [Task("t", n, group, f"i{n}") for group in groups for n in range(count)]
    return agg, [agg.submit(task) for task in tasks]


def stored(client: Client, group: bytes, number: int) -> Any:
    key = P.answer(group, b"i%d" % number)
    record = client.get(key)
    return record and unpack_answer(record, key)


def answers(*numbers: int, record: bytes = RECORD) -> Answers:
    return [(b"i%d" % n, 60_000, record) for n in numbers]


def test_a_commit_stores_and_announces_answers(make: Make, sync_redis: redis.Redis) -> None:
    client: Client = sync_redis
    submitted(make, "gh")
    leader = lead(client, "me")
    claimed = {group: batch_id for batch_id, group, *_ in claim(client, leader)}
    large = pack_answer("result", "b", "x" * 2000)
    of_g = [*answers(0), *answers(1, record=large)]
    with client.pubsub() as pubsub:
        pubsub.subscribe(P.answers_channel)
        assert pubsub.get_message(timeout=5)["type"] == "subscribe"
        batches = [(claimed[b"h"], b"h", None), (claimed[b"g"], b"g", None)]
        commit = leader.commit(batches, {claimed[b"g"]: of_g})
        assert send(client, commit) == [b"OK", b"OK"]
        message = pubsub.get_message(timeout=5)
        assert msgpack.unpackb(message["data"], raw=True) == [
            *(P.answer(b"g", b"i0"), RECORD),
            *(P.answer(b"g", b"i1"), b""),
        ]
        assert pubsub.get_message(timeout=0.05) is None
    assert stored(client, b"g", 0).value == 7
    assert stored(client, b"g", 1).value == "x" * 2000
    assert 50_000 < client.pttl(P.answer(b"g", b"i0")) <= 60_000
    assert stored(client, b"h", 0) is None


@pytest.mark.parametrize("why", ["GONE", "ORDER", "STALE"])
def test_a_commit_that_is_refused_stores_no_answer(
    make: Make, sync_redis: redis.Redis, why: str
) -> None:
    client: Client = sync_redis
    agg, _ = submitted(make)
    for n in range(2, 4):
        agg.submit(Task("t", n, "g", f"i{n}"))
    leader = lead(client, "me")
    [first, second] = [each[0] for each in claim(client, leader)]
    if why == "GONE":
        assert send(client, leader.commit([(first, b"g", None)])) == [b"OK"]
    elif why == "STALE":
        die(client)
    batch_id = second if why == "ORDER" else first
    commit = leader.commit([(batch_id, b"g", None)], {batch_id: answers(0)})
    if why == "STALE":
        with pytest.raises(redis.ResponseError, match="STALE"):
            send(client, commit)
    else:
        assert send(client, commit) == [why.encode()]
    assert stored(client, b"g", 0) is None


def test_answers_need_a_fixed_outcome(make: Make, sync_redis: redis.Redis) -> None:
    client: Client = sync_redis
    submitted(make)
    leader = lead(client, "me")
    [[batch_id, *_]] = claim(client, leader)
    answer = leader.answer(batch_id, b"g", answers(0, 1))
    assert send(client, answer) == 0
    _, parts = leader.store_result(batch_id, b"result")
    for part in parts:
        assert send(client, part) == 1
    assert send(client, answer) == 1
    assert stored(client, b"g", 1).value == 7
    send(client, leader.retry([Returned(batch_id, 0, False, b"")]))
    assert send(client, answer) == 0  # it is not claimed any more
    die(client)
    with pytest.raises(redis.ResponseError, match="STALE"):
        send(client, answer)


def claimed_one(make: Make, client: Client, **config: Any) -> Any:
    agg, receipts = submitted(make, count=1200, **config)
    leader: LeaderRequests = lead(client, "first")
    [[batch_id, *_]] = claim(client, leader)
    return agg, receipts, leader, batch_id


def test_a_death_after_some_answers(make: Make, sync_redis: redis.Redis) -> None:
    """The next leader has the same outcome, and does not merge again."""
    client: Client = sync_redis
    merges: list[int] = []

    def merge(group: str, tasks: list[Task]) -> Results:
        merges.append(len(tasks))
        return Results({})

    agg, receipts, leader, batch_id = claimed_one(make, client, group_aggregator=merge)
    given = [(b"i%d" % n, 60_000, pack_answer("result", batch_id.decode(), n)) for n in range(1200)]
    _, parts = leader.store_result(batch_id, pack_result(MergeOutcome(answers=given)))
    for part in parts:
        assert send(client, part) == 1
    assert send(client, leader.answer(batch_id, b"g", given[:500])) == 1
    die(client)
    with agg:
        assert [receipt.result(30) for receipt in receipts] == list(range(1200))
        assert agg.wait_until_idle(10)
    assert merges == []


def test_a_death_in_a_burial_with_answers(make: Make, sync_redis: redis.Redis) -> None:
    """From its begin on the batch is buried, whoever goes on; and all its tasks get answers."""
    client: Client = sync_redis
    merges: list[int] = []

    def merge(group: str, tasks: list[Task]) -> None:
        merges.append(len(tasks))

    agg, receipts, leader, batch_id = claimed_one(make, client, group_aggregator=merge)
    begin = leader.bury(batch_id, b"g", 3, FAILURE, only_begin=True)
    assert send(client, begin) == b"MORE"
    assert send(client, begin) == b"MORE"  # a repeated call
    assert client.llen(P.dead_tasks(batch_id)) == 0
    record = pack_answer("failed", batch_id.decode(), ("no", batch_id.decode()))
    first = answers(*range(500), record=record)
    assert send(client, leader.answer(batch_id, b"g", first)) == 1
    die(client)
    with agg:
        [letter] = await_dead(agg)
        assert (letter.size, letter.error) == (1200, "no")
        for receipt in receipts:
            with pytest.raises(TaskFailed) as raised:
                receipt.result(20)
            assert (raised.value.reason, raised.value.dead_letter) == ("no", letter.batch_id)
    assert merges == []


def test_batches_without_submitted_tasks_are_buried_in_one_call(
    make: Make, sync_redis: redis.Redis
) -> None:
    client: Client = sync_redis

    def merge(group: str, tasks: list[Task]) -> None:
        raise ValueError("no")

    with make(group_aggregator=merge, group_max_size=2, partitions=1, max_attempts=1) as agg:
        agg.add_tasks([Task("t", n, "g") for n in range(2)])
        await_dead(agg)
    renames = client.info("commandstats")["cmdstat_rename"]["calls"]
    with make(group_aggregator=merge, group_max_size=2, partitions=1, max_attempts=1) as agg:
        agg.add_tasks([Task("t", n, "g") for n in range(2)])
        await_dead(agg, 2)
    stats = client.info("commandstats")["cmdstat_rename"]
    assert stats["calls"] - renames >= 2  # one of them tries whether the flusher may do it
    assert client.keys("*:answer:*") == []
