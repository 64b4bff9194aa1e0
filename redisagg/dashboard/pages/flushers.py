"""The flushers, partitions, leases, limits and sinks."""

from __future__ import annotations

from starlette.responses import Response

from redisagg.dashboard import queries
from redisagg.dashboard.context import Context


async def flushers(context: Context) -> Response:
    """Shows who leads which partition."""
    look = await context.look()
    return await context.page(
        "flushers.html",
        "Flushers",
        "flushers",
        leaders=await queries.leaders(context.shown, look.stats),
        limits=await queries.limits(context.shown),
        known=context.shown.known,
    )
