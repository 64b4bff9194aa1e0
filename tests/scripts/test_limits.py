"""Tasks of different limits in one group: what is stored, and what is cut."""

from __future__ import annotations

import random
from typing import Any

import pytest
import redis

from redisagg.protocol.keys import Keyspace
from redisagg.protocol.records import BatchRecord, GroupRecord, batch_record, group_record
from redisagg.protocol.scripts import load

P = Keyspace("tests", 1).partitions[0]
INDEXES = [P.state, P.groups, P.batches, P.claims, P.retry, P.suspects, P.due, P.ready]
USUAL = "600000 600000 50 0"
LARGEST_RECORD = 5 * 1024
FLAG = 0x80


class Group:
    """The group `g` of a partition that this test leads."""

    def __init__(self, client: redis.Redis) -> None:
        self.client: Any = client
        self.call("register_partition", [P.state], 1)
        keys = [P.state, P.claims, P.tasks(b"")]
        self.token = self.call("acquire", keys, "me", 10**8, P.label)[0]
        self.number = 0

    def call(self, name: str, keys: list[bytes], *args: Any) -> Any:
        return self.client.eval(load(name).source, len(keys), *keys, *args)

    def add(self, *sections: tuple[str, int] | tuple[str, list[str]], size: int = 10) -> Any:
        """Adds sections: limits, and a number of tasks or the limits of each."""
        keys = [P.state, P.groups, P.due, P.ready, P.call(b"p"), P.seen, P.seen_before]
        args: list[Any] = ["", 600_000, "wake", P.label, 0, 0, ""]
        for limits, tasks in sections:
            keys += (P.tasks(b"g"), P.ids(b"g"))
            own = tasks if isinstance(tasks, list) else []
            count = len(own) or tasks
            args += ("g", limits, f"{count} 3" if own else count)
            for text in own or [""] * int(count if isinstance(count, int) else 0):
                args += (self.number, b"x" * size, *([text] if own else []))
                self.number += 1
        return self.call("add", keys, *args)

    def claim(self, *, batches: int = 1) -> list[BatchRecord]:
        """Cuts batches, whether the group is due or not."""
        self.client.zadd(P.ready, {"g": 1})
        keys = [*INDEXES, P.seen, P.seen_before, P.tasks(b"g"), P.ids(b"g")]
        args = [self.token, 10**6, 0, batches, 10**6, 10**9, 1000, 0, "", "g"]
        reply = self.call("claim", keys, *args)
        return [batch_record(self.client.hget(P.batches, each[0])) for each in reply]

    def cancel(self, task_id: int) -> int:
        keys = [P.state, P.groups, P.due, P.ready, P.tasks(b"g"), P.ids(b"g")]
        keys.append(P.answer(b"g", b"%d" % task_id))
        count: int = self.call("cancel_task", keys, "g", task_id, P.answers_channel)
        return count

    @property
    def packed(self) -> bytes:
        found: bytes = self.client.hget(P.groups, "g")
        return found

    @property
    def record(self) -> GroupRecord:
        return group_record(self.packed)

    def entries(self) -> list[bytes]:
        found: list[bytes] = self.client.lrange(P.tasks(b"g"), 0, -1)
        return found


@pytest.fixture
def group(sync_redis: redis.Redis) -> Group:
    return Group(sync_redis)


def test_tasks_of_the_same_limits_store_none(group: Group) -> None:
    group.add((USUAL, 3), ("1 2 3 4", 1))
    assert group.record.rules != 0
    assert [entry[0] & FLAG for entry in group.entries()] == [0, 0, 0, FLAG]
    group.cancel(3)
    assert group.record.rules == 0
    group.add((USUAL, 1))
    assert group.record.rules == 0
    assert [entry[0] & FLAG for entry in group.entries()] == [0, 0, 0, 0]


