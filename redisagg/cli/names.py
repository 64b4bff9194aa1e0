"""Finding the namespaces in a Redis server or cluster."""

from __future__ import annotations

import re
import time
from typing import Any, NamedTuple

_META = re.compile(rb"redisagg:\{([A-Za-z0-9][A-Za-z0-9._-]{0,63})\}:meta")
_SCAN_COUNT = 1_000  # keys that one SCAN looks at: well below a millisecond
_SCAN_TIME = 2.0  # seconds after which the search ends; other data may be in the same Redis


class Names(NamedTuple):
    """The namespaces that were found."""

    found: list[str]
    complete: bool
    """Whether all keys were looked at."""


def find_namespaces(client: Any) -> Names:
    """Looks through the keys for the records of namespaces, for at most 2 seconds.

    Args:
        client: client of redis-py.

    Raises:
        redis.exceptions.RedisError: Redis refused, for instance since the user has no right.
    """
    deadline = time.monotonic() + _SCAN_TIME
    targets: list[dict[str, Any]] = [{}]
    if hasattr(client, "get_primaries"):  # a cluster
        targets = [{"target_nodes": node} for node in client.get_primaries()]
    found: set[str] = set()
    for target in targets:
        cursor: Any = 0
        while True:
            reply = client.scan(cursor, match="redisagg:{*}:meta", count=_SCAN_COUNT, **target)
            cursor, keys = _page(reply)
            raw = (key.encode() if isinstance(key, str) else key for key in keys)
            found.update(match[1].decode() for match in map(_META.fullmatch, raw) if match)
            if not cursor:
                break
            if time.monotonic() > deadline:
                return Names(sorted(found), complete=False)
    return Names(sorted(found), complete=True)


def _page(reply: Any) -> tuple[int, list[Any]]:
    """Splits a reply of SCAN; the cluster client has the cursor in a dict by node."""
    cursor, keys = reply
    if isinstance(cursor, dict):
        [cursor] = cursor.values()
    return int(cursor), keys
