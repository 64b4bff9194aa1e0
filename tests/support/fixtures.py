"""The fixtures that make aggregators, worker processes and proxies."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import redis

from redisagg import Aggregator
from redisagg.testing.embedded import HOST, EmbeddedRedis
from tests.faults.scripts import changed_copy, using
from tests.support.aggregators import KINDS, Make, making
from tests.support.processes import Processes, running_processes
from tests.support.proxy import Proxy, running_proxy
from tests.support.tasks import Measured, quick_config, server_ms
from tests.support.troubles import Ground, Planted, planted

Plants: TypeAlias = Callable[[str], Planted]

_MEASURED = "measured"
"""The user property by which a test's report carries a line, from another process too."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what the fixture `measured` noted."""
    lines = [
        line
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, line in report.user_properties
        if name == _MEASURED
    ]
    if lines:
        terminalreporter.section("measured")
        for line in lines:
            terminalreporter.line(line)


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Notes a line for the section "measured" at the end of the run."""

    def note(line: str) -> None:
        request.node.user_properties.append((_MEASURED, line))

    return note


def _make(kind: str, redis_url: str) -> Iterator[Make]:
    with making(kind) as maker:

        def make(
            *, name: str = "tests", url: Any = None, sink: Any = None, **config: Any
        ) -> Aggregator:
            where = redis_url if url is None else url
            return maker(name, where, config=quick_config(**config), sink=sink)

        yield make


@pytest.fixture
def make(redis_url: str) -> Iterator[Make]:
    """Makes aggregators for threads.

    Enough for tests of scripts and flushers: both kinds of aggregator run the same flusher.
    """
    yield from _make("threads", redis_url)


@pytest.fixture(params=KINDS)
def make_both(request: pytest.FixtureRequest, redis_url: str) -> Iterator[Make]:
    """Makes aggregators; the test runs once for threads and once for asyncio.

    For tests of what exists twice: producers, transports, streams, start and stop.
    """
    yield from _make(request.param, redis_url)


@pytest.fixture
def processes() -> Iterator[Processes]:
    """Starts producers and flushers in separate processes, which end with the test."""
    with running_processes() as processes:
        yield processes


@pytest.fixture
def proxy(redis_server: EmbeddedRedis, redis_url: str) -> Iterator[Proxy]:
    """A proxy in front of the server of `redis_url`, which can lose connections and replies."""
    with running_proxy(HOST, redis_server.port) as proxy:
        yield proxy


@pytest.fixture
def free_port() -> int:
    """A port on which a program can listen."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture
def redis_at(sync_redis: redis.Redis, tmp_path: Path) -> Callable[[datetime], Any]:
    """Returns a context in which the scripts' clock starts at a moment."""

    @contextmanager
    def at(moment: datetime) -> Iterator[None]:
        offset = int(moment.timestamp() * 1000) - server_ms(sync_redis)
        folder = tmp_path / str(offset)
        old = "return seconds * 1000 + math.floor(microseconds / 1000)"
        with using(changed_copy(folder, {"includes/clock": (old, f"{old} + {offset}")})):
            yield

    return at


@pytest.fixture
def plant(request: pytest.FixtureRequest, make: Make, redis_url: str) -> Iterator[Plants]:
    """Plants a trouble of `tests.support.troubles` by its name, until the test ends."""
    ground = Ground(request.getfixturevalue, make, redis_url)
    with ExitStack() as stack:
        yield lambda name: stack.enter_context(planted(name, ground))