def test_who_sets_no_limits_learns_that_others_do(group: Group) -> None:
    assert group.add((USUAL, 2)) == [2]
    assert group.add((USUAL, ["weight=3"])) == [1]
    assert group.add((USUAL, 2), (USUAL, 1)) == [[2, 0], [1, 0]]
    while group.record.waiting:
        group.claim()
    assert group.add((USUAL, 1)) == [1]


def test_new_usual_limits_become_common_when_the_old_ones_are_gone(group: Group) -> None:
    """A deployment changes the settings of producers while a group never gets empty."""
    other = "600000 600000 4 0"
    group.add((USUAL, 2), (other, 6))
    [batch] = group.claim()
    assert (batch.task_count, batch.reason) == (4, b"size")
    assert group.record.rules == 0
    group.add((other, 1))
    assert group.entries()[-1][0] & FLAG == 0
    assert (group.record.size, group.record.waiting) == (4, 5)


def test_the_limits_of_one_task_among_many_end_with_it(group: Group) -> None:
    for _ in range(30):
        group.add((USUAL, 400))
    group.add(("600000 600000 1 9", 1))
    for _ in range(30):
        group.add((USUAL, 400))
    assert (group.record.size, group.record.priority) == (1, 9)
    assert group.cancel(12_000) == 1
    assert (group.record.size, group.record.priority, group.record.rules) == (50, 0, 0)


def test_a_large_batch_within_max_bytes(group: Group) -> None:
    """Cut without a look at all of its tasks, and yet the longest within the limit."""
    limits = "600000 600000 1000000 0 max_bytes=2000000"
    for size in range(20, 320):
        group.add((limits, 50), size=size)
    lengths = [len(entry) for entry in group.entries()]
    start = 0
    while group.record.is_full:
        [batch] = group.claim()
        end = start + batch.task_count
        assert batch.length == sum(lengths[start:end]) <= 2_000_000
        assert sum(lengths[start : end + 1]) > 2_000_000
        assert batch.reason == b"bytes"
        start = end
    assert group.record.bytes == sum(lengths[start:])


def test_weights(group: Group) -> None:
    limits = "600000 600000 1000 0 max_weight=100"
    draw = random.Random(1)
    weights = [draw.choice([0, 1, 5, 40, 200]) for _ in range(3_000)]
    for start in range(0, len(weights), 300):
        group.add((limits, [f"weight={each}" for each in weights[start : start + 300]]))
    start = 0
    while group.record.is_full:
        [batch] = group.claim()
        end = start + batch.task_count
        taken = sum(weights[start:end])
        assert batch.batch_weight == taken
        assert taken <= 100 or batch.task_count == 1
        assert taken + weights[end] > 100 or batch.task_count == 1_000
        start = end
    assert group.record.rules_in_force.weight == sum(weights[start:])


@pytest.mark.parametrize("one_by_one", [True, False])
def test_any_limits_take_a_bounded_record(group: Group, one_by_one: bool) -> None:
    """Tasks of 20,000 different limits; what is cut is within those of each of its tasks."""
    draw = random.Random(2)
    sizes: list[int] = []
    for _ in range(100):
        drawn = [draw.randint(1, 500) for _ in range(200)]
        sizes += drawn
        if one_by_one:
            drawn[1:] = [drawn[0]] * 199
            own = [f"due_at={draw.randint(1, 10**12)} weight={size}" for size in drawn]
            group.add((f"{draw.randint(1, 10**6)} 600000 {drawn[0]} 0", own))
            sizes[-200:] = drawn
        else:
            group.add(*[(f"{draw.randint(1, 10**6)} 600000 {size} 0", 1) for size in drawn])
        assert len(group.packed) < LARGEST_RECORD
    start = 0
    while start < len(sizes):
        for batch in group.claim(batches=64):
            end = start + batch.task_count
            assert batch.task_count <= min(sizes[start:end])
            start = end
        assert len(group.packed) < LARGEST_RECORD or start == len(sizes)
        for _ in range(3):
            before = group.record.waiting
            group.cancel(draw.randrange(start, len(sizes)) if start < len(sizes) else 0)
            if group.record.waiting < before:  # from here on the places are not those of `sizes`
                return


