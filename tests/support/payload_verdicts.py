"""What `add` says to a payload and what `decode` reads, in this process or in one of its own.

`python -m tests.support.payload_verdicts` answers on its standard output. msgpack decides at its
import whether its implementation in C is used, or that in Python: by the variable
MSGPACK_PUREPYTHON.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgpack

from redisagg import AggregationConfig, Task
from redisagg.errors import PayloadError, UndecodableTask
from redisagg.payload import to_json
from redisagg.protocol.entries import Encoder, decode

_ENCODE = Encoder(AggregationConfig())
_ENCODE_FOR_JSON = Encoder(AggregationConfig(), json=True)

_HEAD = bytes(6) + b"\x01i"
"""Arrival time and id of an entry."""


@dataclasses.dataclass(frozen=True)
class Tag:
    """A dataclass that is a key or a member of a set; it becomes a dict."""

    name: str


class Shape(enum.Enum):
    """Members whose values are equal to others, or have no hash."""

    ONE = 1
    TEXT = "one"
    RAW = b"raw"
    PAIR = (1, 2)
    MAP = {"a": 1}  # noqa: RUF012 - a dict as the value is the point


class Verdict(NamedTuple):
    """What `add` says."""

    body: bytes | None
    """The packed task; None if it is refused."""
    has_json: bool
    """Whether it is accepted for a sink that writes JSON."""


def verdict(payload: Any) -> Verdict:
    """Adds a task, as far as that is done without Redis."""
    task = Task("t", payload, "g", "i")
    try:
        body = _ENCODE(task).body
    except PayloadError:
        body = None
    try:
        _ENCODE_FOR_JSON(task)
    except PayloadError:
        return Verdict(body, has_json=False)
    return Verdict(body, has_json=True)


def read(body: bytes) -> tuple[Any, bool] | str:
    """Decodes a task, as a flusher does.

    Returns:
        The payload, and whether it has a form in JSON; or the error.
    """
    try:
        payload = decode(_HEAD + body, "g").payload
    except UndecodableTask as error:
        return str(error)
    try:
        to_json(payload)
    except PayloadError:
        return payload, False
    return payload, True


class InPython:
    """As the functions of this module, by msgpack's implementation in Python."""

    def __init__(self, requests: IO[bytes], replies: IO[bytes]) -> None:
        self._requests = requests
        self._replies = replies

    def verdict(self, payload: Any) -> Verdict:
        """As `verdict`."""
        found: Verdict = self._ask("verdict", payload)
        return found

    def read(self, body: bytes) -> tuple[Any, bool] | str:
        """As `read`."""
        found: tuple[Any, bool] | str = self._ask("read", body)
        return found

    def _ask(self, function: str, argument: Any) -> Any:
        pickle.dump((function, argument), self._requests)
        self._requests.flush()
        return pickle.load(self._replies)


@contextmanager
def verdicts_in_python() -> Iterator[InPython]:
    """Runs a process that uses msgpack's implementation in Python."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.payload_verdicts"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "MSGPACK_PUREPYTHON": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield InPython(process.stdin, process.stdout)
    finally:
        process.stdin.close()
        process.wait(10)


def _serve() -> None:
    from tests.support import payload_verdicts as module  # not __main__, for pickle

    assert msgpack.Packer.__module__ == "msgpack.fallback"
    while True:
        try:
            function, argument = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(getattr(module, function)(argument), sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
