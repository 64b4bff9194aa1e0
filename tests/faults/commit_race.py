"""Two flushers behind a proxy each, of which one is paused at the worst moment."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import redis

from redisagg import Aggregator, Task
from redisagg.protocol.keys import Keyspace
from redisagg.testing.embedded import HOST, EmbeddedRedis
from tests.faults.checker import Verdict, check
from tests.faults.fleet import NodeProcess
from tests.faults.history import History, Lease, Limits, Offer, read_journal, task_name
from tests.faults.run import read_entries
from tests.faults.workload import NAME
from tests.support.processes import WorkerProcess
from tests.support.proxy import Proxy, proxying
from tests.support.servers import wait_until
from tests.support.tasks import quick_config
from tests.support.worker import GATE

LEASE = 1.0
SIZE = 2
_LIMITS = Limits(600, 600, SIZE)


class Duellist:
    """One of the two flushers."""

    def __init__(self, name: str, proxy: Proxy, folder: Path, settings: dict[str, Any]) -> None:
        self.name = name
        self.proxy = proxy
        self.journal = folder / f"{name}.journal"
        self.process: WorkerProcess = NodeProcess(
            "flusher",
            proxy.url,
            name=name,
            journal=str(self.journal),
            seed=0,
            kind="threads",
            **settings,
        )


class Duel:
    """Use `duelling`."""

    def __init__(self, server: EmbeddedRedis, config: dict[str, Any]) -> None:
        self.client = redis.Redis.from_url(server.url)
        self.aggregator = Aggregator(NAME, server.url, config=quick_config(**config))
        self.flushers: list[Duellist] = []
        self._keyspace = Keyspace(NAME, config["partitions"])
        self._offers: list[Offer] = []
        self._names = (f"g{n}" for n in itertools.count())

    def partitions_of(self, flusher: Duellist) -> list[int]:
        """Which partitions a flusher leads."""
        return [
            each.partition
            for each in self.aggregator.stats().partitions
            if each.leader and each.leader.split(":")[1] == str(flusher.process.pid)
        ]

    def await_shares(self, *shares: int) -> None:
        """Waits until the flushers lead so many partitions each."""
        wait_until(
            lambda: [len(self.partitions_of(each)) for each in self.flushers] == list(shares),
            what=f"the flushers lead {shares} partitions",
        )

    def groups_in(self, partitions: Sequence[int]) -> list[str]:
        """A new group in each of these partitions."""
        wanted, found = set(partitions), []
        while wanted:
            group = next(self._names)
            number = self._keyspace.partition_of(group.encode()).number
            if number in wanted:
                wanted.remove(number)
                found.append(group)
        return found

    def fill(self, groups: Sequence[str]) -> None:
        """Adds a full batch to each of these groups, by one call."""
        at, first = time.time(), len(self._offers)
        chosen = [group for group in groups for _ in range(SIZE)]
        names = [task_name("test", number) for number in range(first, first + len(chosen))]
        self.aggregator.add_tasks(
            [Task("test", name, group) for name, group in zip(names, chosen, strict=True)]
        )
        self._offers += [
            Offer(name, "test", number, group, at, "acknowledged", time.time())
            for number, (name, group) in enumerate(zip(names, chosen, strict=True), first)
        ]

    def enqueued_by(self) -> dict[str, str]:
        """Which flusher merged the batch of each group that is enqueued."""
        keys = self.aggregator.sink_keys()
        return {batch.group: batch.by for batch in read_entries(self.client, keys)}

    def open_gates(self, *flushers: Duellist) -> None:
        """Lets merges go on that wait at the gate: of these flushers, or of all."""
        for each in flushers:
            self.client.set(f"{GATE}:{each.process.pid}", 1)
        if not flushers:
            self.client.set(GATE, 1)

    def verdict(self) -> Verdict:
        """What the checker says, when all is done."""
        self.aggregator.wait_until_idle(10)
        history = History({offer.group: _LIMITS for offer in self._offers}, self._offers)
        history.enqueued = list(read_entries(self.client, self.aggregator.sink_keys()))
        for flusher in self.flushers:
            for kind, *event in read_journal(flusher.journal):
                if kind == "leased":
                    history.leases.append(Lease(*event))
        return check(history)

    def close(self) -> None:
        """Ends the flushers."""
        for flusher in self.flushers:
            flusher.process.end()
        self.aggregator.close()
        self.client.close()


@contextlib.contextmanager
def duelling(
    server: EmbeddedRedis, folder: Path, partitions: int, **settings: Any
) -> Iterator[Duel]:
    """Two flushers that lead half of the partitions each.

    Args:
        settings: of the flushers; see `tests.faults.node`.
    """
    config = {
        "partitions": partitions,
        "lease_time": LEASE,
        "group_max_size": SIZE,
        "group_grace_period": _LIMITS.grace,
        "group_max_delay": _LIMITS.delay,
    }
    settings["config"] = config
    with (
        contextlib.closing(Duel(server, config)) as duel,
        proxying(HOST, server.port) as one,
        proxying(HOST, server.port) as other,
    ):
        try:
            for name, proxy in (("one", one), ("other", other)):
                duel.flushers.append(Duellist(name, proxy, folder, settings))
            duel.await_shares(partitions // 2, partitions // 2)
            yield duel
        finally:
            for proxy in (one, other):
                proxy.restore()
