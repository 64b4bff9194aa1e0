"""Tasks for Huey as users write them."""

from __future__ import annotations

import os
from typing import Any

from huey import PriorityRedisHuey, RedisHuey
from huey.api import Task

from tests.sinks.workers.note import note

_KINDS = {"list": RedisHuey, "priority": PriorityRedisHuey}

huey = _KINDS[os.environ["REDISAGG_TEST_KIND"]]("digests", url=os.environ["REDISAGG_TEST_REDIS"])


@huey.task(context=True, name="digest:all")
def aggregated(group: str, count: int, payloads: list[Any], task: Task) -> None:
    """Records a batch of the default merge."""
    note(id=task.id, group=group, count=count, payloads=payloads)


@huey.task(context=True, retries=3, retry_delay=7)
def anything(*args: Any, task: Task, **kwargs: Any) -> None:
    """Records all that it receives."""
    note(
        id=task.id,
        args=args,
        kwargs=kwargs,
        retries=[task.retries, task.retry_delay],
        priority=task.priority,
        delayed=task.eta is not None,
    )
