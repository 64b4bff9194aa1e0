"""The cost of open groups that are not due: commands/s, CPU of Redis and of the flusher."""

from __future__ import annotations

import subprocess
import time
from typing import Any

from benchmarks import asynq_side
from benchmarks.latency import fill_groups, percentile
from benchmarks.measure import Check, Series
from benchmarks.processes import cpu_seconds, flushers, wait_for_leaders
from benchmarks.workload import client_of
from redisagg import AggregationConfig, Aggregator, Task

_OPEN = AggregationConfig(group_grace_period=3600, group_max_delay=7200)


def _commands(client: Any) -> int:
    """Commands that Redis has carried out, including those in scripts."""
    return sum(int(stat["calls"]) for stat in client.info("commandstats").values())


def _watch(client: Any, pid: int, seconds: float) -> tuple[float, float, float]:
    """Commands/s, and the share of a core that Redis and the process `pid` use."""
    server = int(client.info("server")["process_id"])
    before = (_commands(client), cpu_seconds(server), cpu_seconds(pid))
    time.sleep(seconds)
    after = (_commands(client), cpu_seconds(server), cpu_seconds(pid))
    commands, server_cpu, own_cpu = (b - a for a, b in zip(before, after, strict=True))
    return commands / seconds, server_cpu / seconds, own_cpu / seconds


def idle_flusher(url: str, groups: int, seconds: float) -> tuple[tuple[float, float, float], float]:
    """An idle flusher with open groups: the values of `_watch`, and the median latency of a full
    group in ms."""
    client: Any = client_of(url)
    client.flushall()
    aggregator = Aggregator("bench", url, config=_OPEN)
    aggregator.add_tasks((Task("t", None, f"group-{n}") for n in range(groups)), ids=False)
    with flushers(url, "bench", 20) as [pid]:
        wait_for_leaders(aggregator)
        time.sleep(1)
        watched = _watch(client, pid, seconds)
        return watched, percentile(fill_groups(url, aggregator, 200), 0.5)


def asynq(url: str, groups: int, seconds: float) -> tuple[float, float, float] | None:
    """Asynq's server with open groups: the values of `_watch`; None where Asynq cannot run."""
    client: Any = client_of(url)
    client.flushall()
    line = asynq_side.command(url, "idle", n=groups, **{"for": f"{seconds + 3}s"})
    if line is None:
        return None
    with subprocess.Popen(line, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(1)
        found = _watch(client, process.pid, seconds)
        process.terminate()
    return found


def measure(url: str, turns: int, scale: float, checks: list[Check]) -> list[Series]:
    """1,000 to 1,000,000 open groups; Asynq up to 50,000 only."""
    seconds = 20.0 if scale >= 1 else 5.0
    commands = Series("idle flusher, commands", "commands/s")
    redis_cpu = Series("idle flusher, CPU of Redis", "% of a core")
    own_cpu = Series("idle flusher, its own CPU", "% of a core")
    latency = Series("latency of a full group beside open ones, p50", "ms")
    for groups in (1_000, 50_000, int(1_000_000 * min(1.0, scale))):
        own_values, filled = idle_flusher(url, groups, seconds)
        latency.values[f"redisagg, {groups:,} groups"] = [filled]
        contenders = {"redisagg": own_values}
        if groups <= 50_000:
            other = asynq(url, groups, seconds)
            contenders |= {"Asynq": other} if other else {}
        for who, (rate, server, own) in contenders.items():
            name = f"{who}, {groups:,} groups"
            commands.values[name] = [rate]
            redis_cpu.values[name] = [100 * server]
            own_cpu.values[name] = [100 * own]
            print(
                f"  idle: {name}: {rate:.1f} commands/s, {100 * server:.2f}% and {100 * own:.2f}%"
            )
    rate, server, own = contenders["redisagg"]
    for what, value in (("CPU of Redis", server), ("its own CPU", own)):
        text = f"idle flusher, {groups:,} open groups: {what}, % of a core"
        checks.append(Check(text, "< 1", f"{100 * value:.2f}", value < 0.01))
    return [commands, redis_cpu, own_cpu, latency]
