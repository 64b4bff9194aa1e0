"""One run on one topology: inject faults, repair them, read all data, check it."""

from __future__ import annotations

import contextlib
import json
import math
import pickle
import random
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redisagg import Aggregator
from redisagg.protocol.answers import Answer, unpack_answer
from redisagg.protocol.keys import Keyspace
from redisagg.protocol.replies import as_dict
from redisagg.sinks import ListSink, StreamSink
from redisagg.sinks.asynq import keys as asynq_keys
from redisagg.sinks.asynq.message import decode
from redisagg.sinks.base import ScriptSink
from tests.faults.checker import Verdict, check
from tests.faults.faulty import ALL_AGAIN_AFTER, DELIVERY_TIMEOUT, QUEUE, end_node_faults
from tests.faults.fleet import Fleet, running_fleet
from tests.faults.history import (
    AGAIN,
    MOVED,
    Batch,
    Call,
    Cause,
    Disturbance,
    Down,
    History,
    Lease,
    Pending,
    Reply,
    Told,
    place_of,
    read_journal,
    read_offers,
    read_operation,
)
from tests.faults.nemeses import NODE_FAULTS, Nemesis, Record, all_faults
from tests.faults.network import running_network
from tests.faults.operator import Operator
from tests.faults.topologies import Topology
from tests.faults.work import WORK_LIMITS
from tests.faults.workload import (
    CONFIG,
    FAILS_ALONE,
    LEASE,
    LIMITS,
    NAME,
    POLICIES,
    poison_of,
)
from tests.support.tasks import quick_config

BOUND = 3 * LEASE
"""Seconds after which a due batch has left, disturbances not counted: a wake-up that is lost costs
one lease time; the rest is for a machine that is busy."""

_REVIVED = 3.0
"""Seconds from the end of a process until its successor works. On a busy machine the successor may
start later; then it works `_STARTED` seconds after it has begun."""

_STARTED = 1.5

_PRODUCERS: list[dict[str, Any]] = [
    {"kind": "threads", "threads": 2},
    {"kind": "asyncio", "threads": 2},
    {"kind": "threads", "threads": 1},
]
_FLUSHERS: list[dict[str, Any]] = [{"kind": "threads"}, {"kind": "asyncio"}, {"kind": "threads"}]
_CALLS_PER_SECOND = 8.0  # in each thread
_MEAN_OF_CALLS = 3  # two thirds of the calls have one task, the others a random number

_SETTLE_TIMEOUT = 60.0  # seconds from the end of the faults until all tasks are enqueued


@dataclass(frozen=True)
class Plan:
    """The settings of a run.

    Args:
        topology: the servers.
        seconds: duration of the faults.
        seed: of all random choices.
        rate: approximate number of tasks offered in a second.
        faults: the number of faults to inject at least, evenly over the time; 0 for as many as
            possible.
        config: changes to the settings of all nodes, e.g. ``{"min_replicas": 1}``.
        durable: whether those settings prevent the losses that the topology allows, so that every
            lost task is a violation.
        lua: folder of the scripts of the nodes, if not `lua/`.
        server: the binary of the servers.
        moves: whether the operator gives the namespace other numbers of partitions.
    """

    topology: type[Topology]
    seconds: float
    seed: int
    rate: float = 500.0
    faults: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    durable: bool = False
    lua: Path | None = None
    server: Path | None = None
    moves: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """The changes to the settings in `workload`."""
        return {**self.topology.config, **self.config}


@dataclass(frozen=True)
class Result:
    """The result of a run."""

    plan: Plan
    faults: Counter[str]
    """The number of faults injected, by kind."""
    node_faults: Counter[str]
    """The number of faults that merges and sinks made, by kind."""
    verdict: Verdict
    kept: Path | None
    """The folder with journals, logs and history (`pickle`), of a run with violations."""


def run(plan: Plan) -> Result:
    """Makes a run; takes some seconds more than `plan.seconds`."""
    folder = Path(tempfile.mkdtemp(prefix="redisagg-faults-"))
    record = Record()
    with plan.topology(plan.server) as topology:
        ended_at = _inject_faults(plan, topology, folder, record)
        history = _history(plan, topology, folder, record)
    history.ended_at = ended_at
    verdict = check(history)
    own = _node_faults(folder)
    if verdict.violations:
        with (folder / "history").open("wb") as file:
            pickle.dump(history, file)
        return Result(plan, record.injected, own, verdict, folder)
    shutil.rmtree(folder)
    return Result(plan, record.injected, own, verdict, None)


