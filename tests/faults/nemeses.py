"""The faults: each is injected by `begin` and repaired by `end`.

The random choices of a fault depend only on the seed, the step and the fault. So a run with the
same seed injects the same faults, as far as real processes allow.
"""

from __future__ import annotations

import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from redisagg.testing.embedded import HOST, EmbeddedRedis
from tests.faults.clock import SteppedRedis
from tests.faults.faulty import PROVIDER_AWAY
from tests.faults.fleet import Fleet, Node
from tests.faults.history import Disturbance, Down, Stop, Window
from tests.faults.network import Network
from tests.faults.topologies import Topology
from tests.faults.workload import CONFIG, LEASE
from tests.support.proxy import Hold, Proxy
from tests.support.servers.polling import ask, info, wait_until

ROLES = ("producer", "flusher")

NODE_FAULTS = {
    "merge raised": 0.02,
    "merge hung": 0.002,
    "merge killed its process": 0.0005,
    "merge asked for time for its group": 0.005,
    "merge asked for time for all": 0.0003,
    "sink failed": 0.02,
    "sink asked for time": 0.02,
    "sink hung": 0.003,
    "sink dropped the reply": 0.02,
}
"""The faults that flushers make themselves: the share of calls of the merge function or sink."""


NOTHING, EVERYTHING = None, ""

_RECOVERY = 3 * LEASE
"""Seconds after a fault until all that it delayed has to be as before."""


class Fault(ABC):
    """A fault that lasts for a while, or happens once."""

    kind: str
    duration: ClassVar[tuple[float, float]] = (0.2, 1.5)
    """Shortest and longest duration, seconds."""
    delays: str | None = EVERYTHING
    """Whose batches it may delay, `NOTHING`, `EVERYTHING` or the partitions of the flusher in this
    place; valid after `begin`."""

    @abstractmethod
    def begin(self, rng: Random) -> bool:
        """Injects the fault; returns False if it was not possible."""

    def end(self) -> None:  # noqa: B027 - some faults need no repair
        """Repairs it; may be called again."""


class Kill(Fault):
    """SIGKILL of a node; another process takes its place later."""

    def __init__(self, fleet: Fleet, role: str, downs: list[Down]) -> None:
        self.kind = f"{role} killed"
        self._fleet, self._role, self._downs = fleet, role, downs

    def begin(self, rng: Random) -> bool:
        node = self._fleet.pick(self._role, rng)
        if node is not None:
            self._downs.append(Down(node.name, time.time()))
            node.kill()
            self.delays = _place(node)
        return node is not None

    def end(self) -> None:
        self._fleet.revive()


class Stopped(Fault):
    """SIGTERM of a flusher, which stops in order; another process takes its place later."""

    kind = "flusher stopped"
    duration = (0.1, 1.0)

    def __init__(self, fleet: Fleet, downs: list[Down], stops: list[Stop], within: float) -> None:
        self._fleet, self._downs, self._stops, self._within = fleet, downs, stops, within
        self._node: Node | None = None
        self._asked_at = 0.0

    def begin(self, rng: Random) -> bool:
        self._node = self._fleet.pick("flusher", rng)
        if self._node is not None:
            self._asked_at = time.time()
            self._node.stop()
            self.delays = _place(self._node)
        return self._node is not None

    def end(self) -> None:
        node, self._node = self._node, None
        if node is not None:
            # Not the present time: another fault may have taken long to begin meanwhile.
            ended_at = node.await_end(self._asked_at + self._within + 1 - time.time())
            self._stops.append(Stop(node.name, self._asked_at, ended_at, self._within))
            self._downs.append(Down(node.name, ended_at or time.time()))
            node.kill()
            self._fleet.revive()


class Freeze(Fault):
    """SIGSTOP of a node for longer than its lease, then SIGCONT."""

    duration = (1.1 * LEASE, 3 * LEASE)

    def __init__(self, fleet: Fleet, role: str, downs: list[Down]) -> None:
        self.kind = f"{role} frozen past its lease"
        self._fleet, self._role, self._downs = fleet, role, downs
        self._node: Node | None = None

    def begin(self, rng: Random) -> bool:
        self._node = self._fleet.pick(self._role, rng)
        if self._node is not None:
            self._freeze(self._node)
        return self._node is not None

    def _freeze(self, node: Node) -> None:
        self._downs.append(Down(node.name, time.time()))
        node.freeze()
        self.delays = _place(node)

    def end(self) -> None:
        if self._node is not None:
            self._node.thaw()


