"""The operation that reads the history of a namespace."""

from __future__ import annotations

from typing import Literal, get_args

from redisagg.errors import InvalidConfig
from redisagg.protocol.history import COARSE, FINE, points
from redisagg.protocol.keys import Keyspace
from redisagg.protocol.operations import Operation, ask_all
from redisagg.protocol.scripts import call, command
from redisagg.texts import shorten
from redisagg.views import History, HistoryPoint

HistorySpan = Literal["hour", "month"]
"""The last hour in steps of 20 seconds, or the last 30 days in steps of an hour."""

_RINGS = {"hour": FINE, "month": COARSE}


def history(keyspace: Keyspace, span: str) -> Operation[History]:
    """Reads the history; it is empty if no flusher has recorded any.

    Raises:
        InvalidConfig: there is no such span.
        KeyConflict: its key holds what redisagg did not write.
    """
    if not isinstance(span, str) or span not in _RINGS:
        known = " or ".join(map(repr, get_args(HistorySpan)))
        raise InvalidConfig(f"span must be {known}, not {shorten(span)}")
    ring = _RINGS[span]
    now_ms, raw = yield from ask_all(
        [
            call("now", [keyspace.meta]),
            command("GETRANGE", keyspace.history, ring.first, ring.last),
        ]
    )
    return History(
        step=ring.step_ms / 1000,
        now=now_ms / 1000,
        points=[
            _point(step * ring.step_ms / 1000, *values)
            for step, *values in points(raw, ring, now_ms)
        ],
    )


def _point(
    at: float,
    tasks_in: float,
    tasks_out: float,
    batches: float,
    failures: float,
    pending: float,
    dead: float,
    overdue_ms: float,
) -> HistoryPoint:
    return HistoryPoint(
        at=at,
        tasks_in=int(tasks_in),
        tasks_out=int(tasks_out),
        batches=int(batches),
        failures=int(failures),
        pending=int(pending),
        dead=int(dead),
        oldest_overdue=overdue_ms / 1000,
    )
