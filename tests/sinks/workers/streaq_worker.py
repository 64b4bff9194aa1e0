"""A Streaq worker with tasks as users write them."""

from __future__ import annotations

import os
from typing import Any

from streaq import Worker

from tests.sinks.workers.note import note

worker = Worker(
    os.environ["REDISAGG_TEST_REDIS"], queue_name="digests", priorities=["normal", "urgent"]
)


@worker.task(name="test:aggregated")
async def aggregated(group: str, count: int, payloads: list[Any]) -> None:
    """Records a batch of the default merge."""
    note(id=aggregated.context.task_id, group=group, count=count, payloads=payloads)


@worker.task(name="anything")
async def anything(*args: Any, **kwargs: Any) -> None:
    """Records all that it receives."""
    note(id=anything.context.task_id, args=args, kwargs=kwargs)


@worker.task(name="forgotten", ttl=0)
async def forgotten() -> None:
    """Leaves no result."""
    note(id=forgotten.context.task_id)


@worker.task(name="failing")
async def failing() -> None:
    """Records its call and fails."""
    note(id=failing.context.task_id)
    raise RuntimeError("as it should")
