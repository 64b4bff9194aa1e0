"""Dramatiq actors as users write them."""

from __future__ import annotations

import os
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import CurrentMessage

from tests.sinks.workers.note import note

broker = RedisBroker(url=os.environ["REDISAGG_TEST_REDIS"])
broker.add_middleware(CurrentMessage())
dramatiq.set_broker(broker)


@dramatiq.actor(actor_name="test:aggregated", queue_name="digests")
def aggregated(group: str, count: int, payloads: list[Any]) -> None:
    """Records a batch of the default merge."""
    message = CurrentMessage.get_current_message()
    note(id=message.message_id, group=group, count=count, payloads=payloads)


@dramatiq.actor(actor_name="anything", queue_name="digests")
def anything(*args: Any, **kwargs: Any) -> None:
    """Records all that it receives."""
    message = CurrentMessage.get_current_message()
    options = {k: v for k, v in message.options.items() if k != "redis_message_id"}
    note(id=message.message_id, args=args, kwargs=kwargs, options=options)


@dramatiq.actor(actor_name="urgent", queue_name="urgent")
def urgent(*args: Any, **kwargs: Any) -> None:
    """The same in another queue."""
    anything(*args, **kwargs)
