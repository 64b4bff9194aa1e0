"""The processes of a run: python -m tests.faults.node ROLE URL SETTINGS

Settings of both roles: ``name``; ``journal``: the file to write; ``config``: changes to that of
`workload`; ``routes``: by port of a server, the port of the proxy to use for it; ``lua``: folder of
the scripts, if not `lua/`; ``seed``; ``kind``: ``threads`` or ``asyncio``.

They obey lines on their standard input: ``clock SECONDS`` sets the offset of their clock,
``stop`` ends a producer.
"""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from redisagg import BatchInfo, NoResult, RedisAggError, Task, TaskCancelled, TaskFailed
from redisagg.config import GroupAggregator
from redisagg.errors import AggregatorFull, InvalidTask, KeyConflict
from redisagg.flusher import parts
from redisagg.flusher.leader import Leader
from redisagg.producer import aio, rounds
from tests.faults import scripts
from tests.faults.faulty import SINKS, FaultyMerge, true_time
from tests.faults.history import Journal, Outcome, ProducerLog
from tests.faults.workload import (
    CONFIG,
    LIMITS,
    NAME,
    PRIORITIES,
    RULED,
    class_of,
    is_submitted,
    payload_size,
    rules_of,
)
from tests.support import worker
from tests.support.aggregators import making
from tests.support.tasks import quick_config

# --- orders, clock and routes --------------------------------------------------------------------

_true_time_ns = time.time_ns
_clock_offset = 0
_stop = threading.Event()


def _handle_line(line: str) -> None:
    global _clock_offset
    order, _, argument = line.partition(" ")
    if order == "clock":
        _clock_offset = int(argument)
    elif order == "stop":
        _stop.set()


def _falsify_clock() -> None:
    """Replaces the clock by one with an offset that orders set; the monotonic clock is kept."""
    time.time = lambda: true_time() + _clock_offset
    time.time_ns = lambda: _true_time_ns() + _clock_offset * 1_000_000_000


def _reroute(routes: Mapping[int, int]) -> None:
    """Leads connections to the proxies between this node and the servers.

    A URL can't do that, because Sentinels and clusters hand out the addresses of servers.
    """
    resolve, connect = socket.getaddrinfo, asyncio.open_connection

    def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        return resolve(host, routes.get(port, port), *args, **kwargs)

    def open_connection(host: Any = None, port: Any = None, **kwargs: Any) -> Any:
        return connect(host, routes.get(port, port), **kwargs)

    socket.getaddrinfo = getaddrinfo
    asyncio.open_connection = open_connection


def _prepare(settings: dict[str, Any]) -> Journal:
    _falsify_clock()
    _reroute({int(port): proxy for port, proxy in settings.get("routes", {}).items()})
    if settings.get("lua"):
        scripts.use(Path(settings["lua"]))
    return Journal(Path(settings["journal"]))


def _config(settings: dict[str, Any], **fields: Any) -> Any:
    return quick_config(**{**CONFIG, **settings.get("config", {}), **fields})


# --- producers -----------------------------------------------------------------------------------


_AGAIN = 0.1
"""How often a producer offers a task again, for each of its calls."""

_AGAIN_WITHIN = 10.0
"""Seconds after the acknowledgement; the dedupe window is longer."""

_LOOKS = 0.2
"""How often a producer looks at a receipt, for each of its calls."""

_REPEATED = ("quick", "large", "changed")
"""The classes of groups whose tasks are offered again. No operator cancels these."""


def _outcome(error: RedisAggError, tasks: int) -> Outcome:
    """The outcome of a call that raised; of several tasks, some may have been added."""
    nothing_written = isinstance(error, AggregatorFull | KeyConflict | InvalidTask)
    return "refused" if nothing_written and tasks == 1 else "unknown"


def _cut_rounds_small() -> None:
    """Makes streams of several round trips, and two at a time, with little load."""
    rounds.STREAM_ROUND_TASKS = 4
    aio._MIN_TASKS_TO_SPLIT = 2


