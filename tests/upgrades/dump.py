"""Writes a dump of a namespace of the present key schema: ``schema-N.json``.

``python -m tests.upgrades.dump`` fills every key of the schema. Run it when a schema is released,
and never again for that schema: the file shows the data that users have.
"""

from __future__ import annotations

import datetime
import json
import time
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import redis

from redisagg import AggregationConfig, Aggregator, Policy, Task
from redisagg.protocol import history
from redisagg.protocol.keys import SCHEMA, Keyspace
from redisagg.protocol.scripts import call
from redisagg.sinks import CallableSink
from redisagg.testing.embedded import EmbeddedRedis
from redisagg.transport.threads import Transport
from tests.support.servers import wait_until

NAME, PARTITIONS = "upgrades", 2
POLICIES = {
    "policed:*": Policy(
        grace_period=1.5,
        max_delay=60,
        max_size=1,
        max_bytes=1000,
        max_weight=100,
        min_interval=5,
        leading=True,
        priority=3,
    ),
    "*": Policy(max_bytes=0),
}
FOLDER = Path(__file__).parent


def path(schema: int) -> Path:
    """The path of the dump of a schema."""
    return FOLDER / f"schema-{schema}.json"


def settings(**changes: Any) -> AggregationConfig:
    """The configuration of the dump, with `changes`."""
    given: dict[str, Any] = {
        "partitions": PARTITIONS,
        "group_grace_period": 600,
        "group_max_delay": 600,
        "dedupe_window": 3600,
        "max_pending_tasks": 10_000,
        "history": False,
        "max_attempts": 1,
    }
    return AggregationConfig(**{**given, **changes})


def tasks() -> dict[str, list[Task]]:
    """The added tasks by group; their ids are fixed, so that tests know them."""

    def task(group: str, n: int, payload: Any, **fields: Any) -> Task:
        return Task("kind", payload, group, f"{group}-{n}", **fields)

    moment = datetime.datetime(2026, 11, 24, 4, 5, 6, 789, tzinfo=datetime.timezone.utc)
    return {
        "plain": [task("plain", n, {"n": n}) for n in range(5)],
        "rich": [
            task("rich", 0, moment, headers={"a": "ä"}, priority=7),
            task("rich", 1, uuid.UUID(int=5), grace_period=2, max_delay=3, max_size=50),
            task("rich", 2, [Decimal("1.50"), {1, 2}, b"\0\xff", None, -(2**40), "🙂"]),
            task("rich", 3, datetime.date(2026, 11, 24), options={"queue": "low"}),
        ],
        "full": [task("full", n, n, max_size=3) for n in range(7)],
        "retry": [task("retry", n, n, max_size=2) for n in range(3)],
        "dead": [task("dead", n, n, max_size=2) for n in range(2)],
        "claimed": [task("claimed", n, n, max_size=2) for n in range(2)],
        "flushed": [task("flushed", n, n, max_size=2) for n in range(2)],
    }


def furnish(url: str) -> None:
    """Fills a namespace so that it uses every key of the schema."""
    given = tasks()

    def deliver(task: Task, batch_id: str) -> None:
        if task.group_key in ("retry", "dead"):
            raise ConnectionError("the queue is down")

    def flush(*groups: str, **changes: Any) -> None:
        config = settings(retry_delay=3600, retry_max_delay=3600, **changes)
        with Aggregator(NAME, url, config=config, sink=CallableSink(deliver)) as aggregator:
            for group in groups:
                aggregator.add_tasks(given[group])
            failed = aggregator.stats
            wait_until(
                lambda: all(not _at_work(aggregator, group) for group in groups), what="flushed"
            )
            assert failed().batches_in_flight == failed().batches_in_retry

    flush("flushed", "dead")
    flush("retry", max_attempts=5)
    aggregator = Aggregator(NAME, url, config=settings())
    for group in ("plain", "rich", "full", "claimed"):
        aggregator.add_tasks(given[group])
    aggregator.flush("rich")
    _claim(url, b"claimed")
    for pattern, policy in POLICIES.items():
        aggregator.set_policy(pattern, policy)
    _record(url)
    # Neither the flusher nor the producer is closed: the claim and the last call stay in Redis.
    with redis.Redis.from_url(url) as client:
        for partition in Keyspace(NAME, PARTITIONS).partitions:
            if client.exists(partition.seen):  # the ids that were flushed are known until 2100
                client.hset(partition.state, "seen_until", 4_102_444_800_000)


