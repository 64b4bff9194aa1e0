"""The contract for producers in other languages in lua/README.md, call by call."""

from __future__ import annotations

import time
from typing import Any, TypeAlias
from zlib import crc32

import pytest
import redis

from redisagg import Aggregator
from redisagg.config import AggregationConfig
from redisagg.durations import LONGEST, to_ms
from redisagg.protocol.entries import Encoder, decode
from redisagg.protocol.scripts import load
from redisagg.task import Task
from tests.sinks.test_producers import LUA
from tests.support.tasks import quick_config

LONGEST_MS = to_ms(LONGEST)
LIMITS = "120000 600000 20 0"
BODY = bytes.fromhex("92aa656d61696c3a73656e6481a7757365725f69642a")
PREFIX = "redisagg:{tests:0}:"

Section: TypeAlias = tuple[str, str, dict[str, bytes]]


def add(
    client: redis.Redis,
    *sections: Section,
    number: object = "",
    max_tasks: int = 0,
    dedupe: str = "",
    place: str = "0/16",
) -> Any:
    """Calls the script for partition 0 as the producer `p`."""
    own = ("state", "groups", "due", "ready", "call:p", "seen", "seen_before")
    keys = [PREFIX + each for each in own]
    arguments: list[Any] = [number, 600_000, "redisagg:{tests}:wake", place, max_tasks, 0, dedupe]
    for group, limits, tasks in sections:
        keys += (f"{PREFIX}tasks:{group}", f"{PREFIX}ids:{group}")
        arguments += (group, limits, len(tasks))
        for task_id, body in tasks.items():
            arguments += (task_id, body)
    return client.eval(load("add").source.decode(), len(keys), *keys, *arguments)


@pytest.fixture(autouse=True)
def registered(sync_redis: redis.Redis) -> None:
    """Registers partition 0 of 16, as a producer does."""
    register_partition = load("register_partition").source.decode()
    assert sync_redis.eval(register_partition, 1, f"{PREFIX}state", "16") == 1


def section(*ids: str, group: str = "g", limits: str = LIMITS) -> Section:
    return group, limits, dict.fromkeys(ids, BODY)


def test_the_reply_counts_what_was_new(sync_redis: redis.Redis) -> None:
    assert add(sync_redis, section("1", "2"), section("1", group="h")) == [2, 1]
    assert add(sync_redis, section("2", "3")) == [1]


def test_a_repeated_call_gets_its_first_reply_and_a_late_one_is_refused(
    sync_redis: redis.Redis,
) -> None:
    assert add(sync_redis, section("1"), number=7) == [1]
    sync_redis.delete(f"{PREFIX}ids:g")  # as if it had been flushed
    assert add(sync_redis, section("1"), number=7) == [1]
    assert sync_redis.llen(f"{PREFIX}tasks:g") == 1
    with pytest.raises(redis.ResponseError, match="LATE"):
        add(sync_redis, section("2"), number=6)
    assert add(sync_redis, section("2"), number=8) == [1]


@pytest.mark.parametrize("known", [None, "3", "32"])
def test_a_producer_with_another_number_of_partitions_is_refused(
    sync_redis: redis.Redis, known: str | None
) -> None:
    sync_redis.delete(f"{PREFIX}state")
    if known:
        sync_redis.hset(f"{PREFIX}state", "partitions", known)
    before = sync_redis.keys()
    with pytest.raises(redis.ResponseError, match=r"^UNREGISTERED .* not 16"):
        add(sync_redis, section("1"), number=7)
    assert sync_redis.keys() == before


def test_a_full_partition_keeps_out_what_is_new(sync_redis: redis.Redis) -> None:
    assert add(sync_redis, section("1", "2"), max_tasks=2) == [2]
    full, known = add(sync_redis, section("3", group="h"), section("1", "2"), max_tasks=2)
    assert full.startswith(b"FULL ")
    assert known == 0
    assert not sync_redis.exists(f"{PREFIX}ids:h")


