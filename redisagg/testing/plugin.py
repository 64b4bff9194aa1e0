"""The fixtures of `redisagg.testing` for pytest, which finds them by an entry point.

This module is imported in each run of pytest in an environment that has redisagg. So it imports the
kit only when a fixture is used.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from redisagg import AggregationConfig, Aggregator, App, AsyncAggregator
    from redisagg.testing import Clock, EmbeddedRedis, Flushed, Kit, RecordingSink


@pytest.fixture(scope="session")
def redisagg_server() -> Iterator[EmbeddedRedis]:
    """A private Redis server for all tests of this process."""
    from redisagg.testing.embedded import EmbeddedRedis
    from redisagg.testing.kit import DATABASES

    with EmbeddedRedis(config={"databases": str(DATABASES)}) as server:
        yield server


@pytest.fixture
def redisagg_kit(redisagg_server: EmbeddedRedis) -> Iterator[Kit]:
    """A kit with a database and a clock for this test alone; see `redisagg.testing.Kit`."""
    from redisagg.testing.kit import Kit

    redisagg_server.resume()
    redisagg_server.start()  # a test may have stopped it
    with Kit(redisagg_server) as kit:
        yield kit


@pytest.fixture
def redisagg_config() -> AggregationConfig:
    """The settings of the aggregators of the next fixtures; override it to change them."""
    from redisagg.config import AggregationConfig

    return AggregationConfig()


@pytest.fixture
def aggregator(redisagg_kit: Kit, redisagg_config: AggregationConfig) -> Aggregator:
    """An aggregator for this test alone."""
    return redisagg_kit.aggregator(config=redisagg_config)


@pytest.fixture
def async_aggregator(redisagg_kit: Kit, redisagg_config: AggregationConfig) -> AsyncAggregator:
    """An aggregator for asyncio for this test alone; with `aggregator` it has one namespace."""
    return redisagg_kit.async_aggregator(config=redisagg_config)


@pytest.fixture
def app(redisagg_kit: Kit, redisagg_config: AggregationConfig) -> App:
    """An app for this test alone."""
    return redisagg_kit.app(config=redisagg_config)


@pytest.fixture
def clock(redisagg_kit: Kit) -> Clock:
    """The clock of this test: ``clock.advance(minutes=10)``, ``clock.set(moment)``."""
    return redisagg_kit.clock


@pytest.fixture
def recording_sink(redisagg_kit: Kit) -> RecordingSink:
    """The sink of this test: ``recording_sink.payloads``."""
    return redisagg_kit.sink


@pytest.fixture
def flush_due(redisagg_kit: Kit) -> Callable[..., Flushed]:
    """Flushes what is due; see `Kit.flush_due`."""
    return redisagg_kit.flush_due


@pytest.fixture
def aflush_due(redisagg_kit: Kit) -> Callable[..., Awaitable[Flushed]]:
    """Flushes what is due, on the event loop of the test; see `Kit.aflush_due`."""
    return redisagg_kit.aflush_due


@pytest.fixture
def drain(redisagg_kit: Kit) -> Callable[..., Flushed]:
    """Flushes all that waits; see `Kit.drain`."""
    return redisagg_kit.drain


@pytest.fixture
def adrain(redisagg_kit: Kit) -> Callable[..., Awaitable[Flushed]]:
    """Flushes all that waits, on the event loop of the test; see `Kit.adrain`."""
    return redisagg_kit.adrain
