"""Twelve troubles, planted: what `redisagg why`, the dashboard and the alerts have to name.

The fixture `plant` (tests/support/fixtures.py) plants one and returns where to look.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import redis

from redisagg import Aggregator, RateLimit, Task
from redisagg.errors import NamespaceMismatch, RedisOutOfMemory
from redisagg.protocol.keys import Keyspace
from redisagg.protocol.scripts import call
from redisagg.sinks import CallableSink
from redisagg.testing.embedded import HOST, EmbeddedRedis
from redisagg.transport.threads import Transport
from redisagg.views import Cause
from tests.support.aggregators import Make
from tests.support.servers import ClusterTopology, wait_until
from tests.support.tasks import await_batches, await_dead, await_led

NAME = "tests"
"""The namespace of each trouble."""

LATE_GROUP = "customer:7"
"""The group of most troubles."""


@dataclass(frozen=True, slots=True)
class Planted:
    """A trouble that is there now."""

    cause: Cause
    """What has to be named."""
    url: str
    """Of the Redis server; the namespace is `NAME`."""
    observer: Aggregator
    """An aggregator of the namespace that runs no flusher."""
    late: bool = True
    """Whether the group is late."""
    group: str = LATE_GROUP
    """The group to ask for."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What troubles are planted in.

    Args:
        ask: returns a fixture by its name, so that a cluster starts only if it is needed.
        make: makes aggregators, which are closed at the end.
    """

    ask: Callable[[str], Any]
    make: Make
    url: str

    def client(self) -> redis.Redis:
        """A client of the server."""
        found: redis.Redis = self.ask("sync_redis")
        return found


Plant = Callable[[Ground], "Iterator[Planted]"]

DUE = {"group_max_size": 1, "lease_time": 1}
"""Settings under which each task is due at once."""


def _task(group: str = LATE_GROUP) -> Task:
    return Task("test", 1, group)


def _fail(group: str, tasks: list[Task]) -> Task:
    raise ValueError("no such tenant")


def _planted(ground: Ground, cause: Cause, **fields: Any) -> Planted:
    return Planted(cause, ground.url, ground.make(name=NAME), **fields)


def no_flusher(ground: Ground) -> Iterator[Planted]:
    """The only flusher has stopped."""
    agg = ground.make(name=NAME, **DUE)
    agg.start()
    await_led(agg)
    agg.stop()
    agg.add_task(_task())
    yield _planted(ground, "no_flusher")


def paused(ground: Ground) -> Iterator[Planted]:
    """An operator has paused the namespace."""
    agg = ground.make(name=NAME, **DUE)
    agg.pause(by="ann")
    agg.start()
    agg.add_task(_task())
    await_led(agg)
    yield _planted(ground, "paused")


def sink_down(ground: Ground) -> Iterator[Planted]:
    """The sink fails for all batches."""

    def refuse(task: Task, batch_id: str) -> None:
        raise ConnectionError("connection refused")

    agg = ground.make(
        name=NAME, sink=CallableSink(refuse), **{**DUE, "retry_delay": 30, "retry_max_delay": 30}
    )
    agg.start()
    agg.add_tasks([_task(f"customer:{n}") for n in range(20)])
    wait_until(
        lambda: any(each.sinks_down for each in agg.get_flushers()), what="the breaker is open"
    )
    yield _planted(ground, "sink_down")


def poison_group(ground: Ground) -> Iterator[Planted]:
    """All attempts to merge the group have failed."""
    agg = ground.make(name=NAME, group_aggregator=_fail, **{**DUE, "max_attempts": 2})
    agg.start()
    agg.add_task(_task())
    await_dead(agg)
    yield _planted(ground, "dead_letters")


def retry(ground: Ground) -> Iterator[Planted]:
    """An attempt to merge the group has failed, and the next one is not due yet."""
    slow = {"retry_delay": 60, "retry_max_delay": 60, "max_attempts": 10}
    agg = ground.make(name=NAME, group_aggregator=_fail, **{**DUE, **slow})
    agg.start()
    agg.add_task(_task())
    wait_until(lambda: agg.stats().batches_in_retry, what="a batch is in retry")
    yield _planted(ground, "retry")


def rate_limit(ground: Ground) -> Iterator[Planted]:
    """Other groups have used up the rate limit."""
    agg = ground.make(name=NAME, rate_limit=RateLimit(1, per=600), **DUE)
    agg.start()
    agg.add_task(_task("customer:1"))
    await_batches(agg, 1)
    agg.add_task(_task())
    yield _planted(ground, "rate_limit")


def lease_without_leader(ground: Ground) -> Iterator[Planted]:
    """A flusher that is not alive holds the lease of the partition."""
    agg = ground.make(name=NAME, **DUE)
    agg.add_task(_task())
    p = Keyspace(NAME, 2).partition_of(LATE_GROUP.encode())
    keys = [p.state, p.claims, p.tasks(b"")]
    [[token, _]] = Transport(ground.client(), 0).exchange(
        [call("acquire", keys, "ghost", 600_000, p.label)]
    )
    assert token
    agg.start()
    wait_until(lambda: agg.stats().flushers, what="a flusher is alive")
    yield _planted(ground, "no_leader")


def redis_full(ground: Ground) -> Iterator[Planted]:
    """Redis takes no further task."""
    binary: Path = ground.ask("server_binary")
    with EmbeddedRedis(binary, config={"maxmemory-policy": "noeviction"}) as server:
        agg = ground.make(name=NAME, url=server.url, **DUE)
        agg.start()
        await_led(agg)
        with redis.Redis.from_url(server.url) as client:
            used: Any = client.info("memory")
            client.config_set("maxmemory", int(used["used_memory"] * 0.9))
        try:
            agg.add_task(_task())
        except RedisOutOfMemory:
            observer = ground.make(name=NAME, url=server.url)
            yield Planted("redis_full", server.url, observer, late=False)
        else:
            raise AssertionError("the add was not refused")
        observer.close()
        agg.close()


def partition_away(ground: Ground) -> Iterator[Planted]:
    """The master that has the partition of the group is down."""
    ground.ask("cluster_url")
    topology: ClusterTopology = ground.ask("cluster")
    space = Keyspace(NAME, 16)
    of_meta = topology.master_of(space.meta.decode())
    for group in (f"customer:{n}" for n in range(100)):
        victim = topology.master_of(space.partition_of(group.encode()).state.decode())
        if victim is not of_meta:
            break
    where = "redis+cluster://" + ",".join(f"{HOST}:{node.port}" for node in topology.masters)
    settings = {**DUE, "partitions": 16}
    agg = ground.make(name=NAME, url=where, **settings)
    agg.add_task(_task(group))
    observer = ground.make(name=NAME, url=where, partitions=16)
    observer.stats()
    topology.kill(victim)
    yield Planted("partition_away", where, observer, group=group)


def cooling_group(ground: Ground) -> Iterator[Planted]:
    """The group was flushed just now, and its min interval is not over."""
    agg = ground.make(name=NAME, group_min_interval=600, **DUE)
    agg.start()
    agg.add_task(_task())
    await_batches(agg, 1)
    agg.add_task(_task())
    yield _planted(ground, "cooling", late=False)


def wrong_partitions(ground: Ground) -> Iterator[Planted]:
    """The only flusher was started with another number of partitions."""
    agg = ground.make(name=NAME, **DUE)
    agg.add_task(_task())
    other = ground.make(name=NAME, **{**DUE, "partitions": 3})
    try:
        other.start()
    except NamespaceMismatch:
        yield _planted(ground, "wrong_partitions")
    else:
        raise AssertionError("the flusher was not refused")


def clock_off(ground: Ground) -> Iterator[Planted]:
    """Redis' clock was set back by an hour since the task came."""
    agg = ground.make(name=NAME, lease_time=1)
    later = datetime.fromtimestamp(time.time(), timezone.utc) + timedelta(hours=1)
    with ground.ask("redis_at")(later):
        agg.add_task(_task())
        agg.start()
        await_led(agg)
        agg.stop()
    yield _planted(ground, "clock", late=False)


TROUBLES: dict[str, Plant] = {
    each.__name__: each
    for each in (
        no_flusher,
        paused,
        sink_down,
        poison_group,
        retry,
        rate_limit,
        lease_without_leader,
        redis_full,
        partition_away,
        cooling_group,
        wrong_partitions,
        clock_off,
    )
}
"""The troubles by name."""


@contextmanager
def planted(name: str, ground: Ground) -> Iterator[Planted]:
    """Plants a trouble for the time of a block."""
    with contextmanager(TROUBLES[name])(ground) as found:
        yield found
