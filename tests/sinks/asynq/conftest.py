"""Asynq itself, and aggregators that enqueue in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from redisagg import Aggregator
from redisagg.sinks import AsynqSink
from redisagg.testing.embedded import HOST, EmbeddedRedis
from tests.sinks.asynq.program import SOURCE, Asynq, running
from tests.support.aggregators import Make, making
from tests.support.processes import Processes, running_processes
from tests.support.tasks import quick_config
from tests.support.toolchains import build_go


@pytest.fixture(scope="session")
def go_program() -> Path:
    """The Go program with the real Asynq in it."""
    return build_go(SOURCE)


@pytest.fixture
def asynq_at(go_program: Path) -> Iterator[Callable[[str], Asynq]]:
    """The real Asynq on the Redis of an address."""
    with running(go_program) as at:
        yield at


@pytest.fixture
def asynq(asynq_at: Callable[[str], Asynq], redis_server: EmbeddedRedis, redis_url: str) -> Asynq:
    """The real Asynq on the Redis of `redis_url`."""
    return asynq_at(f"{HOST}:{redis_server.port}")


@pytest.fixture
def make(redis_url: str) -> Iterator[Make]:
    """What makes aggregators whose batches go to Asynq's queue `default`."""
    with making("threads") as maker:

        def make(
            *, name: str = "tests", url: Any = None, sink: Any = None, **config: Any
        ) -> Aggregator:
            where = redis_url if url is None else url
            sink = AsynqSink() if sink is None else sink
            return maker(name, where, config=quick_config(**config), sink=sink)

        yield make


@pytest.fixture
def processes() -> Iterator[Processes]:
    """What starts flushers in processes of their own; they end with the test."""
    with running_processes() as processes:
        yield processes
