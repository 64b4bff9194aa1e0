"""Numbers in the state that no script wrote: leases and batch ids stay sound."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from redisagg.protocol.keys import Keyspace
from tests.model.clock import Scripts

SPACE = Keyspace("hostile", 1)
P = SPACE.partitions[0]
NOW = 1_700_000_000_000
LEASE = 1000

IMPOSSIBLE = [
    b"%d" % 2**60,
    b"9" * 400,
    b"inf",
    b"nan",
    b"many",
    b"-5",
    b"",
    b"1e18",
    b"%d" % 2**53,
]


@pytest.fixture
def scripts(sync_redis: redis.Redis) -> Scripts:
    scripts = Scripts(sync_redis)
    scripts.set_clock(NOW)
    scripts.call("register_partition", [P.state], 1)
    return scripts


def acquire(scripts: Scripts, owner: bytes) -> int:
    keys = [P.state, P.claims, P.tasks(b"")]
    token: int = scripts.call("acquire", keys, owner, LEASE, P.label)[0]
    return token


def renew(scripts: Scripts, token: int) -> Any:
    return scripts.call("renew", [P.state], token, LEASE)


@pytest.mark.parametrize("token", IMPOSSIBLE)
def test_a_number_that_is_no_token_does_not_end_fencing(scripts: Scripts, token: bytes) -> None:
    first = acquire(scripts, b"a")
    scripts.client.hset(P.state, "token", token)
    with pytest.raises(redis.ResponseError, match="STALE"):
        renew(scripts, first)
    tokens = []
    for owner in (b"b", b"c", b"d"):
        scripts.set_clock(scripts.now + LEASE)
        tokens.append(acquire(scripts, owner))
        assert renew(scripts, tokens[-1]) == 1
        for stale in (first, *tokens[:-1]):
            with pytest.raises(redis.ResponseError, match="STALE"):
                renew(scripts, stale)
    assert tokens == sorted(set(tokens))
    assert first < tokens[0] < 2**53


def test_a_token_ahead_of_the_clock_is_counted_on(scripts: Scripts) -> None:
    """The clock of Redis was set back."""
    first = acquire(scripts, b"a")
    scripts.set_clock(NOW - 3_600_000)
    scripts.client.hset(P.state, "expires", 0)
    assert acquire(scripts, b"b") == first + 1


def add(scripts: Scripts, group: bytes) -> None:
    keys = [P.state, P.groups, P.due, P.ready, P.call(b"p"), P.seen, P.seen_before]
    keys += (P.tasks(group), P.ids(group))
    args = ("", 1000, SPACE.wake_channel, P.label, 0, 0, "", group, b"0 0 1 0", 1, b"1", b"body")
    assert scripts.call("add", keys, *args) == [1]


@pytest.mark.parametrize("sequence", IMPOSSIBLE)
def test_batch_ids_differ_whatever_the_sequence_is(scripts: Scripts, sequence: bytes) -> None:
    token = acquire(scripts, b"a")
    groups = (b"a", b"b", b"c")
    scripts.client.hset(P.state, "sequence", sequence)
    for group in groups:
        add(scripts, group)
    keys = [P.state, P.groups, P.batches, P.claims, P.retry, P.suspects]
    keys += (P.due, P.ready, P.seen, P.seen_before)
    keys += (key for group in groups for key in (P.tasks(group), P.ids(group)))
    items = [each for group in groups for each in (b"", group)]
    args = (token, 1000, P.digits, 9, 99, 9999, 1000, 0, *items)
    claimed = scripts.call("claim", keys, *args)
    assert len({batch_id for batch_id, *_ in claimed}) == 3
    assert scripts.client.hlen(P.batches) == 3
