"""Serves a dashboard by uvicorn."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import closing
from ipaddress import ip_address

import uvicorn

from redisagg.dashboard.application import Dashboard

_END_WITHIN = 2
"""Seconds that open pages have to end: server-sent events never end by themselves."""


async def serve(
    dashboard: Dashboard,
    host: str,
    port: int,
    *,
    root_path: str = "",
    on_ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serves a dashboard until SIGTERM or SIGINT.

    Args:
        dashboard: the app.
        host: the address to listen at.
        port: the port; 0 for any that is free.
        root_path: the path below which a proxy has it.
        on_ready: is called with the URL when requests are accepted.

    Raises:
        OSError: the address can't be used.
    """
    with closing(_listening(host, port)) as listener:
        bound = listener.getsockname()[1]
        config = uvicorn.Config(
            dashboard,
            log_config=None,
            access_log=False,
            lifespan="on",
            server_header=False,
            root_path=root_path,
            timeout_graceful_shutdown=_END_WITHIN,
        )
        shown = f"[{host}]" if ":" in host else host
        on_ready(f"http://{shown}:{bound}{root_path}/")
        await uvicorn.Server(config).serve(sockets=[listener])


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
"""The names by which this machine reaches a dashboard that listens at a loopback address."""


def _listening(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener
