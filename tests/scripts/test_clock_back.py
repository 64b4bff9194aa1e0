"""The clock of Redis is set back by an hour: nothing waits for longer than its own limits."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from redisagg.protocol.keys import Keyspace
from tests.model.clock import Scripts

SPACE = Keyspace("clock", 1)
P = SPACE.partitions[0]
NOW = 1_700_000_000_000
HOUR = 3_600_000
LEASE = 1_000


@pytest.fixture
def scripts(sync_redis: redis.Redis) -> Scripts:
    scripts = Scripts(sync_redis)
    scripts.set_clock(NOW)
    scripts.call("register_partition", [P.state], 1)
    return scripts


def acquire(scripts: Scripts, owner: bytes, lease: int = LEASE) -> Any:
    keys = [P.state, P.claims, P.tasks(b"")]
    return scripts.call("acquire", keys, owner, lease, P.label)


def join(scripts: Scripts, flusher: bytes, lease: int = LEASE) -> dict[bytes, int]:
    reply = scripts.call("join", [SPACE.flushers], flusher, lease, SPACE.wake_channel)
    return dict(zip(reply[::2], reply[1::2], strict=True))


def leader(scripts: Scripts) -> list[Any]:
    """The owner of the lease and the ms until it runs out, as `stats` shows them."""
    reply = scripts.call("stats", [P.state, P.groups, P.batches, P.retry, P.dead])
    return [reply[11], reply[13]]


def test_the_lease_of_a_dead_leader_is_void(scripts: Scripts) -> None:
    dead, _ = acquire(scripts, b"dead")
    assert acquire(scripts, b"b") == [0, LEASE]
    scripts.set_clock(NOW - HOUR)
    assert leader(scripts) == [b"", 0]
    token, wait = acquire(scripts, b"b")
    assert (token, wait) == (dead + 1, 0)
    assert leader(scripts) == [b"b", LEASE]
    with pytest.raises(redis.ResponseError, match="STALE"):
        scripts.call("renew", [P.state], dead, LEASE)


def test_a_living_leader_renews_its_lease(scripts: Scripts) -> None:
    token, _ = acquire(scripts, b"a")
    scripts.set_clock(NOW - HOUR)
    assert scripts.call("renew", [P.state], token, LEASE) == 1
    assert acquire(scripts, b"b") == [0, LEASE]
    scripts.set_clock(NOW - HOUR + LEASE)
    assert acquire(scripts, b"b")[0] > token


def test_a_longer_lease_of_another_flusher_holds(scripts: Scripts) -> None:
    acquire(scripts, b"a", 60_000)
    assert acquire(scripts, b"b", LEASE) == [0, 60_000]


def test_a_dead_flusher_is_not_among_the_live_ones(scripts: Scripts) -> None:
    join(scripts, b"dead")
    scripts.set_clock(NOW - HOUR)
    assert scripts.call("flushers", [SPACE.flushers]) == []
    assert join(scripts, b"b") == {b"b": LEASE}
    assert scripts.client.zcard(SPACE.flushers) == 1


@pytest.mark.parametrize("lease", [100, 1_000, 1_024, 60_000, 316_224_000_000])
def test_flushers_of_any_lease_time_live_for_that_time(scripts: Scripts, lease: int) -> None:
    assert join(scripts, b"a", lease) == {b"a": lease}
    assert join(scripts, b"b", 100) == {b"a": lease, b"b": 100}
    scripts.set_clock(NOW + lease - 1)
    assert scripts.call("flushers", [SPACE.flushers])[:1] == [b"a"]
    scripts.set_clock(NOW + lease)
    assert scripts.call("flushers", [SPACE.flushers]) == []
    assert join(scripts, b"c", 100) == {b"c": 100}


# --- groups and batches that wait -----------------------------------------------------------------

INDEXES = [P.state, P.groups, P.batches, P.claims, P.retry, P.suspects, P.due, P.ready]


def add(scripts: Scripts, group: bytes, *ids: bytes, limits: bytes = b"1000 5000 100 0") -> None:
    keys = [P.state, P.groups, P.due, P.ready, P.call(b"p"), P.seen, P.seen_before]
    keys += (P.tasks(group), P.ids(group))
    args: list[Any] = ["", 1000, SPACE.wake_channel, P.label, 0, 0, "", group, limits, len(ids)]
    for each in ids:
        args += (each, b"body")
    assert scripts.call("add", keys, *args) == [len(ids)]


def poll(scripts: Scripts, token: int) -> tuple[int, set[bytes]]:
    """Polls until nothing is to be done at once; returns the ms to wait, and the groups due."""
    for _ in range(100):
        wait, flat, _ = scripts.call("poll", [*INDEXES, P.seen, P.seen_before], token, 9, 60_000)
        if wait or flat:
            return wait, set(flat[1::2])
    raise AssertionError("each poll asks for another one")


def claim(scripts: Scripts, token: int, group: bytes) -> bytes:
    keys = [*INDEXES, P.seen, P.seen_before, P.tasks(group), P.ids(group)]
    args = (token, 60_000, P.digits, 9, 99, 9999, 1000, 0, b"", group)
    [[batch_id, *_]] = scripts.call("claim", keys, *args)
    return bytes(batch_id)


def arrivals(scripts: Scripts, group: bytes) -> list[int]:
    entries: list[Any] = scripts.client.lrange(P.tasks(group), 0, -1)
    return [int.from_bytes(each[:6], "big") for each in entries]


def set_back(scripts: Scripts) -> int:
    """Sets the clock back; returns the token of the leader, which has renewed its lease."""
    token, _ = acquire(scripts, b"a", 60_000)
    poll(scripts, token)
    scripts.set_clock(scripts.now - HOUR)
    assert scripts.call("renew", [P.state], token, 60_000) == 1
    return int(token)


@pytest.mark.parametrize("count", [1, 5, 1_000])
def test_groups_are_due_within_their_max_delay(scripts: Scripts, count: int) -> None:
    for n in range(count):
        add(scripts, b"g%d" % n, b"1")
    add(scripts, b"slow", b"1", limits=b"1000000 9000000 100 0")
    token = set_back(scripts)
    wait, due = poll(scripts, token)
    assert (wait, due) == (5_000, set())
    scripts.set_clock(scripts.now + 5_000)
    assert poll(scripts, token)[1] <= {b"g%d" % n for n in range(count)}
    assert scripts.client.zrange(P.due, 0, -1) == [b"slow"]
    assert scripts.client.hget(P.state, "clock_cursor") is None


def test_a_call_looks_through_a_few_groups_only(scripts: Scripts) -> None:
    for n in range(1_000):
        add(scripts, b"g%d" % n, b"1")
    token = set_back(scripts)
    assert scripts.call("poll", [*INDEXES, P.seen, P.seen_before], token, 9, 60_000)[0] == 0
    moved = scripts.client.zcount(P.due, 0, scripts.now + 5_000)
    assert 50 <= moved <= 300


def test_batches_in_retry_are_due_at_once(scripts: Scripts) -> None:
    add(scripts, b"g", b"1", limits=b"0 0 1 0")
    token, _ = acquire(scripts, b"a", 60_000)
    poll(scripts, token)
    batch_id = claim(scripts, token, b"g")
    assert scripts.call("retry", INDEXES, token, batch_id, 2_000, 1, "error", "") == [1]
    token = set_back(scripts)
    assert poll(scripts, token) == (0, {b"g"})


def test_arrival_times_never_fall_along_a_list(scripts: Scripts) -> None:
    add(scripts, b"g", b"1", b"2")
    token = set_back(scripts)
    add(scripts, b"g", b"3")
    add(scripts, b"new", b"1")
    assert arrivals(scripts, b"g") == [NOW] * 3
    assert arrivals(scripts, b"new") == [NOW - HOUR]
    poll(scripts, token)
    scripts.set_clock(scripts.now + 5_000)
    assert poll(scripts, token)[1] == {b"g", b"new"}


def test_what_a_cut_leaves_is_due_within_its_max_delay(scripts: Scripts) -> None:
    add(scripts, b"g", b"1", b"2", b"3", limits=b"1000 5000 2 0")
    token = set_back(scripts)
    assert poll(scripts, token)[1] == {b"g"}
    claim(scripts, token, b"g")
    scripts.set_clock(scripts.now + 5_000)
    assert poll(scripts, token)[1] == {b"g"}


def test_a_group_that_a_retry_holds_is_due_within_its_max_delay(scripts: Scripts) -> None:
    add(scripts, b"g", b"1", limits=b"1000 5000 1 0")
    token, _ = acquire(scripts, b"a", 60_000)
    poll(scripts, token)
    batch_id = claim(scripts, token, b"g")
    add(scripts, b"g", b"2", limits=b"1000 5000 9 0")
    assert scripts.call("retry", INDEXES, token, batch_id, 2_000, 1, "error", "") == [1]
    token = set_back(scripts)
    poll(scripts, token)
    keys = [*INDEXES, P.seen, P.seen_before, P.tasks(b"g"), P.ids(b"g")]
    args = (token, 60_000, P.digits, 9, 99, 9999, 1000, 0, batch_id, b"g")
    [[claimed, *_]] = scripts.call("claim", keys, *args)
    assert claimed == batch_id
    scripts.set_clock(scripts.now + 5_000)
    assert poll(scripts, token) == (0, {b"g"})
