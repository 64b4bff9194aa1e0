"""The producers and flushers of a run: places in the network, each with one process at a time."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.faults.network import Network
from tests.support.processes import WorkerProcess


class NodeProcess(WorkerProcess):
    """A process that runs `tests.faults.node`."""

    module = "tests.faults.node"

    def bury(self, log: Path) -> None:
        """Ends it by force and writes its log into a file."""
        self.kill()
        log.write_text(self.log)
        self._close()


class Node:
    """A place in the network where a producer or flusher runs; a killed one is replaced.

    Args:
        place: its name. Each process there has a name of its own, made of this and a number.
        settings: see `tests.faults.node`.
    """

    def __init__(
        self, role: str, place: str, url: str, folder: Path, settings: dict[str, Any]
    ) -> None:
        self.role = role
        self.place = place
        self.frozen = False
        self.process: NodeProcess | None = None
        self._url = url
        self._folder = folder
        self._settings = settings
        self._started = 0

    def start(self) -> None:
        """Starts a process; returns at once."""
        self._started += 1
        self.process = NodeProcess(
            self.role,
            self._url,
            name=self._name,
            journal=str(self._folder / f"{self._name}.journal"),
            **self._settings,
        )

    @property
    def running(self) -> bool:
        """Whether there is a process that has not ended; a frozen one runs."""
        return self.process is not None and self.process.running

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.bury(self._folder / f"{self._name}.log")
            self.process, self.frozen = None, False

    def freeze(self) -> None:
        """SIGSTOP."""
        if self.process is not None:
            self.process.freeze()
            self.frozen = True

    def thaw(self) -> None:
        """SIGCONT."""
        if self.process is not None:
            self.process.thaw()
            self.frozen = False

    def say(self, line: str) -> None:
        """Gives an order; one that is gone does not hear it."""
        with contextlib.suppress(BrokenPipeError):
            if self.process is not None:
                self.process.say(line)

    @property
    def _name(self) -> str:
        return f"{self.place}.{self._started}"


class Fleet:
    """All nodes of a run; use `running_fleet`."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes

    def of(self, role: str) -> list[Node]:
        """The nodes that have this role."""
        return [node for node in self.nodes if node.role == role]

    def pick(self, role: str, chance: random.Random) -> Node | None:
        """One that runs and is not frozen; None if there is no such node."""
        able = [node for node in self.of(role) if node.running and not node.frozen]
        return chance.choice(able) if able else None

    def revive(self) -> None:
        """Replaces those that have ended."""
        for node in self.nodes:
            if not node.running:
                node.kill()  # for its log
                node.start()

    def calm(self) -> None:
        """Has all nodes make no more faults themselves, and run."""
        for node in self.nodes:
            node.thaw()
            node.say("calm")
            node.say("clock 0")

    def finish_producers(self, timeout: float) -> None:
        """Has the producers end their calls, and waits for that."""
        for node in self.of("producer"):
            node.say("stop")
        for node in self.of("producer"):
            assert node.process is not None
            if node.process.running:
                node.process.wait(timeout)

    def close(self) -> None:
        """Ends all processes."""
        for node in self.nodes:
            node.kill()


@contextlib.contextmanager
def running_fleet(
    url: str,
    network: Network,
    folder: Path,
    producers: list[dict[str, Any]],
    flushers: list[dict[str, Any]],
    common: dict[str, Any],
) -> Iterator[Fleet]:
    """Nodes with these settings, started; their processes end with the `with` block."""
    nodes = []
    for role, each in (("producer", producers), ("flusher", flushers)):
        for number, settings in enumerate(each, 1):
            place = f"{role}{number}"
            routes = network.routes(place)
            nodes.append(Node(role, place, url, folder, {**common, **settings, "routes": routes}))
    with contextlib.closing(Fleet(nodes)) as fleet:
        for node in nodes:
            node.start()
        for node in nodes:
            assert node.process is not None
            assert node.process.hear() == "running"
        yield fleet
