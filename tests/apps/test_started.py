"""Each application in examples/apps, started by the servers that its users have."""

from __future__ import annotations

import ast
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from redisagg import AggregationConfig, Aggregator
from tests.sinks.harness import running
from tests.support.markdown import CHECKOUT
from tests.support.proxy import Proxy
from tests.support.servers import wait_until
from tests.support.tasks import await_batches, enqueued

APPS = CHECKOUT / "examples" / "apps"
HOST = "127.0.0.1"
MOST_LINES = 120

pytestmark = pytest.mark.timeout(120)


class Started:
    """The processes of an application, and a look into its namespace."""

    def __init__(self, url: str, folder: Path, port: int, stack: ExitStack) -> None:
        self.url = url
        self.folder = folder
        self.address = f"http://{HOST}:{port}"
        self.port = port
        self._stack = stack
        self._processes: list[subprocess.Popen[bytes]] = []
        self.env = {"REDISAGG_URL": url, "PYTHONPATH": str(APPS)}

    def run(self, *command: str, **env: str) -> subprocess.Popen[bytes]:
        """Starts a program of the environment, in the folder of the applications."""
        log = self.folder / f"{len(self._processes)}-{command[0].rpartition('/')[2]}.log"
        process = self._stack.enter_context(
            running(self._filled(command), log, env={**self.env, **env}, cwd=APPS)
        )
        self._processes.append(process)
        return process

    def call(self, *command: str) -> str:
        """Runs a program to its end; returns what it printed."""
        env = {**os.environ, **self.env}
        return subprocess.run(
            self._filled(command), cwd=APPS, env=env, check=True, stdout=-1, text=True
        ).stdout

    def _filled(self, command: tuple[str, ...]) -> list[str]:
        """The command with the programs of this environment."""
        program = Path(sys.executable).with_name(command[0])
        return [str(program) if program.exists() else command[0], *command[1:]]

    def fetch(
        self, path: str, data: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Makes a request; returns the status, and the JSON or text of the answer."""
        body = data if data is None or isinstance(data, bytes) else json.dumps(data).encode()
        content = {"Content-Type": "application/json"} if body is not data else {}
        request = urllib.request.Request(self.address + path, body, {**content, **(headers or {})})
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                status, text = response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read().decode()
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text

    def await_answer(self, path: str = "/health") -> Any:
        """Waits until the web server answers; returns the answer."""

        def answers() -> bool:
            try:
                return self.fetch(path)[0] > 0
            except OSError:
                return False

        wait_until(answers, timeout=60, what="the web server answers")
        return self.fetch(path)

    def await_led(self) -> None:
        """Waits until a worker leads all partitions."""
        wait_until(lambda: self.fetch("/health")[1]["led"], timeout=60, what="a worker leads")

    def aggregator(self, name: str) -> Aggregator:
        """An aggregator for looking at a namespace."""
        made = Aggregator(name, self.url, sink=f"stream://{name}", config=AggregationConfig())
        self._stack.callback(made.close)
        return made

    def rows(self, query: str, *values: Any, file: str = "data.db") -> list[Any]:
        """Asks the SQLite database of the application."""
        with closing(sqlite3.connect(self.folder / file)) as database:
            try:
                return database.execute(query, values).fetchall()
            except sqlite3.OperationalError:  # it makes its table when it writes
                return []

    def end(self) -> list[int]:
        """Ends all processes as an operator does; returns their exit codes."""
        for each in self._processes:
            each.send_signal(signal.SIGTERM)
        return [each.wait(30) for each in self._processes]


@pytest.fixture
def started(redis_url: str, tmp_path: Path, free_port: int) -> Iterator[Started]:
    """The processes of one application."""
    with ExitStack() as stack:
        made = Started(redis_url, tmp_path, free_port, stack)
        made.env["DATABASE"] = str(tmp_path / "data.db")
        yield made


def test_fastapi_by_uvicorn(started: Started) -> None:
    started.run("uvicorn", "fastapi_app.web:web", "--host", HOST, "--port", str(started.port))
    status, health = started.await_answer()
    assert (status, health["led"]) == (200, False)
    started.run("redisagg", "worker", "fastapi_app.batching:app")
    started.await_led()
    key = {"Idempotency-Key": "K"}
    for item, headers in (("tea", key), ("tea", key), ("milk", {})):
        order = {"item": item, "price": "1.10"}
        assert started.fetch("/customers/7/orders", order, headers)[0] == 202
    assert started.fetch("/customers/7/orders", {"item": "tea"})[0] == 422
    mails = started.aggregator("fastapi-mails")
    assert mails.flush_all() == 2
    await_batches(mails, 1)
    [batch] = enqueued(mails)
    assert batch.payload["to"] == "7"
    assert batch.payload["text"] == "tea: 1.10\nmilk: 1.10\n"
    assert str(batch.payload["total"]) == "2.20"
    web, worker = started.end()
    assert worker == 0
    assert web in (0, -signal.SIGTERM)  # uvicorn ends in order, then by the signal that it got


def test_fastapi_without_redis(started: Started, proxy: Proxy) -> None:
    started.env["REDISAGG_URL"] = proxy.url
    started.run("uvicorn", "fastapi_app.web:web", "--host", HOST, "--port", str(started.port))
    assert started.await_answer()[0] == 200
    proxy.stall()
    status, health = started.fetch("/health")
    assert (status, health["reachable"]) == (503, False)
    status, answer = started.fetch("/customers/7/orders", {"item": "tea", "price": "1"})
    assert (status, answer) == (503, {"detail": "try again"})
    proxy.restore()
    wait_until(lambda: started.fetch("/health")[0] == 200, what="Redis answers again")
    assert started.fetch("/customers/7/orders", {"item": "tea", "price": "1"})[0] == 202


def test_django_by_gunicorn_with_workers_that_are_forked(started: Started) -> None:
    started.env["DJANGO_SETTINGS_MODULE"] = "django_app.settings"
    started.call("python", "-m", "django", "migrate", "--run-syncdb", "--verbosity=0")
    started.call(
        "python", "-m", "django", "check", "--deploy", "--tag=redisagg", "--fail-level=INFO"
    )
    started.run(
        *("gunicorn", "django_app.wsgi", "--bind", f"{HOST}:{started.port}"),
        *("--workers=2", "--preload"),
    )
    assert started.await_answer()[0] == 200
    started.run("python", "-m", "django", "redisagg", "worker")
    started.await_led()
    texts = [urlencode({"text": f"notice {n}"}).encode() for n in range(6)]
    for n, text in enumerate(texts):
        assert started.fetch(f"/users/{n % 2}/notices", text)[0] == 201
    started.call("python", "-m", "django", "redisagg", "flush", "--all")  # its only aggregator
    query = "SELECT user, text FROM mails_mail ORDER BY user"
    wait_until(lambda: len(started.rows(query)) == 2, what="two mails are written")
    assert started.rows(query) == [
        (0, "notice 0\nnotice 2\nnotice 4"),
        (1, "notice 1\nnotice 3\nnotice 5"),
    ]
    assert started.end() == [0, 0]


def test_flask_by_gunicorn_with_gevent(started: Started) -> None:
    started.env["INSTANCE_PATH"] = str(started.folder)
    started.run(
        *("gunicorn", "flask_app.web:create_app()", "--bind", f"{HOST}:{started.port}"),
        *("--workers=2", "--worker-class=gevent"),
    )
    assert started.await_answer()[0] == 200
    started.run("flask", "--app", "flask_app.web", "redisagg", "worker")
    started.await_led()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(started.fetch, ["/pages/home"] * 40 + ["/pages/about"]))
    assert set(answers) == {(200, "This is home."), (200, "This is about.")}
    views = started.aggregator("flask-views")
    views.flush_all()
    wait_until(lambda: started.fetch("/views/about")[1]["views"], what="views are counted")
    wait_until(lambda: started.fetch("/views/home")[1]["views"] == 40, what="all are counted")
    assert started.end() == [0, 0]


def test_celery_with_workers_that_are_forked(started: Started) -> None:
    started.run(
        *("celery", "-A", "celery_app.clicks", "worker", "--concurrency=2"),
        *("--without-gossip", "--without-mingle"),
    )
    started.run("redisagg", "worker", "celery_app.clicks:batches")
    program = """
from celery_app.clicks import batches, click
results = [click.delay(link) for link in ("a/1", "b/1", "a/1", "a/2")]
click.aggregator.flush_all()
print([each.get(timeout=60) for each in results])
batches.close()
"""
    assert ast.literal_eval(started.call("python", "-c", program)) == [2, 1, 2, 1]
    assert started.rows("SELECT link, count FROM clicks ORDER BY link") == [
        ("a/1", 2),
        ("a/2", 1),
        ("b/1", 1),
    ]
    assert started.end() == [0, 0]


def test_plain_asyncio(started: Started) -> None:
    started.run("python", "-m", "asyncio_app.collector", str(started.port))

    def connected() -> socket.socket | None:
        try:
            return socket.create_connection((HOST, started.port), timeout=20)
        except OSError:
            return None

    found: list[socket.socket | None] = []
    wait_until(lambda: found.append(connected()) or found[-1], timeout=60, what="it listens")  # type: ignore[func-returns-value]
    connection = found[-1]
    assert connection is not None
    with connection, connection.makefile("rw") as lines:
        lines.write("t 1\nt 3.5\nnothing\nt x\nh 40\n")
        lines.flush()
        assert [lines.readline().strip() for _ in range(5)] == ["ok", "ok", "wrong", "wrong", "ok"]
    means = started.aggregator("asyncio-means")
    means.flush_all()
    query = "SELECT sensor, mean, count FROM means ORDER BY sensor"
    wait_until(lambda: len(started.rows(query)) == 2, what="the means are written")
    assert started.rows(query) == [("h", 40.0, 1), ("t", 2.25, 2)]
    assert started.end() == [0]


@pytest.mark.parametrize(
    "name", ["fastapi_app", "django_app", "flask_app", "celery_app", "asyncio_app"]
)
def test_an_application_is_short(name: str) -> None:
    files = [path for path in (APPS / name).rglob("*.py") if "tests" not in path.parts]
    assert sum(len(path.read_text("utf-8").splitlines()) for path in files) < MOST_LINES
