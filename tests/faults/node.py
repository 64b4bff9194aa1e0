"""The processes of a run: python -m tests.faults.node ROLE URL SETTINGS

Settings of both roles: ``name``; ``journal``: the file to write; ``config``: changes to that of
`workload`; ``routes``: by port of a server, the port of the proxy to use for it; ``lua``: folder of
the scripts, if not `lua/`; ``seed``; ``kind``: ``threads`` or ``asyncio``.

They obey lines on their standard input: ``clock SECONDS`` sets the offset of their clock,
``end_faults`` ends the faults that they make themselves, ``stop`` ends a producer.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from redisagg import RedisAggError, Task
from redisagg.config import GroupAggregator
from redisagg.errors import AggregatorFull, InvalidTask, KeyConflict
from redisagg.flusher import flusher as flusher_module
from redisagg.flusher.leader import Leader
from redisagg.producer import aio, rounds
from redisagg.sinks import CallableSink, MergedTask, Sink, StreamSink
from tests.faults import scripts
from tests.faults.history import Journal, Outcome, ProducerLog
from tests.faults.workload import CONFIG, LIMITS, NAME
from tests.support import worker
from tests.support.aggregators import making
from tests.support.tasks import quick_config

# --- orders, clock and routes --------------------------------------------------------------------

true_time = time.time
_true_time_ns = time.time_ns
_clock_offset = 0
_faults_ended = threading.Event()
_stop = threading.Event()


def _handle_line(line: str) -> None:
    global _clock_offset
    order, _, argument = line.partition(" ")
    if order == "clock":
        _clock_offset = int(argument)
    elif order == "end_faults":
        _faults_ended.set()
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

    Settings: ``threads``: their number; ``calls_per_second`` of each thread; ``tasks_per_call``.
    """
    journal = _prepare(settings)
    _cut_rounds_small()
    pause = 1 / settings["calls_per_second"]
    groups = list(LIMITS)
    with making(settings["kind"]) as maker:
        agg = maker(NAME, url, config=_config(settings))

        def produce(name: str) -> None:
            rng = random.Random(f"{settings['seed']}/{name}")
            log = ProducerLog(journal, name, true_time)
            due = time.monotonic()
            while not _stop.is_set():
                count = rng.choice((1, 1, rng.randint(1, 2 * settings["tasks_per_call"])))
                # Few groups in a call, so that groups fill up.
                among = rng.sample(groups, 3)
                chosen = [rng.choice(among) for _ in range(count)]
                tasks = [
                    _task(task, group)
                    for task, group in zip(log.offer(chosen), chosen, strict=True)
                ]
                try:
                    if count == 1:
                        agg.add_task(tasks[0])
                    else:
                        agg.add_tasks(tasks)
                    log.end("acknowledged")
                except RedisAggError as error:
                    log.end(_outcome(error, count), f"{type(error).__name__}: {error}")
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


def _task(name: str, group: str) -> Task:
    grace, delay, size = LIMITS[group]
    return Task("fault", name, group, grace_period=grace, max_delay=delay, max_size=size)


# --- flushers ------------------------------------------------------------------------------------


class _NodeFaults:
    """The faults that a flusher makes itself, until the order ``end_faults``.

    Args:
        settings: of the node; ``node_faults`` has the share of calls that fail, by kind of fault.
        journal: where faults are written.
    """

    def __init__(self, settings: dict[str, Any], journal: Journal) -> None:
        self._rates: dict[str, float] = settings.get("node_faults", {})
        self._chance = random.Random(f"{settings['seed']}/{settings['name']}")
        self._journal = journal

    def happens(self, kind: str) -> bool:
        """Whether this call has a fault of this kind; writes it to the journal."""
        if _faults_ended.is_set() or self._chance.random() >= self._rates.get(kind, 0.0):
            return False
        self._journal.write("fault", kind)
        return True


def _faulty_merge(url: str, settings: dict[str, Any], node_faults: _NodeFaults) -> GroupAggregator:
    inner = worker.merge_at_gate(url) if settings.get("merge") == "gate" else worker.merge
    merge_timeout = _config(settings).merge_timeout

    def merge(group: str, tasks: list[Task]) -> Task:
        if node_faults.happens("merge raised"):
            raise RuntimeError("a merge that raises")
        if node_faults.happens("merge hung"):
            time.sleep(merge_timeout * 1.5)
        if node_faults.happens("merge killed its process"):
            os._exit(70)
        merged = inner(group, tasks)
        assert isinstance(merged, Task)
        return merged

    return merge


class _SigningStream(StreamSink):
    """Adds the flusher that enqueues; another one may have merged, as merged tasks are stored."""

    def __init__(self, name: str, by: str) -> None:
        super().__init__(name)
        self._by = by

    def arguments(self, batch: MergedTask) -> Sequence[bytes]:
        return super().arguments(replace(batch, task=_signed(batch.task, self._by)))


def _signed(merged: Task, by: str) -> Task:
    return replace(merged, payload={**merged.payload, "by": by})


def _delivering(settings: dict[str, Any], journal: Journal, node_faults: _NodeFaults) -> Sink:
    """A sink that uses the journal as its queue."""
    lease_time = _config(settings).lease_time

    def deliver(task: Task, batch_id: str) -> None:
        if node_faults.happens("sink failed"):
            raise ConnectionError("a sink that fails")
        if node_faults.happens("sink hung"):
            time.sleep(lease_time * 2)
        signed = _signed(task, settings["name"])
        journal.write("delivered", true_time(), batch_id, signed.group_key, signed.payload)
        if node_faults.happens("sink dropped the reply"):
            raise ConnectionError("a sink whose reply is lost")

    return CallableSink(deliver)


def _record_leases(settings: dict[str, Any], journal: Journal) -> None:
    class RecordingLeader(Leader):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            lease = (self.partition.number, self.token, settings["name"], true_time())
            journal.write("leased", *lease)

    flusher_module.Leader = RecordingLeader  # type: ignore[attr-defined]


def flusher(url: str, settings: dict[str, Any]) -> None:
    """Flushes until SIGTERM, and makes the faults in ``node_faults``.

    Settings: ``sink``: a URL, or ``delivery`` for a sink outside Redis; ``merge``: ``gate`` for
    `tests.support.worker.merge_at_gate`; ``node_faults``: the share of calls that fail, by kind.
    """
    journal = _prepare(settings)
    _record_leases(settings, journal)
    node_faults = _NodeFaults(settings, journal)
    sink = settings.get("sink")
    if sink == "delivery":
        sink = _delivering(settings, journal, node_faults)
    elif sink is None:
        sink = _SigningStream(f"{NAME}-batches", settings["name"])
    config = _config(settings, group_aggregator=_faulty_merge(url, settings, node_faults))
    worker.run_flusher(settings["kind"], url, config=config, sink=sink)


if __name__ == "__main__":
    worker.main({"producer": producer, "flusher": flusher}, _handle_line)
