"""One merge by a plain function, from beginning to end; for a thread or a process."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable
from typing import Any

from redisagg.config import GroupAggregator
from redisagg.flusher.merging.merger import Batch, Failure, Outcome, prepare, settle
from redisagg.sinks.routing import Router


def merge(function: GroupAggregator, router: Router, job: Batch) -> Outcome:
    """Merges a job; whatever goes wrong is in the outcome."""
    outcome = Outcome()
    try:
        group, tasks = prepare(job, outcome, router)
        if tasks:
            merged: Any = function(group, tasks)
            if inspect.isawaitable(merged):  # a plain function that returns a coroutine
                merged = asyncio.run(_awaited(merged))
            settle(job, outcome, router, tasks, merged)
    except BaseException as error:  # SystemExit too: it is the merge that failed, not the flusher
        outcome.failure = Failure.of(error)
    return outcome


async def _awaited(merging: Awaitable[Any]) -> Any:
    return await merging
