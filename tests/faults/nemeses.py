"""The faults: each does its damage in `begin` and repairs it in `end`.

What a fault does is drawn from a `random.Random` that depends on the seed, the step and the fault
only, so a run with the same seed does the same things again, as far as real processes let it.
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

TROUBLE = {
    "merge raised": 0.02,
    "merge hung": 0.002,
    "merge killed its process": 0.0005,
    "sink failed": 0.02,
    "sink hung": 0.003,
    "sink dropped the reply": 0.02,
}
"""Faults that flushers make themselves: how often, of all calls of the merge function or sink."""


class Fault(ABC):
    """Something that goes wrong for a while, or once."""

    kind: str
    lasts: ClassVar[tuple[float, float]] = (0.2, 1.5)
    """From and to how many seconds it lasts."""

    @abstractmethod
    def begin(self, chance: Random) -> bool:
        """Does the damage; False if there was nothing to damage."""

    def end(self) -> None:  # noqa: B027 - what repairs itself needs none
        """Repairs it, as far as it does not repair itself. Does no harm if done again."""


class Kill(Fault):
    """SIGKILL of a node; another process takes its place some time later."""

    def __init__(self, fleet: Fleet, role: str) -> None:
        self.kind = f"{role} killed"
        self._fleet, self._role = fleet, role

    def begin(self, chance: Random) -> bool:
        node = self._fleet.pick(self._role, chance)
        if node is not None:
            node.kill()
        return node is not None

    def end(self) -> None:
        self._fleet.revive()


class Freeze(Fault):
    """SIGSTOP of a node for longer than its lease, then SIGCONT."""

    lasts = (1.1 * LEASE, 3 * LEASE)

    def __init__(self, fleet: Fleet, role: str) -> None:
        self.kind = f"{role} frozen past its lease"
        self._fleet, self._role = fleet, role
        self._node: Node | None = None

    def begin(self, chance: Random) -> bool:
        self._node = self._fleet.pick(self._role, chance)
        if self._node is not None:
            self._node.freeze()
        return self._node is not None

    def end(self) -> None:
        if self._node is not None:
            self._node.thaw()


class FreezeInCommit(Freeze):
    """The same when a commit of the flusher is in the network, which arrives after its lease."""

    def __init__(self, fleet: Fleet, network: Network, script: str) -> None:
        super().__init__(fleet, "flusher")
        self.kind = "flusher frozen in a commit"
        self._network, self._script = network, script
        self._holds: list[Hold] = []

    def begin(self, chance: Random) -> bool:
        self._node = self._fleet.pick(self._role, chance)
        if self._node is None:
            return False
        links = self._network.links(self._node.place)
        self._holds = [proxy.hold(self._script) for proxy in links]
        deadline = time.monotonic() + LEASE
        while not any(hold.count for hold in self._holds):
            if time.monotonic() > deadline:
                self.end()  # it has nothing to commit just now
                return False
            time.sleep(0.005)
        self._node.freeze()
        return True

    def end(self) -> None:
        for hold in self._holds:
            hold.release()
        super().end()


class ClockOff(Fault):
    """A node's clock is hours off, forwards or backwards, and then right again."""

    kind = "clock hours off"

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._node: Node | None = None

    def begin(self, chance: Random) -> bool:
        self._node = self._fleet.pick(chance.choice(ROLES), chance)
        if self._node is not None:
            self._node.say(f"clock {3600 * chance.randint(1, 12) * chance.choice((-1, 1))}")
        return self._node is not None

    def end(self) -> None:
        if self._node is not None:
            self._node.say("clock 0")


class BadLink(Fault):
    """The network fails between a node and some or all of the servers."""

    def __init__(
        self, fleet: Fleet, network: Network, kind: str, harm: Callable[[Proxy, Random], None]
    ) -> None:
        self.kind = kind
        self._fleet, self._network, self._harm = fleet, network, harm
        self._harmed: list[Proxy] = []

    def begin(self, chance: Random) -> bool:
        node = chance.choice(self._fleet.nodes)
        links = self._network.links(node.place)
        self._harmed = chance.sample(links, chance.choice((1, len(links))))
        how = chance.random()
        for proxy in self._harmed:
            self._harm(proxy, Random(how))  # the same for all of them
        return True

    def end(self) -> None:
        for proxy in self._harmed:
            proxy.restore()


LINK_FAULTS: dict[str, Callable[[Proxy, Random], None]] = {
    "connections reset": lambda proxy, chance: proxy.reset(),
    "connections refused": lambda proxy, chance: proxy.cut(),
    "requests lost": lambda proxy, chance: proxy.stall(replies=False),
    "requests late": lambda proxy, chance: proxy.stall(replies=False, late=True),
    "replies lost": lambda proxy, chance: proxy.stall(requests=False),
    "latency": lambda proxy, chance: proxy.delay(chance.uniform(0.01, 0.3)),
    "request half written": lambda proxy, chance: proxy.tear(),
}


