"""The rules of one round trip, without sockets, so that threads and asyncio share them.

A round trip sends a list of requests and returns a reply for each. `round_trip` is a generator: it
yields the commands to send, and the transport sends their replies into it. It yields a second time
only if the server did not know a script: then it repeats these calls with the script's source.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, TypeAlias

from redis.client import NEVER_DECODE

try:
    from hiredis import pack_command
except ImportError:
    pack_command = None  # type: ignore[assignment]

from redisagg.protocol.scripts import Request
from redisagg.transport.failures import is_transient, is_unknown_script, translate_error

Command: TypeAlias = "tuple[Any, ...]"

RAW: dict[str, Any] = {NEVER_DECODE: []}
"""Options for redis-py: replies stay bytes even from a client made with decode_responses=True."""


def pack(commands: Sequence[Command], connection: Any) -> list[bytes]:
    """Packs commands in the Redis protocol, by hiredis if it is installed, else by redis-py.

    On asyncio redis-py itself packs in Python, in about 0.7 us per argument; hiredis takes 0.05.
    """
    if pack_command is None:
        packed: list[bytes] = connection.pack_commands(commands)
        return packed
    return [b"".join(map(pack_command, commands))]


def round_trip(requests: Sequence[Request]) -> Generator[list[Command], list[Any], list[Any]]:
    """Yields the commands to send and receives their replies, errors among them as exceptions.

    Returns:
        A reply for each request; for one that Redis refused, the `RedisAggError` that says why.

    Raises:
        redis.exceptions.RedisError: a reply is a transient error; the whole round trip is to be
            repeated.
    """
    replies = yield [request.command() for request in requests]
    unknown = [i for i, reply in enumerate(replies) if is_unknown_script(reply)]
    if unknown:
        again = yield [requests[i].command_with_source() for i in unknown]
        for i, reply in zip(unknown, again, strict=True):
            replies[i] = reply
    for i, reply in enumerate(replies):
        if isinstance(reply, Exception):
            if is_transient(reply):
                raise reply
            replies[i] = translate_error(reply, requests[i])
    return replies