@pytest.mark.parametrize(
    "bad",
    [
        f"{USUAL} max_bytes=-1",
        f"{USUAL} max_bytes={2**41}",
        f"{USUAL} weight=1",
        f"{USUAL} speed=1",
        f"{USUAL};max_bytes=1",
        f"{USUAL};weight={2**31 + 1}",
        f"{USUAL};flush=2",
        f"{USUAL};due_at=1.5",
        f"{USUAL}; weight=1",
        f"{USUAL};weight=1;flush=1",
        f"{USUAL} leading=1 ",
        "-- 1 1 0",
        f"{USUAL};weight={'0' * 250}1",
    ],
)
def test_malformed_limits_are_refused(group: Group, bad: str) -> None:
    [refused, added] = group.add((bad, 1), (USUAL, 1))
    assert refused.startswith(b"ERR limits")
    assert added == 1


def test_malformed_limits_of_one_task_refuse_the_section(group: Group) -> None:
    [refused] = group.add((USUAL, ["", "weight=2", "weight=x"]))
    assert refused.startswith(b"ERR limits")
    assert not group.client.exists(P.tasks(b"g"), P.ids(b"g"), P.groups)


def test_a_replaced_task_keeps_its_place_and_time(group: Group) -> None:
    for _ in range(3):
        group.add((USUAL, 400))
    before = group.entries()
    group.number = 600
    assert group.add(("600000 600000 7 3 max_bytes=9000;replace=1", 1), size=20) == [[0, 1]]
    after = group.entries()
    assert [n for n in range(1200) if before[n] != after[n]] == [600]
    assert after[600][1:6] == before[600][1:6]
    assert group.record.bytes == sum(map(len, after))
    assert (group.record.size, group.record.priority, group.record.waiting) == (7, 3, 1200)
    group.number = 600
    assert group.add((USUAL + ";replace=1", 1)) == [[0, 1]]
    assert group.entries()[600][7:] == before[600][7:]
    assert (group.record.size, group.record.priority) == (50, 0)


def test_a_section_adds_keeps_and_replaces(group: Group) -> None:
    group.add((USUAL, 2))
    group.number = 0
    own = ["", "replace=1", "replace=1", "weight=3"]
    assert group.add((USUAL, own)) == [[2, 1]]
    group.number = 2
    assert group.add((USUAL, ["replace=1 weight=2", ""])) == [[0, 1]]
    assert group.record.rules_in_force.weight == 1 + 1 + 2 + 3


def test_a_call_replaces_25_tasks_at_most(group: Group) -> None:
    """Each one is searched for, and no call may take long."""
    group.add((USUAL, 30))
    before, group.number = group.entries(), 0
    replacing, plain = USUAL + ";replace=1", [*["replace=1"] * 5, ""]
    sections: Any = [
        (replacing, 20),
        (USUAL, plain),
        (USUAL, plain[:1]),
        (replacing, 1),
        (USUAL, 2),
    ]
    refused = b"ERR at most 25 tasks of a call may replace others"
    assert group.add(*sections) == [[0, 20], [0, 5], refused, refused, 0]
    group.number = 26
    assert group.add((USUAL, ["replace=1"] * 26), (replacing, 1), size=1) == [refused, 1]
    assert group.entries()[:30] == before


def test_an_id_that_comes_twice_in_a_section_is_replaced(group: Group) -> None:
    keys = [P.state, P.groups, P.due, P.ready, P.call(b"p"), P.seen, P.seen_before]
    keys += [P.tasks(b"g"), P.ids(b"g")]
    args = ["", 600_000, "wake", P.label, 0, 0, "", "g", USUAL, "2 3", "x", "old", ""]
    assert group.call("add", keys, *args, "x", "new", "replace=1") == [[1, 1]]
    assert [entry[8:] for entry in group.entries()] == [b"new"]
