"""One run on one topology: inject faults, repair them, read all data, check it."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redisagg import Aggregator
from redisagg.protocol.replies import as_dict
from redisagg.sinks import StreamSink
from tests.faults.checker import Verdict, check
from tests.faults.fleet import running_fleet
from tests.faults.history import Batch, History, Lease, read_journal, read_offers
from tests.faults.nemeses import NODE_FAULTS, Nemesis, all_faults, count_node_faults
from tests.faults.network import running_network
from tests.faults.topologies import Topology
from tests.faults.workload import CONFIG, LIMITS, NAME
from tests.support.tasks import quick_config

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
        config: changes to the settings of all nodes, e.g. ``{"min_replicas": 1}``.
        durable: whether those settings prevent the losses that the topology allows, so that every
            lost task is a violation.
        lua: folder of the scripts of the nodes, if not `lua/`.
        server: the binary of the servers.
    """

    topology: type[Topology]
    seconds: float
    seed: int
    rate: float = 500.0
    config: Mapping[str, Any] = field(default_factory=dict)
    durable: bool = False
    lua: Path | None = None
    server: Path | None = None


@dataclass(frozen=True)
class Result:
    """The result of a run."""

    plan: Plan
    faults: Counter[str]
    verdict: Verdict
    kept: Path | None
    """The folder with journals and logs, of a run with violations."""


def run(plan: Plan) -> Result:
    """Makes a run; takes a few seconds more than `plan.seconds`."""
    folder = Path(tempfile.mkdtemp(prefix="redisagg-faults-"))
    with plan.topology(plan.server) as topology:
        injected = _inject_faults(plan, topology, folder)
        history = _history(plan, topology, folder)
    verdict = check(history)
    injected += count_node_faults(list(folder.glob("flusher*.journal")))
    if verdict.violations:
        return Result(plan, injected, verdict, folder)
    shutil.rmtree(folder)
    return Result(plan, injected, verdict, None)


def _inject_faults(plan: Plan, topology: Topology, folder: Path) -> Counter[str]:
    """Runs producers and flushers while faults are injected, and then until all is enqueued.

    Returns:
        The number of faults of each kind.
    """
    threads = sum(each["threads"] for each in _PRODUCERS)
    tasks_per_call = plan.rate / _CALLS_PER_SECOND / threads
    common = {
        "seed": plan.seed,
        "config": dict(plan.config),
        "sink": topology.sink,
        "lua": plan.lua and str(plan.lua),
        "node_faults": NODE_FAULTS,
        "calls_per_second": _CALLS_PER_SECOND,
        "tasks_per_call": max(1, round(_MEAN_OF_CALLS * tasks_per_call)),
    }
    ports = [server.port for server in topology.servers]
    with (
        running_network(ports) as network,
        running_fleet(topology.url, network, folder, _PRODUCERS, _FLUSHERS, common) as fleet,
    ):
        nemesis = Nemesis(all_faults(topology, fleet, network), fleet, plan.seed)
        end = time.monotonic() + plan.seconds
        while time.monotonic() < end:
            nemesis.step()
        fleet.end_faults()
        fleet.finish_producers(timeout=30)
        with observing(plan, topology) as aggregator:
            # Tasks that are not enqueued by then are reported as left.
            aggregator.wait_until_idle(_SETTLE_TIMEOUT)
    return nemesis.injected


@contextlib.contextmanager
def observing(plan: Plan, topology: Topology) -> Iterator[Aggregator]:
    """An aggregator that reads without proxies."""
    config = quick_config(**{**CONFIG, **plan.config, "add_timeout": 30})
    with contextlib.closing(Aggregator(NAME, topology.url, config=config)) as aggregator:
        yield aggregator


def _history(plan: Plan, topology: Topology, folder: Path) -> History:
    """Reads the journals and the servers."""
    history = History(LIMITS, exactly_once=topology.sink is None)
    history.lossy = topology.lossy
    history.durable = plan.durable
    delivered: list[Batch] = []
    for path in sorted(folder.glob("*.journal")):
        history.offers += read_offers(read_journal(path))
        for kind, *event in read_journal(path):
            if kind == "leased":
                history.leases.append(Lease(*event))
            elif kind == "delivered":
                at, batch_id, group, payload = event
                delivered.append(_batch(batch_id, group, payload, at))
    delivered.sort(key=lambda batch: batch.enqueued_at or 0.0)
    with observing(plan, topology) as aggregator:
        history.enqueued = delivered
        if history.exactly_once:
            with contextlib.closing(topology.client()) as client:
                history.enqueued = list(read_entries(client, aggregator.sink_keys()))
        history.dead = [
            Batch(each.batch_id, each.group_key, _names(each.tasks))
            for each in aggregator.dead_letters(tasks=True)
        ]
        history.in_flight = [
            Batch(each.batch_id, each.group_key, _names(each.tasks))
            for each in aggregator.get_batches(tasks=True)
        ]
        history.waiting = [
            Batch("", key, _names(group.tasks))
            for key, group in aggregator.get_entries(tasks=True).items()
            if group.size
        ]
    return history


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


def _batch(
    batch_id: str, group: str, payload: dict[str, Any], at: float, stated: int | None = None
) -> Batch:
    return Batch(batch_id, group, tuple(payload["payloads"]), payload["by"], at, stated)


def _names(tasks: Any) -> tuple[str, ...]:
    """The names of stored tasks; the bytes of one that can't be decoded, which nobody offered."""
    return tuple(str(each.task.payload if each.task else each.raw) for each in tasks or ())
