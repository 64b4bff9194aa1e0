"""What a flusher costs when idle, and how fast it is when a group fills up.

Counts hold on any machine. Times are printed at the end of the run; only limits far from what a
quiet machine shows are asserted.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from redisagg import Task
from redisagg.testing.embedded import EmbeddedRedis
from tests.support.aggregators import Make
from tests.support.processes import Crew
from tests.support.tasks import Measured, await_led, numbered


@pytest.mark.quiet
@pytest.mark.parametrize("size", [1, 10])
def test_a_filled_group_is_in_the_queue_within_milliseconds(
    make: Make,
    crew: Crew,
    redis_url: str,
    sync_redis: redis.Redis,
    measured: Measured,
    request: pytest.FixtureRequest,
    size: int,
) -> None:
    config: dict[str, Any] = {"group_max_size": size, "partitions": 16}
    agg = make(**config)
    crew.flushers(1, redis_url, config=config)
    await_led(agg)
    latencies = []
    last: Any = "0"
    for n in range(210):
        *before, filling = numbered(f"g{n % 50}", size)
        if before:
            agg.add_tasks(before)
        time.sleep(0.005)  # so that the leader sleeps again
        start = time.perf_counter()
        agg.add_task(filling)
        reply: Any = sync_redis.xread({"tests-batches": last}, count=1, block=5_000)
        latencies.append((time.perf_counter() - start) * 1000)
        [entries] = reply.values() if isinstance(reply, dict) else [reply[0][1]]
        [(last, _)] = entries if isinstance(entries[0], tuple) else entries[0]
    centiles = statistics.quantiles(latencies[10:], n=100)  # the first ones load scripts
    measured(
        f"{request.node.name}: p50 {centiles[49]:.2f} ms, p99 {centiles[98]:.2f} ms "
        "(promised: 5 and 25)"
    )
    assert centiles[49] < 25


def commands(client: redis.Redis) -> int:
    """Commands that Redis has carried out so far, those inside scripts counted."""
    stats: Any = client.info("commandstats")
    return sum(row["calls"] for name, row in stats.items() if name != "cmdstat_info")


def test_an_idle_flusher_costs_the_same_however_many_groups_are_open(
    make_one_kind: Make,
    crew: Crew,
    redis_url: str,
    server_binary: Path,
    measured: Measured,
) -> None:
    config: dict[str, Any] = {"partitions": 16, "lease_time": 10}  # as by default
    seconds = 15.0  # four or five renewals of each lease, so that one more or less tells little
    with EmbeddedRedis(server_binary) as few:
        urls = {10: few.url, 100_000: redis_url}
        clients = {groups: redis.Redis.from_url(url) for groups, url in urls.items()}
        for groups, url in urls.items():
            agg = make_one_kind(url=url, **config)
            crew.flushers(1, url, config=config)
            await_led(agg)
            agg.add_tasks((Task("test", None, f"g{n}") for n in range(groups)), ids=False)
            assert agg.stats().groups == groups
        time.sleep(0.5)
        before = {groups: commands(client) for groups, client in clients.items()}
        time.sleep(seconds)
        rates = {
            groups: (commands(client) - before[groups]) / seconds
            for groups, client in clients.items()
        }
        for client in clients.values():
            client.close()
    shown = [f"{rate:.1f} commands/s with {groups:,} groups" for groups, rate in rates.items()]
    measured(f"an idle flusher: {', '.join(shown)} (promised: 60)")
    # Not compared with each other: on a busy machine renewals are late, and two windows may differ
    # by two renewals of 16 leases. One command for every 1,000 groups and look breaks this limit.
    assert max(rates.values()) <= 60
