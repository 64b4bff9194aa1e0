"""A Celery app with batch tasks; run by its real worker, and called by the tests."""

from __future__ import annotations

import os
from datetime import datetime
from typing import Any

from celery import Celery
from redis import Redis

from redisagg import AggregationConfig, Settings
from redisagg.contrib.celery import Batches, Request

URL = os.environ.get("REDISAGG_TEST_REDIS", "redis://localhost:1/0")

app = Celery("project", broker=URL, backend=URL)
app.conf.broker_connection_retry_on_startup = True
app.conf.worker_hijack_root_logger = False
config = AggregationConfig(partitions=2, lease_time=2, retry_delay=0.02, add_timeout=10)
batches = Batches(
    app,
    URL,
    settings=Settings(config=config),
    flush_in_worker=bool(os.environ.get("FLUSH_IN_WORKER")),
)


def note(entry: Any) -> None:
    """Notes what a task got."""
    with Redis.from_url(URL) as client:
        client.rpush("noted", repr(entry))


@batches.task(flush_every=3, flush_interval=60)
def count(requests: list[Request]) -> None:
    """Takes three calls."""
    note([(each.id, each.args, each.kwargs) for each in requests])
    for each in requests:
        app.backend.mark_as_done(each.id, sum(each.args), request=each)


@batches.task(
    flush_every=2,
    flush_interval=60,
    group_by=lambda user, *args: ("user", user),
    name="mail",
    namespace="mails",
    options={"max_retries": 3, "default_retry_delay": 0},
)
def mail(requests: list[Request]) -> None:
    """Takes two calls of a user, and fails at the first attempt."""
    note(sorted(each.args for each in requests))
    if mail.request.retries == 0:
        raise mail.retry(countdown=0)


@batches.task(flush_every=1)
def typed(requests: list[Request]) -> None:
    """Takes a call with a date."""
    [request] = requests
    assert isinstance(request.args[0], datetime)
    note(request.args[0].isoformat())
    note((request.name, request.hostname is not None, request.kwargs))
