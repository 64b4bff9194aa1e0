"""Settings of an arq worker as users write them."""

from __future__ import annotations

import os
from typing import Any

from arq import func
from arq.connections import RedisSettings

from tests.sinks.workers.note import note


async def aggregated(ctx: dict[str, Any], group: str, count: int, payloads: list[Any]) -> None:
    """Records a batch of the default merge."""
    note(id=ctx["job_id"], group=group, count=count, payloads=payloads)


async def anything(ctx: dict[str, Any], *args: Any, **kwargs: Any) -> None:
    """Records all that it receives."""
    note(id=ctx["job_id"], args=args, kwargs=kwargs)


class WorkerSettings:
    """For ``arq tests.sinks.workers.arq_settings.WorkerSettings``."""

    functions = (
        func(aggregated, name="test:aggregated"),
        func(anything, name="anything"),
        func(anything, name="forgotten", keep_result=0),
    )
    queue_name = "digests"
    redis_settings = RedisSettings.from_dsn(os.environ["REDISAGG_TEST_REDIS"])
    poll_delay = 0.05
