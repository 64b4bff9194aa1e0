"""Runs a queue system with real flushers, one of which is killed, and a real worker.

The flushers (``redisagg worker --sink``) and the worker run in the virtual environment of the
system, see `environment`; the producers run in that of the tests.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
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

_SETTLE = 1.0  # seconds within which a repeated batch would arrive


@dataclass(frozen=True)
class System:
    """A queue system, its sink and how to start its worker.

    In `sink`, `worker` and the values of `env`, ``{url}`` stands for the Redis of the test and
    ``{python}`` for the Python of the system's environment.
    """

    extra: str
    sink: str
    """The URL of a sink for the default merge of tasks of the type ``test``."""
    worker: Sequence[str]
    """The command of the worker, which runs in the checkout and records the ``id`` and the
    ``payloads`` of each batch by `tests.sinks.workers.note`."""
    env: Mapping[str, str] = field(default_factory=dict)
    also: Sequence[str] = ()
    """Further requirements of the environment."""


class Trial:
    """A queue system with one Redis.

    Args:
        url: the URL of the Redis with the groups and the queue.
        folder: the folder for logs and for the file with the received tasks.
    """

    def __init__(self, system: System, url: str, folder: Path) -> None:
        self.system = system
        self.url = url
        self.python = environment(f"{system.extra},cli", *system.also)
        self.folder = folder
        self._received = folder / "received"
        self.in_flight: frozenset[str] = frozenset()
        """The ids of the batches that were in flight when `run` had killed a flusher."""

    def received(self) -> list[dict[str, Any]]:
        """All that the worker has recorded so far."""
        if not self._received.exists():
            return []
        lines = self._received.read_text().splitlines(keepends=True)
        # The worker may be in the middle of writing the last one.
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def await_received(self, count: int, timeout: float = 60) -> list[dict[str, Any]]:
        """Waits until the worker has recorded `count` tasks, then for repeats; returns all."""
        what = f"the worker has received {count}"
        wait_until(lambda: len(self.received()) >= count, timeout=timeout, what=what)
        time.sleep(_SETTLE)
        return self.received()

    def await_ids(self, count: int) -> list[str]:
        """The sorted ids of `await_received`."""
        return sorted(entry["id"] for entry in self.await_received(count))

    @contextlib.contextmanager
    def worker(self, *arguments: str) -> Iterator[None]:
        """Runs the system's worker, which may still be starting when the block begins.

        Args:
            arguments: further arguments of the command.
        """
        command = [self._filled(part) for part in (*self.system.worker, *arguments)]
        with running(command, self.log("worker"), env=self.env):
            yield

    @property
    def env(self) -> dict[str, str]:
        """What the worker has in its environment beside that of the tests."""
        env = {name: self._filled(value) for name, value in self.system.env.items()}
        return {**env, RECEIVED: str(self._received)}

    def deliver(self, *batches: Mapping[str, Any], sink: str | None = None) -> None:
        """Delivers by the sink, without a flusher; see `tests.sinks.deliver`."""
        where = self._filled(sink or self.system.sink)
        command: list[str | Path] = [
            self.python,
            "-m",
            "tests.sinks.deliver",
            where,
            json.dumps(batches),
        ]
        subprocess.run(command, cwd=CHECKOUT, check=True, timeout=60)

    def run(self) -> list[dict[str, Any]]:
        """Adds the tasks and kills a flusher meanwhile; returns all that the worker recorded."""
        config = {"group_max_size": BATCH, "partitions": PARTITIONS}
        flusher = [
            *(str(self.python), "-m", "redisagg", "worker", "tests", "--redis", self.url),
            *("--sink", self._filled(self.system.sink), "--partitions", str(PARTITIONS)),
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
            assert agg.stats().flushed < TASKS, "all tasks were flushed before a flusher was killed"
            killed.kill()
            killed.wait()
            self.in_flight = frozenset(batch.batch_id for batch in agg.get_batches())
            entries = self.await_received(TASKS // BATCH)
            assert agg.wait_until_idle(10)
            assert agg.stats().batches_dead == 0
        return entries

    def log(self, name: str) -> Path:
        """The log file of the process of this name."""
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
        env: additions to the environment of the tests.
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


def verify_received_once(
    entries: Sequence[Mapping[str, Any]], *, may_repeat: Collection[str] = ()
) -> None:
    """Checks that every task was received exactly once.

    Args:
        entries: what `Trial.run` returned.
        may_repeat: the ids of batches that may have come twice, with the same tasks. Where the
            system does not refuse a repeat these are `Trial.in_flight`: the killed flusher may have
            delivered a batch and not yet removed it.
    """
    batches = {entry["id"]: entry for entry in entries}
    assert len(batches) == TASKS // BATCH
    assert all(entry["payloads"] == batches[entry["id"]]["payloads"] for entry in entries)
    times = Counter(entry["id"] for entry in entries)
    assert {each for each, count in times.items() if count > 1} <= set(may_repeat)
    assert max(times.values()) <= 2
    tasks = Counter(tuple(task) for entry in batches.values() for task in entry["payloads"])
    expected = [(name, n) for name in PRODUCERS for n in range(TASKS // len(PRODUCERS))]
    assert tasks == Counter(expected)


def verify_repeats_keep_their_id(trial: Trial) -> None:
    """Checks that a batch that is delivered twice arrives twice, with the same id."""
    batch = {"id": "B1", "type": "anything", "payload": {"a": 1}}
    trial.deliver(batch, batch)
    with trial.worker():
        assert trial.await_ids(2) == ["B1", "B1"]


def verify_repeats_are_refused(
    trial: Trial,
    *kept: Mapping[str, Any],
    forgotten: Mapping[str, Any],
    sink: str | None = None,
) -> None:
    """Checks that a repeat is refused while the system keeps the id, and accepted after that.

    Args:
        trial: the system, with no worker running.
        *kept: batches whose ids it keeps after they were processed.
        forgotten: a batch whose id it forgets when it was processed.
        sink: the URL of another sink than the system's own.
    """
    batches = (*kept, forgotten)
    ids = [batch["id"] for batch in batches]
    trial.deliver(*batches, *batches, sink=sink)
    with trial.worker():
        assert trial.await_ids(len(ids)) == sorted(ids)
        trial.deliver(*batches, sink=sink)
        assert trial.await_ids(len(ids) + 1) == sorted([*ids, forgotten["id"]])
