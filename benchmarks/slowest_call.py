"""How long one script call keeps Redis busy at most, and what another client sees of it.

A case is a generator: it prepares the data, yields, and then does what is measured. `SLOWLOG` and
`LATENCY` are emptied in between. Meanwhile a process of its own sends PINGs.

The server gets real-time priority if this process may give it. Else other processes interrupt it on
a busy machine, and SLOWLOG shows calls that took longer than the script.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from benchmarks.latency import percentile
from benchmarks.measure import Check, Series
from benchmarks.workload import PAYLOAD, client_of, empty, noop
from redisagg import AggregationConfig, Aggregator, Policy, Task
from redisagg.config import GroupAggregator
from redisagg.protocol.scripts import find
from redisagg.sinks import ListSink, Sink, StreamSink

_LIMIT_MS = 5.0
_LOGGED_US = 100  # shorter calls are not logged
_LOG_LENGTH = 100_000
_PING_INTERVAL = 0.001
_TIMEOUT = 300.0

Case = Callable[[str, float], Iterator[None]]


def _count(full: int, scale: float) -> int:
    return max(1_000, int(full * scale)) if full > 1_000 else full


def _aggregator(
    url: str, sink: Sink | Callable[[Task], Sink] | None = None, **settings: Any
) -> Aggregator:
    empty(url)
    settings = {"group_max_size": 1_000_000, "group_aggregator": noop, "partitions": 1, **settings}
    return Aggregator("bench", url, config=AggregationConfig(**settings), sink=sink)


def _add(aggregator: Aggregator, count: int, groups: int = 1, **attributes: Any) -> None:
    aggregator.add_tasks(
        (Task("t", PAYLOAD, f"g{n % groups}", **attributes) for n in range(count)), ids=False
    )


def _drain(aggregator: Aggregator) -> None:
    """Flushes what is due, until nothing is left."""
    with aggregator:
        assert aggregator.wait_until_idle(_TIMEOUT)


# --- the cases -----------------------------------------------------------------------------------


def nothing(url: str, scale: float) -> Iterator[None]:
    """What the machine does to the measurement."""
    yield
    time.sleep(5 * scale)


def _cancels(url: str, scale: float, *, shuffled: bool) -> Iterator[None]:
    aggregator = _aggregator(url)
    count = _count(200_000, scale)
    ids = aggregator.add_tasks(Task("t", PAYLOAD, "g") for _ in range(count))
    if shuffled:
        random.Random(1).shuffle(ids)
    yield
    for each in ids[: count // 20]:
        assert aggregator.cancel_task("g", each)


def cancels_in_arrival_order(url: str, scale: float) -> Iterator[None]:
    return _cancels(url, scale, shuffled=False)


def cancels_in_random_order(url: str, scale: float) -> Iterator[None]:
    return _cancels(url, scale, shuffled=True)


def _fan(
    url: str, sink: Sink | Callable[[Task], Sink], tasks: int, merge: GroupAggregator, traced: bool
) -> Iterator[None]:
    aggregator = _aggregator(url, sink, group_aggregator=merge, group_max_size=tasks)
    traces = (f"00-{n:032x}-{n:016x}-01" for n in range(1, tasks + 1))
    aggregator.add_tasks(
        (Task("t", n, "g", headers={"traceparent": each} if traced else {}) for n, each in
         enumerate(traces)),
        ids=False,
    )  # fmt: skip
    yield
    _drain(aggregator)


def fan_out_into_a_list(url: str, scale: float) -> Iterator[None]:
    return _fan_out(url, ListSink("bench-list"), scale)


def fan_out_into_a_stream(url: str, scale: float) -> Iterator[None]:
    return _fan_out(url, StreamSink("bench-stream"), scale)


def _fan_out(url: str, sink: Sink, scale: float) -> Iterator[None]:
    count = _count(30_000, scale)
    return _fan(url, sink, 1, lambda group, tasks: [Task("m", n) for n in range(count)], False)


def traces_of_many_tasks(url: str, scale: float) -> Iterator[None]:
    count = _count(2_000, scale)
    sink = StreamSink("bench-stream")
    return _fan(url, sink, count, lambda group, tasks: [Task("m", n) for n in range(count)], True)


def routes_to_many_streams(url: str, scale: float) -> Iterator[None]:
    count = _count(12_000, scale)
    sinks = [StreamSink(f"bench-stream-{n}") for n in range(count)]
    aggregator = _aggregator(
        url,
        lambda task: sinks[task.payload],
        group_max_size=1,
        group_aggregator=lambda group, tasks: Task("m", tasks[0].payload),
    )
    aggregator.add_tasks((Task("t", n, f"g{n}") for n in range(count)), ids=False)
    yield
    _drain(aggregator)


def dedupe_sets_that_end(url: str, scale: float) -> Iterator[None]:
    aggregator = _aggregator(url, dedupe_window=60)
    [partition] = aggregator._keyspace.partitions
    client = client_of(url)
    members = _count(1_000_000, scale)
    for key, field in (
        (partition.seen, "seen_until"),
        (partition.seen_before, "seen_before_until"),
    ):
        for start in range(0, members, 10_000):
            client.sadd(key, *(b"\0\1g%032x" % n for n in range(start, start + 10_000)))
        client.hset(partition.state, field, int(time.time() * 1000) + 10_000)
    yield
    aggregator.add_task(Task("t", 1, "g", max_delay=10.0))
    _drain(aggregator)
    aggregator.add_task(Task("t", 1, "g", max_size=1))
    _drain(aggregator)
    assert client.scard(partition.seen_before) < members


def claim_of_a_large_batch(url: str, scale: float, tasks: int = 100_000) -> Iterator[None]:
    count = _count(tasks, scale)
    aggregator = _aggregator(url, group_max_size=count, dedupe_window=60)
    _add(aggregator, count)
    yield
    _drain(aggregator)


def _fail(group: str, tasks: list[Task]) -> Task:
    raise ValueError("as it is told")


def _large_failing(url: str, scale: float) -> Aggregator:
    """An aggregator with a batch that fails, and tasks behind it."""
    count = _count(100_000, scale)
    aggregator = _aggregator(
        url, group_max_size=count, group_aggregator=_fail, max_attempts=1, group_grace_period=3600
    )
    _add(aggregator, count + count // 2)
    return aggregator


def _bury(aggregator: Aggregator) -> str:
    """Lets the batch fail; returns its id."""
    with aggregator:
        end = time.monotonic() + _TIMEOUT
        while not (letters := aggregator.dead_letters()):
            assert time.monotonic() < end
            time.sleep(0.05)
    return letters[0].batch_id


def bury_a_large_batch(url: str, scale: float) -> Iterator[None]:
    aggregator = _large_failing(url, scale)
    yield
    _bury(aggregator)


def requeue_a_large_batch(url: str, scale: float) -> Iterator[None]:
    aggregator = _large_failing(url, scale)
    batch_id = _bury(aggregator)
    yield
    aggregator.requeue_dead_letter(batch_id)


def drop_a_large_batch(url: str, scale: float) -> Iterator[None]:
    aggregator = _large_failing(url, scale)
    batch_id = _bury(aggregator)
    yield
    aggregator.drop_dead_letter(batch_id)


def cancel_a_large_group(url: str, scale: float) -> Iterator[None]:
    aggregator = _aggregator(url)
    _add(aggregator, _count(200_000, scale))
    yield
    aggregator.cancel_group("g0")


def _with_groups(url: str, count: int, **attributes: Any) -> Aggregator:
    aggregator = _aggregator(url, group_grace_period=3600, group_max_delay=7200)
    _add(aggregator, count, count, **attributes)
    return aggregator


def flush_many_groups(url: str, scale: float) -> Iterator[None]:
    aggregator = _with_groups(url, _count(100_000, scale))
    yield
    aggregator.flush_all()


def list_many_groups(url: str, scale: float) -> Iterator[None]:
    aggregator = _with_groups(url, _count(100_000, scale))
    yield
    aggregator.get_groups()
    aggregator.get_groups(limit=50)
    for order in ("due", "size", "age", "any"):
        aggregator.find_groups(order=order)
        aggregator.find_groups(order=order, prefix="g99")


def pages_of_a_group(url: str, scale: float) -> Iterator[None]:
    count = _count(100_000, scale)
    aggregator = _aggregator(url)
    _add(aggregator, count)
    yield
    for offset in range(0, count, 1_000):
        aggregator.get_group("g0", offset=offset, limit=1_000)


def large_adds(url: str, scale: float) -> Iterator[None]:
    aggregator = _aggregator(url)
    payload = b"x" * 2_000
    count = _count(50_000, scale)
    yield
    aggregator.add_tasks((Task("t", payload, f"g{n % 100}") for n in range(count)), ids=False)


def _random_limits(draw: random.Random) -> dict[str, Any]:
    """Some of the limits that a task can have; none by which a group is due soon."""
    soon = datetime.now(timezone.utc) + timedelta(hours=draw.randint(1, 1_000))
    limits: dict[str, Any] = {
        "max_delay": draw.randint(1_000, 3_600),
        "grace_period": draw.randint(1_000, 3_600),
        "max_size": draw.randint(200_000, 1_000_000),
        "max_bytes": draw.randint(10**8, 10**9),
        "priority": draw.randint(-9, 9),
        "weight": draw.randint(0, 100),
        "due_at": soon,
        "not_before": soon,
    }
    return {name: value for name, value in limits.items() if draw.random() < 0.4}


def _add_with_limits(url: str, scale: float, groups: int, waiting: int) -> Iterator[None]:
    aggregator = _aggregator(url)
    _add(aggregator, waiting)
    draw, count = random.Random(1), _count(12_000, scale)
    tasks = [Task("t", PAYLOAD, f"g{n % groups}", **_random_limits(draw)) for n in range(count)]
    yield
    aggregator.add_tasks(tasks, ids=False)


def add_with_limits_to_a_large_group(url: str, scale: float) -> Iterator[None]:
    return _add_with_limits(url, scale, 1, _count(100_000, scale))


def add_with_limits_to_many_groups(url: str, scale: float) -> Iterator[None]:
    return _add_with_limits(url, scale, _count(2_000, scale), 0)


def poll_many_due_groups(url: str, scale: float) -> Iterator[None]:
    aggregator = _with_groups(url, _count(100_000, scale), max_delay=0.001)
    yield
    _drain(aggregator)


def apply_a_policy(url: str, scale: float) -> Iterator[None]:
    count = _count(100_000, scale)
    aggregator = _with_groups(url, count)
    _add(aggregator, count, count, max_size=7)
    policy = Policy(grace_period=5, max_size=9, max_bytes=10_000)
    yield
    aggregator.set_policy("*", policy, apply_to_open=True)


def stats_of_many_groups(url: str, scale: float) -> Iterator[None]:
    aggregator = _with_groups(url, _count(200_000, scale))
    yield
    for _ in range(200):
        aggregator.stats()


_CASES: dict[str, Case] = {
    "nothing": nothing,
    "cancel 10,000 of 200,000 tasks, in arrival order": cancels_in_arrival_order,
    "cancel 10,000 of 200,000 tasks, in random order": cancels_in_random_order,
    "a merge returns 30,000 tasks, into a list": fan_out_into_a_list,
    "a merge returns 30,000 tasks, into a stream": fan_out_into_a_stream,
    "2,000 tasks with traceparent, merged into 2,000": traces_of_many_tasks,
    "a route to each of 12,000 streams": routes_to_many_streams,
    "two dedupe sets of 1,000,000 ids end": dedupe_sets_that_end,
    "claim a batch of 100,000 tasks, with dedupe_window": claim_of_a_large_batch,
    "claim a batch of 1,000,000 tasks, with dedupe_window": partial(
        claim_of_a_large_batch, tasks=1_000_000
    ),
    "bury a batch of 100,000 tasks": bury_a_large_batch,
    "requeue a dead letter of 100,000 tasks": requeue_a_large_batch,
    "drop a dead letter of 100,000 tasks": drop_a_large_batch,
    "cancel_group of 200,000 tasks": cancel_a_large_group,
    "flush_all of 100,000 groups": flush_many_groups,
    "get_groups of 100,000 groups": list_many_groups,
    "get_group of 100,000 tasks in pages": pages_of_a_group,
    "add 500 tasks of 2,000 bytes in a call": large_adds,
    "add tasks with random limits to 100,000": add_with_limits_to_a_large_group,
    "add tasks with random limits to 2,000 groups": add_with_limits_to_many_groups,
    "100,000 groups are due at once": poll_many_due_groups,
    "apply a policy to 100,000 open groups": apply_a_policy,
    "stats of 200,000 open groups": stats_of_many_groups,
}


# --- measuring -----------------------------------------------------------------------------------


class Found(NamedTuple):
    """What was seen while a case ran; times in ms."""

    script: float
    """The slowest script call by SLOWLOG; 0 if all were shorter than what is logged."""
    script_name: str
    percentile: float
    """The 99th percentile of the logged calls of that script: the slowest one may have been
    interrupted by other processes."""
    latency: float
    """The slowest event by LATENCY, from 1 ms on."""
    ping: float
    """The 99th percentile of another client's PINGs."""
    slowest_ping: float