def _inject_faults(plan: Plan, topology: Topology, folder: Path, record: Record) -> float:
    """Runs producers and flushers while faults are injected, and then until all is enqueued.

    Returns:
        The time when the flushers were ended.
    """
    threads = sum(each["threads"] for each in _PRODUCERS)
    tasks_per_call = plan.rate / _CALLS_PER_SECOND / threads
    config = plan.settings
    rates = dict(NODE_FAULTS)
    if config.get("executor") == "process":
        # A merge that hangs or dies ends all worker processes of its flusher.
        rates["merge hung"] /= 10
        rates["merge killed its process"] /= 10
    common = {
        "seed": plan.seed,
        "config": config,
        "sink": topology.sink,
        "lua": plan.lua and str(plan.lua),
        "node_faults": rates,
        "again": "dedupe_window" in config,
        "calls_per_second": _CALLS_PER_SECOND,
        "tasks_per_call": max(1, round(_MEAN_OF_CALLS * tasks_per_call)),
        "merge_seconds": topology.merge_seconds,
    }
    if topology.has_disk:
        with observing(plan, topology) as aggregator:
            for pattern, policy in POLICIES.items():
                aggregator.set_policy(pattern, policy)
        time.sleep(1.1)  # the policies hold for all adds that begin a second later
    ports = [server.port for server in topology.servers]
    with (
        running_network(ports) as network,
        running_fleet(topology.url, network, folder, _PRODUCERS, _FLUSHERS, common) as fleet,
        observing(plan, topology) as aggregator,
    ):
        faults = all_faults(topology, fleet, network, folder, record)
        nemesis = Nemesis(faults, fleet, plan.seed, record)
        operator = Operator(aggregator, folder, plan.seed, moves=plan.moves)
        try:
            _pace(plan, nemesis, fleet, record)
        finally:
            end_node_faults(folder)
            fleet.end_faults()
            operator.stop()
        fleet.finish_producers(timeout=30)
        deadline = time.monotonic() + _SETTLE_TIMEOUT
        while time.monotonic() < deadline:
            fleet.revive(role="flusher")  # after a task that killed it
            with observing(plan, topology) as latest:  # an older one may not have followed a move
                is_idle = latest.wait_until_idle(1)
            if is_idle:
                break  # else the tasks that are not enqueued are reported as left
        return time.time()


def _pace(plan: Plan, nemesis: Nemesis, fleet: Fleet, record: Record) -> None:
    """Injects faults for the time of the plan, and on until there were enough of them."""
    start = time.monotonic()
    while True:
        nemesis.step()
        injected, now = record.injected.total(), time.monotonic()
        late = now >= start + plan.seconds
        if late and (injected >= plan.faults or now >= start + 2 * plan.seconds):
            return
        calm = random.uniform(0.1, 0.5)
        if plan.faults and not late:
            calm = max(calm, start + plan.seconds * injected / plan.faults - now)
        until = min(now + calm, start + plan.seconds)
        while time.monotonic() < until:
            fleet.revive()  # some have ended by themselves
            time.sleep(min(0.25, max(0.0, until - time.monotonic())))


@contextlib.contextmanager
def observing(plan: Plan, topology: Topology) -> Iterator[Aggregator]:
    """An aggregator that uses Redis without proxies."""
    config = quick_config(**{**CONFIG, **plan.settings, "add_timeout": 30, "executor": "thread"})
    with contextlib.closing(Aggregator(NAME, topology.url, config=config)) as aggregator:
        yield aggregator


