"""Two flushers, each behind a proxy, of which a test pauses one during its commits."""

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
from tests.support.proxy import Proxy, running_proxy
from tests.support.servers import wait_until
from tests.support.tasks import quick_config
from tests.support.worker import GATE

LEASE = 1.0
SIZE = 2
_LIMITS = Limits(600, 600, SIZE)


class RacingFlusher:
    """One of the two flushers, with its process and its proxy."""

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


class CommitRace:
    """Two flushers on the same partitions; use `racing`."""

    def __init__(self, server: EmbeddedRedis, config: dict[str, Any]) -> None:
        self.client = redis.Redis.from_url(server.url)
        self.aggregator = Aggregator(NAME, server.url, config=quick_config(**config))
        self.flushers: list[RacingFlusher] = []
        self._keyspace = Keyspace(NAME, config["partitions"])
        self._offers: list[Offer] = []
        self._names = (f"g{n}" for n in itertools.count())

    def partitions_of(self, flusher: RacingFlusher) -> list[int]:
        """The partitions that a flusher leads."""
        return [
            each.partition
            for each in self.aggregator.stats().partitions
            if each.leader and each.leader.split(":")[1] == str(flusher.process.pid)
        ]

    def await_shares(self, *shares: int) -> None:
        """Waits until the flushers lead these numbers of partitions."""
        wait_until(
            lambda: [len(self.partitions_of(each)) for each in self.flushers] == list(shares),
            what=f"the flushers lead {shares} partitions",
        )

    def groups_in(self, partitions: Sequence[int]) -> list[str]:
        """Makes up a new group in each of these partitions."""
        wanted, found = set(partitions), []
        while wanted:
            group = next(self._names)
            number = self._keyspace.partition_of(group.encode()).number
            if number in wanted:
                wanted.remove(number)
                found.append(group)
        return found

    def fill(self, groups: Sequence[str]) -> None:
        """Adds a full batch to each of these groups, in one call."""
        at, first = time.time(), len(self._offers)
        chosen = [group for group in groups for _ in range(SIZE)]
        names = [task_name("test", number) for number in range(first, first + len(chosen))]
        self.aggregator.add_tasks(
            [
                Task("test", group_key=group, id=name)
                for name, group in zip(names, chosen, strict=True)
            ]
        )
        self._offers += [
            Offer(name, "test", number, group, at, "acknowledged", time.time())
            for number, (name, group) in enumerate(zip(names, chosen, strict=True), first)
        ]

    def enqueued_by(self) -> dict[str, str]:
        """The flusher that enqueued the batch of each group."""
        keys = self.aggregator.sink_keys()
        return {batch.group: batch.by for batch in read_entries(self.client, keys)}

    def open_gates(self, *flushers: RacingFlusher) -> None:
        """Ends the wait of merges at the gate: of these flushers, or of all."""
        for each in flushers:
            self.client.set(f"{GATE}:{each.process.pid}", 1)
        if not flushers:
            self.client.set(GATE, 1)

    def verdict(self) -> Verdict:
        """Waits until all tasks are enqueued; returns the verdict of the checker."""
        self.aggregator.wait_until_idle(10)
        history = History({offer.group: _LIMITS for offer in self._offers}, self._offers)
        history.enqueued = list(read_entries(self.client, self.aggregator.sink_keys()))
        for flusher in self.flushers:
            for kind, *event in read_journal(flusher.journal):
                if kind == "leased":
                    history.leases.append(Lease(*event))
        return check(history)

    def close(self) -> None:
        """Kills the flushers."""
        for flusher in self.flushers:
            flusher.process.end()
        self.aggregator.close()
        self.client.close()


@contextlib.contextmanager
def racing(
    server: EmbeddedRedis, folder: Path, partitions: int, **settings: Any
) -> Iterator[CommitRace]:
    """Starts two flushers, which lead half of the partitions each.

    Args:
        server: the server that they use.
        folder: where the journals are written.
        partitions: number of partitions.
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
        contextlib.closing(CommitRace(server, config)) as race,
        running_proxy(HOST, server.port) as one,
        running_proxy(HOST, server.port) as other,
    ):
        try:
            for name, proxy in (("one", one), ("other", other)):
                race.flushers.append(RacingFlusher(name, proxy, folder, settings))
            race.await_shares(partitions // 2, partitions // 2)
            yield race
        finally:
            for proxy in (one, other):
                proxy.restore()
