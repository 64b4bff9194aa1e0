"""Aggregators for the tests, of both kinds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from redisagg import Aggregator
from redisagg.testing.embedded import HOST, EmbeddedRedis
from tests.support.aggregators import KINDS, Make, making
from tests.support.processes import Crew, gathering
from tests.support.proxy import Proxy, proxying
from tests.support.tasks import Measured, quick_config

_measured: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "quiet: measures times; its limits are wide, its numbers need a quiet machine"
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _measured:
        terminalreporter.section("measured")
        for line in _measured:
            terminalreporter.line(line)


@pytest.fixture
def measured() -> Measured:
    """Notes a line for the end of the run."""
    return _measured.append


def _make(kind: str, redis_url: str) -> Iterator[Make]:
    with making(kind) as maker:

        def make(
            *, name: str = "tests", url: Any = None, sink: Any = None, **config: Any
        ) -> Aggregator:
            where = redis_url if url is None else url
            return maker(name, where, config=quick_config(**config), sink=sink)

        yield make


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest, redis_url: str) -> Iterator[Make]:
    """What makes aggregators, in one test for threads and in one for asyncio."""
    yield from _make(request.param, redis_url)


@pytest.fixture
def make_one_kind(redis_url: str) -> Iterator[Make]:
    """The same for threads only, where the kind makes no difference or time is dear."""
    yield from _make("threads", redis_url)


@pytest.fixture
def crew() -> Iterator[Crew]:
    """What starts producers and flushers in processes of their own; they end with the test."""
    with gathering() as crew:
        yield crew


@pytest.fixture
def proxy(redis_server: EmbeddedRedis, redis_url: str) -> Iterator[Proxy]:
    """A proxy in front of the server of `redis_url`, to lose connections and replies."""
    with proxying(HOST, redis_server.port) as proxy:
        yield proxy
