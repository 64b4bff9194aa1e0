"""What becomes of the batches of leaders that died, beyond what the model shows."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from redisagg.protocol.keys import Keyspace
from redisagg.protocol.records import BatchRecord, batch_record
from tests.model.clock import Scripts

SPACE = Keyspace("deaths", 1)
P = SPACE.partitions[0]
INDEXES = [P.state, P.groups, P.batches, P.claims, P.retry, P.suspects, P.due, P.ready]
BATCHES = 150
"""More than one call of `poll` looks at."""


class Leader:
    """A leader of the only partition."""

    def __init__(self, client: redis.Redis) -> None:
        client.hset(P.state.decode(), "partitions", 1)
        self.client = client
        self.scripts = Scripts(client)
        self.now = 1_700_000_000_000
        self.token = self.acquire()

    def acquire(self) -> int:
        """Another leader takes over after the last one has died."""
        self.now += 10_000
        self.scripts.set_clock(self.now)
        keys = [P.state, P.claims, P.tasks(b"")]
        self.token = self.scripts.call("acquire", keys, b"me", 5_000, P.label)[0]
        return self.token

    def add(self, group: bytes, task_id: bytes = b"1") -> None:
        keys = [P.state, P.groups, P.due, P.ready, P.call(b"p"), P.seen, P.seen_before]
        keys += [P.tasks(group), P.ids(group)]
        args: list[Any] = ["", 1_000, SPACE.wake_channel, P.label, 0, 0, ""]
        self.scripts.call("add", keys, *args, group, b"0 0 1 0", 1, task_id, b"body")

    def poll(self, limit: int) -> tuple[int, list[bytes], list[bytes]]:
        keys = [*INDEXES, P.seen, P.seen_before]
        wait, items, suspect = self.scripts.call("poll", keys, self.token, limit, 1_000)
        return wait, items, suspect

    def claim(self, items: list[bytes]) -> list[bytes]:
        """Returns the ids of the claimed batches."""
        keys = [*INDEXES, P.seen, P.seen_before]
        for group in items[1::2]:
            keys += [P.tasks(group), P.ids(group)]
        limits = (60_000, 0, 1_000, 10_000, 10**7, 1_000, 0)
        claimed = self.scripts.call("claim", keys, self.token, *limits, *items)
        return [batch_id for batch_id, *_ in claimed]

    def records(self) -> list[BatchRecord]:
        packed: Any = self.client.hgetall(P.batches.decode())
        return [batch_record(each) for each in packed.values()]


@pytest.fixture
def leader(sync_redis: redis.Redis) -> Leader:
    """A leader that holds batches."""
    leader = Leader(sync_redis)
    for number in range(BATCHES):
        leader.add(b"g%d" % number)
    assert len(leader.claim(leader.poll(BATCHES)[1])) == BATCHES
    return leader


def test_all_deaths_are_counted_before_a_batch_is_claimed_again(leader: Leader) -> None:
    leader.acquire()
    assert leader.poll(BATCHES) == (0, [], [])
    wait, items, suspect = leader.poll(BATCHES)
    assert (wait, len(items), suspect) == (0, 2 * BATCHES, [])
    assert {record.deaths for record in leader.records()} == {1}
    assert {record.attempts for record in leader.records()} == {0}


def test_each_suspect_has_its_turn_before_one_is_tried_again(leader: Leader) -> None:
    leader.acquire()
    while not (items := leader.poll(BATCHES)[1]):
        pass  # it counts
    leader.claim(items)
    tried: list[bytes] = []
    for _ in range(BATCHES):
        leader.acquire()
        while not (suspect := leader.poll(BATCHES)[2]):
            pass
        tried += leader.claim(suspect)
    assert len(set(tried)) == len(tried) == BATCHES
    # Each but the last has died once alone, and only that was an attempt.
    assert sorted(record.attempts for record in leader.records()) == [0] + [1] * (BATCHES - 1)


def test_no_batch_is_cut_before_one_that_is_behind_a_retry(sync_redis: redis.Redis) -> None:
    """The first batch waits for a retry and holds its group; the second was only claimed.

    Once the first was claimed again nothing held the group, and its tasks overtook the second.
    """
    leader = Leader(sync_redis)
    for task_id in (b"1", b"2"):
        leader.add(b"g", task_id)
    first, second = leader.claim(leader.poll(10)[1])
    assert leader.scripts.call("retry", INDEXES, leader.token, first, 100, 1, b"e", b"") == [1]
    leader.acquire()
    leader.add(b"g", b"3")
    claimed: list[bytes] = []
    for _ in range(10):
        if items := leader.poll(10)[1]:
            claimed += leader.claim(items)
        leader.now += 20
        leader.scripts.set_clock(leader.now)
    assert claimed[:2] == [first, second]
    assert len(claimed) == 3
