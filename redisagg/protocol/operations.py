"""What an aggregator can be asked to do, once for threads and asyncio.

An operation is a generator: it yields the requests of one round trip and is sent their replies,
and it returns its result. A transport runs it; it knows nothing of sockets or event loops. A
request that Redis refused has an exception for its reply, so that one refusal does not hide what
became of the other requests.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, TypeAlias, TypeVar

from redisagg.protocol.scripts import Request

T = TypeVar("T")

Operation: TypeAlias = Generator[Sequence[Request], list[Any], T]


def ask(request: Request) -> Operation[Any]:
    """One request by itself: `reply = yield from ask(request)`; raises what Redis refused."""
    [reply] = yield [request]
    if isinstance(reply, Exception):
        raise reply
    return reply


def ask_all(requests: Sequence[Request]) -> Operation[list[Any]]:
    """Many requests in one round trip; raises the first refusal when all have been carried out."""
    if not requests:
        return []
    replies = yield requests
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies
