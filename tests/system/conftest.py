"""A real Redis container for the tests marked `docker`.

`REDISAGG_TEST_IMAGE` names the image, by default the official one. Without a Docker engine or
without the image the tests are skipped and say which of the two was missing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import docker
import pytest
import redis
from docker.errors import DockerException, ImageNotFound
from testcontainers.core.container import DockerContainer

from tests.support.servers import wait_until

DEFAULT_IMAGE = "redis:7.2-alpine"
PORT = 6379


@pytest.fixture(scope="session")
def redis_image() -> str:
    """The name of an image that the engine has; skips where that can't be."""
    image = os.environ.get("REDISAGG_TEST_IMAGE", DEFAULT_IMAGE)
    try:
        engine = docker.from_env()
        engine.ping()
    except (DockerException, OSError) as error:  # OSError: no answer in time
        pytest.skip(f"no Docker engine answers: {error}")
    with contextlib.closing(engine):
        try:
            engine.images.get(image)
        except ImageNotFound:
            try:
                engine.images.pull(image)
            except (DockerException, OSError) as error:
                pytest.skip(f"the image {image} is not here and can't be pulled: {error}")
    return image


@pytest.fixture(scope="session")
def redis_container_url(redis_image: str) -> Iterator[str]:
    """The URL of a Redis in a container that lives as long as the run."""
    # The reaper would remove the container after a run that was killed. It is one more image to
    # pull and wants the engine's socket; whoever can and wants to have it sets this to "false".
    os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
    with DockerContainer(redis_image).with_exposed_ports(PORT) as container:
        host, port = container.get_container_host_ip(), container.get_exposed_port(PORT)
        url = f"redis://{host}:{port}/0"
        with redis.Redis.from_url(url) as client:
            wait_until(client.ping, what=f"the container of {redis_image} answers")
        yield url


@pytest.fixture
def container_url(redis_container_url: str) -> str:
    """The URL of the Redis in the container, without data."""
    with redis.Redis.from_url(redis_container_url) as client:
        client.flushall()
    return redis_container_url
