"""Server-sent events: a page learns that it has something new to show."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.responses import PlainTextResponse, Response, StreamingResponse

from redisagg.dashboard.context import Context
from redisagg.dashboard.live import MOST_WATCHERS, events
from redisagg.dashboard.queries import Look


async def news(context: Context) -> Response:
    """Sends events until the browser goes."""
    state = context.state
    if state.watchers >= MOST_WATCHERS:
        return PlainTextResponse("too many pages are open\n", 503)

    def describe(look: Look) -> dict[str, object]:
        health = context.health(look)
        return {
            "level": health.level,
            "title": health.title,
            "dead": look.stats.batches_dead,
            "retry": look.stats.batches_in_retry,
        }

    async def watched() -> AsyncIterator[str]:
        state.watchers += 1
        try:
            stream = events(context.opened.feed, describe, context.request.is_disconnected)
            async for event in stream:
                yield event
        finally:
            state.watchers -= 1

    headers = {"X-Accel-Buffering": "no"}  # nginx would keep events back
    return StreamingResponse(watched(), media_type="text/event-stream", headers=headers)
