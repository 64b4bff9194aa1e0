"""The trial that each queue system is put to: real flushers, one of them killed, a real worker.

The flushers, by ``redisagg worker --sink``, and the system's worker run in the system's own
environment, see `environment`; the producers run in the tests' own.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redisagg import Aggregator
from tests.sinks.environment import CHECKOUT, environment
from tests.sinks.workers.note import RECEIVED
from tests.support.processes import running_processes
from tests.support.servers import wait_until
from tests.support.tasks import quick_config

TASKS, GROUPS, BATCH = 1_000, 50, 5
PARTITIONS = 8
PRODUCERS = ("one", "two")
KILLED_AFTER = 20  # batches received

_SETTLE = 1.0  # seconds in which a batch too many would arrive


@dataclass(frozen=True)
class System:
    """A queue system, its sink and how to start its worker.

    In `sink`, `worker` and the values of `env`, ``{url}`` stands for the Redis of the test and
    ``{python}`` for the Python of the system's environment.
    """

    extra: str
    sink: str
    """The URL of the sink that gets what `Aggregator` merges by default from tasks ``test``."""
    worker: Sequence[str]
    """The command; it runs in the checkout and appends JSON objects to the file in `RECEIVED`, by
    `tests.sinks.workers.note`. Of a merged batch they have ``id`` and ``payloads``."""
    env: Mapping[str, str] = field(default_factory=dict)
    also: Sequence[str] = ()
    """Further requirements of the environment."""


class Trial:
    """One system at work on one Redis.

    Args:
        url: of the Redis that holds both the groups and the queue.
        folder: for logs and what the worker received.
    """

    def __init__(self, system: System, url: str, folder: Path) -> None:
        self.system = system
        self.url = url
        self.python = environment(f"{system.extra},cli", *system.also)
        self.folder = folder
        self._received = folder / "received"

    def received(self) -> list[dict[str, Any]]:
        """What the worker has noted so far."""
        if not self._received.exists():
            return []
        return [json.loads(line) for line in self._received.read_text().splitlines()]

    def await_received(self, count: int, timeout: float = 60) -> list[dict[str, Any]]:
        """Waits until the worker has noted so much, and a moment for more; returns all."""
        what = f"the worker has received {count}"
        wait_until(lambda: len(self.received()) >= count, timeout=timeout, what=what)
        time.sleep(_SETTLE)
        return self.received()

    @contextlib.contextmanager
    def worker(self, *arguments: str) -> Iterator[None]:
        """Runs the system's worker, which may still be starting when the block begins.

        Args:
            arguments: go behind the system's own command.
        """
        env = {name: self._filled(value) for name, value in self.system.env.items()}
        command = [self._filled(part) for part in (*self.system.worker, *arguments)]
        with running(command, self.log("worker"), env={**env, RECEIVED: str(self._received)}):
            yield

    def deliver(self, *batches: Mapping[str, Any], sink: str | None = None) -> None:
        """Delivers by the sink, without a flusher; see `tests.sinks.deliver`."""
        where = self._filled(sink or self.system.sink)
        command = [self.python, "-m", "tests.sinks.deliver", where, json.dumps(batches)]
        subprocess.run(command, cwd=CHECKOUT, check=True, timeout=60)

    def run(self) -> list[dict[str, Any]]:
        """Adds the tasks, kills a flusher on the way; returns what the worker received."""
        config = {"group_max_size": BATCH, "partitions": PARTITIONS}
        flusher = [
            *(str(self.python), "-m", "redisagg", "worker", "tests", "--redis", self.url),
            *("--sink", self._filled(self.system.sink), "--max-size", str(BATCH)),
            *("--partitions", str(PARTITIONS)),
        ]
        agg = Aggregator("tests", self.url, config=quick_config(**config))
        with (
            contextlib.closing(agg),
            self.worker(),
            running(flusher, self.log("flusher-1")) as killed,
            running(flusher, self.log("flusher-2")),
            running_processes() as processes,
        ):
            wait_until(
                lambda: (
                    len({partition.leader for partition in agg.stats().partitions} - {None}) == 2
                ),
                timeout=30,
                what="the flushers share the partitions",
            )
            for name in PRODUCERS:
                processes.start(
                    "producer",
                    self.url,
                    config=config,
                    name=name,
                    groups=[f"group-{n}" for n in range(GROUPS)],
                    count=TASKS // len(PRODUCERS),
                    chunk=10,
                    pause=0.05,
                ).send_line("go")
            wait_until(
                lambda: len(self.received()) >= KILLED_AFTER,
                timeout=60,
                what="the worker receives batches",
            )
            assert agg.stats().flushed < TASKS, "too late to kill a flusher on the way"
            killed.kill()
            entries = self.await_received(TASKS // BATCH)
            assert agg.wait_until_idle(10)
            assert agg.stats().batches_dead == 0
        return entries

    def log(self, name: str) -> Path:
        """Where the process of this name logs."""
        return self.folder / f"{name}.log"

    def _filled(self, text: str) -> str:
        return text.replace("{url}", self.url).replace("{python}", str(self.python))


@contextlib.contextmanager
def running(
    command: Sequence[str | Path],
    log: Path,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path = CHECKOUT,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block; pytest shows its log if the test failed.

    Args:
        env: what it has in its environment besides ours.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its children can be ended with it
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        print(f"--- {log.name}\n{log.read_text(errors='replace')}")


def check(entries: Sequence[Mapping[str, Any]], *, refuses_repeats: bool) -> None:
    """Checks that every task was received exactly once.

    Args:
        entries: what `Trial.run` returned.
        refuses_repeats: whether the system enqueues an id once. If not, a batch may have come
            again from the flusher that was killed, with the same id and the same tasks, and only
            from that one: it had no more in hand than it may merge at a time.
    """
    batches = {entry["id"]: entry for entry in entries}
    assert len(batches) == TASKS // BATCH
    assert all(entry["payloads"] == batches[entry["id"]]["payloads"] for entry in entries)
    repeats = len(entries) - len(batches)
    assert repeats <= (0 if refuses_repeats else quick_config().concurrency)
    tasks = Counter(tuple(task) for entry in batches.values() for task in entry["payloads"])
    expected = [(name, n) for name in PRODUCERS for n in range(TASKS // len(PRODUCERS))]
    assert tasks == Counter(expected)
