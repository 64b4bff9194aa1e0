"""On Redis Cluster: Asynq's queue has a slot of its own, so the sink takes two steps."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from redisagg import Task
from redisagg.errors import KeyConflict, SinkError
from redisagg.protocol.keys import Keyspace
from redisagg.sinks import AsynqSink, DeliverySink, MergedTask, SinkContext
from redisagg.transport.aio import AsyncTransport
from redisagg.transport.endpoint import aclose, endpoint_of
from tests.sinks.asynq.program import Asynq
from tests.sinks.asynq.test_consumer import await_shared, kill_in_the_midst, merging, payload
from tests.support.aggregators import Make
from tests.support.processes import Processes
from tests.support.servers import ClusterTopology, wait_until
from tests.support.tasks import await_dead, numbered
from tests.support.worker import GATE

pytestmark = pytest.mark.registry

BATCH = MergedTask("id-1", "a", 1, Task("email:send", {"user_id": 42}))


@pytest.fixture
def url(cluster_url: str) -> str:
    return cluster_url.replace("redis://", "redis+cluster://").removesuffix("/0")


@pytest.fixture
def client(cluster_url: str) -> Iterator[redis.RedisCluster]:
    with redis.RedisCluster.from_url(cluster_url) as client:
        yield client


@pytest.fixture
def asynq(asynq_at: Callable[[str], Asynq], cluster: ClusterTopology, cluster_url: str) -> Asynq:
    """The real Asynq on the cluster."""
    return asynq_at("cluster:" + cluster_url.removeprefix("redis://").removesuffix("/0"))


def on_cluster(sink: AsynqSink) -> DeliverySink:
    delivery = sink.resolve(clustered=True)
    assert isinstance(delivery, DeliverySink)
    assert sink.resolve(clustered=True) is delivery
    assert sink.resolve(clustered=False) is sink
    return delivery


async def deliver(cluster_url: str, sink: AsynqSink, *batches: MergedTask) -> None:
    """Has a flusher's way to Redis deliver batches."""
    client = endpoint_of(cluster_url.replace("redis://", "redis+cluster://")).asyncio()
    delivery = on_cluster(sink)
    await delivery.open(SinkContext(Keyspace("tests", 2), AsyncTransport(client, 5)))
    try:
        for batch in batches:
            await delivery.deliver(batch)
    finally:
        await aclose(client)


async def test_a_repeat_is_refused(
    cluster_url: str, client: redis.RedisCluster, asynq: Asynq
) -> None:
    """As after the death of a flusher between the two steps."""
    await deliver(cluster_url, AsynqSink(), BATCH, BATCH)
    assert client.lrange("asynq:{default}:pending", 0, -1) == [b"id-1"]
    assert client.smembers("asynq:queues") == {b"default"}
    [task] = asynq.inspect()["pending"]
    assert (task["id"], task["type"], task["max_retry"]) == ("id-1", "email:send", 25)


async def test_later_and_unique_tasks(cluster_url: str, client: redis.RedisCluster) -> None:
    sink = AsynqSink("later", process_in=60, unique_ttl=60)
    await deliver(cluster_url, sink, BATCH, MergedTask("id-2", "a", 1, BATCH.task))
    assert client.zrange("asynq:{later}:scheduled", 0, -1) == [b"id-1"]
    [unique] = client.scan_iter("asynq:{later}:unique:*")
    assert 100 < client.ttl(unique) <= 120


async def test_a_foreign_type_is_refused_before_anything_is_written(
    cluster_url: str, client: redis.RedisCluster
) -> None:
    client.set("asynq:{default}:pending", "foreign")
    with pytest.raises(KeyConflict):
        await deliver(cluster_url, AsynqSink(), BATCH)
    assert not client.exists("asynq:{default}:t:id-1")


async def test_a_delivery_needs_an_open_sink() -> None:
    with pytest.raises(SinkError, match="not open"):
        await on_cluster(AsynqSink()).deliver(BATCH)


def test_options_are_inherited_and_a_refused_batch_is_kept(
    make: Make, url: str, client: redis.RedisCluster
) -> None:
    client.set("asynq:{critical}:pending", "foreign")
    agg = make(url=url, group_max_size=2, max_attempts=2)
    options = {"queue": "critical"}
    with agg:
        agg.add_tasks(Task("test", n, "a", options=options) for n in range(2))
        [letter] = await_dead(agg)
        client.delete("asynq:{critical}:pending")
        agg.requeue_dead_letter(letter.batch_id)
        agg.add_tasks(numbered("b", 2))
        assert agg.wait_until_idle(10)
    assert client.lrange("asynq:{critical}:pending", 0, -1) == [letter.batch_id.encode()]
    assert client.llen("asynq:{default}:pending") == 1
    assert client.smembers("asynq:queues") == {b"critical", b"default"}


def test_with_retention_all_arrives_once_although_a_flusher_is_killed(
    make: Make,
    processes: Processes,
    url: str,
    redis_url: str,
    sync_redis: redis.Redis,
    asynq: Asynq,
) -> None:
    config: dict[str, Any] = {"group_max_size": 5, "partitions": 16, "lease_time": 1.5}
    agg = make(url=url, **config)
    server = asynq.serve()
    killed, other = processes.flushers(
        2,
        url,
        config=config,
        merge="gate",
        gate_url=redis_url,
        sink="asynq://default?retention=600",
    )
    await_shared(agg)
    agg.add_tasks(Task("test", n, f"g{n % 50}") for n in range(500))
    wait_until(lambda: merging(sync_redis) == {killed.pid, other.pid}, what="both merge")
    kill_in_the_midst(killed, agg, sync_redis)
    sync_redis.set(GATE, 1)
    assert agg.wait_until_idle(40)
    server.await_lines(100)
    time.sleep(0.5)  # for what should not come
    assert len({said["id"] for said in server.lines}) == len(server.lines) == 100
    found = Counter(n for said in server.lines for n in payload(said)["payloads"])
    assert found == Counter(range(500))
    seen = asynq.inspect()
    assert (len(seen["completed"]), seen["pending"], seen["archived"]) == (100, [], [])
