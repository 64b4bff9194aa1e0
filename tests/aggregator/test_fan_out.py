"""A merge that returns thousands of tasks: they are enqueued in slices, each once and in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import redis

from redisagg import Aggregator, Task
from redisagg.protocol.keys import Keyspace
from redisagg.sinks import CallableSink, ListSink, Sink, StreamSink
from redisagg.sinks.asynq import AsynqSink
from tests.support.aggregators import Make
from tests.support.proxy import Proxy
from tests.support.servers import wait_until
from tests.support.tasks import Measured, await_dead, await_led, enqueued, numbered

MANY = 10_000
SOME = 3_000  # six slices
PROMPTLY = 20
P = Keyspace("tests", 1).partitions[0]
PENDING = "asynq:{fan}:pending"


class Queue(NamedTuple):
    """A kind of queue in Redis."""

    sink: Callable[[], Sink]
    script: str
    key: str
    length: str
    """The command that tells how many entries it has."""

    def size(self, client: redis.Redis) -> int:
        return int(client.execute_command(self.length, self.key))


QUEUES = [
    Queue(lambda: ListSink("fan"), "commit_list", "fan", "LLEN"),
    Queue(lambda: StreamSink("fan"), "commit_stream", "fan", "XLEN"),
    Queue(lambda: AsynqSink("fan"), "commit_asynq", PENDING, "LLEN"),
]
each_queue = pytest.mark.parametrize("queue", QUEUES, ids=lambda queue: queue.script)


class FanOut:
    """Returns many tasks for a task of the type "many", else one for each task."""

    def __init__(self, count: int, size: int = 10) -> None:
        self.calls = Counter[Any]()
        self._count = count
        self._text = "x" * size

    def __call__(self, group: str, tasks: list[Task]) -> list[Task]:
        self.calls[group, tasks[0].payload] += 1
        if tasks[0].type == "many":
            return [Task("one", [n, self._text]) for n in range(self._count)]
        return [Task("other", task.payload) for task in tasks]


def fan_out(agg: Aggregator, behind: int = 2) -> None:
    """Adds a task that becomes many, and others behind it in the group."""
    agg.add_task(Task("many", 0, "g"))
    agg.add_tasks(numbered("g", behind, start=1))


def assert_in_order(
    agg: Aggregator, queue: Queue, client: redis.Redis, count: int, behind: int = 2
) -> None:
    """Asserts that the queue has the entries of `fan_out`, and nothing is left in Redis."""
    if queue.script == "commit_asynq":
        pending: Any = client.lrange(PENDING, 0, -1)
        ids = [each.decode() for each in reversed(pending)]
        assert [each.rsplit("-", 1)[1] for each in ids[:count]] == [
            str(n) for n in range(1, count + 1)
        ]
        assert len({each.rsplit("-", 1)[0] for each in ids[:count]}) == 1
        assert len(ids) == count + behind
    else:
        batches = enqueued(agg)
        found = [each.payload[0] for each in batches[:count]]
        assert found == list(range(count))
        assert [each.payload for each in batches[count:]] == list(range(1, behind + 1))
    assert client.keys("*:result:*") == client.keys("*:tasks:*") == []
    stats = agg.stats()
    assert (stats.pending, stats.in_flight, stats.dead, stats.stored_bytes) == (0, 0, 0, 0)


def config_of(merge: Any, **changes: Any) -> dict[str, Any]:
    return {"partitions": 1, "group_max_size": 1, "group_aggregator": merge, **changes}


@each_queue
def test_thousands_of_merged_tasks_are_enqueued_in_slices(
    make: Make, sync_redis: redis.Redis, queue: Queue, measured: Measured
) -> None:
    merge = FanOut(MANY)
    sync_redis.config_set("slowlog-log-slower-than", 1_000)
    sync_redis.config_resetstat()
    with make(sink=queue.sink(), **config_of(merge)) as agg:
        sync_redis.slowlog_reset()
        fan_out(agg)
        assert agg.wait_until_idle(PROMPTLY)
        slow: Any = sync_redis.slowlog_get(999)
        assert_in_order(agg, queue, sync_redis, MANY)
    calls: Any = sync_redis.info("commandstats")
    assert calls["cmdstat_evalsha"]["calls"] > MANY / 500
    slowest = max((each["duration"] for each in slow), default=1_000)
    measured(f"{MANY:,} merged tasks of a batch, {queue.script}: {slowest / 1000:.1f} ms at most")
    assert merge.calls["g", 0] == 1


@each_queue
def test_another_flusher_goes_on_where_one_died(
    make: Make, proxy: Proxy, sync_redis: redis.Redis, queue: Queue
) -> None:
    merge = FanOut(MANY)
    config = config_of(merge, lease_time=3)
    direct = make(sink=queue.sink(), **config)
    with make(name="warm-up", sink=queue.sink(), **config) as warm:
        warm.add_tasks(numbered("w", 1))
        assert warm.wait_until_idle(PROMPTLY)
    sync_redis.delete(queue.key)
    with make(url=proxy.url, sink=queue.sink(), **config):
        await_led(direct)
        proxy.delay(0.01)
        fan_out(direct)
        wait_until(lambda: queue.size(sync_redis) >= 2_000, what="some slices are enqueued")
        proxy.lose_reply(queue.script, then_cut=True).wait()
        assert 2_000 <= queue.size(sync_redis) < MANY
        with direct:
            assert direct.wait_until_idle(PROMPTLY)
        proxy.restore()
        assert_in_order(direct, queue, sync_redis, MANY)
    assert merge.calls["g", 0] == 1


@each_queue
def test_a_slice_whose_reply_is_lost_is_enqueued_once(
    make: Make, proxy: Proxy, sync_redis: redis.Redis, queue: Queue
) -> None:
    merge = FanOut(SOME)
    config = config_of(merge, lease_time=30)
    with make(name="warm-up", sink=queue.sink(), **config) as warm:
        warm.add_tasks(numbered("w", 1))
        warm.add_task(Task("many", 0, "w2"))  # the server knows all scripts
        assert warm.wait_until_idle(PROMPTLY)
    sync_redis.delete(queue.key)
    direct = make(sink=queue.sink(), **config)
    with make(url=proxy.url, sink=queue.sink(), **config):
        await_led(direct)
        proxy.delay(0.03)
        stored = proxy.lose_reply("store_result")
        slices = [proxy.lose_reply(queue.script)]
        fan_out(direct)
        for _ in range(2):
            slices[-1].wait()
            slices.append(proxy.lose_reply(queue.script))
        slices[-1].wait()
        stored.wait(0)
        assert direct.wait_until_idle(PROMPTLY)
        assert_in_order(direct, queue, sync_redis, SOME)
    assert merge.calls["g", 0] == 1


def spoil_the_queue(client: redis.Redis, proxy: Proxy, agg: Aggregator) -> list[bytes]:
    """Fans out, and puts another type into the list after a few slices; returns those."""
    proxy.delay(0.02)
    fan_out(agg)
    wait_until(lambda: client.llen("fan") >= 1_000, what="some slices are enqueued")
    with client.pipeline() as pipeline:
        pipeline.lrange("fan", 0, -1)
        pipeline.set("fan", "foreign")
        first: list[bytes] = pipeline.execute()[0]
    proxy.restore()
    return first


def put_back(client: redis.Redis, first: list[bytes]) -> None:
    with client.pipeline() as pipeline:  # one transaction: a slice must not come in between
        pipeline.delete("fan")
        pipeline.rpush("fan", *first)
        pipeline.execute()


def test_a_batch_whose_queue_refuses_a_slice_goes_on_there(
    make: Make, proxy: Proxy, sync_redis: redis.Redis
) -> None:
    merge = FanOut(SOME)
    config = config_of(merge, max_attempts=50)
    direct = make(sink=ListSink("fan"), **config)
    with make(url=proxy.url, sink=ListSink("fan"), **config):
        await_led(direct)
        first = spoil_the_queue(sync_redis, proxy, direct)
        assert 1_000 <= len(first) < SOME
        wait_until(lambda: any(each.attempts > 2 for each in direct.get_batches()), what="retries")
        put_back(sync_redis, first)
        assert direct.wait_until_idle(PROMPTLY)
        assert_in_order(direct, QUEUES[0], sync_redis, SOME)
    assert merge.calls["g", 0] == 1


@pytest.mark.parametrize("then", ["requeue", "drop"])
def test_a_half_enqueued_batch_is_buried_with_what_is_left(
    make: Make, proxy: Proxy, sync_redis: redis.Redis, then: str
) -> None:
    merge = FanOut(SOME)
    config = config_of(merge, max_attempts=2)
    direct = make(sink=ListSink("fan"), **config)
    with make(url=proxy.url, sink=ListSink("fan"), **config):
        await_led(direct)
        first = spoil_the_queue(sync_redis, proxy, direct)
        letter = await_dead(direct)[0]
        assert letter.enqueued == len(first)
        assert letter.size == 1
        put_back(sync_redis, first)
        if then == "drop":
            assert direct.drop_dead_letter(letter.batch_id) == 1
            assert sync_redis.keys("*:result:*") == []
            return
        for other in direct.dead_letters():
            if other.batch_id != letter.batch_id:  # it came when the queue was spoilt
                direct.drop_dead_letter(other.batch_id)
        assert direct.requeue_dead_letter(letter.batch_id) == 1
        assert direct.wait_until_idle(PROMPTLY)
        payloads = [each.payload[0] for each in enqueued(direct) if each.type == "one"]
    assert payloads == list(range(SOME))
    assert merge.calls["g", 0] == 1
    assert sync_redis.keys("*:result:*") == []


def test_other_groups_are_enqueued_between_the_slices(
    make: Make, sync_redis: redis.Redis, proxy: Proxy
) -> None:
    merge = FanOut(5_000)  # ten slices, so that a slow machine has time
    config = config_of(merge)
    direct = make(sink=ListSink("fan"), **config)
    with make(url=proxy.url, sink=ListSink("fan"), **config):
        await_led(direct)
        proxy.delay(0.1)
        direct.add_task(Task("many", 0, "g"))
        wait_until(lambda: sync_redis.llen("fan") >= 500, what="a slice is enqueued")
        direct.add_tasks(numbered("quiet", 1))
        assert direct.wait_until_idle(PROMPTLY)
        types = [each.type for each in enqueued(direct)]
    assert "one" in types[types.index("other") :], "behind all slices"


def test_few_but_large_merged_tasks_are_enqueued_in_slices(
    make: Make, sync_redis: redis.Redis
) -> None:
    merge = FanOut(10, size=300_000)
    with make(sink=ListSink("fan"), **config_of(merge)) as agg:
        fan_out(agg)
        assert agg.wait_until_idle(PROMPTLY)
        assert_in_order(agg, QUEUES[0], sync_redis, 10)


def test_a_large_result_that_is_stored_for_a_retry_is_read_in_parts(
    make: Make, sync_redis: redis.Redis
) -> None:
    """It is in no record, so no reply to a claim has it."""
    merge = FanOut(1, size=3_000_000)
    delivered: list[Any] = []
    tried: list[int] = []

    def deliver(task: Task, batch_id: str) -> None:
        tried.append(len(tried))
        if len(tried) <= 2:
            parts: Any = sync_redis.hlen(P.result(batch_id.rsplit("-", 1)[0].encode()))
            assert parts == (6 if len(tried) == 2 else 0)
            raise ConnectionError("the queue is away")
        delivered.append(task.payload)

    with make(sink=CallableSink(deliver), **config_of(merge, max_attempts=4)) as agg:
        fan_out(agg)
        assert agg.wait_until_idle(PROMPTLY)
    assert [len(str(each)) > 1_000 for each in delivered] == [True, False, False]
    assert merge.calls["g", 0] == 1
    assert sync_redis.keys("*:result:*") == []


def test_a_result_that_somebody_removed_is_no_reason_to_wait(
    make: Make, sync_redis: redis.Redis
) -> None:
    def deliver(task: Task, batch_id: str) -> None:
        sync_redis.delete(P.result(batch_id.rsplit("-", 1)[0].encode()).decode())
        raise ConnectionError("the queue is away")

    merge = FanOut(1, size=100_000)
    config = config_of(merge, max_attempts=2, retry_delay=0.3, retry_max_delay=0.3)
    with make(sink=CallableSink(deliver), **config) as agg:
        agg.add_task(Task("many", 0, "g"))
        wait_until(lambda: bool(sync_redis.keys("*:result:*")), what="the result is stored")
        for key in sync_redis.keys("*:result:*"):
            sync_redis.delete(key)
        [letter] = await_dead(agg)
    assert "the stored result of its merge is gone" in letter.error
