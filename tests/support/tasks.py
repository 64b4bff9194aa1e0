"""Tasks, settings and conditions that tests of several tiers share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import redis

from redisagg import AggregationConfig, Aggregator, DeadLetter, RateLimit, Task
from redisagg.protocol.keys import Keyspace
from redisagg.sinks import EnqueuedBatch
from tests.support.servers import wait_until

Measured: TypeAlias = Callable[[str], None]
"""Notes a line for the section "measured" at the end of the run."""


def quick_config(**changes: Any) -> AggregationConfig:
    """Settings under which groups are due when full or flushed only, and retries come quickly."""
    settings: dict[str, Any] = {
        "group_grace_period": 600,
        "group_max_delay": 600,
        "partitions": 2,
        "retry_delay": 0.02,
        "retry_max_delay": 0.1,
        "max_attempts": 3,
        "lease_time": 3,
        "add_timeout": 10,
        "shutdown_timeout": 10,
        "history": False,  # so that tests can count commands and keys
    }
    settings |= changes
    for name in ("rate_limit", "group_rate_limit"):
        if isinstance(settings.get(name), dict):  # it came as JSON
            settings[name] = RateLimit(**settings[name])
    return AggregationConfig(**settings)


def numbered(group: str, count: int, start: int = 0, **fields: Any) -> list[Task]:
    """Tasks for one group whose payloads count up from `start`."""
    return [Task("test", n, group, **fields) for n in range(start, start + count)]


def enqueued(aggregator: Aggregator) -> list[EnqueuedBatch]:
    """All batches in the queue of `aggregator`, oldest first within each key."""
    batches: list[EnqueuedBatch] = []
    page = aggregator.read_sink()
    while page.batches:
        batches += page.batches
        page = aggregator.read_sink(page.cursor)
    return batches


def await_batches(aggregator: Aggregator, count: int, timeout: float = 10) -> None:
    """Waits until at least `count` batches are in the queue."""
    what = f"{count} batches are enqueued"
    wait_until(lambda: len(enqueued(aggregator)) >= count, timeout=timeout, what=what)


def await_led(aggregator: Aggregator, timeout: float = 10) -> None:
    """Waits until each partition has a leader."""

    def led() -> bool:
        return all(partition.leader for partition in aggregator.stats().partitions)

    wait_until(led, timeout=timeout, what="all partitions have a leader")


def await_dead(aggregator: Aggregator, count: int = 1, timeout: float = 10) -> list[DeadLetter]:
    """Waits until there are at least `count` dead letters; returns them with their tasks."""
    what = f"{count} batches are dead"
    wait_until(lambda: aggregator.stats().batches_dead >= count, timeout=timeout, what=what)
    return aggregator.dead_letters(tasks=True)


def await_asleep(
    client: redis.Redis, *, name: str = "tests", partitions: int = 2, timeout: float = 10
) -> None:
    """Waits until the leader of each partition has polled since it was woken last, and sleeps.

    What was due before this call has been claimed by then, or will not be: a test can go on with
    an assertion that nothing more happened.
    """
    states = [partition.state for partition in Keyspace(name, partitions).partitions]

    def asleep() -> bool:
        # `poll` writes the time of the next poll; who wakes a leader writes 0.
        return all(int(client.hget(state, "wake") or 0) for state in states)

    wait_until(asleep, timeout=timeout, what="all leaders sleep")


def server_ms(client: redis.Redis) -> int:
    """The clock of Redis in ms, which decides when a group is due and a lease has expired."""
    seconds, microseconds = client.time()
    return int(seconds) * 1000 + int(microseconds) // 1000


def await_server_ms(client: redis.Redis, ms: int, timeout: float = 10) -> None:
    """Waits until the clock of Redis has passed `ms`."""
    wait_until(lambda: server_ms(client) > ms, timeout=timeout, what="the time has passed")


def lease_expiries(client: redis.Redis, *, name: str = "tests", partitions: int = 2) -> list[int]:
    """When the lease of each partition expires, ms by the clock of Redis."""
    states = [partition.state for partition in Keyspace(name, partitions).partitions]
    return [int(client.hget(state, "expires") or 0) for state in states]


def error_count(client: redis.Redis, code: str) -> int:
    """Number of calls that the server has refused with an error code such as ``STALE``."""
    counts: Any = client.info("errorstats")
    return int(counts.get(f"errorstat_{code}", {"count": 0})["count"])


def payloads(batches: list[EnqueuedBatch]) -> list[Any]:
    """The payloads of the tasks that the default merge function put into `batches`, in order."""
    return [payload for batch in batches for payload in batch.payload["payloads"]]
