"""The batches in flight, and one of them."""

from __future__ import annotations

from typing import Literal

from starlette.responses import RedirectResponse, Response

from redisagg.dashboard import queries
from redisagg.dashboard.context import Context

PER_PAGE = 100
_MOST_TASKS = 25


async def batches(context: Context) -> Response:
    """Lists the batches in flight."""
    given = context.given("state")
    state: Literal["claimed", "retry"] | None = None
    if given in ("claimed", "retry"):
        state = "claimed" if given == "claimed" else "retry"
    after = context.given("after")
    found = await queries.batches(context.shown, state=state, place=after, limit=PER_PAGE)
    return await context.page(
        "batches.html", "Batches", "batches", state=state or "", after=after, found=found
    )


async def batch(context: Context) -> Response:
    """Shows a batch in flight: its times, attempts, error and tasks."""
    batch_id = context.given("id")
    found = await queries.batch(context.shown, batch_id, limit=_MOST_TASKS)
    if found is not None and found.timeline.state == "dead":
        return RedirectResponse(context.url("dead-letter", id=batch_id), 303)
    return await context.page(
        "batch.html",
        "Batch",
        "batches",
        batch_id=batch_id,
        batch=None if found is None else found.timeline,
        record=None if found is None else found.record,
        tasks=[] if found is None else [context.task(each) for each in found.tasks],
        most_tasks=_MOST_TASKS,
    )