def test_no_section_overtakes_one_of_its_group_that_was_refused_for_lack_of_room(
    sync_redis: redis.Redis,
) -> None:
    large, small, other = section("1", "2", "3"), section("4"), section("5", group="h")
    replies = add(sync_redis, large, small, other, max_tasks=2)
    assert [type(each) for each in replies] == [bytes, bytes, int]
    assert replies[1].startswith(b"FULL ")
    assert not sync_redis.exists(f"{PREFIX}ids:g")
    assert add(sync_redis, small, max_tasks=2) == [1]  # by itself it finds room


def test_an_id_that_was_flushed_lately_is_not_new(sync_redis: redis.Redis) -> None:
    later = int(time.time() * 1000) + 60_000
    sync_redis.hset(f"{PREFIX}state", mapping={"seen_until": later, "seen_before_until": later})
    sync_redis.sadd(f"{PREFIX}seen", b"\0\1g1")
    sync_redis.sadd(f"{PREFIX}seen_before", b"\0\1g2")
    assert add(sync_redis, section("1", "2", "3"), dedupe="1") == [1]
    assert add(sync_redis, section("1", "2", "3")) == [2]


def test_a_call_in_which_nothing_was_new_is_remembered_too(sync_redis: redis.Redis) -> None:
    add(sync_redis, section("1"))  # by another producer
    assert add(sync_redis, section("1"), number=7) == [0]
    sync_redis.delete(f"{PREFIX}ids:g")  # as if it had been flushed
    assert add(sync_redis, section("1"), number=7) == [0]
    assert sync_redis.llen(f"{PREFIX}tasks:g") == 1


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(section("1", "", "3"), id="an empty id"),
        pytest.param(section("1", "x" * 129), id="a long id"),
        pytest.param(section("1", "x" * 300), id="an id of more than a byte's length"),
        pytest.param(section("1", limits=""), id="no limits"),
        pytest.param(section("1", limits="1 2 3"), id="three limits"),
        pytest.param(section("1", limits="1.5 2 3 0"), id="a fraction"),
        pytest.param(section("1", limits="1 2 0 0"), id="a size of none"),
        pytest.param(section("1", limits=f"{LONGEST_MS + 1} 2 3 0"), id="a long grace period"),
        pytest.param(section("1", limits=f"1 {2**63 - 1} 3 0"), id="a long max delay"),
        pytest.param(section("1", limits=f"1 {'9' * 400} 3 0"), id="an infinite max delay"),
        pytest.param(section("1", limits="1 2 1000001 0"), id="a large size"),
        pytest.param(section("1", limits="1 2 3 1001"), id="a high priority"),
        pytest.param(section("1", limits="1 2 3 -1001"), id="a low priority"),
        pytest.param(section("1", group="g" * 513), id="a long group key"),
        pytest.param(section("1", group=""), id="an empty group key"),
    ],
)
def test_a_malformed_section_is_kept_out_alone(sync_redis: redis.Redis, bad: Section) -> None:
    first, refused, last = add(sync_redis, section("1", group="a"), bad, section("1", group="b"))
    assert (first, last) == (1, 1)
    assert refused.startswith(b"ERR ")
    assert not sync_redis.exists(f"{PREFIX}tasks:{bad[0]}", f"{PREFIX}ids:{bad[0]}")
    assert sync_redis.hget(f"{PREFIX}state", "waiting") == b"2"


def test_the_longest_and_largest_limits_of_python_are_accepted(sync_redis: redis.Redis) -> None:
    task = Task("t", 0, "g", grace_period=LONGEST, max_delay=LONGEST, max_size=10**6, priority=1000)
    limits = Encoder(AggregationConfig())(task).limits.decode()
    assert limits.startswith(f"{LONGEST_MS} {LONGEST_MS} 1000000 1000")
    assert add(sync_redis, section("1", limits=limits)) == [1]


def test_a_foreign_type_keeps_its_section_out(sync_redis: redis.Redis) -> None:
    sync_redis.set(f"{PREFIX}tasks:g", "foreign")
    [refused, fresh] = add(sync_redis, section("1"), section("1", group="h"))
    assert b"WRONGTYPE" in refused
    assert fresh == 1
    assert not sync_redis.exists(f"{PREFIX}ids:g")


