"""Some tasks of a dead letter are requeued as a batch of their own; the others stay one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any, TypeAlias

import pytest
import redis

from redisagg import Aggregator, AsyncAggregator, DeadLetter
from redisagg.errors import HalfEnqueued, InvalidConfig, UnknownBatch, UnknownTask
from redisagg.flusher.leader.requests import Parts
from redisagg.operations import steering
from redisagg.operations.steering import ChosenTasks
from redisagg.protocol.keys import Keyspace
from redisagg.protocol.operations import Operation
from redisagg.protocol.scripts import Request
from tests.scripts.test_slices import (
    COUNT,
    FAILURE,
    Slicing,
    buried,
    die,
    filled,
    half_requeued,
    lead,
    send,
)
from tests.support.aggregators import Make
from tests.support.cli import Run
from tests.support.proxy import Proxy
from tests.support.tasks import await_dead, enqueued, numbered, payloads, quick_config

Client: TypeAlias = Any  # redis.Redis, whose types take no bytes for keys

SPACE = Keyspace("tests", 1)
P = SPACE.partitions[0]


class Letter:
    """A dead letter of the first tasks of a group, whose payloads count up; others wait behind."""

    def __init__(self, make: Make, client: Client, *, count: int = 4, behind: int = 3) -> None:
        self.client = client
        self.agg: Aggregator = make(partitions=1, group_max_size=count, lease_time=2)
        for start in range(0, count + behind, 500):
            self.agg.add_tasks(numbered("g", min(500, count + behind - start), start=start))
        self.count = count
        self.id = buried(client, lead(client, "first")).decode()
        letter = self.read()
        assert letter is not None
        self.ids = [each.task.id for each in letter.tasks or () if each.task]
        die(client)

    def read(self) -> DeadLetter | None:
        return self.agg.get_dead_letter(self.id)

    def left(self) -> list[int]:
        """The payloads of the tasks that the dead letter has."""
        letter = self.read()
        assert letter is not None
        assert (letter.error, letter.traceback, letter.attempts) == ("no", "Traceback", 7)
        found = [each.task.payload for each in letter.tasks or () if each.task]
        assert letter.size == len(found)
        return found

    def flushed(self) -> list[list[int]]:
        """Flushes all; the payloads of each batch that comes into the queue."""
        self.agg.start()
        self.agg.flush("g")
        assert self.agg.wait_until_idle(20)
        self.agg.stop()
        return [batch.payload["payloads"] for batch in enqueued(self.agg)]

    def assert_whole(self) -> None:
        """Nothing has changed."""
        assert self.left() == list(range(self.count))
        assert self.agg.get_batches() == []
        assert self.agg.stats().dead == self.count

    def chosen(self, places: Iterable[int]) -> ChosenTasks:
        return ChosenTasks({self.ids[place].encode() for place in places}, excluded=False)

    def operate(self, operation: Operation[int], *, until: str = "", calls: int = 1) -> Any:
        """Carries out an operation, up to before the call of a script with this number.

        Returns:
            What it returns; None if the caller has died.
        """
        replies: Any = None
        while True:
            try:
                requests = next(operation) if replies is None else operation.send(replies)
            except StopIteration as end:
                return end.value
            for request in requests:
                calls -= request.script is not None and request.script.name == until
            if calls == 0:
                return None
            replies = [send(self.client, request) for request in requests]


@pytest.fixture
def letter(make: Make, sync_redis: redis.Redis) -> Letter:
    return Letter(make, sync_redis)


@pytest.mark.parametrize("excluding", [False, True])
def test_some_tasks_go_back_ahead_of_their_group(letter: Letter, excluding: bool) -> None:
    if excluding:
        count = letter.agg.requeue_dead_letter(letter.id, excluding=letter.ids[0::2])
    else:
        count = letter.agg.requeue_dead_letter(letter.id, only=letter.ids[1::2])
    assert count == 2
    assert letter.left() == [0, 2]
    stats = letter.agg.stats()
    assert (stats.dead, stats.in_flight, stats.batches_dead) == (2, 2, 1)
    [batch] = letter.agg.get_batches(tasks=True)
    assert batch.batch_id.startswith(f"{letter.id}-part-")
    assert [each.task.payload for each in batch.tasks or () if each.task] == [1, 3]
    assert letter.flushed() == [[1, 3], [4, 5, 6]]
    assert letter.agg.requeue_dead_letter(letter.id) == 2
    assert letter.flushed()[2:] == [[0, 2]]
    stats = letter.agg.stats()
    assert (stats.dead, stats.stored_bytes, stats.groups, stats.flushed) == (0, 0, 0, 7)
    client: Client = letter.client
    assert client.keys("*:dead*") == client.keys("*:tasks:*") == []


def test_the_parts_of_a_part_have_ids_of_the_same_length(letter: Letter) -> None:
    assert letter.agg.requeue_dead_letter(letter.id, only=letter.ids[:3]) == 3
    first = buried(letter.client, lead(letter.client, "second"))
    assert letter.agg.requeue_dead_letter(first.decode(), only=letter.ids[:1]) == 1
    [batch] = letter.agg.get_batches()
    assert len(batch.batch_id) == len(first)
    assert (batch.size, letter.left()) == (1, [3])


@pytest.mark.parametrize("behind", [0, 10])
def test_a_large_letter_is_divided(make: Make, sync_redis: redis.Redis, behind: int) -> None:
    letter = Letter(make, sync_redis, count=COUNT, behind=behind)
    assert letter.agg.requeue_dead_letter(letter.id, excluding=letter.ids[::3]) == COUNT * 2 // 3
    left = list(range(0, COUNT, 3))
    assert letter.left() == left
    client: Client = sync_redis
    assert client.ttl(P.dead_tasks(letter.id.encode())) == -1
    gone = [n for n in range(COUNT) if n % 3]
    batches = letter.flushed()
    assert batches[0] == gone
    assert payloads(enqueued(letter.agg)) == [*gone, *range(COUNT, COUNT + behind)]
    stats = letter.agg.stats()
    assert (stats.dead, stats.stored_bytes, stats.groups) == (len(left), 0, 0)


def test_all_tasks_are_requeued_under_the_same_id(letter: Letter) -> None:
    assert letter.agg.requeue_dead_letter(letter.id, only=letter.ids) == 4
    assert letter.read() is None
    [batch] = letter.agg.get_batches()
    assert batch.batch_id == letter.id


def test_no_task_is_requeued_if_none_is_left_or_named(letter: Letter) -> None:
    assert letter.agg.requeue_dead_letter(letter.id, excluding=letter.ids) == 0
    assert letter.agg.requeue_dead_letter(letter.id, only=[]) == 0
    letter.assert_whole()


def test_wrong_ids_are_refused_before_anything_is_written(letter: Letter) -> None:
    requeue: Any = letter.agg.requeue_dead_letter
    before = letter.client.keys("*")
    for wrong in ({"only": [letter.ids[0], "x", "y"]}, {"excluding": ["x", "y"]}):
        with pytest.raises(UnknownTask, match="no task with 2 of the ids, such as 'x'"):
            requeue(letter.id, **wrong)
    malformed: list[Any] = [{"only": "x"}, {"excluding": [1]}, {"only": 1}]
    for wrong in (*malformed, {"only": [], "excluding": []}):
        with pytest.raises(InvalidConfig):
            requeue(letter.id, **wrong)
    with pytest.raises(UnknownBatch):
        requeue("1-0-1", only=letter.ids)
    assert sorted(letter.client.keys("*")) == sorted(before)
    letter.assert_whole()


def test_a_half_enqueued_letter_is_not_divided(make: Make, sync_redis: redis.Redis) -> None:
    """Its merge result is one for all of its tasks."""
    slicing = Slicing(make, sync_redis)
    assert slicing.commit(0, 4) == 4
    assert send(sync_redis, slicing.leader.bury(slicing.first, b"g", 7, FAILURE)) == b"OK"
    assert_not_divided(slicing.agg, slicing.first)


def test_a_letter_of_which_tasks_have_left_is_not_divided(
    make: Make, sync_redis: redis.Redis
) -> None:
    slicing = Slicing(make, sync_redis)
    parts = Parts([(0, "no")], 0, 1)
    [reply] = send(sync_redis, slicing.leader.commit_slice(slicing.first, b"g", None, 0, 0, parts))
    assert reply == b"PARTED 1"
    assert send(sync_redis, slicing.leader.bury(slicing.first, b"g", 7, FAILURE)) == b"OK"
    assert_not_divided(slicing.agg, slicing.first)


def assert_not_divided(agg: Aggregator, batch_id: bytes) -> None:
    before = agg.stats()
    with pytest.raises(HalfEnqueued):
        agg.requeue_dead_letter(batch_id.decode(), only=["x"])
    with pytest.raises(HalfEnqueued):
        agg.requeue_dead_letter(batch_id.decode(), excluding=[])
    assert agg.stats() == before
    assert agg.requeue_dead_letter(batch_id.decode()) == 1


def test_a_letter_that_is_on_its_way_is_not_divided(make: Make, sync_redis: redis.Redis) -> None:
    agg = filled(make, sync_redis, behind=10)
    batch_id = half_requeued(sync_redis, agg)
    with pytest.raises(UnknownBatch):
        agg.requeue_dead_letter(batch_id.decode(), only=["x"])


# --- who dies, and what is lost ------------------------------------------------------------------


@pytest.mark.parametrize("slices", [1, 3, 4])
def test_a_caller_that_dies_before_the_exchange_changes_nothing(
    make: Make, sync_redis: redis.Redis, slices: int
) -> None:
    letter = Letter(make, sync_redis, count=COUNT, behind=10)
    operation = steering.requeue_tasks(SPACE, letter.id, letter.chosen(range(0, COUNT, 2)))
    script = "requeue" if slices == 4 else "select_tasks"
    assert letter.operate(operation, until=script, calls=1 if slices == 4 else slices + 1) is None
    letter.assert_whole()
    client: Client = sync_redis
    copies = client.keys("*-part-*")
    assert len(copies) == 2
    assert sum(client.llen(each) for each in copies) == min(COUNT, slices * 1000)
    assert all(0 < client.ttl(each) <= 600 for each in copies)
    assert letter.agg.requeue_dead_letter(letter.id, only=letter.ids[::2]) == COUNT // 2
    assert letter.left() == list(range(1, COUNT, 2))
    assert letter.flushed()[0] == list(range(0, COUNT, 2))


def test_a_caller_that_dies_behind_the_exchange_leaves_a_second_letter(
    make: Make, sync_redis: redis.Redis
) -> None:
    letter = Letter(make, sync_redis, count=COUNT, behind=10)
    operation = steering.requeue_tasks(SPACE, letter.id, letter.chosen(range(0, COUNT, 2)))
    assert letter.operate(operation, until="requeue", calls=2) is None
    assert letter.left() == list(range(1, COUNT, 2))
    [batch] = letter.agg.get_batches()
    assert (batch.size, letter.agg.stats().dead) == (1_000, COUNT - 1_000)
    client: Client = sync_redis
    client.zadd(P.retry, {batch.batch_id: 1})  # ten seconds pass
    with letter.agg:
        await_dead(letter.agg, 2)
        other = letter.agg.get_dead_letter(batch.batch_id)
        assert other is not None
        assert [each.task.payload for each in other.tasks or () if each.task] == list(
            range(0, COUNT, 2)
        )
        assert (other.error, letter.agg.stats().dead) == ("no", COUNT)
        assert letter.agg.requeue_dead_letter(batch.batch_id) == COUNT // 2
        letter.agg.flush("g")
        assert letter.agg.wait_until_idle(20)
    assert letter.left() == list(range(1, COUNT, 2))


@pytest.mark.parametrize("script", ["select_tasks", "requeue"])
def test_lost_replies_repeat_nothing(
    make: Make, proxy: Proxy, sync_redis: redis.Redis, script: str
) -> None:
    letter = Letter(make, sync_redis, count=COUNT, behind=10)
    with closing(Aggregator("tests", proxy.url, config=quick_config(partitions=1))) as agg:
        agg.stats()
        loss = proxy.lose_reply(script)
        assert agg.requeue_dead_letter(letter.id, only=letter.ids[::2]) == COUNT // 2
        loss.wait()
    assert letter.left() == list(range(1, COUNT, 2))
    assert letter.flushed()[0] == list(range(0, COUNT, 2))
    assert letter.agg.stats().stored_bytes == 0


def test_a_repeated_call_finds_that_the_batch_has_left(letter: Letter) -> None:
    """The reply to the first one came too late."""
    operation = steering.requeue_tasks(SPACE, letter.id, letter.chosen([1]))
    [last] = requests_until(letter.client, operation, "requeue")
    assert send(letter.client, last) == 1
    assert send(letter.client, last) == 1  # it is a batch
    assert letter.flushed()[0] == [1]
    assert send(letter.client, last) == 0
    assert letter.left() == [0, 2, 3]


def requests_until(client: Client, operation: Operation[int], script: str) -> Sequence[Request]:
    """Carries out an operation up to before the first call of a script."""
    requests = next(operation)
    while requests[0].script is None or requests[0].script.name != script:
        requests = operation.send([send(client, each) for each in requests])
    return requests


@pytest.mark.parametrize("then", ["requeue", "drop", "divide", "expire"])
def test_a_letter_that_changes_during_the_copies_is_left_alone(letter: Letter, then: str) -> None:
    operation = steering.requeue_tasks(SPACE, letter.id, letter.chosen([0, 1]))
    requests = requests_until(letter.client, operation, "requeue")
    if then == "requeue":
        letter.agg.requeue_dead_letter(letter.id)
    elif then == "drop":
        letter.agg.drop_dead_letter(letter.id)
    elif then == "divide":
        letter.agg.requeue_dead_letter(letter.id, only=letter.ids[1:2])
    else:
        letter.client.delete(*letter.client.keys("*:others"))
    before = letter.agg.stats()
    with pytest.raises(UnknownBatch, match="meanwhile"):
        operation.send([send(letter.client, each) for each in requests])
    assert letter.agg.stats() == before
    found = sorted(n for batch in letter.flushed() for n in batch)
    expected = {"requeue": range(7), "drop": range(4, 7), "divide": [1, 4, 5, 6]}
    assert found == list(expected.get(then, range(4, 7)))


def test_the_copies_are_made_of_one_letter(letter: Letter) -> None:
    operation = steering.requeue_tasks(SPACE, letter.id, letter.chosen([0]))
    [request] = requests_until(letter.client, operation, "select_tasks")
    assert send(letter.client, request) == 4
    assert send(letter.client, request) == 4  # the reply was lost
    early = request._replace(args=[*request.args[:2], 9, b"1"])
    assert send(letter.client, early) == b"CHANGED"
    letter.agg.drop_dead_letter(letter.id)
    assert send(letter.client, request) == b"CHANGED"


# --- the command and the other face --------------------------------------------------------------


def test_the_command(make: Make, sync_redis: redis.Redis, run: Run) -> None:
    letter = Letter(make, sync_redis)

    def requeue(*options: str) -> Any:
        return run("dead", "requeue", letter.id, "--name", "tests", *options)

    done = requeue("--only", letter.ids[0], "--only", letter.ids[2], "--json")
    assert json.loads(done.stdout) == {"batches": 1, "tasks": 2}
    assert letter.left() == [1, 3]
    assert "1 batches with 1 tasks requeued" in requeue("--except", letter.ids[1]).stdout
    assert letter.left() == [1]
    unknown = requeue("--only", "x")
    assert (unknown.exit_code, "no task with 1 of the ids" in unknown.output) == (1, True)
    for wrong in (["--only", "x", "--except", "y"], ["1-0-1", "--only", "x"]):
        assert requeue(*wrong).exit_code == 2
    assert run("dead", "requeue", "--all", "--only", "x", "--name", "tests").exit_code == 2
    assert letter.left() == [1]


def test_the_asynchronous_method(letter: Letter, redis_url: str) -> None:
    async def requeue() -> int:
        async with AsyncAggregator("tests", redis_url, config=quick_config(partitions=1)) as agg:
            await agg.stop()
            return await agg.requeue_dead_letter(letter.id, excluding=letter.ids[:1])

    assert asyncio.run(requeue()) == 3
