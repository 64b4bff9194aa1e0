"""The faults: each is injected by `begin` and repaired by `end`.

The random choices of a fault depend only on the seed, the step and the fault. So a run with the
same seed injects the same faults, as far as real processes allow.
"""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import ClassVar

import redis

from redisagg.testing.embedded import EmbeddedRedis
from tests.faults.fleet import Fleet, Node
from tests.faults.history import read_journal
from tests.faults.network import Network
from tests.faults.topologies import Topology
from tests.faults.workload import LEASE
from tests.support.proxy import Hold, Proxy
from tests.support.servers.polling import ask

ROLES = ("producer", "flusher")

NODE_FAULTS = {
    "merge raised": 0.02,
    "merge hung": 0.002,
    "merge killed its process": 0.0005,
    "sink failed": 0.02,
    "sink hung": 0.003,
    "sink dropped the reply": 0.02,
}
"""The faults that flushers make themselves: the share of calls of the merge function or sink."""


class Fault(ABC):
    """A fault that lasts for a while, or happens once."""

    kind: str
    duration: ClassVar[tuple[float, float]] = (0.2, 1.5)
    """Shortest and longest duration, seconds."""

    @abstractmethod
    def begin(self, rng: Random) -> bool:
        """Injects the fault; returns False if it was not possible."""

    def end(self) -> None:  # noqa: B027 - some faults need no repair
        """Repairs it; may be called again."""


class Kill(Fault):
    """SIGKILL of a node; another process takes its place later."""

    def __init__(self, fleet: Fleet, role: str) -> None:
        self.kind = f"{role} killed"
        self._fleet, self._role = fleet, role

    def begin(self, rng: Random) -> bool:
        node = self._fleet.pick(self._role, rng)
        if node is not None:
            node.kill()
        return node is not None

    def end(self) -> None:
        self._fleet.revive()


class Freeze(Fault):
    """SIGSTOP of a node for longer than its lease, then SIGCONT."""

    duration = (1.1 * LEASE, 3 * LEASE)

    def __init__(self, fleet: Fleet, role: str) -> None:
        self.kind = f"{role} frozen past its lease"
        self._fleet, self._role = fleet, role
        self._node: Node | None = None

    def begin(self, rng: Random) -> bool:
        self._node = self._fleet.pick(self._role, rng)
        if self._node is not None:
            self._node.freeze()
        return self._node is not None

    def end(self) -> None:
        if self._node is not None:
            self._node.thaw()


class FreezeInCommit(Freeze):
    """SIGSTOP of a flusher while its commit is in the network, which arrives after its lease."""

    def __init__(self, fleet: Fleet, network: Network, script: str) -> None:
        super().__init__(fleet, "flusher")
        self.kind = "flusher frozen in a commit"
        self._network, self._script = network, script
        self._holds: list[Hold] = []

    def begin(self, rng: Random) -> bool:
        self._node = self._fleet.pick(self._role, rng)
        if self._node is None:
            return False
        links = self._network.links(self._node.place)
        self._holds = [proxy.hold(self._script) for proxy in links]
        deadline = time.monotonic() + LEASE
        while not any(hold.count for hold in self._holds):
            if time.monotonic() > deadline:
                self.end()  # it has nothing to commit
                return False
            time.sleep(0.005)
        self._node.freeze()
        return True

    def end(self) -> None:
        for hold in self._holds:
            hold.release()
        super().end()


class ClockOff(Fault):
    """The clock of a node is hours off, and then right again."""

    kind = "clock hours off"

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._node: Node | None = None

    def begin(self, rng: Random) -> bool:
        self._node = self._fleet.pick(rng.choice(ROLES), rng)
        if self._node is not None:
            self._node.send_line(f"clock {3600 * rng.randint(1, 12) * rng.choice((-1, 1))}")
        return self._node is not None

    def end(self) -> None:
        if self._node is not None:
            self._node.send_line("clock 0")


class BadLink(Fault):
    """A fault of the network between a node and one or all of the servers."""

    def __init__(
        self, fleet: Fleet, network: Network, kind: str, apply: Callable[[Proxy, Random], None]
    ) -> None:
        self.kind = kind
        self._fleet, self._network, self._apply = fleet, network, apply
        self._affected: list[Proxy] = []

    def begin(self, rng: Random) -> bool:
        node = rng.choice(self._fleet.nodes)
        links = self._network.links(node.place)
        self._affected = rng.sample(links, rng.choice((1, len(links))))
        how = rng.random()
        for proxy in self._affected:
            self._apply(proxy, Random(how))  # the same for all of them
        return True

    def end(self) -> None:
        for proxy in self._affected:
            proxy.restore()


LINK_FAULTS: dict[str, Callable[[Proxy, Random], None]] = {
    "connections reset": lambda proxy, rng: proxy.reset(),
    "connections refused": lambda proxy, rng: proxy.cut(),
    "requests lost": lambda proxy, rng: proxy.stall(replies=False),
    "requests late": lambda proxy, rng: proxy.stall(replies=False, late=True),
    "replies lost": lambda proxy, rng: proxy.stall(requests=False),
    "latency": lambda proxy, rng: proxy.delay(rng.uniform(0.01, 0.3)),
    "request half written": lambda proxy, rng: proxy.tear(),
}


