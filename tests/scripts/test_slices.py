"""Large batches are moved in slices; whoever comes after a caller that died goes on.

The tests call the scripts as a leader does, and stop between two slices.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import pytest
import redis

from redisagg import Aggregator, Task
from redisagg.errors import UnknownBatch
from redisagg.flusher.batch import Failure
from redisagg.flusher.leader.requests import Due, LeaderRequests
from redisagg.protocol.keys import Keyspace
from redisagg.protocol.scripts import Request, call
from tests.support.aggregators import Make
from tests.support.servers import wait_until
from tests.support.tasks import await_dead, enqueued, numbered, payloads, quick_config

Client: TypeAlias = Any  # redis.Redis, whose types take no bytes for keys

P = Keyspace("tests", 1).partitions[0]
COUNT = 3_500  # tasks of a batch: more than three slices
CONFIG: dict[str, Any] = {"partitions": 1, "group_max_size": COUNT, "lease_time": 2}


def send(client: Client, request: Request) -> Any:
    """Runs a script."""
    return client.execute_command(*request.command_with_source())


def lead(client: Client, owner: str, **config: Any) -> LeaderRequests:
    """The requests of a leader, which gets a short lease."""
    keys = [P.state, P.claims, P.tasks(b"")]
    token, _ = send(client, call("acquire", keys, owner, 60_000, P.label))
    assert token, "somebody else leads"
    return LeaderRequests(P, token, quick_config(**CONFIG, **config), 1)


def die(client: Client) -> None:
    """Ends the lease; its holder does nothing any more."""
    client.hset(P.state, "expires", 1)


def claim(client: Client, leader: LeaderRequests) -> list[list[Any]]:
    """Claims what is due."""
    due = Due.of(send(client, leader.poll(9, [])))
    return list(send(client, leader.claim(due.items, 9, 1 << 24)))


def filled(make: Make, client: Client, *, behind: int = 0, **config: Any) -> Aggregator:
    """An aggregator with a group that is full, and tasks behind it."""
    agg = make(**{**CONFIG, **config})
    for start in range(0, COUNT + behind, 500):
        agg.add_tasks(numbered("g", min(500, COUNT + behind - start), start=start))
    return agg


def place_counts(agg: Aggregator) -> tuple[int, int, int]:
    stats = agg.stats()
    return stats.pending, stats.in_flight, stats.dead


FAILURE = Failure("no", "Traceback")


@pytest.mark.parametrize("slices", [1, 3])
def test_a_burial_goes_on_where_its_leader_died(
    make: Make, sync_redis: redis.Redis, slices: int
) -> None:
    merged: list[str] = []

    def merge(group: str, tasks: list[Task]) -> Task:
        merged.extend(str(task.payload) for task in tasks)
        return Task("merged", len(tasks))

    agg = filled(make, sync_redis, behind=10, group_aggregator=merge)
    first = lead(sync_redis, "first")
    [[batch_id, *_]] = claim(sync_redis, first)
    bury = first.bury(batch_id, b"g", 7, FAILURE)
    for n in range(slices):
        assert send(sync_redis, bury) == b"MORE"
        moved = 1_000 * (n + 1)
        assert place_counts(agg) == (10, COUNT - moved, moved)
        assert agg.dead_letters() == []
        assert sync_redis.llen(P.dead_tasks(batch_id)) == moved
    die(sync_redis)
    with pytest.raises(redis.ResponseError, match="STALE"):
        send(sync_redis, bury)
    with agg:
        [letter] = await_dead(agg)
        agg.flush("g")
        wait_until(lambda: len(enqueued(agg)) == 1, what="the tasks behind it left")
    [letter] = agg.dead_letters(tasks=True)
    assert (letter.attempts, letter.error, letter.traceback) == (7, "no", "Traceback")
    assert [each.task.payload for each in letter.tasks or () if each.task] == list(range(COUNT))
    assert place_counts(agg) == (0, 0, COUNT)
    assert len(merged) == 10
    assert agg.stats().stored_bytes == 0
    assert send(sync_redis, lead(sync_redis, "next").bury(batch_id, b"g", 7, FAILURE)) == b"GONE"


def test_a_batch_that_is_half_buried_is_not_committed(make: Make, sync_redis: redis.Redis) -> None:
    filled(make, sync_redis, behind=10)
    leader = lead(sync_redis, "first")
    [[batch_id, *_]] = claim(sync_redis, leader)
    assert send(sync_redis, leader.bury(batch_id, b"g", 7, FAILURE)) == b"MORE"
    assert send(sync_redis, leader.commit([(batch_id, b"g", None)])) == [b"ORDER"]


@pytest.mark.parametrize("behind", [0, 10, COUNT + 10])
def test_a_requeue_moves_slices(make: Make, sync_redis: redis.Redis, behind: int) -> None:
    agg = filled(make, sync_redis, behind=behind)
    batch_id = buried(sync_redis, lead(sync_redis, "first"))
    sync_redis.config_resetstat()
    before = agg.stats().stored_bytes
    assert agg.requeue_dead_letter(batch_id.decode()) == COUNT
    stats: Any = sync_redis.info("commandstats")
    pushes = stats.get("cmdstat_lpush", {"calls": 0})["calls"]
    assert pushes == (4 if behind else 0)  # without other tasks the list is renamed
    assert place_counts(agg)[2] == 0
    assert agg.stats().stored_bytes > before
    die(sync_redis)
    with agg:
        agg.flush("g")
        assert agg.wait_until_idle(20)
    batches = enqueued(agg)
    assert batches[0].batch_id.encode() == batch_id
    assert batches[0].count == COUNT
    assert [n for batch in batches for n in payloads([batch])] == list(range(COUNT + behind))
    assert agg.stats().stored_bytes == 0
    assert sync_redis.keys("*:dead:*") == sync_redis.keys("*:tasks:*") == []


def buried(client: Client, leader: LeaderRequests) -> bytes:
    """Cuts the first batch and moves it to the dead letters; returns its id."""
    [[batch_id, *_]] = claim(client, leader)[:1]
    while send(client, leader.bury(batch_id, b"g", 7, FAILURE)) == b"MORE":
        pass
    return bytes(batch_id)


def requeue(batch_id: bytes) -> Request:
    """The call that an operator sends for each slice."""
    keys = [P.state, P.groups, P.batches, P.retry, P.due, P.ready, P.dead]
    keys += [P.tasks(b"g"), P.dead_tasks(batch_id)]
    return call("requeue", keys, batch_id, b"wake", 0)


def half_requeued(client: Client, agg: Aggregator, slices: int = 2) -> bytes:
    """A dead letter of which an operator has moved some slices before it died."""
    batch_id = buried(client, lead(client, "first"))
    for n in range(slices):
        assert send(client, requeue(batch_id)) == b"MORE"
        moved = 1_000 * (n + 1)
        assert place_counts(agg)[1:] == (moved, COUNT - moved)
    return batch_id


def test_slices_of_a_requeue_are_bounded_in_bytes(make: Make, sync_redis: redis.Redis) -> None:
    agg = make(partitions=1, group_max_size=9, lease_time=2)
    agg.add_tasks([Task("t", f"{n}" + "x" * 150_000, "g") for n in range(10)])
    batch_id = buried(sync_redis, lead(sync_redis, "first"))
    slices = 1
    while send(sync_redis, requeue(batch_id)) == b"MORE":
        slices += 1
    assert slices == 5  # of two tasks: above 256 KiB no other is read
    die(sync_redis)
    with agg:
        agg.flush("g")
        assert agg.wait_until_idle(20)
    assert [str(each)[0] for each in payloads(enqueued(agg))] == list("0123456789")


def test_another_operator_goes_on_with_a_requeue(make: Make, sync_redis: redis.Redis) -> None:
    agg = filled(make, sync_redis, behind=10)
    batch_id = half_requeued(sync_redis, agg)
    assert agg.dead_letters() == []
    [batch] = agg.get_batches()
    assert (batch.size, batch.state) == (2_000, "retry")
    with pytest.raises(UnknownBatch):
        agg.drop_dead_letter(batch_id.decode())
    assert agg.requeue_dead_letter(batch_id.decode()) == COUNT
    assert send(sync_redis, requeue(batch_id)) == COUNT  # the last reply was lost
    with pytest.raises(UnknownBatch):
        agg.requeue_dead_letter(batch_id.decode())
    die(sync_redis)
    with agg:
        agg.flush("g")
        assert agg.wait_until_idle(20)
    assert payloads(enqueued(agg)) == list(range(COUNT + 10))
    assert agg.stats().stored_bytes == 0
    assert send(sync_redis, requeue(batch_id)) == 0


def test_a_requeue_that_nobody_goes_on_with_is_undone(make: Make, sync_redis: redis.Redis) -> None:
    agg = filled(make, sync_redis, behind=10)
    batch_id = half_requeued(sync_redis, agg)
    die(sync_redis)
    leader = lead(sync_redis, "second")
    agg.flush("g")
    assert claim(sync_redis, leader) == []  # the group is held
    client: Client = sync_redis
    client.zadd(P.retry, {batch_id: 1})  # ten seconds pass
    [[claimed_id, _, attempt, *_]] = claim(sync_redis, leader)
    assert (claimed_id, attempt) == (batch_id, 2**31)
    with pytest.raises(UnknownBatch, match="on its way"):
        agg.requeue_dead_letter(batch_id.decode())
    assert place_counts(agg) == (10, 2_000, 1_500)
    die(sync_redis)
    with agg:
        [letter] = await_dead(agg)
        assert agg.wait_until_idle(20)
    assert payloads(enqueued(agg)) == list(range(COUNT, COUNT + 10))
    [letter] = agg.dead_letters(tasks=True)
    assert (letter.size, letter.attempts, letter.error) == (COUNT, 7, "no")
    assert [each.task.payload for each in letter.tasks or () if each.task] == list(range(COUNT))
    assert place_counts(agg) == (0, 0, COUNT)
    assert agg.stats().stored_bytes == 0
    assert agg.requeue_dead_letter(batch_id.decode()) == COUNT


def test_of_two_dead_letters_of_a_group_the_second_one_is_requeued(
    make: Make, sync_redis: redis.Redis
) -> None:
    """The tasks of the first one can't be put before those of the second one any more."""
    agg = filled(make, sync_redis, behind=COUNT)
    leader = lead(sync_redis, "first")
    claimed = [each[0] for each in claim(sync_redis, leader)]
    for each in claimed:
        while send(sync_redis, leader.bury(each, b"g", 7, FAILURE)) == b"MORE":
            pass
    first, second = claimed
    agg.add_tasks(numbered("g", 1, start=2 * COUNT))
    assert send(sync_redis, requeue(first)) == b"MORE"
    assert agg.requeue_dead_letter(second.decode()) == COUNT
    with pytest.raises(UnknownBatch, match="on its way"):
        agg.requeue_dead_letter(first.decode())
    client: Client = sync_redis
    client.zadd(P.retry, {first: 1})  # ten seconds pass
    die(sync_redis)
    with agg:
        [letter] = await_dead(agg)
        agg.flush("g")
        assert agg.wait_until_idle(20)
        assert payloads(enqueued(agg)) == list(range(COUNT, 2 * COUNT + 1))
        assert (letter.batch_id.encode(), letter.size) == (first, COUNT)
        assert agg.requeue_dead_letter(letter.batch_id) == COUNT
        assert agg.wait_until_idle(20)
    assert sorted(payloads(enqueued(agg))) == list(range(2 * COUNT + 1))
    assert agg.stats().stored_bytes == 0