def _ping(url: str, connection: Connection) -> None:
    """Sends PINGs between two messages, and answers the second one with their times in ms."""
    client = client_of(url)
    while connection.recv():
        client.ping()
        connection.send("ready")
        times: list[float] = []
        while not connection.poll() or not times:
            start = time.perf_counter()
            client.ping()
            times.append(1000 * (time.perf_counter() - start))
            time.sleep(_PING_INTERVAL)
        connection.recv()
        connection.send(times)


@contextmanager
def pings(url: str) -> Iterator[Connection]:
    """Runs `_ping` in another process; yields the connection to it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_ping, args=(url, theirs), daemon=True)
    process.start()
    try:
        yield ours
        ours.send(False)
        process.join(10)
    finally:
        process.kill()


def _script_name(command: bytes) -> str | None:
    """The script that a command of SLOWLOG calls, or None if it calls none."""
    kind, _, rest = command.partition(b" ")
    if kind.upper() == b"EVALSHA":
        script = find(rest.partition(b" ")[0])
        return script.name if script else "of somebody else"
    if kind.upper() == b"EVAL":  # the source begins with the name
        return rest.removeprefix(b"-- ").partition(b":")[0].decode()
    return None


def run(url: str, case: Case, scale: float, connection: Connection) -> Found:
    """Runs a case."""
    client = client_of(url)
    steps = case(url, scale)
    next(steps)
    client.config_set("slowlog-max-len", _LOG_LENGTH)
    client.config_set("slowlog-log-slower-than", _LOGGED_US)
    client.config_set("latency-monitor-threshold", 1)
    client.slowlog_reset()
    client.latency_reset()
    connection.send(True)
    connection.recv()
    next(steps, None)
    connection.send(True)
    times = connection.recv()
    # An event: its name, when it was seen last, how long it then took, and at most.
    latency = max((event[3] for event in client.latency_latest()), default=0)
    calls = [
        (entry["duration"] / 1000, name)
        for entry in client.slowlog_get(_LOG_LENGTH)
        if (name := _script_name(entry["command"]))
    ]
    slowest, script = max(calls, default=(0.0, "-"))
    beside = percentile([ms for ms, name in calls if name == script] or [0.0], 0.99)
    return Found(slowest, script, beside, float(latency), percentile(times, 0.99), max(times))


def table(found: dict[str, Found]) -> str:
    """The results as a table in Markdown."""
    lines = [
        "| ms | slowest script | by SLOWLOG | p99 of its calls | slowest event by LATENCY "
        "| PING, p99 | PING, slowest |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for name, each in found.items():
        unlogged = f"< {_LOGGED_US / 1000:g}"
        slowest = f"{each.script:.1f}" if each.script else unlogged
        beside = f"{each.percentile:.1f}" if each.script else unlogged
        latency = f"{each.latency:.0f}" if each.latency else "< 1"
        lines.append(
            f"| {name} | {each.script_name} | {slowest} | {beside} | {latency} | {each.ping:.1f} "
            f"| {each.slowest_ping:.1f} |"
        )
    return "\n".join(lines)


def _prioritize(url: str) -> bool:
    """Gives the server real-time priority; returns whether that was possible."""
    pid = int(client_of(url).info("server")["process_id"])
    try:
        os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(1))
    except (AttributeError, OSError):
        return False
    return True


def measure(url: str, turns: int, scale: float, checks: list[Check]) -> list[Series]:
    """Each case once."""
    found: dict[str, Found] = {}
    print(f"  real-time priority: {_prioritize(url)}")
    with pings(url) as connection:
        for name, case in _CASES.items():
            found[name] = run(url, case, scale, connection)
            print(f"  {name}: {found[name]}", flush=True)
    print(table(found))
    series = [
        Series("slowest script call", "ms", {name: [each.script] for name, each in found.items()}),
        Series("PING beside it, p99", "ms", {name: [each.ping] for name, each in found.items()}),
        Series(
            "PING beside it, slowest",
            "ms",
            {name: [each.slowest_ping] for name, each in found.items()},
        ),
    ]
    for name, each in found.items():
        checks.append(
            Check(
                f"slowest script call, ms: {name}",
                f"<= {_LIMIT_MS:g}",
                f"{each.script:.1f}",
                each.script <= _LIMIT_MS,
            )
        )
    return series