def _history(plan: Plan, topology: Topology, folder: Path, record: Record) -> History:
    """Reads the journals, the record of the faults, and the servers."""
    history = History(LIMITS, exactly_once=topology.exactly_once)
    history.lossy, history.wiped, history.clock = topology.lossy, topology.wiped, topology.clock
    history.durable, history.with_policies = plan.durable, topology.has_disk
    history.lease_time = LEASE
    history.max_pending = CONFIG["max_pending_tasks"]
    settings = {**CONFIG, **plan.settings}
    history.merge_timeout = settings["merge_timeout"]
    history.work_limits = {name: settings[name] for name in WORK_LIMITS if name in settings}
    # What a limit on work keeps waiting is not late.
    history.bound = math.inf if history.work_limits else BOUND
    started: dict[str, list[float]] = defaultdict(list)
    for path in sorted(folder.glob("*.journal")):
        _read_journal(history, path, settings, started)
    history.disturbances = [
        _until_revived(each, started) for each in (*history.disturbances, *record.disturbances)
    ]
    history.downs += record.downs
    history.stops += record.stops
    history.enqueued.sort(key=lambda batch: batch.enqueued_at or 0.0)
    if settings.get("on_task_failure") == "retry":
        history.retries = settings["max_attempts"]
    kinds = {offer.task: poison_of(offer.task, offer.group) for offer in history.offers}
    history.poison = frozenset(task for task, kind in kinds.items() if kind)
    isolated = {*kinds.values()} - {None, "kills"} if settings.get("isolate_failures") else ()
    history.alone = frozenset(
        task for task, kind in kinds.items() if kind == FAILS_ALONE or kind in isolated
    )
    history.buries_innocents = frozenset(
        offer.group for offer in history.offers if offer.task in history.poison - history.alone
    )
    with observing(plan, topology) as aggregator:
        if topology.sink != "delivery":
            with contextlib.closing(topology.client()) as client:
                history.enqueued = list(_READERS[topology.sink](client, plan, topology))
            if plan.moves and topology.sink == "stream":
                # On a cluster the batches of a group are in the streams of several partitions.
                history.enqueued.sort(key=lambda batch: batch.enqueued_at or 0.0)
        history.dead = [
            Batch(each.batch_id, each.group_key, _names(each.tasks))
            for each in aggregator.dead_letters(tasks=True)
        ]
        history.in_flight = [
            Batch(each.batch_id, each.group_key, _names(each.tasks))
            for each in aggregator.get_batches(tasks=True)
        ]
        with contextlib.closing(topology.client()) as client:
            history.answers = dict(_answers(client, history))
        history.waiting = [
            Batch("", key, _names(group.tasks))
            for key, group in aggregator.get_entries(tasks=True).items()
            if group.size
        ]
    return history


def _answers(client: Any, history: History) -> Iterator[tuple[str, Answer]]:
    """What is stored of the outcomes of tasks, by task."""
    keyspace = Keyspace(NAME, CONFIG["partitions"])
    for offer in history.offers:
        if offer.task in history.submitted:
            group = offer.group.encode()
            key = keyspace.partition_of(group).answer(group, offer.task.encode())
            if (record := client.get(key)) is not None:
                yield offer.task, unpack_answer(record, key)


def _until_revived(disturbance: Disturbance, started: Mapping[str, list[float]]) -> Disturbance:
    """The end of a flusher with the time until its successor works; another disturbance as it is.

    Args:
        started: the times when processes began, by their places.
    """
    if disturbance.kind not in ("died", "flusher killed", "flusher stopped"):
        return disturbance
    later = [at for at in started[disturbance.place] if at > disturbance.start]
    end = min(later, default=math.inf) + _STARTED
    return disturbance._replace(end=max(disturbance.end, end))


def _read_journal(
    history: History, path: Path, settings: dict[str, Any], started: dict[str, list[float]]
) -> None:
    for offer in read_offers(read_journal(path)):
        (history.again if offer.number == AGAIN else history.offers).append(offer)
    calls: dict[tuple[str, float], Call] = {}
    for kind, *event in read_journal(path):
        if kind == "leased":
            history.leases.append(Lease(*event))
        elif kind == "delivered":
            at, batch_id, group, payload = event
            history.enqueued.append(_batch(batch_id, group, payload, at))
        elif kind == "called":
            history.operations.append(read_operation(event))
        elif kind == "moved":
            began, ended, _partitions, movers = event
            # Flushers notice the end by a message, or when they join the next time.
            end = ended + LEASE
            history.disturbances.append(Disturbance(MOVED, began, end))
            history.moves += movers
        elif kind == "pending":
            history.pending.append(Pending(*event))
        elif kind == "started":
            flusher, at = event
            started[place_of(flusher)].append(at)
        elif kind == "submitted":
            history.submitted.update(event)
        elif kind == "told":
            history.told.append(Told(*event))
        elif kind == "said":
            history.replies.append(Reply(*event))
        elif kind == "merging":
            batch_id, group, flusher, tasks, began = event
            calls[batch_id, began] = Call(group, flusher, tasks, began, math.inf)
        elif kind == "merged":
            batch_id, began, ended = event
            calls[batch_id, began] = calls[batch_id, began]._replace(ended=ended)
        elif kind == "died":
            flusher, at = event
            history.downs.append(Down(flusher, at))
            history.disturbances.append(Disturbance("died", at, at + _REVIVED, place_of(flusher)))
        elif kind == "fault":
            what, group, at, flusher = event
            hung = max(settings["merge_timeout"], DELIVERY_TIMEOUT) if "hung" in what else 0.0
            waits = ALL_AGAIN_AFTER if "for all" in what else 0.0
            end = at + hung + waits + settings["retry_max_delay"] + 1
            history.disturbances.append(Disturbance(what, at, end, group=group))
            if settings.get("executor") == "process" and ("kill" in what or "hung" in what):
                # It takes the other worker processes of its flusher along.
                end += _REVIVED
                history.disturbances.append(Disturbance(what, at, end, place_of(flusher)))
            if "for all" in what:
                history.disturbances.append(Disturbance(what, at, end, place_of(flusher)))
    history.calls += calls.values()


