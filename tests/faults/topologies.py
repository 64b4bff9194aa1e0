"""The servers of a run, what may be done to them, and what they promise not to lose."""

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
    """What of the acknowledged tasks may be lost, for people to read."""
    sink: ClassVar[str | None] = None
    """The setting of flushers; None for a stream."""

    _running: AbstractContextManager[Any]
    """The servers, which run while it is entered."""

    def __init__(self, binary: Path | None = None) -> None:
        self.lossy: list[Window] = []
        """When these servers may lose what they acknowledge, so far."""

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
        """What nodes connect to."""

    @property
    @abstractmethod
    def servers(self) -> list[EmbeddedRedis]:
        """All that nodes may connect to; those with data may be told anything at any time."""

    @property
    @abstractmethod
    def writable(self) -> list[EmbeddedRedis]:
        """The running servers that take writes."""

    def client(self) -> Any:
        """A client of the whole topology, to read with."""
        return self.writable[0].client()

    @property
    def lone(self) -> EmbeddedRedis | None:
        """The server, if there is one only, which may be killed and started again."""
        return None

    def note_kill(self) -> None:  # noqa: B027 - most lose nothing
        """To be called when the lone server has been killed: notes what that may have lost."""

    @property
    def upheavals(self) -> dict[str, Callable[[Random], None]]:
        """What can happen to this topology as a whole, by kind of fault."""
        return {}


class Lone(Topology):
    """One Redis that writes an AOF before it answers."""

    name = "redis"
    promise = "one Redis, appendfsync always: nothing"
    appendfsync: ClassVar[str] = "always"

    def __init__(self, binary: Path | None = None) -> None:
        super().__init__(binary)
        config = {
            "appendonly": "yes",
            "appendfsync": self.appendfsync,
            # So small that some kills come in the middle of a rewrite.
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
    def lone(self) -> EmbeddedRedis:
        return self._server


class EverySecond(Lone):
    """One Redis that writes its AOF now and has it on disk a second later.

    A crash of the machine, which nobody can make here, may lose that second. A crash of the process
    loses what the process had not yet handed to the kernel: nothing, unless an fsync is just under
    way (`_HELD_BACK`).
    """

    name = "everysec"
    promise = (
        "one Redis, appendfsync everysec: on SIGKILL what came during an fsync under way, 2 s at "
        "most (and on a crash of the machine, not tried here, the last second)"
    )
    appendfsync = "everysec"

    def note_kill(self) -> None:
        self.lossy.append(Window(time.time() - _HELD_BACK, time.time()))


class Delivering(Lone):
    """One Redis, and merged tasks that go elsewhere, at least once."""

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
    def upheavals(self) -> dict[str, Callable[[Random], None]]:
        return {"failover ordered": self._order, "primary killed": self._kill}

    def _order(self, chance: Random) -> None:
        start = time.time()
        try:
            self._topology.failover()
        finally:
            self.lossy.append(Window(start - _LAG, time.time()))

    def _kill(self, chance: Random) -> None:
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
    def upheavals(self) -> dict[str, Callable[[Random], None]]:
        return {"failover ordered": self._order, "slot migrated": self._migrate}

    def _order(self, chance: Random) -> None:
        self._topology.failover(chance.choice(self._topology.masters))

    def _migrate(self, chance: Random) -> None:
        slot = chance.choice(self._slots)
        source = self._topology.master_of(slot)
        target = chance.choice([node for node in self._topology.masters if node is not source])
        # A target that is told to be full would end the move half way, and this one waits for it
        # before that fault is taken back.
        ask(target, "CONFIG", "SET", "maxmemory", 0)
        self._topology.migrate(slot, target)


# A busy machine must not look like a dead master: only what the suite orders is to happen.
_PATIENT = {"cluster-node-timeout": "5000"}

TOPOLOGIES: dict[str, type[Topology]] = {
    each.name: each for each in (Lone, EverySecond, Delivering, Replicated, Sharded)
}
