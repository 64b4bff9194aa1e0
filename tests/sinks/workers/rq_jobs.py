"""Functions for RQ as users write them."""

from __future__ import annotations

from typing import Any

from rq import get_current_job

from tests.sinks.workers.note import note


def aggregated(group: str, count: int, payloads: list[Any]) -> None:
    """Records a batch of the default merge."""
    job = get_current_job()
    note(id=job.id, group=group, count=count, payloads=payloads)


def anything(*args: Any, **kwargs: Any) -> None:
    """Records all that it receives."""
    job = get_current_job()
    note(
        id=job.id, args=args, kwargs=kwargs, headers=job.meta, queue=job.origin, ttl=job.result_ttl
    )
