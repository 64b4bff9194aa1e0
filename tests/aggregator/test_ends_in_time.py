"""`stop`, `close` and `run` end within `shutdown_timeout` and 2 seconds, whatever Redis does."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from redisagg import Aggregator, RedisAggError, Task
from redisagg.testing import EmbeddedRedis
from tests.support.aggregators import Make
from tests.support.processes import Processes
from tests.support.servers import wait_until
from tests.support.tasks import await_led

SHUTDOWN_TIMEOUT = 0.5

LONG: dict[str, Any] = {"add_timeout": 60, "lease_time": 30, "shutdown_timeout": SHUTDOWN_TIMEOUT}
"""With these a connection counts as lost after 5 seconds of silence only."""


@pytest.fixture
def server() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis() as server:
        yield server


@contextlib.contextmanager
def frozen(server: EmbeddedRedis) -> Iterator[None]:
    """Redis accepts connections and reads nothing."""
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@contextlib.contextmanager
def black_hole(server: EmbeddedRedis) -> Iterator[None]:
    """Nobody answers on the port of Redis, not even by a refusal."""
    server.kill()
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", server.port))
        listener.listen(0)
        for _ in range(3):  # fill the queue, so that the kernel drops further ones
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", server.port))
        yield


OUTAGES = {"frozen": frozen, "black hole": black_hole}

ENDS: dict[str, Callable[[Aggregator], object]] = {
    "stop": lambda agg: agg.stop(),
    "stop, flush": lambda agg: agg.stop(flush=True),
    "close": lambda agg: agg.close(),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("outage", OUTAGES)
@pytest.mark.parametrize("started", [True, False], ids=["flusher", "producer"])
def test_it_ends_in_an_outage(
    make_both: Make, server: EmbeddedRedis, outage: str, end: str, started: bool
) -> None:
    agg = make_both(url=server.url, group_max_size=1, **LONG)
    if started:
        agg.start()
        await_led(agg)
    agg.add_task(Task("test", 0, "a"))
    agg.submit(Task("test", 1, "a"))  # a receipt has a subscription, which has to be closed too
    with OUTAGES[outage](server):
        began = time.monotonic()
        with contextlib.suppress(RedisAggError):
            ENDS[end](agg)
        took = time.monotonic() - began
        assert not agg.is_running
    assert took < SHUTDOWN_TIMEOUT + 2


def test_a_stop_does_not_wait_for_a_start_in_an_outage(make: Make, server: EmbeddedRedis) -> None:
    agg = make(url=server.url, **LONG)
    with frozen(server):
        starting = threading.Thread(target=agg.start, daemon=True)
        starting.start()
        time.sleep(0.2)  # it waits for Redis now, or will do so: both are tried
        began = time.monotonic()
        agg.stop()
        assert time.monotonic() - began < SHUTDOWN_TIMEOUT + 2
    starting.join(10)
    assert not starting.is_alive()


@pytest.mark.parametrize("kind", ["threads", "asyncio"])
def test_run_ends_after_a_signal_in_an_outage(
    processes: Processes, make: Make, server: EmbeddedRedis, kind: str
) -> None:
    worker = processes.start("flusher", server.url, kind=kind, config=LONG)
    await_led(make(url=server.url))
    with frozen(server):
        began = time.monotonic()
        worker.terminate()
        wait_until(lambda: not worker.running, timeout=10, what="the process has ended")
        # The process itself ends after `run`.
        assert time.monotonic() - began < SHUTDOWN_TIMEOUT + 2.5
