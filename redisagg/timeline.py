"""What happened to a batch, step by step, as far as Redis knows.

Errors come from outside: escape them wherever they are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from redisagg.views import BatchState, DeadLetter

StepName: TypeAlias = Literal[
    "opened", "due", "claimed", "failed", "merged", "retry", "enqueued", "dead"
]


@dataclass(frozen=True, slots=True)
class TimelineStep:
    """A step of a batch."""

    name: StepName
    """``"opened"``: its first task arrived. ``"due"``. ``"claimed"``: for the first time.
    ``"failed"``: its last attempt. ``"merged"``: the merge result is stored; a batch that is done
    without a retry needs no stored one. ``"retry"``: it can be claimed again. ``"enqueued"``.
    ``"dead"``: it became a dead letter."""
    done: bool
    """Whether it has happened; else it will happen next, or later."""
    at: float | None = None
    """When it happened or will happen; None if Redis stores no time for it."""
    detail: str = ""
    """Why it was due, the error, or how many merged tasks are enqueued."""


@dataclass(frozen=True, slots=True)
class BatchTimeline:
    """A batch in flight or a dead letter, with its steps."""

    batch_id: str
    """Id of the batch."""
    group_key: str
    """Text form of the group key."""
    state: Literal["claimed", "retry", "dead"]
    """What it does now, as in `BatchState`, or ``"dead"``."""
    size: int
    """Number of tasks."""
    attempts: int
    """Number of attempts so far, the present one included."""
    error: str
    """Error of the last attempt, or empty."""
    traceback: str
    """Traceback of that error; empty unless it is a dead letter."""
    until: float | None
    """Time at which the claim expires unless it is prolonged, or the retry is due; None if neither
    is known."""
    steps: Sequence[TimelineStep]
    """What has happened, and what comes next, in this order."""


def timeline_of(batch: BatchState | DeadLetter) -> BatchTimeline:
    """Makes the timeline of a batch from its view."""
    steps = [
        TimelineStep("opened", done=True, at=batch.opened_at),
        TimelineStep("due", done=True, at=batch.due_at, detail=batch.reason),
        TimelineStep("claimed", done=True, at=batch.claimed_at),
    ]
    failed = TimelineStep("failed", done=True, detail=batch.error)
    enqueued = f"{batch.enqueued} merged tasks" if batch.enqueued else ""
    if isinstance(batch, DeadLetter):
        if enqueued:
            steps.append(TimelineStep("merged", done=True))
            steps.append(TimelineStep("enqueued", done=False, detail=enqueued))
        steps.append(failed)
        steps.append(TimelineStep("dead", done=True, at=batch.died_at))
        return BatchTimeline(
            batch_id=batch.batch_id,
            group_key=batch.group_key,
            state="dead",
            size=batch.size,
            attempts=batch.attempts,
            error=batch.error,
            traceback=batch.traceback,
            until=None,
            steps=steps,
        )
    merged = [TimelineStep("merged", done=batch.merged)]
    if batch.error:
        # Of a batch whose result is stored, a sink has failed; else its merge.
        merged = [*merged, failed] if batch.merged else [failed, *merged]
    if batch.state == "retry":
        retry = TimelineStep("retry", done=False, at=batch.until)
        merged.insert(len(merged) if batch.merged else len(merged) - 1, retry)
    return BatchTimeline(
        batch_id=batch.batch_id,
        group_key=batch.group_key,
        state=batch.state,
        size=batch.size,
        attempts=batch.attempts,
        error=batch.error,
        traceback="",
        until=batch.until,
        steps=[*steps, *merged, TimelineStep("enqueued", done=False, detail=enqueued)],
    )