def _node_faults(folder: Path) -> Counter[str]:
    """The number of faults that the flushers made themselves, by kind."""
    return Counter(
        event[1]
        for path in folder.glob("flusher*.journal")
        for event in read_journal(path)
        if event[0] == "fault"
    )


# --- queues --------------------------------------------------------------------------------------


def _sink_keys(sink: type[ScriptSink], plan: Plan, topology: Topology) -> list[bytes]:
    keyspace = Keyspace(NAME, CONFIG["partitions"])
    return sink(QUEUE).keys(keyspace, clustered=topology.is_cluster)


def _read_stream(client: Any, plan: Plan, topology: Topology) -> Iterator[Batch]:
    yield from read_entries(client, _sink_keys(StreamSink, plan, topology))


def read_entries(client: Any, keys: Sequence[bytes]) -> Iterator[Batch]:
    """The batches in the streams, with the times that Redis gave the entries."""
    sink = StreamSink("any")
    for key in keys:
        start = "-"
        while page := client.xrange(key, start, "+", count=1000):
            for entry_id, fields in page:
                batch = sink.decode(as_dict(fields))
                at = int(entry_id.split(b"-")[0]) / 1000
                yield _batch(batch.batch_id, batch.group, batch.payload, at, batch.count)
            start = f"({entry_id.decode()}"


def _read_list(client: Any, plan: Plan, topology: Topology) -> Iterator[Batch]:
    sink = ListSink("any")
    for key in _sink_keys(ListSink, plan, topology):
        start = 0
        while page := client.lrange(key, start, start + 999):
            for element in page:
                batch = sink.decode(element)
                yield _batch(batch.batch_id, batch.group, batch.payload, None, batch.count)
            start += len(page)


def _read_asynq(client: Any, plan: Plan, topology: Topology) -> Iterator[Batch]:
    for task_id in reversed(client.lrange(asynq_keys.pending(QUEUE), 0, -1)):
        message = decode(client.hget(asynq_keys.task(QUEUE, task_id.decode()), "msg"))
        payload = json.loads(message.payload)
        yield _batch(message.id, payload["group"], payload, None)


_READERS: dict[str, Callable[[Any, Plan, Topology], Iterator[Batch]]] = {
    "stream": _read_stream,
    "list": _read_list,
    "asynq": _read_asynq,
}


def _batch(
    batch_id: str,
    group: str,
    payload: dict[str, Any],
    at: float | None,
    stated: int | None = None,
) -> Batch:
    tasks = tuple(payload["payloads"])
    failed = tuple((place, task) for place, task in payload.get("failed", ()))
    batch = Batch(
        *(batch_id, group, tasks, payload["by"], at, stated, payload["at"]), failed=failed
    )
    if "cause" not in payload:
        return batch
    *info, arrivals, versions = payload["cause"]
    cause = Cause._make((*info, tuple(arrivals), tuple(versions)))
    return batch._replace(cause=cause)


def _names(tasks: Any) -> tuple[str, ...]:
    """The names of stored tasks; the bytes of one that can't be decoded, which nobody offered."""
    return tuple(each.task.id if each.task else str(each.raw) for each in tasks or ())
