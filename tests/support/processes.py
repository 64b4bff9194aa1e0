"""Producers and flushers as separate processes, which a test can kill and freeze."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.child_log import ChildLog

_ROOT = Path(__file__).parents[2]


class WorkerProcess:
    """A process that runs `tests.support.worker`, where roles and settings are described."""

    module = "tests.support.worker"

    def __init__(self, role: str, url: str, **settings: Any) -> None:
        self._log = ChildLog()
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.module, role, url, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log.file,
            cwd=_ROOT,
            text=True,
        )
        self.name = f"{role} {self.pid}"

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process has not ended yet; true for a frozen one."""
        return self._process.poll() is None

    @property
    def log(self) -> str:
        """The text that it has logged so far."""
        return self._log.read()

    def send_line(self, line: str) -> None:
        """Sends a line to its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def read_line(self) -> Any:
        """Waits for the next line that it prints and decodes it from JSON.

        Raises:
            EOFError: it has ended; the message has its log.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait(10)
            raise EOFError(f"{self.name} ended with {self._process.returncode}:\n{self.log}")
        return json.loads(line)

    def wait(self, timeout: float = 20) -> int:
        """Waits until it ends; returns the exit status, negative if a signal ended it."""
        return self._process.wait(timeout)

    def terminate(self) -> None:
        """Sends SIGTERM, on which it stops in order."""
        self._process.terminate()

    def kill(self) -> None:
        """Sends SIGKILL, as in a crash; returns when the process has ended."""
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """Sends SIGSTOP: it keeps its connections and does nothing, as on a paused machine."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Sends SIGCONT: it continues."""
        self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """Kills it and prints its log, which pytest shows if the test failed."""
        self.kill()
        print(f"--- log of {self.name}\n{self.log}")
        self._close()

    def _close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout, self._log):
            with contextlib.suppress(OSError):  # the pipe may be broken
                if stream is not None:
                    stream.close()


class Processes:
    """Starts worker processes; use `running_processes`, which ends them."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def start(self, role: str, url: str, **settings: Any) -> WorkerProcess:
        """Starts a worker; returns at once."""
        process = WorkerProcess(role, url, **settings)
        self._stack.callback(process.end)
        return process

    def flushers(self, count: int, url: str, **settings: Any) -> list[WorkerProcess]:
        """Starts flushers; returns when each of them is about to join."""
        started = [self.start("flusher", url, **settings) for _ in range(count)]
        for each in started:
            assert each.read_line() == "running"
        return started

    def close(self) -> None:
        """Kills the processes that still run."""
        self._stack.close()


@contextlib.contextmanager
def running_processes() -> Iterator[Processes]:
    """Starts processes that end with the `with` block."""
    with contextlib.closing(Processes()) as processes:
        yield processes
