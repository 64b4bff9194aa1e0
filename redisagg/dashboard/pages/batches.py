"""The batches in flight, and one of them."""

from __future__ import annotations

from starlette.responses import RedirectResponse, Response

from redisagg.dashboard import queries
from redisagg.dashboard.context import Context
from redisagg.dashboard.timeline import timeline_of

PER_PAGE = 100
_MOST_TASKS = 25


async def batches(context: Context) -> Response:
    """Lists the batches in flight."""
    state = context.given("state")
    offset = context.number("offset")
    found = await queries.batches(context.shown, state=state, offset=offset, limit=PER_PAGE)
    return await context.page(
        "batches.html",
        "Batches",
        "batches",
        state=state,
        offset=offset,
        per_page=PER_PAGE,
        found=found,
    )


async def batch(context: Context) -> Response:
    """Shows a batch in flight: its times, attempts, error and tasks."""
    batch_id = context.given("id")
    found = await queries.batch(context.shown, batch_id)
    if found is None:
        letter = await queries.dead_letter(context.shown, batch_id)
        if letter is not None:
            return RedirectResponse(context.url("dead-letter", id=batch_id), 303)
    look = await context.look()
    tasks = [] if found is None else list(found.tasks or ())
    return await context.page(
        "batch.html",
        "Batch",
        "batches",
        batch_id=batch_id,
        batch=found,
        steps=[] if found is None else timeline_of(found, look.now),
        tasks=[context.task(each) for each in tasks[:_MOST_TASKS]],
        more_tasks=max(0, len(tasks) - _MOST_TASKS),
    )
