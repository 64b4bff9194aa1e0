"""Fixtures for the tests of several sinks."""

from __future__ import annotations

from pathlib import Path

import pytest

from redisagg.testing.embedded import server_version
from tests.sinks.harness import Trial
from tests.support.toolchains import install_node


@pytest.fixture(scope="session")
def node() -> Path:
    """The folder with `node/worker.js` and the real BullMQ."""
    return install_node(Path(__file__).parent / "node")


@pytest.fixture
def functions(server_binary: Path) -> None:
    """Skips the test where Redis has no functions, which Streaq needs."""
    if server_version(server_binary) < (7,):
        pytest.skip("Streaq needs the functions of Redis 7")


@pytest.fixture
def trial(request: pytest.FixtureRequest, redis_url: str, tmp_path: Path) -> Trial:
    """The queue system `SYSTEM` of a test module, with an empty Redis."""
    return Trial(request.module.SYSTEM, redis_url, tmp_path)
