"""The container of the tests marked `docker` is a Redis that runs scripts."""

from __future__ import annotations

import pytest
import redis

pytestmark = pytest.mark.docker


def test_the_container_answers_and_runs_scripts(container_url: str) -> None:
    with redis.Redis.from_url(container_url) as client:
        assert client.ping()
        script = "redis.call('SET', KEYS[1], ARGV[1]); return redis.call('GET', KEYS[1])"
        assert client.eval(script, 1, "key", "value") == b"value"
