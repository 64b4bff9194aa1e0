"""A TCP proxy between clients and a server, which loses what the test tells it to lose."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from redisagg.protocol.scripts import load
from tests.support.aggregators import LoopThread

_CHUNK = 64 * 1024


@dataclass(eq=False)
class Loss:
    """A reply that is to be lost; see `Proxy.lose_reply`."""

    pattern: bytes
    then_cut: bool
    happened: threading.Event = field(default_factory=threading.Event)

    def wait(self, timeout: float = 10) -> None:
        """Waits until the reply has been lost."""
        if not self.happened.wait(timeout):
            raise TimeoutError(f"nobody sent {self.pattern!r} within {timeout} s")


@dataclass(eq=False)
class Hold:
    """Calls of a script that are held back; see `Proxy.hold`."""

    pattern: bytes
    replies: bool
    count: int = 0
    """How many have been held so far."""
    released: bool = False

    def release(self) -> None:
        """Lets them go on, and holds no further ones."""
        self.released = True


@dataclass(eq=False)
class _Link:
    """One client's connection."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    loss: Loss | None = None
    """What is to be lost with the next bytes from the server."""
    hold: Hold | None = None
    """What holds back the next bytes from the server."""
    torn: bool = False
    """Whether the next request is to be cut in half."""
    frozen: bool = False
    listens: bool = False
    """Whether the client has subscribed to something on it."""

    def close(self) -> None:
        for writer in (self.client, self.server):
            with contextlib.suppress(RuntimeError):  # its loop may be closed
                writer.transport.abort()


class Proxy:
    """Use `proxying`. Its methods may be called from any thread; faults last until `restore`."""

    def __init__(self, host: str, port: int, loop: LoopThread) -> None:
        self._target = (host, port)
        self._loop = loop
        self._links: set[_Link] = set()
        self._losses: list[Loss] = []
        self._holds: list[Hold] = []
        self._refusing = False
        self._stalled_up = self._stalled_down = False
        self._late = False
        self._delay = 0.0
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """The URL of the server behind the proxy, by way of the proxy."""
        return f"redis://127.0.0.1:{self.port}/0"

    # --- faults ------------------------------------------------------------------------------

    def cut(self) -> None:
        """Resets all connections, and those that come."""
        self._refusing = True
        self.reset()

    def reset(self) -> None:
        """Resets all connections there are; new ones work."""

        async def close_all() -> None:
            for link in list(self._links):
                link.close()

        self._loop.run(close_all())

    def stall(self, *, requests: bool = True, replies: bool = True, late: bool = False) -> None:
        """Forwards nothing more and closes nothing, as when the network drops all packets.

        Args:
            requests, replies: which way; only one of them for a one-way cut.
            late: whether what was sent meanwhile arrives afterwards even if its sender has given
                up the connection, as packets do that took another way.
        """
        self._stalled_up, self._stalled_down, self._late = requests, replies, late

    def tear(self) -> None:
        """Forwards only half of the next request on each connection, and resets it."""
        for link in list(self._links):
            link.torn = True

    def freeze_links(self, *, listening_only: bool = False) -> None:
        """The same for the connections there are, for ever; new ones work. As a firewall does that
        has forgotten them."""
        for link in list(self._links):
            link.frozen = link.listens or not listening_only

    def delay(self, seconds: float) -> None:
        """Holds back all that clients send for so long."""
        self._delay = seconds

    def lose_reply(self, script: str, *, then_cut: bool = False) -> Loss:
        """Forwards the next call of a script, and resets the connection instead of its reply.

        Args:
            script: its name. The server has to know it already, else the loss is a NOSCRIPT.
            then_cut: whether to `cut` as well.
        """
        loss = Loss(load(script).sha, then_cut)
        self._losses.append(loss)
        return loss

    def hold(self, script: str, *, replies: bool = False) -> Hold:
        """Holds back all calls of a script until they are released, whether or not their sender
        still waits for the reply.

        Args:
            script: its name, as for `lose_reply`.
            replies: whether the calls are carried out and their replies are held back.
        """
        hold = Hold(load(script).sha, replies)
        self._holds.append(hold)
        return hold

    def restore(self) -> None:
        """Ends all faults."""
        self._refusing = self._stalled_up = self._stalled_down = False
        self._delay = 0.0
        self._losses.clear()
        for hold in self._holds:
            hold.release()
        self._holds.clear()
        for link in list(self._links):
            link.torn = False

    # --- how -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listens on a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Closes everything."""
        assert self._server is not None
        self._server.close()
        for link in list(self._links):
            link.close()
        await asyncio.sleep(0.05)  # lets the pumps end

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target)
        except OSError:  # the server is down
            writer.transport.abort()
            return
        link = _Link(writer, server_writer)
        self._links.add(link)
        try:
            await asyncio.gather(self._up(link, reader), self._down(link, server_reader))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            link.close()
            self._links.discard(link)

    async def _up(self, link: _Link, reader: asyncio.StreamReader) -> None:
        tail = b""
        while chunk := await reader.read(_CHUNK):
            if self._delay:
                await asyncio.sleep(self._delay)
            while self._stalled_up or link.frozen:
                await self._wait(link)
            if link.torn:
                link.server.write(chunk[: len(chunk) // 2])
                break
            seen = tail + chunk
            link.listens = link.listens or b"SUBSCRIBE" in seen
            for loss in self._losses:
                if loss.pattern in seen:
                    self._losses.remove(loss)
                    link.loss = loss
                    break
            self._holds = [hold for hold in self._holds if not hold.released]
            for hold in self._holds:
                if hold.pattern in seen:
                    hold.count += 1
                    if hold.replies:
                        link.hold = hold
                    while not (hold.replies or hold.released):
                        await self._wait(link, late=True)
            tail = chunk[-64:]  # a pattern may lie across two chunks
            link.server.write(chunk)
            await link.server.drain()
        link.close()

    async def _down(self, link: _Link, reader: asyncio.StreamReader) -> None:
        while chunk := await reader.read(_CHUNK):
            while self._stalled_down or link.frozen or (link.hold and not link.hold.released):
                await self._wait(link)
            if link.loss is not None:
                if link.loss.then_cut:
                    self._refusing = True
                    for each in list(self._links):
                        each.close()
                link.close()
                link.loss.happened.set()
                return
            link.client.write(chunk)
            await link.client.drain()
        link.close()

    async def _wait(self, link: _Link, *, late: bool = False) -> None:
        if link.client.transport.is_closing() and not (late or self._late):
            raise ConnectionResetError
        await asyncio.sleep(0.01)


@contextlib.contextmanager
def proxying(host: str, port: int) -> Iterator[Proxy]:
    """A proxy in front of a server, as long as the `with` block lasts."""
    loop = LoopThread()
    proxy = Proxy(host, port, loop)
    try:
        loop.run(proxy.start())
        try:
            yield proxy
        finally:
            loop.run(proxy.stop())
    finally:
        loop.close()