def producer(url: str, settings: dict[str, Any]) -> None:
    """Offers tasks until the order ``stop``, in threads that make one call at a time.

    Settings: ``threads``: their number; ``calls_per_second`` of each thread; ``tasks_per_call``;
    ``again``: whether some tasks are offered a second time.
    """
    journal = _prepare(settings)
    _cut_rounds_small()
    pause = 1 / settings["calls_per_second"]
    groups = list(LIMITS)
    with making(settings["kind"]) as maker:
        agg = maker(NAME, url, config=_config(settings))

        def offer_again(log: ProducerLog, at: float, task: str, group: str) -> None:
            if time.monotonic() > at + _AGAIN_WITHIN:
                return
            log.offer_again(task, group)
            try:
                agg.add_task(_task(task, group, log.offered_at, version=1))
                log.end("acknowledged")
            except RedisAggError as error:
                log.end("unknown", f"{type(error).__name__}: {error}")

        def produce(name: str) -> None:
            rng = random.Random(f"{settings['seed']}/{name}")
            log = ProducerLog(journal, name, true_time)
            due = time.monotonic()
            lately: deque[tuple[float, str, str]] = deque(maxlen=100)
            receipts: deque[Any] = deque(maxlen=20)
            while not _stop.is_set():
                if settings.get("again") and lately and rng.random() < _AGAIN:
                    offer_again(log, *rng.choice(lately))
                count = rng.choice((1, 1, rng.randint(1, 2 * settings["tasks_per_call"])))
                # Few groups in a call, so that groups fill up.
                among = rng.sample(groups, 3)
                chosen = [rng.choice(among) for _ in range(count)]
                tasks = [
                    _task(task, group, log.offered_at)
                    for task, group in zip(log.offer(chosen), chosen, strict=True)
                ]
                wants_outcome = count == 1 and is_submitted(tasks[0].id, chosen[0])
                try:
                    if wants_outcome:
                        log.submit(tasks[0].id)
                        receipts.append(agg.submit(tasks[0]))
                    elif count == 1:
                        agg.add_task(tasks[0])
                    else:
                        agg.add_tasks(tasks)
                    log.end("acknowledged")
                    lately += [
                        (time.monotonic(), task.id, group)
                        for task, group in zip(tasks, chosen, strict=True)
                        if class_of(group) in _REPEATED
                    ]
                except RedisAggError as error:
                    log.end(_outcome(error, count), f"{type(error).__name__}: {error}")
                if receipts and rng.random() < _LOOKS:
                    _look_at(receipts, rng, log)
                due += pause * rng.uniform(0.5, 1.5)
                _stop.wait(max(0.0, due - time.monotonic()))

        threads = [
            threading.Thread(target=produce, args=(f"{settings['name']}.{n}",))
            for n in range(settings["threads"])
        ]
        worker.send_line("running")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    worker.send_line("ended")


def _look_at(receipts: deque[Any], rng: random.Random, log: ProducerLog) -> None:
    """Looks at one receipt, and writes the outcome if there is one."""
    place = rng.randrange(len(receipts))
    receipt = receipts[place]
    try:
        log.told(receipt.task_id, "result", receipt.result(0.02))
    except (TaskFailed, TaskCancelled, NoResult) as error:
        log.told(receipt.task_id, type(error).__name__)
    except RedisAggError:  # no outcome yet, or Redis is away
        return
    del receipts[place]


def _task(name: str, group: str, offered_at: float, version: int = 0) -> Task:
    if class_of(group) in RULED:
        return _ruled_task(name, group, offered_at, version)
    grace, delay, size = LIMITS[group]
    return Task(
        "fault",
        "x" * payload_size(name, group),
        group,
        id=name,
        priority=PRIORITIES.get(class_of(group), 0),
        grace_period=grace,
        max_delay=delay,
        max_size=size,
    )


def _ruled_task(name: str, group: str, offered_at: float, version: int) -> Task:
    rules = rules_of(name, group, offered_at, version)
    return Task(
        "fault",
        "x" * payload_size(name, group),
        group,
        id=name,
        headers={"version": str(version)} if version else {},
        priority=rules.priority,
        grace_period=rules.grace,
        max_delay=rules.delay,
        max_size=rules.size,
        max_bytes=rules.bytes,
        weight=rules.weight,
        due_at=_moment(rules.due_at),
        not_before=_moment(rules.not_before),
        flush=rules.flush,
        on_conflict="replace" if version else "keep",
    )


def _moment(at: float | None) -> datetime | None:
    return None if at is None else datetime.fromtimestamp(at, timezone.utc)


# --- flushers ------------------------------------------------------------------------------------


def _record_leases(settings: dict[str, Any], journal: Journal) -> None:
    class RecordingLeader(Leader):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            lease = (self.partition.number, self.token, settings["name"], true_time())
            journal.write("leased", *lease)

    parts.Leader = RecordingLeader  # type: ignore[attr-defined]


def flusher(url: str, settings: dict[str, Any]) -> None:
    """Flushes until SIGTERM, and makes the faults in ``node_faults``.

    Settings: ``sink``: a kind of `tests.faults.faulty.SINKS`; ``merge``: ``gate`` for
    `tests.support.worker.merge_at_gate`; ``node_faults``: the share of calls that fail, by kind.
    """
    journal = _prepare(settings)
    _record_leases(settings, journal)
    journal.write("started", settings["name"], true_time())
    merge: Any = FaultyMerge(settings, _config(settings))
    if settings.get("merge") == "gate":
        merge = _behind_gate(url, merge)
    sink = SINKS[settings.get("sink") or "stream"](settings)
    config = _config(settings, group_aggregator=merge)
    worker.run_flusher(settings["kind"], url, config=config, sink=sink)


def _behind_gate(url: str, merge: Any) -> GroupAggregator:
    wait: Any = worker.merge_at_gate(url)

    def wait_and_merge(group: str, tasks: list[Task], info: BatchInfo) -> Task:
        wait(group, tasks)
        merged: Task = merge(group, tasks, info)
        return merged

    return wait_and_merge


if __name__ == "__main__":
    worker.main({"producer": producer, "flusher": flusher}, _handle_line)
