"""The producers and flushers of a run."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.faults.network import Network
from tests.support.processes import WorkerProcess


class NodeProcess(WorkerProcess):
    """A process that runs `tests.faults.node`."""

    module = "tests.faults.node"

    def end_with_log(self, log: Path) -> None:
        """Kills it and writes its log to a file."""
        self.kill()
        log.write_text(self.log)
        self._close()


class _End:
    """Notes when a process ends, from now on."""

    def __init__(self, process: NodeProcess) -> None:
        self.at = 0.0
        self._process = process
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def await_it(self, timeout: float) -> float | None:
        """Waits for the end, at most so many seconds; returns its time, or None."""
        self._thread.join(max(0.0, timeout))
        return None if self._thread.is_alive() else self.at

    def _watch(self) -> None:
        while self._process.running:
            time.sleep(0.01)
        self.at = time.time()


class Node:
    """A place in the network, in which one producer or flusher runs at a time.

    Args:
        role: ``producer`` or ``flusher``.
        place: the name of the place. A process is named by it and a number.
        url: of the servers.
        folder: where journals and logs are written.
        settings: see `tests.faults.node`.
    """

    def __init__(
        self, role: str, place: str, url: str, folder: Path, settings: dict[str, Any]
    ) -> None:
        self.role = role
        self.place = place
        self.frozen = False
        self.stopping = False
        self.process: NodeProcess | None = None
        self._end: _End | None = None
        """Of a process that stops."""
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
            name=self.name,
            journal=str(self._folder / f"{self.name}.journal"),
            **self._settings,
        )

    @property
    def running(self) -> bool:
        """Whether there is a process that has not ended; true for a frozen one."""
        return self.process is not None and self.process.running

    def kill(self) -> None:
        """Kills the process and keeps its log."""
        if self.process is not None:
            self.process.end_with_log(self._folder / f"{self.name}.log")
            self.process, self.frozen, self.stopping = None, False, False

    def freeze(self) -> None:
        """Sends SIGSTOP."""
        if self.process is not None:
            self.process.freeze()
            self.frozen = True

    def thaw(self) -> None:
        """Sends SIGCONT."""
        if self.process is not None:
            self.process.thaw()
            self.frozen = False

    def stop(self) -> None:
        """Sends SIGTERM."""
        if self.process is not None:
            self.process.terminate()
            self.stopping = True
            self._end = _End(self.process)

    def await_end(self, timeout: float) -> float | None:
        """Waits until a process that stops has ended; returns when it did, or None."""
        assert self._end is not None, "it does not stop"
        return self._end.await_it(timeout)

    def send_line(self, line: str) -> None:
        """Sends an order to the process; has no effect if it has ended."""
        with contextlib.suppress(BrokenPipeError):
            if self.process is not None:
                self.process.send_line(line)

    @property
    def name(self) -> str:
        """The name of its process."""
        return f"{self.place}.{self._started}"


class Fleet:
    """All nodes of a run; use `running_fleet`."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes

    def of(self, role: str) -> list[Node]:
        """The nodes that have this role."""
        return [node for node in self.nodes if node.role == role]

    def pick(self, role: str, rng: random.Random) -> Node | None:
        """Chooses a node that runs and is not frozen or stopping; None if there is none."""
        able = [
            node for node in self.of(role) if node.running and not node.frozen and not node.stopping
        ]
        return rng.choice(able) if able else None

    def revive(self, *, role: str | None = None) -> None:
        """Starts a new process in the place of each one, or each of a role, that has ended."""
        for node in self.nodes if role is None else self.of(role):
            # `Stopped` waits for the end of one that stops.
            if not node.running and not node.stopping:
                node.kill()  # keeps its log
                node.start()

    def end_faults(self) -> None:
        """Continues frozen nodes and corrects their clocks."""
        for node in self.nodes:
            node.thaw()
            node.send_line("clock 0")

    def finish_producers(self, timeout: float) -> None:
        """Stops the producers and waits until they have ended."""
        for node in self.of("producer"):
            node.send_line("stop")
        for node in self.of("producer"):
            assert node.process is not None
            if node.process.running:
                node.process.wait(timeout)

    def close(self) -> None:
        """Kills all processes."""
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
    """Starts nodes with these settings; their processes end with the `with` block."""
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
            assert node.process.read_line() == "running"
        yield fleet
