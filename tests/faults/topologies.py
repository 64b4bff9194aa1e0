"""The servers of a run, the faults that they allow, and the writes that they may lose."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, ClassVar, cast

import redis

from redisagg.protocol.keys import Keyspace
from redisagg.testing.embedded import EmbeddedRedis
from tests.faults.clock import SteppedRedis, can_step_clocks
from tests.faults.history import Window
from tests.faults.workload import CONFIG, NAME
from tests.support.servers import ClusterTopology, SentinelTopology
from tests.support.servers.polling import ask

# With appendfsync everysec the server holds back its write() while an fsync is under way, for up to
# two seconds, and answers all the same.
_HELD_BACK = 2.1

# How far a replica may be behind, seconds; on one machine it is milliseconds.
_LAG = 1.0

_BUSY_SOON = {"lua-time-limit": "50"}  # ms until Redis answers BUSY while a script runs

_START_TIMEOUT = 60.0  # loading a long run's AOF takes a while

# Seconds that a task may wait at most, in the worst disturbance.
_WAITING = 30.0


class Topology(ABC):
    """A context manager around the servers of one run.

    Args:
        binary: of the servers; the first on PATH if None.
    """

    name: ClassVar[str]
    promise: ClassVar[str]
    """The acknowledged tasks that may be lost, as text for the report."""
    sink: ClassVar[str] = "stream"
    """The kind of sink, of `tests.faults.faulty.SINKS`."""
    fails_over_when_busy: ClassVar[bool] = False
    """Whether a server that is busy for long is replaced. A run could not tell when that was."""
    config: ClassVar[Mapping[str, Any]] = {}
    """Changes to the settings in `tests.faults.workload`."""
    merge_seconds: ClassVar[float] = 0.0
    """How long a merge takes."""

    _running: AbstractContextManager[Any]
    """The servers, as a context manager."""

    def __init__(self, binary: Path | None = None) -> None:
        self.lossy: list[Window] = []
        """The times so far in which these servers may lose writes that they acknowledged."""
        self.wiped: list[Window] = []
        """The times so far in which they lost all that they had."""
        self.clock: list[Window] = []
        """The times so far in which a server had a wrong clock."""

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
    def exactly_once(self) -> bool:
        """Whether the sink gets each batch exactly once."""
        return self.sink != "delivery"

    @property
    def is_cluster(self) -> bool:
        """Whether the servers are a Redis Cluster."""
        return False

    @property
    def stepped_server(self) -> SteppedRedis | None:
        """The server whose clock can be stepped, if there is one."""
        return None

    @property
    def has_disk(self) -> bool:
        """Whether the single server keeps its data when it is killed."""
        return True

    @property
    def topology_faults(self) -> dict[str, Callable[[Random], None]]:
        """The faults of this topology as a whole: functions by kind of fault."""
        return {}


class SingleRedis(Topology):
    """One Redis that writes an AOF before it answers. Some tasks are offered again."""

    name = "redis"
    promise = "one Redis, appendfsync always: nothing"
    config: ClassVar[Mapping[str, Any]] = {"dedupe_window": 30, "on_task_failure": "retry"}
    appendfsync: ClassVar[str] = "always"
    server_class: ClassVar[type[EmbeddedRedis]] = EmbeddedRedis

    def __init__(self, binary: Path | None = None) -> None:
        super().__init__(binary)
        config = {
            "appendonly": "yes",
            "appendfsync": self.appendfsync,
            # Small, so that some kills happen during a rewrite.
            "auto-aof-rewrite-min-size": "4mb",
            **_BUSY_SOON,
        }
        if not self.has_disk:
            config["appendonly"] = "no"
        self._server = self.server_class(binary, config=config, start_timeout=_START_TIMEOUT)
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
    config: ClassVar[Mapping[str, Any]] = {"isolate_failures": True}

    def note_kill(self) -> None:
        self.lossy.append(Window(time.time() - _HELD_BACK, time.time()))


class Stepped(SingleRedis):
    """One Redis whose clock is stepped, forth and back, if this machine allows it.

    Ids of stream entries do not follow a clock that is set back, so its sink is no stream.
    """

    config: ClassVar[Mapping[str, Any]] = {}
    server_class = SteppedRedis

    @property
    def stepped_server(self) -> SteppedRedis | None:
        return cast(SteppedRedis, self._server) if can_step_clocks() else None


class Delivering(Stepped):
    """One Redis, and a sink outside Redis, which gets each batch at least once."""

    name = "delivery"
    config: ClassVar[Mapping[str, Any]] = {"on_task_failure": "retry"}
    promise = "one Redis, appendfsync always, with a sink elsewhere: nothing"
    sink = "delivery"


class InProcesses(Stepped):
    """One Redis with a list, and merges in worker processes."""

    name = "list"
    promise = "one Redis, appendfsync always, with a list and executor='process': nothing"
    sink = "list"
    config: ClassVar[Mapping[str, Any]] = {
        "executor": "process",
        "merge_timeout": 6,  # a worker process may take seconds to start on a busy machine
    }


class WithAsynq(SingleRedis):
    """One Redis with a queue of Asynq. Some tasks are offered again."""

    name = "asynq"
    promise = "one Redis, appendfsync always, with Asynq: nothing"
    sink = "asynq"
    config: ClassVar[Mapping[str, Any]] = {"dedupe_window": 30, "isolate_failures": True}


class LimitedWork(SingleRedis):
    """One Redis, and merges that take some time, of which few may run at once."""

    name = "limits"
    promise = "one Redis, appendfsync always, with limits on work: nothing"
    merge_seconds = 0.005
    # Enough for what is offered, and for what waited for a fault to end.
    config: ClassVar[Mapping[str, Any]] = {
        "max_concurrency": 6,
        "group_concurrency": 1,
        "rate_limit": {"limit": 300, "per": 2, "burst": 40},
        "group_rate_limit": {"limit": 60, "per": 2},
    }


class InMemory(SingleRedis):
    """One Redis without a disk, which is wiped and starts empty; its sink is outside Redis."""

    name = "memory"
    promise = (
        "one Redis without persistence: what waited when it was wiped or restarted, "
        f"acknowledged up to {_WAITING:g} s before"
    )
    sink = "delivery"
    config: ClassVar[Mapping[str, Any]] = {}

    @property
    def has_disk(self) -> bool:
        return False

    @property
    def topology_faults(self) -> dict[str, Callable[[Random], None]]:
        return {"Redis wiped": self._wipe}

    def _wipe(self, rng: Random) -> None:
        start = time.time()
        ask(self._server, "FLUSHALL")
        self._note_wipe(start)

    def note_kill(self) -> None:
        self._note_wipe(time.time() - 0.5)  # when it was still running

    def _note_wipe(self, start: float) -> None:
        self.wiped.append(Window(start, time.time()))
        self.lossy.append(Window(start - _WAITING, time.time()))


class Replicated(Topology):
    """A primary with two replicas and three Sentinels. Replication is asynchronous."""

    name = "sentinel"
    fails_over_when_busy = True
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
    promise = (
        "a cluster: what was acknowledged around the death of a master, from "
        f"{_LAG:g} s before until its replica has its place; a master that hands over loses nothing"
    )

    def __init__(self, binary: Path | None = None) -> None:
        super().__init__(binary)
        self._topology = self._running = ClusterTopology(binary, replicas=1, config=_NODES)
        self._slots = [part.slot for part in Keyspace(NAME, CONFIG["partitions"]).partitions]

    @property
    def url(self) -> str:
        places = ",".join(node.url.split("//")[1].removesuffix("/0") for node in self.servers)
        return f"redis+cluster://{places}"

    @property
    def servers(self) -> list[EmbeddedRedis]:
        return self._topology.nodes

    @property
    def is_cluster(self) -> bool:
        return True

    @property
    def writable(self) -> list[EmbeddedRedis]:
        return self._topology.masters

    def client(self) -> Any:
        return redis.RedisCluster.from_url(self._topology.startup_url)

    @property
    def topology_faults(self) -> dict[str, Callable[[Random], None]]:
        return {
            "failover ordered": self._order,
            "slot migrated": self._migrate,
            "master killed": self._kill,
        }

    def _kill(self, rng: Random) -> None:
        master = rng.choice(self._topology.masters)
        start = time.time()
        self._topology.kill(master)
        try:
            self._topology.wait_for_failover(master)
        finally:
            self._topology.heal()
            self.lossy.append(Window(start - _LAG, time.time()))

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
_NODES = {"cluster-node-timeout": "5000", **_BUSY_SOON}

TOPOLOGIES: dict[str, type[Topology]] = {
    each.name: each
    for each in (
        SingleRedis,
        EverySecond,
        Delivering,
        InProcesses,
        WithAsynq,
        LimitedWork,
        InMemory,
        Replicated,
        Sharded,
    )
}