class Command(Fault):
    """A command to a server, and a command that undoes it."""

    def __init__(
        self,
        topology: Topology,
        kind: str,
        command: Sequence[str | int],
        undo: Sequence[str | int] = (),
    ) -> None:
        self.kind = kind
        self._topology, self._command, self._undo = topology, command, undo
        self._server: EmbeddedRedis | None = None

    def begin(self, rng: Random) -> bool:
        try:
            self._server = rng.choice(self._topology.writable)
            ask(self._server, *self._command)
        except (redis.RedisError, IndexError):  # there may be none at the moment
            return False
        return True

    def end(self) -> None:
        if self._server is not None and self._undo:
            with contextlib.suppress(redis.RedisError):
                ask(self._server, *self._undo)


COMMANDS: dict[str, tuple[Sequence[str | int], ...]] = {
    "SCRIPT FLUSH": (("SCRIPT", "FLUSH"),),
    "CLIENT KILL": (("CLIENT", "KILL", "TYPE", "normal"),),
    "CLIENT KILL of subscribers": (("CLIENT", "KILL", "TYPE", "pubsub"),),
    "memory full": (("CONFIG", "SET", "maxmemory", 1), ("CONFIG", "SET", "maxmemory", 0)),
}


class KillServer(Fault):
    """SIGKILL of the single Redis, which then starts again with its data on disk."""

    kind = "Redis killed"
    duration = (0.1, 1.0)

    def __init__(self, topology: Topology, server: EmbeddedRedis) -> None:
        self._topology, self._server = topology, server

    def begin(self, rng: Random) -> bool:
        self._server.kill()
        self._topology.note_kill()
        return True

    def end(self) -> None:
        self._server.start()


class FreezeServer(Fault):
    """SIGSTOP and SIGCONT of the single Redis."""

    kind = "Redis frozen"

    def __init__(self, server: EmbeddedRedis) -> None:
        self._server = server

    def begin(self, rng: Random) -> bool:
        self._server.pause()
        return self._server.running

    def end(self) -> None:
        self._server.resume()


class TopologyFault(Fault):
    """A fault of a topology as a whole, which is over when `begin` returns."""

    def __init__(self, kind: str, inject: Callable[[Random], None]) -> None:
        self.kind = kind
        self._inject = inject

    def begin(self, rng: Random) -> bool:
        try:
            self._inject(rng)
        except (TimeoutError, redis.RedisError) as error:
            print(f"{self.kind}: {error}", flush=True)
            return False
        return True


def all_faults(topology: Topology, fleet: Fleet, network: Network) -> list[Fault]:
    """All faults that are possible on a topology."""
    faults: list[Fault] = [ClockOff(fleet)]
    for role in ROLES:
        faults += [Kill(fleet, role), Freeze(fleet, role)]
    script = "commit_stream" if topology.sink is None else "commit"
    faults.append(FreezeInCommit(fleet, network, script))
    faults += [BadLink(fleet, network, kind, apply) for kind, apply in LINK_FAULTS.items()]
    faults += [Command(topology, kind, *commands) for kind, commands in COMMANDS.items()]
    if topology.single_server is not None:
        faults += [
            KillServer(topology, topology.single_server),
            FreezeServer(topology.single_server),
        ]
    faults += [TopologyFault(kind, inject) for kind, inject in topology.topology_faults.items()]
    return faults


class Nemesis:
    """Injects one to three faults at a time.

    Args:
        faults: the faults to choose from.
        fleet: the nodes; those that have ended are replaced between the steps.
        seed: of all random choices.
    """

    def __init__(self, faults: Sequence[Fault], fleet: Fleet, seed: int | str) -> None:
        self.injected: Counter[str] = Counter()
        """Number of faults of each kind so far."""
        self._faults = faults
        self._fleet = fleet
        self._seed = seed
        self._steps = 0
        self._next: list[Fault] = []

    def step(self) -> None:
        """Injects some faults, repairs them, and waits a moment."""
        self._steps += 1
        rng = Random(f"{self._seed}/{self._steps}")
        count = rng.choices((1, 2, 3), (4, 4, 2))[0]
        if len(self._next) < count:  # a shuffled list of all, so that each kind comes often
            self._next = rng.sample(self._faults, len(self._faults))
        chosen, self._next = self._next[:count], self._next[count:]
        ends: list[tuple[float, Fault]] = []
        for fault in chosen:
            own = Random(f"{self._seed}/{self._steps}/{fault.kind}")
            if fault.begin(own):
                self.injected[fault.kind] += 1
                ends.append((time.monotonic() + own.uniform(*fault.duration), fault))
        for end, fault in sorted(ends, key=lambda each: each[0]):
            time.sleep(max(0.0, end - time.monotonic()))  # the fault lasts until then
            fault.end()
        for _, fault in ends:
            fault.end()  # again, as a server that was down or frozen may have missed it
        self._fleet.revive()
        time.sleep(rng.uniform(0.1, 0.5))  # a time without faults


def count_node_faults(journals: Sequence[Path]) -> Counter[str]:
    """The number of faults that the nodes made themselves, by kind."""
    counted: Counter[str] = Counter()
    for path in journals:
        counted.update(kind for event, kind, *_ in read_journal(path) if event == "fault")
    return counted
