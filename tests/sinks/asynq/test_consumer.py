"""A real server of Asynq works on what flushers in processes of their own enqueue."""

from __future__ import annotations

import base64
import json
import time
from collections import Counter
from typing import Any

import pytest
import redis

from redisagg import Aggregator, Task
from redisagg.views import PartitionStats
from tests.sinks.asynq.program import Asynq
from tests.support.aggregators import Make
from tests.support.processes import Processes, WorkerProcess
from tests.support.servers import wait_until
from tests.support.worker import BEGAN, GATE

pytestmark = pytest.mark.registry

GROUPS, TASKS = 50, 1_000


def payload(said: Any) -> Any:
    """The payload of a task that the Go handler got."""
    return json.loads(base64.b64decode(said["payload"]))


def await_shared(agg: Aggregator) -> None:
    """Waits until two flushers share the partitions evenly."""

    def shares() -> list[int]:
        leaders = [partition.leader for partition in agg.stats().partitions]
        return sorted(Counter(leaders).values())

    wait_until(lambda: shares() == [8, 8], what="both flushers lead 8 partitions")


def merging(client: redis.Redis) -> set[int]:
    """The processes that have begun a merge at the gate."""
    began: Any = client.lrange(BEGAN, 0, -1)
    return set(map(int, began))


def kill_in_the_midst(flusher: WorkerProcess, agg: Aggregator, client: redis.Redis) -> None:
    """Kills a flusher that has had batches enqueued, and has more of them in its hands."""

    def own() -> list[PartitionStats]:
        return [each for each in agg.stats().partitions if f":{flusher.pid}:" in str(each.leader)]

    while sum(each.batches_flushed for each in own()) == 0:
        client.set(f"{GATE}:{flusher.pid}", 1, px=2)  # long enough for a few merges
        time.sleep(0.1)
    flusher.kill()
    assert sum(each.batches_in_flight for each in own()) > 0


def test_a_thousand_tasks_arrive_once_each_although_a_flusher_is_killed(
    make: Make, processes: Processes, redis_url: str, sync_redis: redis.Redis, asynq: Asynq
) -> None:
    config: dict[str, Any] = {"group_max_size": 5, "partitions": 16, "lease_time": 1.5}
    agg = make(**config)
    server = asynq.serve()
    killed, other = processes.flushers(
        2, redis_url, config=config, merge="gate", sink="asynq://default"
    )
    await_shared(agg)
    tasks = [Task("test", n, f"g{n % GROUPS}") for n in range(TASKS)]
    agg.add_tasks(tasks[: TASKS // 2])
    wait_until(lambda: merging(sync_redis) == {killed.pid, other.pid}, what="both flushers merge")
    kill_in_the_midst(killed, agg, sync_redis)
    sync_redis.set(GATE, 1)
    agg.add_tasks(tasks[TASKS // 2 :])
    assert agg.wait_until_idle(30)
    server.await_lines(TASKS // 5)
    time.sleep(0.5)  # for what should not come

    assert len({said["id"] for said in server.lines}) == len(server.lines) == TASKS // 5
    merged = [payload(said) for said in server.lines]
    assert {batch["by"] for batch in merged} == {killed.pid, other.pid}
    assert Counter(n for batch in merged for n in batch["payloads"]) == Counter(range(TASKS))
    seen = asynq.inspect()
    assert (seen["queues"], seen["size"], seen["archived"]) == (["default"], 0, [])
