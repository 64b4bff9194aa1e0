"""A Celery application as users write them."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, Task

from tests.sinks.workers.note import note

app = Celery("workers", broker=os.environ["REDISAGG_TEST_REDIS"])
app.conf.broker_connection_retry_on_startup = True


@app.task(bind=True, name="test:aggregated")
def aggregated(self: Task[Any, Any], group: str, count: int, payloads: list[Any]) -> None:
    """Records a batch of the default merge."""
    note(id=self.request.id, group=group, count=count, payloads=payloads)


@app.task(bind=True, name="anything")
def anything(self: Task[Any, Any], *args: Any, **kwargs: Any) -> None:
    """Records all that it receives."""
    delivered: Any = self.request.delivery_info
    note(
        id=self.request.id,
        args=args,
        kwargs=kwargs,
        headers=self.request.headers,
        queue=delivered["routing_key"],
        priority=delivered["priority"],
    )
