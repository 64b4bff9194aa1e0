"""What a group waits for, as far as its record and the counts tell; for the rows of a table."""

from __future__ import annotations

from typing import Literal, NamedTuple

from redisagg.dashboard.queries import Group, Look

_LATE = 2.0
"""Seconds overdue from which a group is late: until then it is on its way."""


class Cause(NamedTuple):
    """What a group waits for."""

    kind: str
    """A word for a badge."""
    level: Literal["ok", "info", "warn", "bad"]
    text: str
    """A sentence."""
    until: float | None = None
    """When it ends, if that is known; seconds since the epoch."""


def cause_of(group: Group, look: Look) -> Cause:
    """Says what a group waits for: the strongest cause."""
    state, record, now = group.state, group.record, look.now
    partition = next((p for p in look.stats.partitions if p.partition == group.partition), None)
    rules = None if record is None else record.rules_in_force
    is_due = state.due_at is not None and state.due_at <= now and state.size > 0
    if state.paused:
        return Cause("paused", "bad", "This group is paused until somebody resumes it.")
    if partition is not None and partition.paused:
        return Cause("paused", "bad", "Flushing is paused until somebody resumes it.")
    if state.held:
        until = record.held_until / 1000 if record is not None and record.held_until else None
        return Cause(
            "retry", "warn", "A batch of this group failed; its next attempt comes first.", until
        )
    if rules is not None and state.size and record is not None and not record.marked:
        for until_ms, kind, text in (
            (rules.postponed, "postponed", "Somebody has postponed this group."),
            (rules.not_before, "not before", "A task of it must not be flushed earlier."),
            (rules.cool_until, "cooling", "Its min interval since the last batch is not over."),
        ):
            if until_ms / 1000 > now:
                return Cause(kind, "info", text, until_ms / 1000)
    if is_due and not look.stats.flushers:
        return Cause("no flusher", "bad", "It is due, but no flusher is alive.")
    if is_due and partition is not None and partition.leader is None:
        return Cause(
            "no leader", "bad", f"It is due, but partition {group.partition} has no leader."
        )
    if is_due and state.due_at is not None:
        if now - state.due_at > _LATE and state.due_at > 0:
            return Cause(
                "late",
                "warn",
                "It is due and not claimed. " + _perhaps(look),
            )
        return Cause("due", "ok", "It is due, and is claimed next.")
    if state.size == 0:
        return Cause("in flight", "ok", "All of its tasks are in batches.")
    if state.due_at is None:
        return Cause("open", "ok", "No time makes it due: it waits until it is full or flushed.")
    return Cause("open", "ok", "It gathers tasks until it is due.", state.due_at)


def _perhaps(look: Look) -> str:
    """What may hold a due group, of what is wrong with the namespace."""
    for trouble in look.troubles:
        if trouble.cause in ("sink_down", "rate_limit", "concurrency"):
            return f"Perhaps since: {trouble.text}"
    return "Flushers are busy, or limits on work or its sink hold it."
