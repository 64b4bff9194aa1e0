"""A Taskiq broker with tasks as users write them."""

from __future__ import annotations

import os
from typing import Any

from taskiq import Context, TaskiqDepends
from taskiq_redis import ListQueueBroker, RedisStreamBroker

from tests.sinks.workers.note import note

_BROKERS = {"list": ListQueueBroker, "stream": RedisStreamBroker}

broker = _BROKERS[os.environ["REDISAGG_TEST_KIND"]](
    os.environ["REDISAGG_TEST_REDIS"],
    queue_name="digests",
    socket_timeout=None,  # the default of redis-py 8 ends a worker that had nothing to do
)

_CONTEXT = TaskiqDepends()


@broker.task(task_name="test:aggregated")
async def aggregated(
    group: str, count: int, payloads: list[Any], context: Context = _CONTEXT
) -> None:
    """Records a batch of the default merge."""
    note(id=context.message.task_id, group=group, count=count, payloads=payloads)


@broker.task(task_name="anything")
async def anything(a: Any = None, context: Context = _CONTEXT) -> None:
    """Records all that it receives."""
    message = context.message
    note(id=message.task_id, args=message.args, kwargs=message.kwargs, labels=message.labels)
