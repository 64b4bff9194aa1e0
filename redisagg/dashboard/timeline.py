"""The life of a batch as steps: opened, due, claimed, and what came or comes then."""

from __future__ import annotations

from typing import Literal, NamedTuple

from redisagg.dashboard.causes import RULES
from redisagg.views import BatchState, DeadLetter


class Step(NamedTuple):
    """A step in the life of a batch."""

    name: str
    at: float | None
    """Seconds since the epoch; None if it is not known."""
    text: str
    level: Literal["done", "now", "next", "bad"] = "done"
    took: float | None = None
    """Seconds since the step before."""


def timeline_of(batch: BatchState | DeadLetter, now: float) -> list[Step]:
    """The steps of a batch, oldest first."""
    why = RULES.get(batch.reason, batch.reason)
    steps = [
        Step("Opened", batch.opened_at or None, "its first task arrived"),
        Step("Due", batch.due_at or None, f"by {why}" if why else ""),
        Step("Claimed", batch.claimed_at or None, "first cut from its group by a flusher"),
    ]
    if isinstance(batch, DeadLetter):
        attempts = f"after {batch.attempts} attempts" if batch.attempts != 1 else "at once"
        steps.append(Step("Dead", batch.died_at, f"moved to the dead letters {attempts}", "bad"))
    elif batch.state == "claimed":
        steps.append(
            Step("Being merged or enqueued", now, f"attempt {batch.attempts} is running", "now")
        )
        if batch.until:
            steps.append(
                Step("Claim expires", batch.until, "unless its flusher prolongs it", "next")
            )
    else:
        steps.append(Step("Failed", None, f"attempt {batch.attempts}", "bad"))
        if batch.until:
            steps.append(Step("Next attempt", batch.until, "not before", "next"))
    return _with_spans(steps)


def _with_spans(steps: list[Step]) -> list[Step]:
    found: list[Step] = []
    before: float | None = None
    for step in steps:
        took = None if step.at is None or before is None else step.at - before
        found.append(step._replace(took=took))
        before = step.at if step.at is not None else before
    return found
