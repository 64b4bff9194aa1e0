"""Settings of a SAQ worker as users write them."""

from __future__ import annotations

import os
from typing import Any

from saq import Queue

from tests.sinks.workers.note import note


async def aggregated(ctx: dict[str, Any], group: str, count: int, payloads: list[Any]) -> None:
    """Records a batch of the default merge."""
    note(id=ctx["job"].key, group=group, count=count, payloads=payloads)


async def anything(ctx: dict[str, Any], **kwargs: Any) -> None:
    """Records all that it receives."""
    job = ctx["job"]
    note(id=job.key, kwargs=kwargs, headers=job.meta, timeout=job.timeout, ttl=job.ttl)


async def failing(ctx: dict[str, Any]) -> None:
    """Records its call and fails."""
    note(id=ctx["job"].key)
    raise RuntimeError("as it should")


settings = {
    "queue": Queue.from_url(os.environ["REDISAGG_TEST_REDIS"], name="digests"),
    "functions": [("test:aggregated", aggregated), anything, failing],
}
