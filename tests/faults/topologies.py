"""The servers of a run, the faults that they allow, and the writes that they may lose."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, ClassVar

import redis

from redisagg.protocol.keys import Keyspace
from redisagg.testing.embedded import EmbeddedRedis
from tests.faults.history import Window
from tests.faults.workload import CONFIG, NAME
from tests.support.servers import ClusterTopology, SentinelTopology
from tests.support.servers.polling import ask

# With appendfsync everysec the server holds back its write() while an fsync is under way, for up to
# two seconds, and answers all the same.
_HELD_BACK = 2.1

# How far a replica may be behind, seconds; on one machine it is milliseconds.
_LAG = 1.0

_START_TIMEOUT = 60.0  # loading a long run's AOF takes a while


class Topology(ABC):
    """A context manager around the servers of one run.

    Args:
        binary: of the servers; the first on PATH if None.
    """

    name: ClassVar[str]
    promise: ClassVar[str]
    """The acknowledged tasks that may be lost, as text for the report."""
    sink: ClassVar[str | None] = None
    """The setting ``sink`` of flushers; None for a stream."""

    _running: AbstractContextManager[Any]
    """The servers, as a context manager."""

    def __init__(self, binary: Path | None = None) -> None:
        self.lossy: list[Window] = []
        """The times so far in which these servers may lose writes that they acknowledged."""

    def __enter__(self) -> Topology:
        self._running.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._running.__exit__(kind, error, traceback)

    @property
    @abstractmethod
    def url(self) -> str:
        """The URL for the nodes."""

    @property
    @abstractmethod
    def servers(self) -> list[EmbeddedRedis]:
        """All servers that nodes may connect to."""

    @property
    @abstractmethod
    def writable(self) -> list[EmbeddedRedis]:
        """The running servers that take writes."""

    def client(self) -> Any:
        """A client of the whole topology, for reading."""
        return self.writable[0].client()

    @property
    def single_server(self) -> EmbeddedRedis | None:
        """The server that may be killed and started again, if there is only one."""
        return None

    def note_kill(self) -> None:  # noqa: B027 - most lose no writes
        """Records the writes that a kill of the single server may have lost."""

    @property
    def topology_faults(self) -> dict[str, Callable[[Random], None]]:
        """The faults of this topology as a whole: functions by kind of fault."""
        return {}


class SingleRedis(Topology):
    """One Redis that writes an AOF before it answers."""

    name = "redis"
    promise = "one Redis, appendfsync always: nothing"
    appendfsync: ClassVar[str] = "always"

    def __init__(self, binary: Path | None = None) -> None:
        super().__init__(binary)
        config = {
            "appendonly": "yes",
            "appendfsync": self.appendfsync,
            # Small, so that some kills happen during a rewrite.
            "auto-aof-rewrite-min-size": "4mb",
        }
        self._server = EmbeddedRedis(binary, config=config, start_timeout=_START_TIMEOUT)
        self._running = self._server

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def servers(self) -> list[EmbeddedRedis]:
        return [self._server]

    @property
    def writable(self) -> list[EmbeddedRedis]:
        return self.servers

    @property
    def single_server(self) -> EmbeddedRedis:
        return self._server


class EverySecond(SingleRedis):
    """One Redis that has its AOF on disk after a second.

    A crash of the machine, which is not tried here, may lose that second. A crash of the process
    loses the writes that it has not passed to the kernel, which it delays during an fsync
    (`_HELD_BACK`).
    """

    name = "everysec"
    promise = (
        "one Redis, appendfsync everysec: on SIGKILL what came during an fsync under way, 2 s at "
        "most (and on a crash of the machine, not tried here, the last second)"
    )
    appendfsync = "everysec"

    def note_kill(self) -> None:
        self.lossy.append(Window(time.time() - _HELD_BACK, time.time()))


class Delivering(SingleRedis):
    """One Redis, and a sink outside Redis, which gets each batch at least once."""

    name = "delivery"
    promise = "one Redis, appendfsync always, with a sink elsewhere: nothing"
    sink = "delivery"


class Replicated(Topology):
    """A primary with two replicas and three Sentinels. Replication is asynchronous."""

    name = "sentinel"
    promise = (
        "a primary with replicas and Sentinels: what was acknowledged around a failover, from "
        f"{_LAG:g} s before until the old primary knows of it"
    )

    def __init__(self, binary: Path | None = None) -> None:
        super().__init__(binary)
        self._topology = self._running = SentinelTopology(binary)

    @property
    def url(self) -> str:
        places = ",".join(f"{host}:{port}" for host, port in self._topology.sentinels)
        return f"redis+sentinel://{places}/{self._topology.service_name}"

    @property
    def servers(self) -> list[EmbeddedRedis]:
        return [*self._topology.servers, *self._topology.watchers]

    @property
    def writable(self) -> list[EmbeddedRedis]:
        return [self._topology.primary]

    @property
    def topology_faults(self) -> dict[str, Callable[[Random], None]]:
        return {"failover ordered": self._order, "primary killed": self._kill}

    def _order(self, rng: Random) -> None:
        start = time.time()
        try:
            self._topology.failover()
        finally:
            self.lossy.append(Window(start - _LAG, time.time()))

    def _kill(self, rng: Random) -> None:
        start = time.time()
        try:
            self._topology.wait_for_failover(self._topology.kill_primary())
        finally:
            self.lossy.append(Window(start - _LAG, time.time()))
            self._topology.heal()


class Sharded(Topology):
    """A cluster of three masters with a replica each. A master that hands over loses nothing."""

    name = "cluster"
    promise = "a cluster whose masters hand over to replicas when told to: nothing"

    def __init__(self, binary: Path | None = None) -> None:
        super().__init__(binary)
        self._topology = self._running = ClusterTopology(binary, replicas=1, config=_PATIENT)
        self._slots = [part.slot for part in Keyspace(NAME, CONFIG["partitions"]).partitions]

    @property
    def url(self) -> str:
        places = ",".join(node.url.split("//")[1].removesuffix("/0") for node in self.servers)
        return f"redis+cluster://{places}"

    @property
    def servers(self) -> list[EmbeddedRedis]:
        return self._topology.nodes

    @property
    def writable(self) -> list[EmbeddedRedis]:
        return self._topology.masters

    def client(self) -> Any:
        return redis.RedisCluster.from_url(self._topology.startup_url)

    @property
    def topology_faults(self) -> dict[str, Callable[[Random], None]]:
        return {"failover ordered": self._order, "slot migrated": self._migrate}

    def _order(self, rng: Random) -> None:
        self._topology.failover(rng.choice(self._topology.masters))

    def _migrate(self, rng: Random) -> None:
        slot = rng.choice(self._slots)
        source = self._topology.master_of(slot)
        target = rng.choice([node for node in self._topology.masters if node is not source])
        # A target whose memory is full would end the migration half way, and that fault is repaired
        # only after this one.
        ask(target, "CONFIG", "SET", "maxmemory", 0)
        self._topology.migrate(slot, target)


# A busy machine must not look like a dead master: only failovers that a run orders may happen.
_PATIENT = {"cluster-node-timeout": "5000"}

TOPOLOGIES: dict[str, type[Topology]] = {
    each.name: each for each in (SingleRedis, EverySecond, Delivering, Replicated, Sharded)
}