class Command(Fault):
    """A command that an operator gives to a server, and one that takes it back."""

    def __init__(
        self,
        topology: Topology,
        kind: str,
        does: Sequence[str | int],
        undoes: Sequence[str | int] = (),
    ) -> None:
        self.kind = kind
        self._topology, self._does, self._undoes = topology, does, undoes
        self._told: EmbeddedRedis | None = None

    def begin(self, chance: Random) -> bool:
        try:
            self._told = chance.choice(self._topology.writable)
            ask(self._told, *self._does)
        except (redis.RedisError, IndexError):  # there may be none just now
            return False
        return True

    def end(self) -> None:
        if self._told is not None and self._undoes:
            with contextlib.suppress(redis.RedisError):
                ask(self._told, *self._undoes)


COMMANDS: dict[str, tuple[Sequence[str | int], ...]] = {
    "SCRIPT FLUSH": (("SCRIPT", "FLUSH"),),
    "CLIENT KILL": (("CLIENT", "KILL", "TYPE", "normal"),),
    "CLIENT KILL of subscribers": (("CLIENT", "KILL", "TYPE", "pubsub"),),
    "memory full": (("CONFIG", "SET", "maxmemory", 1), ("CONFIG", "SET", "maxmemory", 0)),
}


class KillServer(Fault):
    """SIGKILL of a lone Redis, which then starts again with what it has on disk."""

    kind = "Redis killed"
    lasts = (0.1, 1.0)

    def __init__(self, topology: Topology, server: EmbeddedRedis) -> None:
        self._topology, self._server = topology, server

    def begin(self, chance: Random) -> bool:
        self._server.kill()
        self._topology.note_kill()
        return True

    def end(self) -> None:
        self._server.start()


class FreezeServer(Fault):
    """SIGSTOP and SIGCONT of a lone Redis."""

    kind = "Redis frozen"

    def __init__(self, server: EmbeddedRedis) -> None:
        self._server = server

    def begin(self, chance: Random) -> bool:
        self._server.pause()
        return self._server.running

    def end(self) -> None:
        self._server.resume()


class Upheaval(Fault):
    """Something that a topology does as a whole; it is over when `begin` returns."""

    def __init__(self, kind: str, happen: Callable[[Random], None]) -> None:
        self.kind = kind
        self._happen = happen

    def begin(self, chance: Random) -> bool:
        try:
            self._happen(chance)
        except (TimeoutError, redis.RedisError) as error:
            print(f"{self.kind}: {error}", flush=True)
            return False
        return True


def all_faults(topology: Topology, fleet: Fleet, network: Network) -> list[Fault]:
    """Every fault that there can be on a topology."""
    faults: list[Fault] = [ClockOff(fleet)]
    for role in ROLES:
        faults += [Kill(fleet, role), Freeze(fleet, role)]
    script = "commit_stream" if topology.sink is None else "commit"
    faults.append(FreezeInCommit(fleet, network, script))
    faults += [BadLink(fleet, network, kind, harm) for kind, harm in LINK_FAULTS.items()]
    faults += [Command(topology, kind, *commands) for kind, commands in COMMANDS.items()]
    if topology.lone is not None:
        faults += [KillServer(topology, topology.lone), FreezeServer(topology.lone)]
    faults += [Upheaval(kind, happen) for kind, happen in topology.upheavals.items()]
    return faults


class Nemesis:
    """Does damage, one to three faults at a time.

    Args:
        faults: to choose from.
        fleet: of which nodes that have ended are replaced between the steps.
    """

    def __init__(self, faults: Sequence[Fault], fleet: Fleet, seed: int | str) -> None:
        self.struck: Counter[str] = Counter()
        """How many faults there were of each kind."""
        self._faults = faults
        self._fleet = fleet
        self._seed = seed
        self._steps = 0
        self._deck: list[Fault] = []

    def step(self) -> None:
        """Some faults at the same time, until all of them are repaired, and a moment of rest."""
        self._steps += 1
        chance = Random(f"{self._seed}/{self._steps}")
        many = chance.choices((1, 2, 3), (4, 4, 2))[0]
        if len(self._deck) < many:  # dealt like cards, so that no kind stays away for long
            self._deck = chance.sample(self._faults, len(self._faults))
        dealt, self._deck = self._deck[:many], self._deck[many:]
        ends: list[tuple[float, Fault]] = []
        for fault in dealt:
            own = Random(f"{self._seed}/{self._steps}/{fault.kind}")
            if fault.begin(own):
                self.struck[fault.kind] += 1
                ends.append((time.monotonic() + own.uniform(*fault.lasts), fault))
        for end, fault in sorted(ends, key=lambda each: each[0]):
            time.sleep(max(0.0, end - time.monotonic()))
            fault.end()
        for _, fault in ends:
            fault.end()  # again, as a server that was down or frozen may not have heard of it
        self._fleet.revive()
        time.sleep(chance.uniform(0.1, 0.5))


def own_troubles(journals: Sequence[Path]) -> Counter[str]:
    """How many faults the nodes made themselves, by kind."""
    counted: Counter[str] = Counter()
    for path in journals:
        counted.update(kind for event, kind, *_ in read_journal(path) if event == "fault")
    return counted
