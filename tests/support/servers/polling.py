"""Waiting for servers, and asking one of them something without keeping a connection."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from redisagg.testing.embedded import EmbeddedRedis


def wait_until(condition: Callable[[], object], *, timeout: float = 20.0, what: str) -> None:
    """Poll until `condition` is true; an error of Redis counts as false.

    Raises `TimeoutError` naming `what` and the last error after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    problem = ""
    pause = 0.002
    while True:
        try:
            if condition():
                return
            problem = ""
        except redis.RedisError as error:
            problem = f" (last error: {error})"
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout} s: {what}{problem}")
        time.sleep(pause)
        pause = min(2 * pause, 0.05)


def ask(server: EmbeddedRedis, *command: str | int) -> Any:
    """Run one command on `server` and return the reply with strings decoded.

    Raises `redis.RedisError`, for a server that does not answer after a second at the latest.
    """
    options: dict[str, Any] = {
        "decode_responses": True,
        "socket_timeout": 1.0,
        "retry": Retry(NoBackoff(), 0),
    }
    with server.client(**options) as client:
        return client.execute_command(*command)


def info(server: EmbeddedRedis, section: str) -> dict[str, Any]:
    """Return one section of INFO of `server`; raises as `ask` does."""
    reply: dict[str, Any] = ask(server, "INFO", section)
    return reply
