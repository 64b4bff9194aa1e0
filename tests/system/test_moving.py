"""A namespace is moved between the masters of a Redis Cluster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from redisagg import Task
from redisagg.errors import NamespaceMismatch
from redisagg.protocol.keys import Keyspace
from redisagg.sinks import StreamSink
from redisagg.transport.endpoint import close, endpoint_of
from redisagg.transport.threads import Transport
from tests.support.aggregators import Make
from tests.support.moving import move, moved_in_use


@pytest.fixture
def url(cluster_url: str) -> str:
    return cluster_url.replace("redis://", "redis+cluster://").removesuffix("/0")


@pytest.fixture
def transport(url: str) -> Iterator[Transport]:
    client = endpoint_of(url).answering_within(5).blocking()
    yield Transport(client, 20)
    close(client)


@pytest.mark.parametrize("new", ["tests", "other"])
def test_nothing_is_lost_doubled_or_reordered_on_a_cluster(
    transport: Transport, url: str, new: str
) -> None:
    steps = (3, 9, 14, 22, 30, None)
    in_use = moved_in_use(transport, url, StreamSink("queue"), ("tests", 6), (new, 4), steps)
    with in_use as (last, added, _):
        last.add_task(Task("t", 0, "last"))  # so it follows; on a cluster, who only reads does not
        last.flush_all()
        assert last.wait_until_idle(30)
        sink, batches = StreamSink("queue"), []
        with redis.RedisCluster.from_url(url.replace("redis+cluster", "redis")) as client:
            for name in ("tests", "other"):
                for p in Keyspace(name, 6).partitions:
                    read: Any = client.xrange(sink.key(p.slot))
                    batches += [sink.decode(fields) for _, fields in read]
        found: dict[str, list[int]] = {}
        for batch in sorted(batches, key=lambda each: each.batch_id):
            found.setdefault(batch.group, []).extend(batch.payload)
        assert found.pop("last") == [0]
        assert found == {group: list(range(n)) for group, n in added.items()}


def test_a_call_that_is_refused_on_a_cluster_follows(
    make_both: Make, transport: Transport, url: str
) -> None:
    agg, other = make_both(url=url, partitions=6), make_both(url=url, partitions=6)
    for each in (agg, other):
        each.pause("a")
    move(transport, "other", 4)
    with pytest.raises(NamespaceMismatch, match="it is 'other' now"):
        agg.resume("a")
    agg.resume("a")
    assert agg.name == "other"
    other.pause()
    assert agg.stats().paused
