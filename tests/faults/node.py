"""The processes of a run: python -m tests.faults.node ROLE URL SETTINGS

Settings of both roles: ``name``; ``journal``: the file to write; ``config`` changes that of
`workload`; ``routes``: the port to connect to instead of another, by that other's number; ``lua``:
where the scripts are, if not in `lua/`; ``seed``; ``kind``: ``threads`` or ``asyncio``.

They obey lines on their standard input: ``clock SECONDS`` sets their clock off, ``calm`` ends the
faults that they make themselves, ``stop`` ends a producer.
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
from redisagg.errors import AggregatorFull, InvalidTask, KeyConflict, RedisReadOnly
from redisagg.flusher import flusher as flusher_module
from redisagg.flusher.leader import Leader
from redisagg.producer import aio, rounds
from redisagg.sinks import CallableSink, MergedTask, Sink, StreamSink
from tests import worker
from tests.faults import scripts
from tests.faults.history import Journal, Outcome, ProducerLog
from tests.faults.workload import CONFIG, LIMITS, NAME
from tests.support.aggregators import making
from tests.support.tasks import quick_config

# --- what can be set off in a node ---------------------------------------------------------------

true_time = time.time
_true_time_ns = time.time_ns
_clock_offset = 0
_calm = threading.Event()
_stop = threading.Event()


def _obey(line: str) -> None:
    global _clock_offset
    order, _, argument = line.partition(" ")
    if order == "clock":
        _clock_offset = int(argument)
    elif order == "calm":
        _calm.set()
    elif order == "stop":
        _stop.set()


def _falsify_clock() -> None:
    """Puts a clock in place that orders can set off. The monotonic one goes on, as it would."""
    time.time = lambda: true_time() + _clock_offset
    time.time_ns = lambda: _true_time_ns() + _clock_offset * 1_000_000_000


def _reroute(routes: Mapping[int, int]) -> None:
    """Has connections go to the proxies between this node and the servers.

    Sentinels and clusters hand out the addresses of servers, so no URL could do that.
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
    """What an error says about the tasks of a call; of several, some may have been added."""
    nothing_written = isinstance(error, AggregatorFull | RedisReadOnly | KeyConflict | InvalidTask)
    return "refused" if nothing_written and tasks == 1 else "unknown"


def _cut_rounds_small() -> None:
    """So that a little load makes streams of several round trips, and two at the same time."""
    rounds.STREAM_ROUND_TASKS = 4
    aio._MIN_TASKS_TO_SPLIT = 2


def producer(url: str, settings: dict[str, Any]) -> None:
    """Offers tasks until it is told to stop, in some threads that each make one call at a time.

    Settings: ``threads``; ``calls_per_second`` of each thread; ``tasks_per_call``: at most.
    """
    journal = _prepare(settings)
    _cut_rounds_small()
    pause = 1 / settings["calls_per_second"]
    groups = list(LIMITS)
    with making(settings["kind"]) as maker:
        agg = maker(NAME, url, config=_config(settings))

        def produce(name: str) -> None:
            chance = random.Random(f"{settings['seed']}/{name}")
            log = ProducerLog(journal, name, true_time)
            due = time.monotonic()
            while not _stop.is_set():
                count = chance.choice((1, 1, chance.randint(1, 2 * settings["tasks_per_call"])))
                # Few groups in a call, so that they grow evenly enough to fill up.
                among = chance.sample(groups, 3)
                chosen = [chance.choice(among) for _ in range(count)]
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
                due += pause * chance.uniform(0.5, 1.5)
                _stop.wait(max(0.0, due - time.monotonic()))

        threads = [
            threading.Thread(target=produce, args=(f"{settings['name']}.{n}",))
            for n in range(settings["threads"])
        ]
        worker.say("running")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    worker.say("ended")


def _task(name: str, group: str) -> Task:
    grace, delay, size = LIMITS[group]
    return Task("fault", name, group, grace_period=grace, max_delay=delay, max_size=size)


# --- flushers ------------------------------------------------------------------------------------


class _Trouble:
    """The faults that a flusher makes itself, now and then, until it is told to be calm.

    Args:
        rates: how often, of all calls, by kind of fault.
    """

    def __init__(self, settings: dict[str, Any], journal: Journal) -> None:
        self._rates: dict[str, float] = settings.get("trouble", {})
        self._chance = random.Random(f"{settings['seed']}/{settings['name']}")
        self._journal = journal

    def strikes(self, kind: str) -> bool:
        """Whether there is to be a fault of this kind right now; notes it."""
        if _calm.is_set() or self._chance.random() >= self._rates.get(kind, 0.0):
            return False
        self._journal.write("fault", kind)
        return True


def _troubled_merge(url: str, settings: dict[str, Any], trouble: _Trouble) -> GroupAggregator:
    inner = worker.merge_at_gate(url) if settings.get("merge") == "gate" else worker.merge
    patience = _config(settings).merge_timeout

    def merge(group: str, tasks: list[Task]) -> Task:
        if trouble.strikes("merge raised"):
            raise RuntimeError("a merge that raises")
        if trouble.strikes("merge hung"):
            time.sleep(patience * 1.5)
        if trouble.strikes("merge killed its process"):
            os._exit(70)
        merged = inner(group, tasks)
        assert isinstance(merged, Task)
        return merged

    return merge


class _SigningStream(StreamSink):
    """Says who enqueues, which need not be who merged: what a merge came to may be kept."""

    def __init__(self, name: str, by: str) -> None:
        super().__init__(name)
        self._by = by

    def arguments(self, batch: MergedTask) -> Sequence[bytes]:
        return super().arguments(replace(batch, task=_signed(batch.task, self._by)))


def _signed(merged: Task, by: str) -> Task:
    return replace(merged, payload={**merged.payload, "by": by})


def _delivering(settings: dict[str, Any], journal: Journal, trouble: _Trouble) -> Sink:
    """A sink that appends to the journal, as if that were a queue."""
    patience = _config(settings).lease_time

    def deliver(task: Task, batch_id: str) -> None:
        if trouble.strikes("sink failed"):
            raise ConnectionError("a sink that fails")
        if trouble.strikes("sink hung"):
            time.sleep(patience * 2)
        signed = _signed(task, settings["name"])
        journal.write("delivered", true_time(), batch_id, signed.group_key, signed.payload)
        if trouble.strikes("sink dropped the reply"):
            raise ConnectionError("a sink whose reply is lost")

    return CallableSink(deliver)


def _note_leases(settings: dict[str, Any], journal: Journal) -> None:
    class NotingLeader(Leader):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            noted = (self.partition.number, self.token, settings["name"], true_time())
            journal.write("leased", *noted)

    flusher_module.Leader = NotingLeader  # type: ignore[attr-defined]


def flusher(url: str, settings: dict[str, Any]) -> None:
    """Flushes until SIGTERM, making faults of its own at the rates in ``trouble``.

    Settings: ``sink``: a URL, or ``delivery`` for one that is delivered to at least once;
    ``merge``: ``gate`` for `tests.support.worker.merge_at_gate`.
    """
    journal = _prepare(settings)
    _note_leases(settings, journal)
    trouble = _Trouble(settings, journal)
    sink = settings.get("sink")
    if sink == "delivery":
        sink = _delivering(settings, journal, trouble)
    elif sink is None:
        sink = _SigningStream(f"{NAME}-batches", settings["name"])
    config = _config(settings, group_aggregator=_troubled_merge(url, settings, trouble))
    worker.run_flusher(settings["kind"], url, config=config, sink=sink)


if __name__ == "__main__":
    worker.main({"producer": producer, "flusher": flusher}, _obey)
