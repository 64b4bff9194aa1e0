"""The Go program in `go/`: the real Asynq, asked by the tests."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.support.child_log import ChildLog
from tests.support.servers import wait_until

SOURCE = Path(__file__).parent / "go"


class GoProcess:
    """A running command of the program, and what it has printed."""

    def __init__(self, program: Path, arguments: Sequence[str]) -> None:
        self.lines: list[Any] = []
        """What it printed so far, without the greeting."""
        self._log = ChildLog()
        self._process = subprocess.Popen(
            [str(program), *arguments], stdout=subprocess.PIPE, stderr=self._log.file, text=True
        )
        assert self._process.stdout is not None
        assert json.loads(self._process.stdout.readline() or "null") == "ready", self.log
        self._reader = threading.Thread(target=self._read, args=[self._process.stdout])
        self._reader.start()

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return self._log.read()

    def await_lines(self, count: int, timeout: float = 20) -> list[Any]:
        """Waits until it has printed so many lines; returns them."""
        what = f"the Go program prints {count} lines"
        wait_until(lambda: len(self.lines) >= count, timeout=timeout, what=what)
        return self.lines

    def wait(self, timeout: float = 20) -> int:
        """Waits for its end; returns the status."""
        return self._process.wait(timeout)

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """Ends it by force and shows its log, which pytest prints for a test that failed."""
        self.kill()
        self._reader.join()
        print(f"--- log of the Go program\n{self.log}")
        self._log.close()

    def _read(self, stdout: Any) -> None:
        with stdout:
            self.lines.extend(json.loads(line) for line in stdout)


class Asynq:
    """The commands of the program, on one Redis."""

    def __init__(self, program: Path, address: str, stack: contextlib.ExitStack) -> None:
        self._program = program
        self._address = address
        self._stack = stack

    def enqueue(self, *orders: dict[str, Any]) -> list[str]:
        """Has Asynq's client enqueue tasks; returns its errors, empty where there was none."""
        lines = "".join(json.dumps(order) + "\n" for order in orders)
        return [said["error"] for said in self._ask(["enqueue", self._address], lines)]

    def inspect(self, queue: str = "default") -> Any:
        """What Asynq's inspector says about a queue."""
        [said] = self._ask(["inspect", self._address, queue])
        return said

    def serve(self, *queues: str) -> GoProcess:
        """Starts a server of Asynq; its lines are the tasks that its handler got."""
        return self._start(["serve", self._address, *(queues or ["default"])])

    def aggregate(self, queue: str, how: str) -> GoProcess:
        """Starts a server that groups by itself; its lines are the calls of its aggregator."""
        return self._start(["aggregate", self._address, queue, how])

    def _start(self, arguments: Sequence[str]) -> GoProcess:
        process = GoProcess(self._program, arguments)
        self._stack.callback(process.end)
        return process

    def _ask(self, arguments: Sequence[str], lines: str = "") -> list[Any]:
        result = subprocess.run(
            [str(self._program), *arguments],
            input=lines,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=30,
        )
        return [json.loads(line) for line in result.stdout.splitlines()]


@contextlib.contextmanager
def running(program: Path) -> Iterator[Callable[[str], Asynq]]:
    """What gives the commands for an address; the servers end with the `with` block."""
    with contextlib.ExitStack() as stack:
        yield lambda address: Asynq(program, address, stack)
