"""What the sink leaves in Redis is what Asynq's own client leaves there, key by key."""

from __future__ import annotations

import base64
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import redis

from redisagg import Task
from redisagg.sinks import AsynqSink, sink_from_url
from redisagg.sinks.asynq.message import decode, encode
from tests.sinks.asynq.program import Asynq
from tests.support.aggregators import Make
from tests.support.tasks import await_dead, numbered

pytestmark = pytest.mark.registry

LATER = int(time.time()) + 3_000
PAYLOAD = b'{"user_id":42}'

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # name: (options for redisagg, options for Asynq's client)
    "defaults": ({}, {}),
    "queue": ({"queue": "critical"}, {"queue": "critical"}),
    "no retry": ({"max_retry": 0}, {"max_retry": 0}),
    "timeout": ({"timeout": timedelta(minutes=2)}, {"timeout": 120}),
    "deadline": (
        {"deadline": datetime.fromtimestamp(LATER, timezone.utc)},
        {"deadline": LATER},
    ),
    "timeout and deadline": (
        {"timeout": 30, "deadline": LATER + 0.7},
        {"timeout": 30, "deadline": LATER},
    ),
    "retention": ({"retention": 3600.0}, {"retention": 3600}),
    "unique": ({"unique_ttl": 300}, {"unique": 300}),
    "process_at": ({"process_at": LATER}, {"process_at": LATER}),
    "process_at, over": ({"process_at": 1_000_000_000}, {"process_at": 1_000_000_000}),
    "process_in": ({"process_in": timedelta(hours=1)}, {"process_in": 3600}),
    "unique, later": (
        {"unique_ttl": 300, "process_at": LATER, "retention": 60},
        {"unique": 300, "process_at": LATER, "retention": 60},
    ),
}

_READ = {b"string": "get", b"hash": "hgetall", b"set": "smembers"}


def written(client: redis.Redis) -> dict[bytes, Any]:
    """All keys of Asynq with their values and times to live."""
    found: dict[bytes, Any] = {}
    for key in client.scan_iter("asynq:*"):
        kind: Any = client.type(key)
        if kind == b"list":
            value: Any = client.lrange(key, 0, -1)
        elif kind == b"zset":
            value = client.zrange(key, 0, -1, withscores=True)
        else:
            value = getattr(client, _READ[kind])(key)
        found[key] = {"value": value, "ttl": client.ttl(key)}
    return found


def assert_same(ours: dict[bytes, Any], theirs: dict[bytes, Any]) -> None:
    """All is equal, but for what the clock did in between."""
    assert ours.keys() == theirs.keys()
    for key, mine in ours.items():
        other = theirs[key]
        assert abs(mine.pop("ttl") - other.pop("ttl")) <= 3
        if b":scheduled" in key:
            [[task_id, score]], [[other_id, other_score]] = mine["value"], other["value"]
            assert task_id == other_id
            assert abs(score - other_score) <= 3
            continue
        if b":t:" in key and b"pending_since" in other["value"]:
            since, other_since = (each["value"].pop(b"pending_since") for each in (mine, other))
            assert abs(int(since) - int(other_since)) < 3_000_000_000  # ns
        assert mine == other


@pytest.mark.parametrize("given_by", ["sink", "task", "url"])
@pytest.mark.parametrize("case", CASES)
def test_the_keys_are_those_of_asynqs_client(
    make: Make, sync_redis: redis.Redis, asynq: Asynq, case: str, given_by: str
) -> None:
    mine, theirs = CASES[case]
    if given_by == "url":
        query = "&".join(f"{name}={in_url(mine[name])}" for name in mine if name != "queue")
        sink = sink_from_url(f"asynq://{mine.get('queue', 'default')}?{query}")
    else:
        sink = AsynqSink(**mine) if given_by == "sink" else AsynqSink()
    merged = Task("email:send", {"user_id": 42}, options=mine if given_by == "task" else {})
    agg = make(sink=sink, group_max_size=2, group_aggregator=lambda group, tasks: merged)
    with agg:
        agg.add_tasks(numbered("a", 2))
        assert agg.wait_until_idle(5)
    ours = written(sync_redis)
    [hash_key] = [key for key in ours if b":t:" in key]
    batch_id = hash_key.rpartition(b":t:")[2].decode()
    sync_redis.flushall()
    order = {"type": "email:send", "id": batch_id, "payload": base64.b64encode(PAYLOAD).decode()}
    assert asynq.enqueue({**order, **theirs}) == [""]
    assert_same(ours, written(sync_redis))


def in_url(value: Any) -> str:
    """An option as a URL has it."""
    if isinstance(value, timedelta):
        return str(value.total_seconds())
    if isinstance(value, datetime):
        return value.isoformat().replace("+", "%2B")
    return str(value)


@pytest.mark.parametrize(
    ("payload", "wire"),
    [(None, b""), (b"\x00\xff\x80", b"\x00\xff\x80"), ("ä", '"ä"'.encode()), ([], b"[]")],
)
def test_payload_and_headers_are_those_of_asynqs_client(
    make: Make, sync_redis: redis.Redis, asynq: Asynq, payload: Any, wire: bytes
) -> None:
    headers = {"trace": "abc"}
    merged = Task("tür", payload, headers=headers)
    sink = AsynqSink(unique_ttl=60)
    agg = make(sink=sink, group_max_size=1, group_aggregator=lambda group, tasks: merged)
    with agg:
        agg.add_tasks(numbered("a", 1))
        assert agg.wait_until_idle(5)
    ours = written(sync_redis)
    [batch_id] = ours[b"asynq:{default}:pending"]["value"]
    sync_redis.flushall()
    order = {"type": "tür", "id": batch_id.decode(), "headers": headers, "unique": 60}
    if payload is not None:
        order["payload"] = base64.b64encode(wire).decode()
    assert asynq.enqueue(order) == [""]
    assert_same(ours, written(sync_redis))


def test_a_message_of_the_client_comes_back_byte_by_byte(
    asynq: Asynq, sync_redis: redis.Redis
) -> None:
    asynq.enqueue({"type": "a", "id": "1", "headers": {"": ""}, "unique": 9, "retention": 2**31})
    raw = sync_redis.hget("asynq:{default}:t:1", "msg")
    assert isinstance(raw, bytes)
    assert encode(decode(raw)) == raw


def test_an_encoder_of_the_users_own(make: Make, sync_redis: redis.Redis) -> None:
    sink = AsynqSink(encode=lambda payload: repr(payload).encode())
    agg = make(sink=sink, group_max_size=1, max_attempts=1)
    with agg:
        agg.add_tasks(numbered("a", 1))
        assert agg.wait_until_idle(5)
    [task] = sync_redis.scan_iter("asynq:{default}:t:*")
    raw = sync_redis.hget(task, "msg")
    assert isinstance(raw, bytes)
    assert decode(raw).payload == b"{'group': 'a', 'count': 1, 'payloads': [0]}"


def test_an_encoder_that_returns_no_bytes_fails_the_batch(make: Make) -> None:
    bad: Any = str
    agg = make(sink=AsynqSink(encode=bad), group_max_size=1, max_attempts=1)
    with agg:
        agg.add_tasks(numbered("a", 1))
        [letter] = await_dead(agg)
    assert letter.error == "PayloadError: encode returned str; return bytes"
