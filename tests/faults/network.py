"""The network between nodes and servers: a proxy for each pair, so that each can fail alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from redisagg.testing.embedded import HOST
from tests.support.aggregators import LoopThread
from tests.support.proxy import Proxy


class Network:
    """The proxies of a run; use `running_network`.

    Args:
        ports: of all servers.
        loop: where the proxies run.
    """

    def __init__(self, ports: Sequence[int], loop: LoopThread) -> None:
        self._ports = ports
        self._loop = loop
        self._links: dict[str, dict[int, Proxy]] = {}

    def routes(self, place: str) -> dict[int, int]:
        """The port of the proxy between the node in this place and each server."""
        if place not in self._links:
            self._links[place] = {port: Proxy(HOST, port, self._loop) for port in self._ports}
            for proxy in self._links[place].values():
                self._loop.run(proxy.start())
        return {port: proxy.port for port, proxy in self._links[place].items()}

    def links(self, place: str) -> list[Proxy]:
        """The proxies between the node in this place and the servers."""
        return list(self._links[place].values())

    def close(self) -> None:
        """Stops all proxies."""
        for links in self._links.values():
            for proxy in links.values():
                self._loop.run(proxy.stop())


@contextlib.contextmanager
def running_network(ports: Sequence[int]) -> Iterator[Network]:
    """A network to these servers, which runs as long as the `with` block."""
    loop = LoopThread()
    try:
        with contextlib.closing(Network(ports, loop)) as network:
            yield network
    finally:
        loop.close()
