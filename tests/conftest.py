"""The servers that tests share: private, started when first used, ended with the run.

`REDISAGG_TEST_SERVER` picks the server binary: a path, or a version such as ``6.2``, ``7.0`` or
``8`` (see `tests.support.servers.binaries`). Every fixture that hands out an address brings back
servers that an earlier test stopped, and empties them. It does not undo CONFIG SET: a test that
needs other settings, or that harms a server in another way, starts an `EmbeddedRedis` of its own
on `server_binary`.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import redis
import redis.utils

from redisagg.errors import EmbeddedServerError
from redisagg.testing.embedded import EmbeddedRedis, find_server, server_version
from tests.support.servers import ClusterTopology, SentinelTopology, select
from tests.support.servers.polling import ask

# Without bytecode each worker of each run rewrites the assertions of all test modules, for 10
# seconds, and each process that a test starts compiles the package.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# redis-py 8 parses the metadata of its package for each connection, which takes a millisecond.
redis.utils.get_lib_version = functools.cache(redis.utils.get_lib_version)


def pytest_collection_finish() -> None:
    """Spares the garbage collector the modules and the collected tests, which stay to the end."""
    gc.collect()
    gc.freeze()


def _binary() -> Path:
    wanted = os.environ.get("REDISAGG_TEST_SERVER")
    return select(wanted) if wanted else find_server()


def pytest_report_header() -> str:
    try:
        binary = _binary()
        return f"redis server: {'.'.join(map(str, server_version(binary)))} ({binary})"
    except (EmbeddedServerError, LookupError) as error:
        return f"redis server: {error}"


# On a machine with other load an example may take long to make or to run; that says nothing.
hypothesis.settings.register_profile(
    "loaded", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("loaded")

pytest_plugins = [
    *("tests.support.fixtures", "tests.support.cli", "tests.support.scheduling"),
    "redisagg.testing.plugin",
]


@pytest.fixture(scope="session")
def server_binary() -> Path:
    """The server binary that this run is to test against."""
    try:
        return _binary()
    except (EmbeddedServerError, LookupError) as error:
        pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)


@pytest.fixture(scope="session")
def redis_server(server_binary: Path) -> Iterator[EmbeddedRedis]:
    """One standalone server for the run; tests take `redis_url`, which empties it."""
    with EmbeddedRedis(server_binary) as server:
        yield server


@pytest.fixture(scope="session")
def redisagg_server(server_binary: Path) -> Iterator[EmbeddedRedis]:
    """The server of `redisagg.testing.plugin`, on the binary of this run."""
    with EmbeddedRedis(server_binary, config={"databases": "1024"}) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> str:
    """The URL of a server without data; scripts loaded earlier stay."""
    redis_server.resume()
    redis_server.start()
    ask(redis_server, "FLUSHALL", "ASYNC")  # a test may leave a million entries behind
    return redis_server.url


@pytest.fixture
def sync_redis(redis_url: str) -> Iterator[redis.Redis]:
    """A client of `redis_url` that answers in bytes."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture(scope="session")
def cluster(server_binary: Path) -> Iterator[ClusterTopology]:
    """Three masters; use with `cluster_url`, which heals and empties them."""
    with ClusterTopology(server_binary) as topology:
        yield topology


@pytest.fixture
def cluster_url(cluster: ClusterTopology) -> str:
    """The URL of one node of a whole cluster without data."""
    cluster.heal()
    for master in cluster.masters:
        ask(master, "FLUSHALL")
    return cluster.startup_url


@pytest.fixture(scope="session")
def sentinel(server_binary: Path) -> Iterator[SentinelTopology]:
    """A replicated service; use with `sentinel_addresses`, which heals and empties it."""
    with SentinelTopology(server_binary) as topology:
        yield topology


@pytest.fixture
def sentinel_addresses(sentinel: SentinelTopology) -> list[tuple[str, int]]:
    """Host and port of the sentinels that watch `sentinel.service_name`, whole and empty."""
    sentinel.heal()
    ask(sentinel.primary, "FLUSHALL")
    return sentinel.sentinels
