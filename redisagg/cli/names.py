"""Finding the namespaces in a Redis server or cluster."""

from __future__ import annotations

from redisagg.operations import removing
from redisagg.operations.removing import Names
from redisagg.transport.threads import Transport

SCAN_TIME = 2.0
"""Seconds after which the search ends; other data may be in the same Redis."""


def find_namespaces(transport: Transport) -> Names:
    """Looks through the keys for the records of namespaces, for at most 2 seconds.

    Raises:
        redis.exceptions.RedisError: Redis refused, for instance since the user has no right.
        RedisUnavailable: no node of the cluster answers.
    """
    return removing.find_namespaces(transport, SCAN_TIME)
