"""What each rule costs where it is used: CPU time of adds and of a drain, and memory.

The CPU time is that of Redis and of the producer or flusher. It suffers less than the wall time from
other processes of the machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any, NamedTuple

from benchmarks.measure import Check, Series, take_turns
from benchmarks.processes import cpu_seconds, flushers, wait_for_leaders
from benchmarks.workload import PAYLOAD, client_of, empty, flusher_config, group_of
from redisagg import AggregationConfig, Aggregator, Cron, Policy, Task

_SIZE = 20
_PAST = datetime(2020, 1, 1, tzinfo=timezone.utc)
_FUTURE = datetime(2100, 1, 1, tzinfo=timezone.utc)
_COOL = {"group_leading": True, "group_min_interval": 3600}


class Rule(NamedTuple):
    """What a rule adds to tasks and to the configuration."""

    fields: Mapping[str, Any] = {}
    settings: Mapping[str, Any] = {}
    in_drain: Mapping[str, Any] = {}
    """Fields in place of others, so that groups are due."""
    policy: Policy | None = None
    replaces: bool = False


RULES = {
    "no rule": Rule(),
    "group_max_bytes": Rule(settings={"group_max_bytes": 1_000_000}),
    "Task.max_bytes": Rule({"max_bytes": 1_000_000}),
    "Task.weight, group_max_weight": Rule({"weight": 3}, {"group_max_weight": 1_000_000}),
    "Task.due_at": Rule({"due_at": _FUTURE}),
    "Task.not_before": Rule({"not_before": _FUTURE}, in_drain={"not_before": _PAST}),
    "Task.flush": Rule({"flush": True}),
    "group_leading, group_min_interval": Rule(settings=_COOL),
    "group_schedule": Rule(settings={"group_schedule": Cron("0 9 * * *", tz="Europe/Berlin")}),
    "a policy": Rule(policy=Policy(max_delay=500)),
    "Task.on_conflict, all new": Rule({"on_conflict": "replace"}),
    "Task.on_conflict, all replace": Rule({"on_conflict": "replace"}, replaces=True),
}


def _server_cpu(client: Any) -> float:
    found = client.info("cpu")
    return float(found["used_cpu_user"]) + float(found["used_cpu_sys"])


def _producer(url: str, rule: Rule) -> Aggregator:
    """An aggregator with the settings of a rule, in an empty namespace."""
    empty(url)
    settings: dict[str, Any] = {"group_max_size": _SIZE, **rule.settings}
    aggregator = Aggregator("bench", url, config=AggregationConfig(**settings))
    aggregator.stats()
    if rule.policy is not None:
        aggregator.set_policy("g*", rule.policy)
    return aggregator


def _tasks(rule: Rule, count: int, size: int | None = None) -> Iterable[Task]:
    """Tasks over all groups in turn, or in full groups of `size` one after the other."""
    fields = rule.fields if size is None else {**rule.fields, **rule.in_drain}
    for n in range(count):
        group = group_of(n) if size is None else f"g{n // size}"
        yield Task("t", PAYLOAD, group, f"id-{n}", **fields)


def add_cost(url: str, rule: Rule, count: int, *, bulk: bool) -> float:
    """CPU time of an add, in µs: `add_tasks` if `bulk`, else `add_task` one at a time."""
    aggregator = _producer(url, rule)
    client = client_of(url)
    if rule.replaces:
        aggregator.add_tasks(_tasks(Rule(), count), ids=False)
    before = time.process_time() + _server_cpu(client)
    if bulk:
        aggregator.add_tasks(_tasks(rule, count), ids=False)
    else:
        for task in _tasks(rule, count):
            aggregator.add_task(task)
    used = time.process_time() + _server_cpu(client) - before
    aggregator.close()
    return 1e6 * used / count


def drain_cost(url: str, rule: Rule, count: int) -> float:
    """CPU time of a task in a drain of full groups, in µs: of Redis and a flusher process."""
    aggregator = _producer(url, rule)
    aggregator.pause()
    aggregator.add_tasks(_tasks(rule, count, _SIZE), ids=False)
    client = client_of(url)
    with flushers(url, "bench", _SIZE) as [pid]:
        wait_for_leaders(aggregator)
        before = cpu_seconds(pid) + _server_cpu(client)
        aggregator.resume()
        end = time.monotonic() + 300
        while aggregator.stats().flushed < count:
            assert time.monotonic() < end
            time.sleep(0.02)
        used = cpu_seconds(pid) + _server_cpu(client) - before
    aggregator.close()
    return 1e6 * used / count


def cooling_group(url: str, count: int, key_length: int) -> float:
    """Bytes of Redis memory of a group of which nothing is left but its min interval."""
    empty(url)
    settings = flusher_config(_SIZE, **_COOL)
    aggregator = Aggregator("bench", url, config=settings)
    client = client_of(url)
    with aggregator:
        aggregator.add_task(Task("t", 1, "first"))
        assert aggregator.wait_until_idle(60)
    client.delete("bench-batches")
    before: int = client.info("memory")["used_memory"]
    with aggregator:
        keys = (f"{n:0{key_length}}" for n in range(count))
        aggregator.add_tasks((Task("t", 1, key) for key in keys), ids=False)
        assert aggregator.wait_until_idle(300)
    assert aggregator.stats().pending == 0
    aggregator.close()
    assert client.delete("bench-batches") == 1
    used: int = client.info("memory")["used_memory"] - before
    return used / count


def measure(url: str, turns: int, scale: float, checks: list[Check]) -> list[Series]:
    """Adds one at a time, adds in bulk, drains, and the memory of groups that cool down."""

    def n(count: int) -> int:
        return max(1_000, int(count * scale))

    lone = {
        name: lambda rule=rule: add_cost(url, rule, n(3_000), bulk=False)
        for name, rule in RULES.items()
    }
    bulk = {
        name: lambda rule=rule: add_cost(url, rule, n(20_000), bulk=True)
        for name, rule in RULES.items()
    }
    drains = {
        name: lambda rule=rule: drain_cost(url, rule, n(40_000))
        for name, rule in RULES.items()
        if not rule.replaces
    }
    found = [
        take_turns("CPU time of lone adds, by rule", "µs", lone, turns),
        take_turns("CPU time of adds in bulk, by rule", "µs", bulk, turns),
        take_turns("CPU time of a drain of groups of 20, by rule", "µs/task", drains, turns),
    ]
    for series in found:
        for name in series.values:
            median, low, high = series.ratio(name, "no rule")
            print(f"  {series.title}: {name}: {median:.2f} ({low:.2f} to {high:.2f})", flush=True)
    memory = Series("memory of a group that cools down", "bytes")
    for length in (8, 64):
        key = f"group keys of {length} bytes"
        memory.values[key] = [cooling_group(url, n(20_000), length)]
    return [*found, memory]
