"""Foreign types and bytes in redisagg's keys: clear errors, and other groups are not affected."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import msgpack
import pytest
import redis

from redisagg import Aggregator, RedisAggError, Task
from redisagg.protocol.keys import Keyspace
from tests.support.servers import wait_until
from tests.support.tasks import await_led, enqueued, numbered, payloads, quick_config

SPACE = Keyspace("fuzz", 2)
P = SPACE.partition_of(b"mine")
NEIGHBOUR = next(f"n{n}" for n in range(99) if SPACE.partition_of(b"n%d" % n) is P)
ELSEWHERE = next(f"n{n}" for n in range(99) if SPACE.partition_of(b"n%d" % n) is not P)

Client: TypeAlias = Any  # redis.Redis, whose types take no bytes for keys
Spoil: TypeAlias = Callable[[Client], object]

WRITE: dict[str, Callable[[Client, bytes], object]] = {
    "string": lambda client, key: client.set(key, "foreign"),
    "list": lambda client, key: client.rpush(key, "foreign"),
    "hash": lambda client, key: client.hset(key, "foreign", "x"),
    "set": lambda client, key: client.sadd(key, "foreign"),
    "zset": lambda client, key: client.zadd(key, {"foreign": 1}),
    "stream": lambda client, key: client.xadd(key, {"foreign": "x"}),
}


@pytest.fixture
def aggregator(redis_url: str) -> Iterator[Aggregator]:
    """An aggregator whose flusher leads both partitions."""
    config = quick_config(group_max_size=2, add_timeout=2, lease_time=2, shutdown_timeout=0.5)
    with contextlib.closing(Aggregator("fuzz", redis_url, config=config)) as aggregator:
        aggregator.start()
        await_led(aggregator)
        yield aggregator


@pytest.fixture
def client(sync_redis: redis.Redis) -> Client:
    return sync_redis


def verify_enqueuing(aggregator: Aggregator, group: str, timeout: float = 3) -> None:
    """Adds three full batches of a group and waits until they are enqueued, in order and once."""

    def found() -> list[Any]:
        return payloads([batch for batch in enqueued(aggregator) if batch.group == group])

    before = found()
    aggregator.add_tasks(numbered(group, 6, start=100))
    wait_until(lambda: len(found()) >= len(before) + 6, timeout=timeout, what=f"{group} flows")
    assert found()[len(before) :] == list(range(100, 106))


def verify_all_operations(aggregator: Aggregator) -> None:
    """Runs every operation; each returns or raises a RedisAggError."""
    operations: list[Callable[[], object]] = [
        *(aggregator.stats, lambda: aggregator.get_entries(tasks=True)),
        *(lambda: aggregator.get_batches(tasks=True), lambda: aggregator.get_group("bad")),
        *(lambda: aggregator.dead_letters(tasks=True), lambda: aggregator.cancel_group("bad")),
        *(lambda: aggregator.flush("bad"), lambda: aggregator.cancel_task("bad", "x")),
        *(lambda: aggregator.add_task(Task("fuzz", 1, "bad")), aggregator.flush_all),
    ]
    for each in operations:
        with contextlib.suppress(RedisAggError):
            each()


# --- another type in place of a whole key ------------------------------------------------------

TYPES = {
    **dict.fromkeys(("state", "groups", "batches", "dead"), "hash"),
    **dict.fromkeys(("claims", "retry", "due", "ready"), "zset"),
}


def _key_cases() -> Iterator[tuple[str, str]]:
    for part, right in TYPES.items():
        for kind in WRITE:
            if kind != right and (part in ("state", "due") or kind in ("string", "stream")):
                yield part, kind


@pytest.mark.parametrize(("part", "kind"), list(_key_cases()))
def test_a_foreign_key_stops_its_partition_only_until_it_is_gone(
    aggregator: Aggregator, client: Client, part: str, kind: str
) -> None:
    key: bytes = getattr(P, part)
    aggregator.add_task(Task("fuzz", 99, "mine"))
    was_there = client.exists(key) and client.rename(key, "saved")
    WRITE[kind](client, key)
    foreign = client.dump(key)
    with contextlib.suppress(RedisAggError):
        aggregator.add_task(Task("fuzz", 100, "mine", id="once"))
    verify_enqueuing(aggregator, ELSEWHERE)
    verify_all_operations(aggregator)
    assert client.dump(key) == foreign
    client.delete(key)
    if was_there:
        client.rename("saved", key)
    aggregator.add_task(Task("fuzz", 100, "mine", id="once"))
    aggregator.flush_all()
    assert aggregator.wait_until_idle(5)
    mine = payloads([batch for batch in enqueued(aggregator) if batch.group == "mine"])
    assert mine[0] == 99
    assert set(mine) == {99, 100}


@pytest.mark.parametrize("kind", WRITE)
@pytest.mark.parametrize("part", ["tasks", "ids"])
def test_a_foreign_key_of_a_group_stops_that_group_only(
    aggregator: Aggregator, client: Client, part: str, kind: str
) -> None:
    key: bytes = getattr(P, part)(b"mine")
    if kind == {"tasks": "list", "ids": "hash"}[part]:
        pytest.skip("no foreign type")
    WRITE[kind](client, key)
    foreign = client.dump(key)
    with pytest.raises(RedisAggError):
        aggregator.add_task(Task("fuzz", 1, "mine"))
    verify_enqueuing(aggregator, NEIGHBOUR)
    verify_all_operations(aggregator)
    assert client.dump(key) == foreign
    client.delete(key)
    verify_enqueuing(aggregator, "mine")


@pytest.mark.parametrize("kind", WRITE)
@pytest.mark.parametrize("key", [SPACE.meta, SPACE.flushers])
def test_a_foreign_key_of_the_namespace_stops_no_leader(
    aggregator: Aggregator, client: Client, redis_url: str, key: bytes, kind: str
) -> None:
    client.delete(key)
    WRITE[kind](client, key)
    foreign = client.dump(key)
    verify_enqueuing(aggregator, "mine")
    with contextlib.suppress(RedisAggError):
        Aggregator("fuzz", redis_url, config=aggregator.config).stats()
    assert client.dump(key) == foreign or kind in ("hash", "zset")


# --- foreign bytes in a key of the right type ----------------------------------------------------


def _record(*values: object) -> bytes:
    """A record as the scripts pack it: with bytes packed as text."""
    packed: bytes = msgpack.packb(values, use_bin_type=False)
    return packed


NO_RECORDS = {
    "text": b"foreign",
    "nothing": b"",
    "map": msgpack.packb({"a": 1}),
    "short": _record(1, 2),
    "texts of a group": _record(*["x"] * 15),
    "texts of a batch": _record(*["x"] * 8),
    "negative of a group": _record(*[-5] * 15),
    "negative of a batch": _record(*[-5] * 8),
}


def _field(key: bytes, index: bytes, value: bytes) -> Spoil:
    def spoil(client: Client) -> None:
        client.hset(key, "bad", value)
        client.zadd(index, {"bad": 1})

    return spoil


def _member(index: bytes, member: bytes, score: Any) -> Spoil:
    return lambda client: client.zadd(index, {member: score})


SPOILT: dict[str, Spoil] = {
    **{
        f"{part} in {index}: {name}": _field(getattr(P, part), getattr(P, index), value)
        for part, index in (
            *(("groups", "due"), ("groups", "ready")),
            *(("batches", "claims"), ("batches", "retry")),
        )
        for name, value in NO_RECORDS.items()
    },
    **{
        f"{index}: nothing of that name": _member(getattr(P, index), b"bad\xff\0", 1)
        for index in ("due", "ready", "claims", "retry")
    },
    **{
        f"{index}: {score}": _member(getattr(P, index), b"bad", score)
        for index in ("due", "claims", "retry")
        for score in ("-inf", "inf", -1)
    },
    "batches: of a group that is not there": _field(
        P.batches, P.claims, _record(b"nobody", 0, 1, 0, 1, b"", 1, b"")
    ),
    "batches: of tasks that are not there": _field(
        P.batches, P.claims, _record(b"mine", 77, 1, 0, 1, b"", 1, b"")
    ),
    "dead: no record": lambda client: client.hset(P.dead, "bad", "foreign"),
    "dead: short": lambda client: client.hset(P.dead, "bad", _record(1)),
    "state: unknown field": lambda client: client.hset(P.state, "foreign", "x"),
    "state: owner": lambda client: client.hset(P.state, "owner", b"\xff\0"),
    "state: flushed": lambda client: client.hset(P.state, "flushed", "x"),
    "state: wake": lambda client: client.hset(P.state, "wake", "x"),
    "state: waiting": lambda client: client.hset(P.state, "waiting", "x"),
    "state: sequence": lambda client: client.hset(P.state, "sequence", "x"),
    "state: expires": lambda client: client.hset(P.state, "expires", "x"),
    "state: token": lambda client: client.hset(P.state, "token", "x"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_foreign_bytes_stop_no_other_group(
    aggregator: Aggregator, client: Client, case: str
) -> None:
    aggregator.add_task(Task("fuzz", 1, "mine"))
    SPOILT[case](client)
    verify_enqueuing(aggregator, ELSEWHERE)
    verify_enqueuing(aggregator, NEIGHBOUR)
    verify_all_operations(aggregator)
    verify_enqueuing(aggregator, NEIGHBOUR)


@pytest.mark.parametrize("case", SPOILT)
def test_foreign_bytes_raise_a_redisagg_error_or_are_ignored(
    redis_url: str, client: Client, case: str
) -> None:
    aggregator = Aggregator("fuzz", redis_url, config=quick_config(group_max_size=2))
    aggregator.add_task(Task("fuzz", 1, "mine"))
    SPOILT[case](client)
    verify_all_operations(aggregator)
    with contextlib.suppress(RedisAggError):
        aggregator.close()


@pytest.mark.parametrize("case", [*SPOILT, *TYPES])
def test_what_is_foreign_does_not_hide_the_rest(
    redis_url: str, client: Client, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    config = quick_config(group_max_size=2, group_grace_period=100)
    with contextlib.closing(Aggregator("fuzz", redis_url, config=config)) as aggregator:
        aggregator.add_tasks([Task("fuzz", 1, NEIGHBOUR), Task("fuzz", 2, ELSEWHERE)])
        if case in TYPES:
            client.delete(getattr(P, case))
            WRITE["string"](client, getattr(P, case))
        else:
            SPOILT[case](client)
        groups = aggregator.get_entries(tasks=True)
        groups.pop("bad", None)  # a record with negative numbers is one
        assert set(groups) == ({ELSEWHERE} if case == "groups" else {NEIGHBOUR, ELSEWHERE})
        assert all(len(group.tasks or ()) == 1 for group in groups.values())
        assert ELSEWHERE in aggregator.get_groups(limit=99)
        aggregator.get_batches(tasks=True)
        assert aggregator.dead_letters(tasks=True) == []
        stats = aggregator.stats()
        assert list(stats.unreadable) in ([], [P.number])
        assert (P.number in {each.partition for each in stats.partitions}) == (not stats.unreadable)
        if stats.unreadable:
            with pytest.raises(RedisAggError):
                aggregator.wait_until_idle(1)
    if case in (*TYPES, "dead: no record", "dead: short", "state: waiting"):
        assert "left out" in caplog.text or case in ("claims",)


def test_a_listing_names_what_it_leaves_out_once(
    redis_url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    aggregator = Aggregator("fuzz", redis_url, config=quick_config())
    for n in range(20):
        client.hset(P.groups, f"bad\x1b{n:02}", "x")
    aggregator.add_task(Task("fuzz", 1, ELSEWHERE))
    assert set(aggregator.get_groups()) == {ELSEWHERE}
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("20 groups can't be read and are left out: b'bad\\x1b")
    assert "\x1b" not in line
    aggregator.close()


@pytest.mark.parametrize(
    "record",
    [
        _record(1 << 60, 0, 0, 1, 1, 1, 1, 1, 1 << 60, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0),
        _record(3, -5, 0, 1, 1, 1, 1, 1, 9, 0, 0, 0, 0, 0, -9, 0, 0, 0, 0),
    ],
)
def test_counts_of_any_size_end_a_listing(redis_url: str, client: Client, record: bytes) -> None:
    aggregator = Aggregator("fuzz", redis_url, config=quick_config())
    aggregator.add_task(Task("fuzz", 1, "bad"))
    client.hset(SPACE.partition_of(b"bad").groups, "bad", record)
    assert set(aggregator.get_groups(tasks=True)) == {"bad"}
    aggregator.get_group("bad")
    aggregator.close()


def test_a_group_recovers_when_its_record_is_repaired(
    aggregator: Aggregator, client: Client
) -> None:
    """Even if no further task is added to it."""
    aggregator.add_task(Task("fuzz", 1, "mine", grace_period=0.3))
    record = client.hget(P.groups, "mine")
    client.hset(P.groups, "mine", b"foreign")
    verify_enqueuing(aggregator, NEIGHBOUR)
    wait_until(
        lambda: (client.zscore(P.due, "mine") or 0) > client.time()[0] * 1000 + 1000,
        what="the group is put off",
    )
    client.hset(P.groups, "mine", record)
    assert aggregator.wait_until_idle(4)
    assert payloads([batch for batch in enqueued(aggregator) if batch.group == "mine"]) == [1]