class FreezeInCommit(Freeze):
    """SIGSTOP of a flusher while its commit is in the network, which arrives after its lease."""

    def __init__(self, fleet: Fleet, network: Network, script: str, downs: list[Down]) -> None:
        super().__init__(fleet, "flusher", downs)
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
        self._freeze(self._node)
        return True

    def end(self) -> None:
        for hold in self._holds:
            hold.release()
        super().end()


class ClockOff(Fault):
    """The clock of a node is hours off, and then right again."""

    kind = "clock hours off"
    delays = NOTHING  # the clocks of nodes decide nothing

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


class ProviderAway(Fault):
    """What the merge functions call can't be reached."""

    kind = "provider away"
    duration = (1.0, 4.0)  # long enough for all attempts, if they counted

    def __init__(self, folder: Path) -> None:
        self._file = folder / PROVIDER_AWAY

    def begin(self, rng: Random) -> bool:
        self._file.touch()
        return True

    def end(self) -> None:
        self._file.unlink(missing_ok=True)


def _place(node: Node) -> str | None:
    return node.place if node.role == "flusher" else NOTHING


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
        self.delays = _place(node)
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

# A replica of a primary that does not answer keeps its data.
READ_ONLY: tuple[Sequence[str | int], ...] = (
    ("REPLICAOF", HOST, 1),
    ("REPLICAOF", "NO", "ONE"),
)


class KillServer(Fault):
    """SIGKILL of the single Redis, which then starts again with its data on disk."""

    duration = (0.1, 1.0)

    def __init__(self, topology: Topology, server: EmbeddedRedis) -> None:
        self.kind = "Redis killed" if topology.has_disk else "Redis restarted empty"
        self._topology, self._server = topology, server

    def begin(self, rng: Random) -> bool:
        self._server.kill()
        self._topology.note_kill()
        return True

    def end(self) -> None:
        if not self._server.running and not self._topology.has_disk:
            # `SaveFails` may have left a folder, which no server could load.
            dump = self._server.directory / "dump.rdb"
            if dump.is_dir():
                dump.rmdir()
            dump.unlink(missing_ok=True)
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


class Busy(Fault):
    """A foreign script that runs for long, until SCRIPT KILL."""

    kind = "Redis busy"

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._server: EmbeddedRedis | None = None
        self._running: threading.Thread | None = None
        self._ended = False

    def begin(self, rng: Random) -> bool:
        self._ended = False
        if not self._topology.writable:
            return False
        self._server = rng.choice(self._topology.writable)
        self._running = threading.Thread(target=self._run, args=(self._server,), daemon=True)
        self._running.start()
        return True

    @staticmethod
    def _run(server: EmbeddedRedis) -> None:
        options: Any = {"socket_timeout": 30, "retry": Retry(NoBackoff(), 0)}
        with contextlib.suppress(redis.RedisError), server.client(**options) as client:
            client.execute_command("EVAL", "while true do end", 0)

    def end(self) -> None:
        # At the first call the server may be frozen, by a fault that ends after this one.
        again, self._ended = self._ended, True
        deadline = time.monotonic() + (10 if again else 0.5)
        while self._running is not None and self._running.is_alive():
            assert self._server is not None
            with contextlib.suppress(redis.RedisError):
                ask(self._server, "SCRIPT", "KILL")
            if time.monotonic() > deadline:
                if again:
                    raise TimeoutError("the foreign script can't be killed")
                return
            self._running.join(0.05)


class SaveFails(Fault):
    """A background save that fails, so that Redis refuses writes with MISCONF."""

    kind = "disk of Redis full"

    def __init__(self, server: EmbeddedRedis) -> None:
        self._server = server
        # A folder where the file should be.
        self._file = server.directory / "dump.rdb"

    def begin(self, rng: Random) -> bool:
        try:
            self._file.mkdir(exist_ok=True)
            ask(self._server, "CONFIG", "SET", "save", "3600 1")
            ask(self._server, "BGSAVE")
            wait_until(
                lambda: info(self._server, "persistence")["rdb_last_bgsave_status"] == "err",
                timeout=3,
                what="a save has failed",
            )
        except (redis.RedisError, TimeoutError, OSError):
            self.end()
            return False
        return True

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self._file.rmdir()
        with contextlib.suppress(redis.RedisError):
            ask(self._server, "CONFIG", "SET", "save", "")


