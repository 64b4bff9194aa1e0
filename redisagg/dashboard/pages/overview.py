"""The list of namespaces, and the overview of one: is it healthy?"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from starlette.responses import RedirectResponse, Response

from redisagg.dashboard import queries
from redisagg.dashboard.context import Context, fullness
from redisagg.dashboard.health import Health, health_of
from redisagg.dashboard.queries import Look, Span
from redisagg.dashboard.sources import Place
from redisagg.errors import RedisAggError

_MOST_JUDGED = 60
"""Namespaces whose health the list shows; the others are links only."""

_JUDGED_WITHIN = 1.0
"""Seconds that the list waits for their numbers."""

_NEXT_GROUPS = 8


class Row(NamedTuple):
    """A namespace in the list."""

    place: Place
    look: Look | None
    health: Health | None
    error: str


async def home(context: Context) -> Response:
    """Lists the namespaces; with one, goes there."""
    places = await context.state.sources.places()
    if len(places) == 1:
        [place] = places
        return RedirectResponse(f"{context.root}/n/{place.source}/{place.name}/", 303)
    judged = await asyncio.gather(*(_row(context, each) for each in places[:_MOST_JUDGED]))
    rows = [*judged, *(Row(each, None, None, "") for each in places[_MOST_JUDGED:])]
    return await context.render("home.html", "Namespaces", rows=rows)


async def _row(context: Context, place: Place) -> Row:
    try:
        opened = await asyncio.wait_for(context.state.open(place), _JUDGED_WITHIN)
        if opened is None:
            return Row(place, None, None, "does not exist yet")
        look = await asyncio.wait_for(opened.feed.look(2.0), _JUDGED_WITHIN)
    except (asyncio.TimeoutError, TimeoutError):
        return Row(place, None, None, "Redis has not answered yet")
    except RedisAggError as error:
        return Row(place, None, None, context.text(str(error)))
    return Row(place, look, health_of(look, fullness(opened.shown, look)), "")


async def overview(context: Context) -> Response:
    """Shows whether a namespace is healthy, its counts and its history."""
    span: Span = "month" if context.given("span") == "month" else "hour"
    history, upcoming = await asyncio.gather(
        queries.history(context.shown, span),
        queries.groups(context.shown, prefix="", sort="due", place="", limit=_NEXT_GROUPS),
    )
    return await context.page(
        "overview.html",
        "Overview",
        "overview",
        span=span,
        history=history,
        upcoming=[each for each in upcoming.groups if each.state.size][:_NEXT_GROUPS],
        known=context.shown.known,
    )
