"""The clients that sinks make of a URL give up a Redis that accepts connections and is silent."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest

from redisagg.sinks.clients import url_with_timeouts
from redisagg.sinks.urls import _BUILT_IN
from tests.sinks.environment import CHECKOUT, environment
from tests.support.servers import wait_until

URLS = {
    "arq": "arq://?redis={url}&timeout=1",
    "bullmq": "bullmq://digests?redis={url}&timeout=1",
    "celery": "celery://?broker={url}&timeout=1",
    "dramatiq": "dramatiq://?redis={url}&timeout=1",
    "huey": "huey://?redis={url}&delivery_timeout=1",
    "rq": "rq://?redis={url}&function=a.b&delivery_timeout=1",
    "saq": "saq://?redis={url}&delivery_timeout=1",
    "streaq": "streaq://?redis={url}&timeout=1",
    "taskiq": "taskiq://?redis={url}&delivery_timeout=1",
}

OTHERS = {"stream", "list", "asynq", "webhook+http", "webhook+https"}
"""They have no client of their own, or (webhooks) tests of their own for it."""


class Silent:
    """Accepts connections, answers nothing, and counts those that the other side has closed."""

    def __init__(self) -> None:
        self.given_up = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._socket.getsockname()[1]}/0"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while connection.recv(65_536):
                pass
        self.given_up += 1

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def silent() -> Iterator[Silent]:
    server = Silent()
    yield server
    server.close()


def test_each_sink_is_tested_here() -> None:
    assert URLS.keys() | OTHERS == _BUILT_IN.keys()


@pytest.mark.registry
@pytest.mark.timeout(300)
@pytest.mark.parametrize("system", URLS)
def test_a_silent_redis_is_given_up(silent: Silent, system: str) -> None:
    python = environment(f"{system},cli")
    url = URLS[system].format(url=silent.url)
    process = subprocess.Popen([python, "-m", "tests.sinks.deliver_alone", url], cwd=CHECKOUT)
    try:
        wait_until(lambda: silent.given_up, timeout=20, what="the client gives up the connection")
        assert process.poll() is None  # it was not closed by the end of the process
    finally:
        process.kill()
        process.wait()


def test_options_of_a_url_have_precedence() -> None:
    assert (
        url_with_timeouts("redis://h", 2) == "redis://h?socket_timeout=2&socket_connect_timeout=2"
    )
    assert url_with_timeouts("redis://h/1?db=3&socket_timeout=1", 2.5) == (
        "redis://h/1?db=3&socket_timeout=1&socket_connect_timeout=2.5"
    )
