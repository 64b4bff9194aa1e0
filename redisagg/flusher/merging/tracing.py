"""Trace context: how a merged task leads back to the tasks it was made of.

The header `traceparent` (https://www.w3.org/TR/trace-context/) names one parent only. A merged task
without one of its own gets that of its first task that has one, so that a worker goes on in that
trace; `LINKS` names those of all its tasks, for links.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from redisagg.task import Task

TRACEPARENT = "traceparent"

LINKS = "redisagg-links"
"""The traceparents of the merged tasks, each once, in order, with a comma between."""

MAX_LINKS = 128
"""The number of traceparents in `LINKS`: the default limit of links of a span in OpenTelemetry.
Each merged task of a batch repeats them."""

_MOST_LINKS_IN_BATCH = 131_072
"""The number of traceparents in all merged tasks of a batch, which is 7 MB."""


def trace_headers(tasks: Iterable[Task], merged: int) -> dict[str, str]:
    """Returns the trace context of tasks that are merged, as headers; empty if none has any.

    Args:
        tasks: the tasks that are merged.
        merged: the number of merged tasks that get these headers. If there are more than 1,024,
            fewer traces are linked to.
    """
    traced = [task.headers for task in tasks if task.headers and TRACEPARENT in task.headers]
    if not traced:
        return {}
    most = max(1, min(MAX_LINKS, _MOST_LINKS_IN_BATCH // max(1, merged)))
    parents: dict[str, None] = {}
    for headers in traced:
        parents[headers[TRACEPARENT]] = None
        if len(parents) == most:
            break
    return {TRACEPARENT: next(iter(parents)), LINKS: ",".join(parents)}


def linked(headers: Mapping[str, str], trace: Mapping[str, str]) -> Mapping[str, str]:
    """Returns the headers of a merged task with the trace context; its own come first."""
    return {**trace, **headers} if trace else headers
