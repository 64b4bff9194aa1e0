"""A TCP proxy between clients and a server, which delays and loses data as a test tells it."""

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
    """A reply that will be lost; see `Proxy.lose_reply`."""

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
    """Number of calls held so far."""
    released: bool = False

    def release(self) -> None:
        """Forwards them, and holds no further ones."""
        self.released = True


@dataclass(eq=False)
class _Link:
    """One client's connection."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    loss: Loss | None = None
    """The loss that the next bytes from the server complete."""
    hold: Hold | None = None
    """The hold that keeps back the next bytes from the server."""
    torn: bool = False
    """Whether the next request will be cut in half."""
    frozen: bool = False
    listens: bool = False
    """Whether the client has subscribed to a channel on it."""

    def close(self) -> None:
        for writer in (self.client, self.server):
            with contextlib.suppress(RuntimeError):  # its loop may be closed
                writer.transport.abort()


class Proxy:
    """Use `running_proxy`. Methods may be called from any thread; faults last until `restore`."""

    def __init__(self, host: str, port: int, loop: LoopThread) -> None:
        self._target = (host, port)
        self._loop = loop
        self._links: set[_Link] = set()
        self._serving: set[asyncio.Task[None]] = set()
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
        """The URL that leads to the server through the proxy."""
        return f"redis://127.0.0.1:{self.port}/0"

    # --- faults ------------------------------------------------------------------------------

    def cut(self) -> None:
        """Resets all connections, and new ones as they come."""
        self._refusing = True
        self.reset()

    def reset(self) -> None:
        """Resets the present connections; new ones work."""

        async def close_all() -> None:
            for link in list(self._links):
                link.close()

        self._loop.run(close_all())

    def stall(self, *, requests: bool = True, replies: bool = True, late: bool = False) -> None:
        """Forwards nothing and closes nothing, as when the network drops all packets.

        Args:
            requests: whether requests are stalled.
            replies: whether replies are stalled.
            late: whether stalled data is forwarded after `restore` even if its sender has closed
                the connection, as packets do that took another way.
        """
        self._stalled_up, self._stalled_down, self._late = requests, replies, late

    def redirect(self, port: int) -> None:
        """Leads new connections to another port; the present ones stay."""
        self._target = (self._target[0], port)

    def tear(self) -> None:
        """Forwards only half of the next request on each connection, and resets it."""
        for link in list(self._links):
            link.torn = True

    def freeze_links(self, *, listening_only: bool = False) -> None:
        """Forwards nothing more on the present connections; new ones work.

        A firewall does this when it has forgotten them. `restore` does not undo it.

        Args:
            listening_only: whether only connections with a subscription are frozen.
        """
        for link in list(self._links):
            link.frozen = link.listens or not listening_only

    def delay(self, seconds: float) -> None:
        """Delays all requests by this number of seconds."""
        self._delay = seconds

    def lose_reply(self, script: str, *, then_cut: bool = False) -> Loss:
        """Forwards the next call of a script, and resets the connection instead of its reply.

        Args:
            script: its name. The server must know it already, else the lost reply is NOSCRIPT.
            then_cut: whether to `cut` as well.
        """
        loss = Loss(load(script).sha, then_cut)
        self._losses.append(loss)
        return loss

    def hold(self, script: str, *, replies: bool = False) -> Hold:
        """Holds back all calls of a script until `Hold.release`.

        They are forwarded then even if their sender does not wait for the reply any more.

        Args:
            script: its name, as for `lose_reply`.
            replies: whether the calls are carried out and only their replies are held back.
        """
        hold = Hold(load(script).sha, replies)
        self._holds.append(hold)
        return hold

    def restore(self) -> None:
        """Ends all faults but those of `freeze_links`."""
        self._refusing = self._stalled_up = self._stalled_down = False
        self._delay = 0.0
        self._losses.clear()
        for hold in self._holds:
            hold.release()
        self._holds.clear()
        for link in list(self._links):
            link.torn = False

    # --- forwarding ----------------------------------------------------------------------------

    async def start(self) -> None:
        """Listens on a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Closes everything."""
        assert self._server is not None
        self._server.close()
        self.restore()
        self._late = False
        for link in list(self._links):
            link.close()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = asyncio.current_task()
        assert serving is not None
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)
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
        up = asyncio.ensure_future(self._up(link, reader))
        down = asyncio.ensure_future(self._down(link, server_reader))
        try:
            await asyncio.gather(up, down)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            link.close()
            await asyncio.gather(up, down, return_exceptions=True)
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
def running_proxy(host: str, port: int) -> Iterator[Proxy]:
    """A proxy in front of a server, which runs as long as the `with` block."""
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
