"""Finding the namespaces in a Redis server or cluster."""

from __future__ import annotations

import re
import time
from typing import Any, NamedTuple

from redisagg.transport.threads import Transport

_META = re.compile(rb"redisagg:\{([A-Za-z0-9][A-Za-z0-9._-]{0,63})\}:meta")
_SCAN_COUNT = 1_000  # keys that one SCAN looks at: well below a millisecond
_SCAN_TIME = 2.0  # seconds after which the search ends; other data may be in the same Redis


class Names(NamedTuple):
    """The namespaces that were found."""

    found: list[str]
    complete: bool
    """Whether all keys were looked at."""


def find_namespaces(transport: Transport) -> Names:
    """Looks through the keys for the records of namespaces, for at most 2 seconds.

    Raises:
        redis.exceptions.RedisError: Redis refused, for instance since the user has no right.
        RedisUnavailable: no node of the cluster answers.
    """
    deadline = time.monotonic() + _SCAN_TIME
    found: set[str] = set()
    for client in transport.masters():
        cursor: Any = 0
        while True:
            reply: Any = client.scan(cursor, match="redisagg:{*}:meta", count=_SCAN_COUNT)
            cursor, keys = reply
            found.update(match[1].decode() for match in map(_META.fullmatch, keys) if match)
            if not cursor:
                break
            if time.monotonic() > deadline:
                return Names(sorted(found), complete=False)
    return Names(sorted(found), complete=True)
