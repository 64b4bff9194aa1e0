"""The dead letters, one of them, and actions on many."""

from __future__ import annotations

from starlette.responses import Response

from redisagg.dashboard import queries
from redisagg.dashboard.context import Context
from redisagg.dashboard.dead_index import Filter
from redisagg.timeline import timeline_of

PER_PAGE = 50
_MOST_TASKS = 100


async def dead(context: Context) -> Response:
    """Lists the dead letters, grouped by their error."""
    wanted = Filter(context.given("reason"), context.given("q"))
    offset = context.number("offset")
    look = await context.look()
    view = await context.opened.dead.view((look.stats.batches_dead, look.stats.dead))
    found = wanted.select(view.letters)
    return await context.page(
        "dead.html",
        "Dead letters",
        "dead",
        wanted=wanted,
        view=view,
        reasons=[(context.text(each.error), each) for each in view.reasons],
        total=len(found),
        tasks=sum(each.size for each in found),
        letters=found[offset : offset + PER_PAGE],
        offset=offset,
        per_page=PER_PAGE,
        jobs=context.state.jobs.of(context.shown.place)[:5],
    )


async def dead_letter(context: Context) -> Response:
    """Shows a dead letter with its error, traceback and tasks."""
    batch_id = context.given("id")
    found = await queries.dead_letter(context.shown, batch_id)
    tasks = [] if found is None else list(found.tasks or ())
    offset = context.number("offset")
    return await context.page(
        "dead_letter.html",
        "Dead letter",
        "dead",
        batch_id=batch_id,
        letter=found,
        steps=[] if found is None else timeline_of(found).steps,
        tasks=[context.task(each) for each in tasks[offset : offset + _MOST_TASKS]],
        offset=offset,
        per_page=_MOST_TASKS,
        can_try=context.shown.known is not None,
    )


async def job(context: Context) -> Response:
    """Shows how far an action on many dead letters has come."""
    found = context.state.jobs.get(context.request.path_params["job"])
    if found is not None and found.place != context.shown.place:
        found = None
    return await context.page("job.html", "Progress", "dead", job=found)
