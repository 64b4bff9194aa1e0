"""Clients that sinks make of the URL of a Redis: each gives up a silent server."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

from redis import ConnectionPool


def with_timeouts(timeout: float) -> dict[str, Any]:
    """The arguments of redis-py for a client whose connections don't wait longer than `timeout`.

    Options in the URL have precedence.

    Args:
        timeout: seconds for making a connection, and for each reply.
    """
    return {"socket_timeout": timeout, "socket_connect_timeout": timeout}


def limit_connections(pool: Any, timeout: float) -> None:
    """Gives the future connections of a pool time limits, unless they have some, and drops others.

    Args:
        pool: a pool of redis-py, for threads or asyncio, whose connections are not in use.
        timeout: as for `with_timeouts`.
    """
    limits = with_timeouts(timeout)
    for name, limit in limits.items():
        if pool.connection_kwargs.get(name) is None:
            pool.connection_kwargs[name] = limit
    pool.reset()


def url_with_timeouts(url: str, timeout: float) -> str:
    """The URL of a Redis with these time limits, for a library that takes a URL only."""
    base, question, query = url.partition("?")
    names = {name for name, _ in parse_qsl(query)}
    options = [f"{k}={v:g}" for k, v in with_timeouts(timeout).items() if k not in names]
    return f"{base}?{'&'.join([query] * bool(question) + options)}"


def pool_of(url: str, timeout: float) -> ConnectionPool:
    """A connection pool for threads."""
    return ConnectionPool.from_url(url, **with_timeouts(timeout))
