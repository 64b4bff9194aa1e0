"""The scripts of movers."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from redisagg.protocol.keys import Keyspace
from redisagg.protocol.scripts import load

P = Keyspace("tests", 4).partitions[1]
INDEXES = [P.state, P.groups, P.batches, P.claims, P.retry, P.suspects, P.due, P.ready, P.dead]
THAW = [b"8", b"4 16", b"", 0, 0, 0, 0, 0]


class Scripts:
    """Calls scripts on a partition."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def __call__(self, name: str, keys: list[bytes], *args: Any) -> Any:
        return self.client.eval(load(name).source, len(keys), *keys, *args)

    def refused(self, name: str, keys: list[bytes], *args: Any) -> str:
        """The code with which a call is refused."""
        with pytest.raises(redis.ResponseError) as error:
            self(name, keys, *args)
        return str(error.value).split(" ")[0]


@pytest.fixture
def scripts(sync_redis: redis.Redis) -> Scripts:
    return Scripts(sync_redis)


def acquire(scripts: Scripts, label: bytes = b"1/4") -> Any:
    return scripts("acquire", [P.state, P.claims, P.tasks(b"")], "me", 10_000, label)


def test_a_frozen_partition_refuses_all_but_its_mover(scripts: Scripts) -> None:
    scripts("register_partition", [P.state], 4)
    token, _ = acquire(scripts)
    assert scripts("freeze", [P.state, P.claims], "one", b"1") == 0
    assert scripts("freeze", [P.state, P.claims], "one", b"") == 1
    assert scripts.refused("register_partition", [P.state], 4) == "FROZEN"
    assert scripts.refused("pause", [P.state], 1, b"c", b"1/4") == "FROZEN"
    assert scripts.refused("renew", [P.state], token, 1000) == "STALE"
    with pytest.raises(redis.ResponseError, match="FROZEN"):
        acquire(scripts)
    receive = ("receive", [P.state, P.tasks(b"a")])
    assert scripts(*receive, "one", b"list", 0, b"x", b"y") == 1
    assert scripts("freeze", [P.state, P.claims], "two", b"1") == 1
    assert scripts.refused(*receive, "one", b"list", 2, b"z") == "STALE"
    assert scripts.refused("adopt", INDEXES, "one") == "STALE"
    assert scripts.refused("disown", INDEXES, "one") == "STALE"
    assert scripts.refused("retire", [*INDEXES, P.seen, P.seen_before], "one") == "STALE"
    assert scripts.refused("thaw", [P.state], "one", *THAW) == "STALE"
    assert scripts(*receive, "two", b"list", 2, b"z") == 1
    assert scripts(*receive, "two", b"list", 2, b"z") == 1  # a repeated call
    assert scripts.client.lrange(P.tasks(b"a"), 0, -1) == [b"x", b"y", b"z"]
    assert scripts("thaw", [P.state], "two", *THAW) == 1
    assert scripts("thaw", [P.state], "two", *THAW) == 0


def test_a_number_of_before_is_never_registered_again(scripts: Scripts) -> None:
    scripts("register_partition", [P.state], 4)
    scripts("freeze", [P.state, P.claims], "one", b"")
    scripts("thaw", [P.state], "one", *THAW)
    for number in (b"4", b"16", b"4 policies"):
        assert scripts.refused("register_partition", [P.state], number) == "UNREGISTERED"
    assert scripts("register_partition", [P.state], b"8 policies") == 1
    assert scripts("register_partition", [P.state], b"1") == 1  # no number of before
    scripts("register_partition", [P.state], b"8")
    token, _ = acquire(scripts, b"1/8")
    assert token


def test_what_is_left_behind_refuses_all(scripts: Scripts) -> None:
    scripts("register_partition", [P.state], 4)
    scripts.client.hset(P.dead, "x", "letter")
    scripts("freeze", [P.state, P.claims], "one", b"")
    retire = ("retire", [*INDEXES, P.seen, P.seen_before], "one")
    assert scripts(*retire) == 0
    scripts.client.delete(P.dead)
    assert scripts(*retire) == 1
    assert scripts(*retire) == 1
    assert scripts.client.hgetall(P.state) == {b"schema": b"moved"}
    assert scripts.refused("register_partition", [P.state], 4) == "UNREGISTERED"
    assert scripts.refused("pause", [P.state], 1, b"c", b"1/4") == "UNREGISTERED"
    assert scripts("freeze", [P.state, P.claims], "two", b"") == 1  # it can be used again
