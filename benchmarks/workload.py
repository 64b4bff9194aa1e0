"""The workload of all contenders: payloads of 200 bytes, 1,000 groups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import redis

from redisagg import AggregationConfig, Aggregator, Task

PAYLOAD = b"x" * 200
GROUPS = 1_000
NEVER_FULL = AggregationConfig(group_max_size=1_000_000)


def empty(url: str) -> None:
    """Deletes all keys of a server or of the masters of a cluster."""
    client: Any = client_of(url)
    if isinstance(client, redis.RedisCluster):
        client.flushall(target_nodes=redis.RedisCluster.PRIMARIES)
    else:
        client.flushall()


def client_of(url: str) -> Any:
    """A redis-py client for the URL of a server or of a cluster."""
    if url.startswith("redis+cluster://"):
        return redis.RedisCluster.from_url(url.replace("redis+cluster://", "redis://"))
    return redis.Redis.from_url(url)


def group_of(number: int) -> str:
    """The group of the task with this number."""
    return f"g{number % GROUPS}"


def tasks(count: int) -> Iterator[Task]:
    """`count` tasks over all groups in turn."""
    return (Task("t", PAYLOAD, group_of(number)) for number in range(count))


def noop(group: str, merged: list[Task]) -> Task:
    """A merge function that returns the number of its tasks."""
    return Task("merged", len(merged), group)


def flusher_config(size: int, **changes: object) -> AggregationConfig:
    """Settings of a flusher for groups of `size`."""
    settings: dict[str, Any] = {"group_aggregator": noop, **changes}
    return AggregationConfig(group_max_size=size, **settings)


def fill(
    url: str, name: str, count: int, size: int, *, hot: bool = False, partitions: int = 16
) -> Aggregator:
    """Adds `count` tasks in full groups of `size`, or in one `hot` group, without a flusher."""
    aggregator = Aggregator(name, url, config=flusher_config(size, partitions=partitions))
    aggregator.add_tasks(
        (Task("t", PAYLOAD, "hot" if hot else f"g{n // size}") for n in range(count)), ids=False
    )
    return aggregator