def test_the_partitions_in_force_are_those_of_the_first_use(
    sync_redis: redis.Redis, redis_url: str
) -> None:
    sync_redis.flushall()
    with Aggregator("tests", redis_url, config=quick_config(partitions=3)) as agg:
        assert agg.stats().pending == 0
    register = load("register").source.decode()
    assert sync_redis.eval(register, 1, "redisagg:{tests}:meta", "1", "16") == [b"1", b"3"]


VECTORS: dict[str, Task] = {
    "92aa656d61696c3a73656e6481a7757365725f69642a": Task("email:send", {"user_id": 42}, "g"),
    "93aa656d61696c3a73656e6481a7757365725f69642a81a57472616365a3616263": Task(
        "email:send", {"user_id": 42}, "g", headers={"trace": "abc"}
    ),
    "92aa656d61696c3a73656e64c70909010000000000000000": Task("email:send", 2**64, "g"),
    "94aa656d61696c3a73656e6481a7757365725f69642ac081a16f81a57175657565a8637269746963616c": Task(
        "email:send", {"user_id": 42}, "g", options={"queue": "critical"}
    ),
}


@pytest.mark.parametrize("body", VECTORS)
def test_the_documented_bodies(body: str) -> None:
    assert body in (LUA / "README.md").read_text("utf-8")
    task = VECTORS[body]
    assert Encoder(AggregationConfig())(task).body.hex() == body
    entry = bytes(6) + bytes([len(task.id)]) + task.id.encode() + bytes.fromhex(body)
    assert decode(entry, "g") == task


@pytest.mark.parametrize(
    ("group", "crc", "partition"),
    [
        ("user:42", "646f0d86", 6),
        ("grüße", "346e49ed", 13),
    ],
)
def test_the_documented_partitions(group: str, crc: str, partition: int) -> None:
    row = f"| partition of `{group}` of 16 | {partition} (CRC-32 `{crc}`) |"
    assert row in (LUA / "README.md").read_text("utf-8")
    assert (crc32(group.encode()), int(crc, 16) % 16) == (int(crc, 16), partition)


def test_who_does_not_read_policies_is_refused(sync_redis: redis.Redis) -> None:
    known = "0/16 policies"
    assert add(sync_redis, section("1"), place=known) == [1]
    for number in ("16 policies", "16"):  # a producer registers again and takes nothing away
        source = load("register_partition").source.decode()
        assert sync_redis.eval(source, 1, f"{PREFIX}state", number) == 1
        before = sync_redis.hgetall(f"{PREFIX}groups")
        with pytest.raises(redis.ResponseError, match="POLICIES"):
            add(sync_redis, section("2"), number=1)
        assert sync_redis.hgetall(f"{PREFIX}groups") == before
    assert add(sync_redis, section("2"), number=1, place=known) == [1]
    for place, error in (
        ("0/8 policies", "UNREGISTERED"),
        ("0/16 x", "PARTITION"),
        ("0/16policies", "PARTITION"),
    ):
        with pytest.raises(redis.ResponseError, match=error):
            add(sync_redis, section("3"), place=place)


def test_policies_are_read_and_set(sync_redis: redis.Redis) -> None:
    meta, policies = "redisagg:{tests}:meta", "redisagg:{tests}:policies"

    def call(name: str, *args: Any) -> Any:
        return sync_redis.eval(load(name).source.decode(), 2, meta, policies, *args)

    assert call("read_policies", "") == [b""]
    assert call("set_policies", 2, "a", "") == 0
    assert not sync_redis.exists(meta)
    assert call("set_policies", 2) == 0
    [first] = call("read_policies", "")
    assert call("set_policies", 2, "a*", '{"max_size":1}') == 1
    version, *pairs = call("read_policies", first)
    assert (version, pairs) != (first, [])
    assert int(version) > int(first) >= 10**12
    assert pairs == [b"a*", b'{"max_size":1}']
    assert sync_redis.hgetall(policies) == {b"a*": b'{"max_size":1}'}
    assert call("read_policies", version) == [version]
    assert call("set_policies", 2, "b", "{}", "c", "{}") == b"MANY"
    assert call("set_policies", 2, "a*", "", "b", "{}", "c", "{}") == 3
    assert call("read_policies", version)[1:].count(b"{}") == 2