def _at_work(aggregator: Aggregator, group: str) -> bool:
    state = aggregator.get_group(group)
    return state is not None and not state.held


def _claim(url: str, group: bytes) -> None:
    """Claims a full group, as a flusher does that dies afterwards."""
    transport = Transport(redis.Redis.from_url(url), 1)
    p = Keyspace(NAME, PARTITIONS).partition_of(group)
    lease = call("acquire", [p.state, p.claims, p.tasks(b"")], b"dead", 1000, p.label)
    [[token, _]] = transport.exchange([lease])
    keys = [p.state, p.groups, p.batches, p.claims, p.retry, p.suspects, p.due, p.ready]
    keys += (p.seen, p.seen_before, p.tasks(group), p.ids(group))
    args = (token, 60_000, p.digits, 1, 100, 100_000, 1000, 3_600_000, b"", group)
    [claimed] = transport.exchange([call("claim", keys, *args)])
    [[batch_id, *_]] = claimed
    # It dies while it stores a large merge result.
    keys = [p.state, p.batches, p.claims, p.result(batch_id)]
    store = call("store_result", keys, token, batch_id, b"1-1", 0, 2, b"the first part")
    assert transport.exchange([store]) == [1]


def _record(url: str) -> None:
    """Records a step of the history, as a flusher does that leads all partitions."""
    transport, space = Transport(redis.Redis.from_url(url), 1), Keyspace(NAME, PARTITIONS)
    samples = transport.exchange([history.sample(p) for p in space.partitions])
    transport.exchange([history.record(space, list(enumerate(samples)))])


def read(client: Any) -> dict[str, Any]:
    """All keys with their types and values, in a form for JSON."""
    return {key.hex(): _value(client, key) for key in sorted(client.keys())}


def _value(client: Any, key: bytes) -> dict[str, Any]:
    kind = client.type(key).decode()
    if kind == "hash":
        value: Any = {field.hex(): data.hex() for field, data in client.hgetall(key).items()}
    elif kind == "zset":
        value = {
            member.hex(): score for member, score in client.zrange(key, 0, -1, withscores=True)
        }
    elif kind == "list":
        value = [data.hex() for data in client.lrange(key, 0, -1)]
    elif kind == "set":
        value = sorted(data.hex() for data in client.smembers(key))
    else:
        value = client.get(key).hex()
    return {"type": kind, "value": value}


def write(client: Any, keys: dict[str, Any]) -> None:
    """Writes the keys that `read` returned."""
    unhex = bytes.fromhex
    for name, held in keys.items():
        key, value = unhex(name), held["value"]
        if held["type"] == "hash":
            client.hset(key, mapping={unhex(field): unhex(data) for field, data in value.items()})
        elif held["type"] == "zset":
            client.zadd(key, {unhex(member): score for member, score in value.items()})
        elif held["type"] == "list":
            client.rpush(key, *map(unhex, value))
        elif held["type"] == "set":
            client.sadd(key, *map(unhex, value))
        else:
            client.set(key, unhex(value))


def main() -> None:
    """Writes the dump of the present schema."""
    with EmbeddedRedis() as server:
        furnish(server.url)
        time.sleep(0.1)
        with redis.Redis.from_url(server.url) as client:
            path(SCHEMA).write_text(json.dumps(read(client), indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
