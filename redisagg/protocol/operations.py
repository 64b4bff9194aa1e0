"""Operations: sequences of round trips, written once for threads and asyncio.

An operation is a generator. It yields the requests of one round trip, is sent their replies, and
returns its result. A transport runs it; the operation itself uses no socket and no event loop. The
reply to a request that Redis refused is an exception, so that the other replies are not lost.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, TypeAlias, TypeVar

from redisagg.protocol.scripts import Request

T = TypeVar("T")

Operation: TypeAlias = Generator[Sequence[Request], list[Any], T]


class Lenient(list[Request]):
    """Requests of a round trip that is not repeated if a node of a cluster does not answer.

    The reply to a request for that node is `RedisUnavailable`. A connection that is lost without a
    cluster concerns all requests, and is retried as always.
    """


def ask(request: Request) -> Operation[Any]:
    """Sends one request and returns its reply; raises the error if Redis refused it."""
    [reply] = yield [request]
    if isinstance(reply, Exception):
        raise reply
    return reply


def ask_all(requests: Sequence[Request]) -> Operation[list[Any]]:
    """Sends requests in one round trip and returns their replies.

    If Redis refused any, raises the first error; the other requests have been carried out.
    """
    if not requests:
        return []
    replies = yield requests
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies
