"""Large batches are moved and enqueued in slices; whoever comes after a caller that died goes on.

The tests call the scripts as a leader does, and stop between two slices.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import pytest
import redis

from redisagg import Aggregator, Task
from redisagg.errors import UnknownBatch
from redisagg.flusher.batch import Enqueue, Failure
from redisagg.flusher.leader.requests import Due, DueItem, LeaderRequests, Parts, Retried, Returned
from redisagg.protocol.entries import decode
from redisagg.protocol.failed_tasks import failed_batch
from redisagg.protocol.keys import Keyspace
from redisagg.protocol.scripts import Request, call
from redisagg.sinks.base import RedisQueue
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


def test_a_batch_or_a_group_that_a_call_names_twice_is_taken_once(
    make: Make, sync_redis: redis.Redis
) -> None:
    """Records are read before the first batch of a call, and written behind the last one."""
    agg = make(partitions=1, group_max_size=2, group_grace_period=60)
    agg.add_tasks(numbered("g", 5))
    leader = lead(sync_redis, "first")
    [item] = Due.of(send(sync_redis, leader.poll(9, []))).items
    claimed = send(sync_redis, leader.claim([item, item], 9, 1 << 24))
    assert [each[6] for each in claimed] == [2, 2]  # and one that is not due waits
    assert place_counts(agg) == (1, 4, 0)
    first, second = ((each[0], b"g", None) for each in claimed)
    reply = send(sync_redis, leader.commit([first, first, second, second]))
    assert reply == [b"OK", b"GONE", b"OK", b"GONE"]
    assert place_counts(agg) == (1, 0, 0)
    assert send(sync_redis, leader.claim([item], 9, 1 << 24)) == []
    agg.flush("g")
    [[last, *_]] = claim(sync_redis, leader)
    assert send(sync_redis, leader.commit([(last, b"g", None)])) == [b"OK"]
    assert agg.get_groups() == {}
    assert (agg.stats().stored_bytes, sync_redis.exists(P.groups, P.batches, P.claims)) == (0, 0)


def test_a_group_is_cut_in_the_call_that_takes_its_held_batch(
    make: Make, sync_redis: redis.Redis
) -> None:
    agg = make(partitions=1, group_max_size=2)
    agg.add_tasks(numbered("g", 4))
    leader = lead(sync_redis, "first")
    [item] = Due.of(send(sync_redis, leader.poll(1, []))).items
    [[batch_id, *_]] = send(sync_redis, leader.claim([item], 1, 1 << 24))
    send(sync_redis, leader.retry([Returned(batch_id, 0, False, b"")]))
    assert send(sync_redis, leader.claim([item], 9, 1 << 24)) == []  # its batch has to go first
    claimed = send(sync_redis, leader.claim([DueItem(batch_id, b"g"), item], 9, 1 << 24))
    assert [each[6] for each in claimed] == [2, 2]
    assert claimed[0][0] == batch_id


@pytest.mark.parametrize("foreign", [False, True])
def test_the_list_of_a_long_batch_is_freed_in_the_background(
    make: Make, sync_redis: redis.Redis, foreign: bool
) -> None:
    agg = make(**CONFIG | {"group_max_size": 10_000})
    for start in range(0, 10_000, 500):
        agg.add_tasks(numbered("g", 500, start=start))
    leader = lead(sync_redis, "first")
    [[batch_id, *_]] = claim(sync_redis, leader)
    if foreign:
        sync_redis.set(P.tasks(b"g"), "of somebody else")
    sync_redis.config_resetstat()
    assert send(sync_redis, leader.commit([(batch_id, b"g", None)])) == [b"OK"]
    assert agg.stats().stored_bytes == 0
    assert sync_redis.exists(P.tasks(b"g")) == foreign
    calls = {name for name in sync_redis.info("commandstats") if name.startswith("cmdstat_")}
    assert ("cmdstat_ltrim" in calls, "cmdstat_unlink" in calls) == (foreign, not foreign)


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
    keys += [P.tasks(b"g"), P.dead_tasks(batch_id), P.result(batch_id)]
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


# --- the entries of a batch ----------------------------------------------------------------------

ENTRIES = [b"%d" % n for n in range(10)]
ASYNQ = [b"q", b"id", b"message", b"", b"", b""]


class Slicing:
    """A claimed batch whose entries go into a list in slices.

    Args:
        stored: whether its merge result is stored.
    """

    def __init__(self, make: Make, client: Client, *, stored: bool = True) -> None:
        self.client = client
        self.agg = make(partitions=1, group_max_size=1)
        self.agg.add_tasks(numbered("g", 2))
        self.leader = lead(client, "first")
        self.first, self.second = (batch_id for batch_id, *_ in claim(client, self.leader))
        if stored:
            self.store(b"r" * 600_000)

    def store(self, result: bytes) -> bytes:
        """Stores a merge result; returns its label."""
        label, requests = self.leader.store_result(self.first, result)
        assert [send(self.client, request) for request in requests] == [1] * len(requests)
        return label

    def commit(self, start: int, end: int, *, batch_id: bytes = b"", key: bytes = b"queue") -> Any:
        """Commits a slice; returns what the script says about the batch."""
        enqueue = Enqueue(RedisQueue("", "commit_list", [key], []), [], ENTRIES[start:end])
        left = len(ENTRIES) - end
        request = self.leader.commit_slice(batch_id or self.first, b"g", enqueue, start, left)
        [reply] = send(self.client, request)
        return reply

    def queue(self) -> list[bytes]:
        return list(self.client.lrange("queue", 0, -1))

    def take_over(self) -> list[Any]:
        """Another leader claims the batch; returns what it gets."""
        die(self.client)
        self.leader = lead(self.client, "second")
        [first, *_] = claim(self.client, self.leader)
        return first


@pytest.fixture
def slicing(make: Make, sync_redis: redis.Redis) -> Slicing:
    return Slicing(make, sync_redis)


def test_the_last_slice_removes_the_batch(slicing: Slicing) -> None:
    assert slicing.commit(0, 4) == 4
    assert slicing.commit(4, 8) == 8
    assert place_counts(slicing.agg) == (0, 2, 0)
    assert slicing.agg.stats().flushed == 0
    assert slicing.commit(8, 10) == b"OK"
    assert slicing.queue() == ENTRIES
    assert place_counts(slicing.agg) == (0, 1, 0)
    assert slicing.agg.stats().flushed == 1
    assert not slicing.client.exists(P.result(slicing.first))
    assert slicing.commit(8, 10) == b"GONE"
    assert slicing.queue() == ENTRIES


def test_a_slice_is_enqueued_once_and_in_its_place(slicing: Slicing) -> None:
    assert slicing.commit(4, 8) == 0  # none has been enqueued before it
    assert slicing.commit(0, 4) == 4
    assert slicing.commit(0, 4) == 4
    assert slicing.commit(8, 10) == 4
    assert slicing.queue() == ENTRIES[:4]


def test_nothing_of_the_group_gets_between_the_slices(slicing: Slicing) -> None:
    assert slicing.commit(0, 4) == 4
    whole = Enqueue(RedisQueue("", "commit_list", [b"queue"], []), [], [b"second"])
    request = slicing.leader.commit([(slicing.second, b"g", whole)])
    assert send(slicing.client, request) == [b"ORDER"]
    assert slicing.commit(0, 10, batch_id=slicing.second) == b"ORDER"
    again = slicing.leader.commit([(slicing.first, b"g", whole)])
    assert send(slicing.client, again) == [4]
    assert slicing.queue() == ENTRIES[:4]


def test_a_leader_without_lease_enqueues_no_slice_and_the_next_one_goes_on(
    slicing: Slicing,
) -> None:
    assert slicing.commit(0, 4) == 4
    stale = slicing.leader
    claimed = slicing.take_over()
    assert claimed[0] == slicing.first
    assert claimed[4:6] == [b"", []]
    label, number = claimed[10:]
    assert number == 4
    parts = send(slicing.client, slicing.leader.read_result(slicing.first, label, 0, 3))
    assert [len(part or b"") for part in parts] == [512 * 1024, 600_000 - 512 * 1024, 0]
    slicing.leader, current = stale, slicing.leader
    with pytest.raises(redis.ResponseError, match="STALE"):
        slicing.commit(4, 8)
    with pytest.raises(redis.ResponseError, match="STALE"):
        slicing.store(b"other")
    slicing.leader = current
    assert slicing.commit(4, 10) == b"OK"
    assert slicing.queue() == ENTRIES


def test_a_slice_that_the_queue_refuses_leaves_the_batch_as_it_was(slicing: Slicing) -> None:
    assert slicing.commit(0, 4) == 4
    before = slicing.client.hgetall(P.batches)
    slicing.client.set("foreign", "x")
    assert b"WRONGTYPE" in slicing.commit(4, 8, key=b"foreign")
    assert b"WRONGTYPE" in slicing.commit(4, 10, key=b"foreign")
    assert slicing.client.hgetall(P.batches) == before
    assert slicing.commit(4, 10) == b"OK"
    assert slicing.queue() == ENTRIES


def test_slices_need_a_stored_result(make: Make, sync_redis: redis.Redis) -> None:
    """Without one nobody could go on."""
    slicing = Slicing(make, sync_redis, stored=False)
    assert slicing.commit(0, 4) == b"ORDER"
    _, requests = slicing.leader.store_result(slicing.first, b"r" * 600_000)
    assert send(sync_redis, requests[0]) == 1
    assert slicing.commit(0, 4) == b"ORDER"
    claimed = slicing.take_over()
    assert claimed[10:] == [b"-", 0]  # no whole result, but a key to remove
    assert claimed[5], "it comes with its tasks, to be merged again"
    whole = Enqueue(RedisQueue("", "commit_list", [b"queue"], []), [], [b"x"])
    request = slicing.leader.commit([(slicing.first, b"g", whole)])
    assert send(sync_redis, request) == [b"ORDER"]
    assert slicing.commit(0, 10) == b"OK"
    assert not sync_redis.exists(P.result(slicing.first))


def test_a_result_replaces_another_one_when_it_is_whole(slicing: Slicing) -> None:
    [first_field, *_] = sorted(slicing.client.hkeys(P.result(slicing.first)))
    _, requests = slicing.leader.store_result(slicing.first, b"s" * 1_200_000)
    assert [send(slicing.client, request) for request in requests[:2]] == [1, 1]
    assert slicing.client.hexists(P.result(slicing.first), first_field)
    assert send(slicing.client, requests[2]) == 1
    assert slicing.client.hlen(P.result(slicing.first)) == 3
    late = slicing.leader.store_result(slicing.first, b"t" * 1_200_000)[1]
    assert send(slicing.client, late[2]) == 0  # earlier parts are missing
    claimed = slicing.take_over()
    assert claimed[10].endswith(b"-2")


def test_a_slice_for_asynq_checks_all_of_its_entries_first(slicing: Slicing) -> None:
    slicing.client.set("foreign", "x")
    names = [b"t1", b"pending", b"s", b"u1", b"t2", b"foreign", b"s", b"u2"]
    enqueue = Enqueue(RedisQueue("", "commit_asynq", [b"queues"], []), names, ASYNQ * 2)
    request = slicing.leader.commit_slice(slicing.first, b"g", enqueue, 0, 8)
    [reply] = send(slicing.client, request)
    assert b"WRONGTYPE" in reply
    assert not slicing.client.exists("t1", "pending", "queues")
    enqueue.entry_keys[5] = b"pending"
    request = slicing.leader.commit_slice(slicing.first, b"g", enqueue, 0, 8)
    assert send(slicing.client, request) == [2]
    assert slicing.client.llen("pending") == 2
    assert send(slicing.client, request) == [2]
    assert slicing.client.llen("pending") == 2


@pytest.mark.parametrize("then", ["requeue", "requeue without tasks", "drop"])
def test_a_half_enqueued_batch_is_buried_with_its_result(slicing: Slicing, then: str) -> None:
    assert slicing.commit(0, 4) == 4
    assert send(slicing.client, slicing.leader.bury(slicing.first, b"g", 7, FAILURE)) == b"OK"
    [letter] = slicing.agg.dead_letters()
    assert letter.enqueued == 4
    if then == "drop":
        slicing.agg.drop_dead_letter(slicing.first.decode())
        assert not slicing.client.exists(P.result(slicing.first))
        return
    if then == "requeue without tasks":  # somebody else removed them
        slicing.client.delete(P.dead_tasks(slicing.first))
        assert slicing.agg.requeue_dead_letter(slicing.first.decode()) == 0
        assert not slicing.client.exists(P.result(slicing.first), P.dead)
        return
    slicing.agg.requeue_dead_letter(slicing.first.decode())
    claimed = slicing.take_over()
    assert claimed[0] == slicing.first
    assert claimed[11] == 4
    assert slicing.commit(0, 4) == 4
    assert slicing.commit(4, 10) == b"OK"
    assert slicing.queue() == ENTRIES


def test_a_batch_of_which_nothing_is_enqueued_is_buried_without_its_result(
    slicing: Slicing,
) -> None:
    assert send(slicing.client, slicing.leader.bury(slicing.first, b"g", 7, FAILURE)) == b"OK"
    assert not slicing.client.exists(P.result(slicing.first))
    [letter] = slicing.agg.dead_letters()
    assert letter.enqueued == 0


# --- tasks that fail alone -----------------------------------------------------------------------


class Parting:
    """A claimed batch of eight tasks, of which those with an even place fail alone.

    Args:
        stored: whether its merge result is stored.
        header: a header of each task.
    """

    def __init__(self, make: Make, client: Client, *, stored: bool, header: str = "") -> None:
        self.client = client
        self.agg = make(partitions=1, group_max_size=8)
        self.agg.add_tasks([Task("t", n, "g", headers={"h": header}) for n in range(16)])
        self.leader = lead(client, "first")
        self.id, self.behind = (batch_id for batch_id, *_ in claim(client, self.leader))
        if stored:
            _, requests = self.leader.store_result(self.id, b"r")
            assert [send(client, request) for request in requests] == [1]

    def commit(
        self,
        start: int,
        end: int,
        before: int,
        count: int,
        *,
        enqueued: int | None = None,
        delay: float | None = None,
    ) -> Any:
        """Commits a slice with `count` failed tasks; returns what the script says.

        Args:
            enqueued: how many entries have been enqueued; `start` by default.
            delay: seconds until a batch of the failed tasks is tried again; None for dead letters.
        """
        enqueue = Enqueue(RedisQueue("", "commit_list", [b"queue"], []), [], ENTRIES[start:end])
        failed = [(2 * n, f"reason {n}") for n in range(before, before + count)]
        retried = None
        if delay is not None:
            new = failed_batch(self.id, b"g", failed[0][0])
            retried = Retried(new, delay, failed[0][1])
        parts = Parts(failed, before, 4 - before - count, retried)
        left = len(ENTRIES) - end
        enqueued = start if enqueued is None else enqueued
        request = self.leader.commit_slice(self.id, b"g", enqueue, enqueued, left, parts)
        [reply] = send(self.client, request)
        return reply

    def letters(self) -> list[tuple[int, str]]:
        letters = self.agg.dead_letters(tasks=True)
        return [
            (each.task.payload, each_letter.error)
            for each_letter in letters
            for each in each_letter.tasks or ()
            if each.task
        ]


FAILED = [(0, "reason 0"), (2, "reason 1"), (4, "reason 2"), (6, "reason 3")]


def test_the_rest_and_the_failed_tasks_leave_in_one_step(
    make: Make, sync_redis: redis.Redis
) -> None:
    parting = Parting(make, sync_redis, stored=False)
    assert parting.commit(0, 10, 0, 4) == b"OK"
    assert parting.letters() == FAILED
    client: Client = sync_redis
    assert client.lrange("queue", 0, -1) == ENTRIES
    assert place_counts(parting.agg) == (0, 8, 4)
    assert parting.agg.stats().flushed == 4
    assert parting.commit(0, 10, 0, 4) == b"GONE"  # the reply was lost
    assert place_counts(parting.agg) == (0, 8, 4)


def test_many_failed_tasks_leave_in_slices_that_can_be_repeated(
    make: Make, sync_redis: redis.Redis
) -> None:
    parting = Parting(make, sync_redis, stored=True)
    client: Client = sync_redis
    assert parting.commit(0, 10, 0, 1) == b"PARTED 1"
    assert parting.commit(0, 10, 0, 1) == 10
    assert parting.commit(10, 10, 0, 1) == b"PARTED 1"
    assert parting.letters() == FAILED[:1]
    # An operator may requeue a letter before the batch has left; it is not made again.
    parting.agg.drop_dead_letter(f"{parting.id.decode()}-task-0")
    assert parting.commit(10, 10, 0, 1) == b"PARTED 1"
    assert parting.letters() == []
    # Whatever happens to it, it is not buried: that would double the tasks that have left.
    assert send(client, parting.leader.retry([Returned(parting.id, 0, True, b"", "no")])) == [1]
    die(client)
    parting.leader = lead(client, "second")
    claimed = claim(client, parting.leader)
    assert (claimed[0][0], claimed[0][2], claimed[0][11]) == (parting.id, 1, 10)
    assert parting.commit(10, 10, 1, 1) == b"PARTED 2"
    assert parting.agg.stats().flushed == 0
    assert parting.commit(10, 10, 2, 2) == b"OK"
    assert parting.letters() == FAILED[1:]
    assert client.lrange("queue", 0, -1) == ENTRIES
    assert place_counts(parting.agg) == (0, 8, 3)
    assert parting.agg.stats().flushed == 4
    assert not client.exists(P.result(parting.id))


def test_slices_of_failed_tasks_need_a_stored_result(make: Make, sync_redis: redis.Redis) -> None:
    parting = Parting(make, sync_redis, stored=False)
    assert parting.commit(0, 10, 0, 1) == b"ORDER"
    assert parting.letters() == []
    assert not sync_redis.exists("queue")


def test_a_queue_that_refuses_the_rest_keeps_the_failed_tasks_too(
    make: Make, sync_redis: redis.Redis
) -> None:
    parting = Parting(make, sync_redis, stored=False)
    sync_redis.set("queue", "foreign")
    assert b"WRONGTYPE" in parting.commit(0, 10, 0, 4)
    assert parting.letters() == []
    assert place_counts(parting.agg) == (0, 16, 0)


@pytest.mark.parametrize("entries", [0, 10])
def test_a_batch_of_which_tasks_have_left_is_buried_with_its_result(
    make: Make, sync_redis: redis.Redis, entries: int
) -> None:
    """Requeued it goes on with the others: those that have left are not doubled."""
    parting = Parting(make, sync_redis, stored=True)
    start = 10 - entries
    assert parting.commit(start, 10, 0, 1, enqueued=0) == b"PARTED 1"
    assert send(sync_redis, parting.leader.bury(parting.id, b"g", 7, FAILURE)) == b"OK"
    assert sync_redis.exists(P.result(parting.id))
    assert parting.agg.requeue_dead_letter(parting.id.decode()) == 8
    die(sync_redis)
    parting.leader = lead(sync_redis, "second")
    [claimed, *_] = claim(sync_redis, parting.leader)
    assert (claimed[0], claimed[2], claimed[11]) == (parting.id, 1, entries)
    assert claimed[10]
    assert parting.commit(10, 10, 0, 1, enqueued=entries) == b"PARTED 1"
    assert parting.commit(10, 10, 1, 3, enqueued=entries) == b"OK"
    assert parting.letters() == FAILED
    client: Client = sync_redis
    assert client.lrange("queue", 0, -1) == ENTRIES[start:]
    assert place_counts(parting.agg) == (0, 8, 4)


def test_a_batch_that_is_half_buried_goes_on_being_buried_if_tasks_have_left(
    make: Make, sync_redis: redis.Redis
) -> None:
    filled(make, sync_redis, behind=10)
    leader = lead(sync_redis, "first")
    [[batch_id, *_]] = claim(sync_redis, leader)
    _, requests = leader.store_result(batch_id, b"r")
    assert [send(sync_redis, request) for request in requests] == [1]
    parts = leader.commit_slice(batch_id, b"g", None, 0, 0, Parts([(0, "no")], 0, 1))
    assert send(sync_redis, parts) == [b"PARTED 1"]
    assert send(sync_redis, leader.bury(batch_id, b"g", 7, FAILURE)) == b"MORE"
    die(sync_redis)
    [[claimed_id, _, attempt, *_], *_] = claim(sync_redis, lead(sync_redis, "second"))
    assert (claimed_id, attempt) == (batch_id, 2**31)


def test_a_letter_that_exists_is_not_made_again(make: Make, sync_redis: redis.Redis) -> None:
    parting = Parting(make, sync_redis, stored=False)
    client: Client = sync_redis
    letter = parting.id + b"-task-2"
    keys = [P.state, P.groups, P.batches, P.dead, P.tasks(b"g"), P.dead_tasks(letter)]
    args = [client.hget(P.state, "token"), parting.id, letter, "known", 2]
    assert send(client, call("set_aside", keys, *args)) == b"OK"
    assert parting.commit(0, 10, 0, 4) == b"OK"
    assert sorted(parting.letters()) == sorted([FAILED[0], (2, "known"), *FAILED[2:]])
    assert place_counts(parting.agg) == (0, 8, 4)


@pytest.mark.parametrize("stored", [True, False])
def test_large_failed_tasks_leave_in_several_calls(
    make: Make, sync_redis: redis.Redis, stored: bool
) -> None:
    """If another call can go on: the result is stored."""
    parting = Parting(make, sync_redis, stored=stored, header="x" * 300_000)
    assert parting.commit(0, 10, 0, 4) == (b"PARTED 2" if stored else b"OK")
    assert len(parting.letters()) == (2 if stored else 4)
    if stored:
        assert parting.commit(10, 10, 2, 2) == b"OK"
    assert [error for _, error in parting.letters()] == [error for _, error in FAILED]
    assert sync_redis.llen("queue") == len(ENTRIES)
    assert place_counts(parting.agg) == (0, 8, 4)


def test_failed_tasks_that_are_tried_again_leave_in_one_step(
    make: Make, sync_redis: redis.Redis
) -> None:
    parting = Parting(make, sync_redis, stored=False)
    before = parting.agg.stats().stored_bytes
    assert parting.commit(0, 10, 0, 4, delay=0) == b"OK"
    assert parting.commit(0, 10, 0, 4, delay=0) == b"GONE"  # the reply was lost
    client: Client = sync_redis
    assert client.lrange("queue", 0, -1) == ENTRIES
    assert place_counts(parting.agg) == (0, 12, 0)
    stats = parting.agg.stats()
    assert (stats.flushed, stats.stored_bytes) == (4, before * 3 // 4)
    new = failed_batch(parting.id, b"g", 0)
    [claimed] = claim(sync_redis, parting.leader)
    assert claimed[:4] == [new.batch_id, new.group, 2, b"reason 0"]
    assert [decode(entry, "g").payload for entry in claimed[5]] == [0, 2, 4, 6]
    # It does not hold back its group, nor that it.
    behind = parting.leader.commit([(parting.behind, b"g", None)])
    assert send(sync_redis, behind) == [b"OK"]
    assert send(sync_redis, parting.leader.commit([(new.batch_id, new.group, None)])) == [b"OK"]
    stats = parting.agg.stats()
    assert (stats.flushed, stats.in_flight, stats.stored_bytes, stats.groups) == (16, 0, 0, 0)
    assert not client.keys("*:tasks:*")


def test_many_failed_tasks_are_tried_again_in_batches_that_are_made_once(
    make: Make, sync_redis: redis.Redis
) -> None:
    parting = Parting(make, sync_redis, stored=True)
    client: Client = sync_redis
    assert parting.commit(0, 10, 0, 2, delay=0) == b"PARTED 2"
    assert parting.commit(0, 10, 0, 2, delay=0) == 10
    assert parting.commit(10, 10, 0, 2, delay=0) == b"PARTED 2"
    # The first of the new batches may have left before the old one has.
    [first] = claim(client, parting.leader)
    assert send(client, parting.leader.commit([(first[0], first[1], None)])) == [b"OK"]
    assert parting.commit(10, 10, 0, 2, delay=0) == b"PARTED 2"
    die(client)
    parting.leader = lead(client, "second")
    claimed = claim(client, parting.leader)
    assert [each[0] for each in claimed] == [parting.id, parting.behind]
    assert parting.commit(10, 10, 2, 2, delay=0) == b"OK"
    [second] = claim(client, parting.leader)
    assert [decode(entry, "g").payload for entry in first[5] + second[5]] == [0, 2, 4, 6]
    assert second[0] == parting.id + b"-failed-1-4"
    assert send(client, parting.leader.commit([(second[0], second[1], None)])) == [b"OK"]
    assert client.lrange("queue", 0, -1) == ENTRIES
    assert place_counts(parting.agg) == (0, 8, 0)
    assert parting.agg.stats().flushed == 8


def test_large_failed_tasks_are_tried_again_in_several_batches(
    make: Make, sync_redis: redis.Redis
) -> None:
    parting = Parting(make, sync_redis, stored=True, header="x" * 300_000)
    assert parting.commit(0, 10, 0, 4, delay=60) == b"PARTED 2"
    assert parting.commit(10, 10, 2, 2, delay=60) == b"OK"
    sizes = [batch.size for batch in parting.agg.get_batches() if batch.state == "retry"]
    assert sizes == [2, 2]


def test_a_queue_that_refuses_the_rest_keeps_the_failed_tasks_that_are_tried_again(
    make: Make, sync_redis: redis.Redis
) -> None:
    parting = Parting(make, sync_redis, stored=False)
    sync_redis.set("queue", "foreign")
    assert b"WRONGTYPE" in parting.commit(0, 10, 0, 4, delay=0)
    assert place_counts(parting.agg) == (0, 16, 0)
    assert parting.agg.stats().batches_in_flight == 2


# --- halves --------------------------------------------------------------------------------------


def test_the_halves_of_a_batch_hold_those_behind_it(make: Make, sync_redis: redis.Redis) -> None:
    agg = make(partitions=1, group_max_size=3)
    agg.add_tasks(numbered("g", 6))
    leader = lead(sync_redis, "first")
    first, behind = (batch_id for batch_id, *_ in claim(sync_redis, leader))
    before = agg.stats()
    assert send(sync_redis, leader.split(first, 0, "no")) == 1
    assert send(sync_redis, leader.split(first, 0, "no")) == 0  # the reply was lost
    after = agg.stats()
    assert place_counts(agg) == (0, 6, 0)
    assert (after.stored_bytes, after.batches_in_retry) == (before.stored_bytes, 2)
    die(sync_redis)  # before it has given back the batch behind
    leader = lead(sync_redis, "second")
    claimed = claim(sync_redis, leader)
    assert [each[0] for each in claimed] == [first + b".0", first + b".1"]
    assert [len(each[5]) for each in claimed] == [2, 1]
    assert [each[2:4] for each in claimed] == [[1, b"no"]] * 2
    next_claim: list[list[Any]] = []

    def claimed_next() -> bool:
        next_claim[:] = claim(sync_redis, leader)
        return bool(next_claim)

    wait_until(claimed_next, what="the batch behind can be claimed")
    assert [each[0] for each in next_claim] == [behind]
    ids = [first + b".0", first + b".1", behind]
    [*replies] = send(sync_redis, leader.commit([(each, b"g", None) for each in ids]))
    assert replies == [b"OK"] * 3
    stats = agg.stats()
    assert (stats.flushed, stats.in_flight, stats.stored_bytes, stats.groups) == (6, 0, 0, 0)


def test_a_batch_of_one_task_has_no_halves(make: Make, sync_redis: redis.Redis) -> None:
    slicing = Slicing(make, sync_redis, stored=False)
    assert send(sync_redis, slicing.leader.split(slicing.first, 0, "no")) == 0
    assert place_counts(slicing.agg) == (0, 2, 0)


def test_a_batch_with_a_merge_result_has_no_halves(make: Make, sync_redis: redis.Redis) -> None:
    parting = Parting(make, sync_redis, stored=True)
    assert send(sync_redis, parting.leader.split(parting.id, 0, "no")) == 0
    assert place_counts(parting.agg) == (0, 16, 0)
