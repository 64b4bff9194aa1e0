"""Whether a namespace works, for the probes of whatever runs its processes."""

from __future__ import annotations

from collections.abc import Collection

from redisagg.operations.measuring import measure
from redisagg.protocol.keys import Keyspace
from redisagg.protocol.operations import Operation
from redisagg.texts import message_of, redact
from redisagg.views import Health


def health(keyspace: Keyspace) -> Operation[Health]:
    """Reads whether all partitions have a leader, and since when work is overdue."""
    found = yield from measure(keyspace)
    stats = found.stats
    led = not stats.unreadable and all(each.leader is not None for each in stats.partitions)
    return Health(reachable=True, led=led, overdue=found.oldest_overdue, paused=stats.paused)


def unreachable(error: Exception) -> Health:
    """Says that Redis can't be used, and why."""
    return Health(reachable=False, led=False, overdue=0.0, error=redact(message_of(error)))


def no_answer(timeout: float) -> Health:
    """Says that Redis did not answer in time."""
    return unreachable(TimeoutError(f"Redis gave no answer within {timeout:g} seconds"))


def together(found: Collection[Health]) -> Health:
    """Returns the health of several namespaces as one: whether all are well, the longest delay."""
    return Health(
        reachable=all(each.reachable for each in found),
        led=all(each.led for each in found),
        overdue=max((each.overdue for each in found), default=0.0),
        paused=any(each.paused for each in found),
        error=next((each.error for each in found if each.error), ""),
    )
