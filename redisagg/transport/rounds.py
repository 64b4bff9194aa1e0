"""One round trip, without sockets: what to send, what the replies mean, what to send again."""

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
    """The commands in Redis' protocol: by hiredis if it is there, else by redis-py's connection.

    redis-py itself packs in Python on asyncio, at about 0.7 us an argument; hiredis takes 0.05.
    """
    if pack_command is None:
        packed: list[bytes] = connection.pack_commands(commands)
        return packed
    return [b"".join(map(pack_command, commands))]


def round_trip(requests: Sequence[Request]) -> Generator[list[Command], list[Any], list[Any]]:
    """Yields commands, is sent their replies (exceptions among them), returns the final replies.

    A script that the server does not know is sent once more, with its source.

    Raises:
        redis.exceptions.RedisError: a reply says that the same may succeed later.
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
