"""A provider that records when it is called, and how many calls are under way."""

from __future__ import annotations

import contextlib
import socketserver
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass
class ProviderCall:
    """A call, by the monotonic clock, which is one and the same in all processes of a machine."""

    group: str
    tasks: int
    began: float
    ended: float = float("inf")
    merge_began: float = 0.0
    """When the merge function began, in which the call was made."""


class Timed(Protocol):
    """What the limits are about: a call with its times."""

    @property
    def tasks(self) -> int: ...
    @property
    def began(self) -> float: ...
    @property
    def ended(self) -> float: ...


class Provider:
    """Answers each call after `delay` seconds.

    A call says its group, its number of tasks and when its merge function began.
    """

    def __init__(self, delay: float) -> None:
        self.calls: list[ProviderCall] = []
        provider = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                line = self.rfile.readline().split()
                if len(line) != 3:  # its caller was killed before it called
                    return
                call = ProviderCall(line[0].decode(), int(line[1]), time.monotonic())
                call.merge_began = float(line[2])
                provider.calls.append(call)
                time.sleep(delay)
                call.ended = time.monotonic()
                with contextlib.suppress(OSError):
                    self.wfile.write(b".")

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A caller was killed."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        """Ends the provider."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextlib.contextmanager
def running_provider(delay: float = 0.03) -> Iterator[Provider]:
    """Runs a provider until the end of the block."""
    with contextlib.closing(Provider(delay)) as provider:
        yield provider


def most_at_once(calls: Iterable[Timed]) -> int:
    """The largest number of calls that were under way at the same time."""
    steps = [(call.began, 1) for call in calls] + [(call.ended, -1) for call in calls]
    most = now = 0
    for _, step in sorted(steps):
        now += step
        most = max(most, now)
    return most


def most_in_window(calls: Iterable[Timed], per: float, *, tasks: bool = False) -> int:
    """The largest number of calls, or of their tasks, in any window of `per` seconds."""
    ordered = sorted(calls, key=lambda call: call.began)
    most = inside = first = 0
    for call in ordered:
        inside += call.tasks if tasks else 1
        while call.began - ordered[first].began > per:
            inside -= ordered[first].tasks if tasks else 1
            first += 1
        most = max(most, inside)
    return most