class ClockStepped(Fault):
    """The clock of Redis is stepped by up to five minutes, and later back; then a flusher dies."""

    kind = "clock of Redis stepped"
    duration = (6.0, 9.0)  # longer than any group may wait

    def __init__(self, topology: Topology, server: SteppedRedis, kill: Kill) -> None:
        self._topology, self._server, self._kill = topology, server, kill
        self._stepped_at: float | None = None
        self._by = 0.0

    def begin(self, rng: Random) -> bool:
        if self._stepped_at is not None:
            return False
        self._stepped_at = time.time()
        # Less than a call is remembered.
        self._by = rng.uniform(30, 300) * rng.choice((-1, 1))
        self._server.step_clock(self._by)
        if rng.random() < 0.5:
            self._kill.begin(rng)
        return True

    def end(self) -> None:
        if self._stepped_at is not None:
            self._server.step_clock(0)
            now = time.time()
            self._topology.clock.append(Window(self._stepped_at, now))
            # The times that Redis stated meanwhile: what it states again when its clock is right
            # can't be told from these.
            self._topology.clock.append(Window(self._stepped_at + self._by, now + self._by))
            self._stepped_at = None
        self._kill.end()


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


def all_faults(
    topology: Topology, fleet: Fleet, network: Network, folder: Path, record: Record
) -> list[Fault]:
    """All faults that are possible on a topology.

    Args:
        folder: where the nodes write their journals.
    """
    faults: list[Fault] = [ClockOff(fleet), ProviderAway(folder)]
    for role in ROLES:
        faults += [Kill(fleet, role, record.downs), Freeze(fleet, role, record.downs)]
    faults.append(Stopped(fleet, record.downs, record.stops, CONFIG["shutdown_timeout"] + 2.5))
    script = "commit" if topology.sink == "delivery" else f"commit_{topology.sink}"
    faults.append(FreezeInCommit(fleet, network, script, record.downs))
    faults += [BadLink(fleet, network, kind, apply) for kind, apply in LINK_FAULTS.items()]
    faults += [Command(topology, kind, *commands) for kind, commands in COMMANDS.items()]
    if not topology.fails_over_when_busy:
        faults.append(Busy(topology))
    if topology.single_server is not None:
        faults += [
            KillServer(topology, topology.single_server),
            FreezeServer(topology.single_server),
            SaveFails(topology.single_server),
            Command(topology, "Redis read-only", *READ_ONLY),
        ]
    if topology.stepped_server is not None:
        kill = Kill(fleet, "flusher", record.downs)
        faults.append(ClockStepped(topology, topology.stepped_server, kill))
    faults += [TopologyFault(kind, inject) for kind, inject in topology.topology_faults.items()]
    return faults


@dataclass
class Record:
    """What the nemesis did, for the checker."""

    injected: Counter[str] = field(default_factory=Counter)
    """Number of faults of each kind so far."""
    disturbances: list[Disturbance] = field(default_factory=list)
    downs: list[Down] = field(default_factory=list)
    stops: list[Stop] = field(default_factory=list)


class Nemesis:
    """Injects one to three faults at a time.

    Args:
        faults: the faults to choose from.
        fleet: the nodes; those that have ended are replaced between the steps.
        seed: of all random choices.
        record: where the faults are written.
    """

    def __init__(
        self, faults: Sequence[Fault], fleet: Fleet, seed: int | str, record: Record
    ) -> None:
        self._faults = faults
        self._fleet = fleet
        self._seed = seed
        self._record = record
        self._steps = 0
        self._next: list[Fault] = []

    def step(self) -> None:
        """Injects some faults and repairs them."""
        self._steps += 1
        rng = Random(f"{self._seed}/{self._steps}")
        count = rng.choices((1, 2, 3), (4, 4, 2))[0]
        if len(self._next) < count:  # a shuffled list of all, so that each kind comes often
            self._next = rng.sample(self._faults, len(self._faults))
        chosen, self._next = self._next[:count], self._next[count:]
        ends: list[tuple[float, Fault]] = []
        began: list[tuple[float, Fault]] = []
        for fault in chosen:
            own = Random(f"{self._seed}/{self._steps}/{fault.kind}")
            start = time.time()
            happened = fault.begin(own)
            began.append((start, fault))  # one that fails half way may disturb too
            if happened:
                self._record.injected[fault.kind] += 1
                ends.append((time.monotonic() + own.uniform(*fault.duration), fault))
        for end, fault in sorted(ends, key=lambda each: each[0]):
            time.sleep(max(0.0, end - time.monotonic()))  # the fault lasts until then
            fault.end()
        for _, fault in ends:
            fault.end()  # again, as a server that was down or frozen may have missed it
        recovered = time.time() + _RECOVERY
        self._record.disturbances += [
            Disturbance(fault.kind, start, recovered, fault.delays)
            for start, fault in began
            if fault.delays is not NOTHING
        ]
        self._fleet.revive()
