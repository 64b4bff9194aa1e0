"""Trace context: how a merged task leads back to the tasks it was made of.

The header `traceparent` (https://www.w3.org/TR/trace-context/) names one parent only. A merged task
without one of its own gets that of its first task that has one, so that a worker goes on in that
trace; `LINKS` names those of all its tasks, for links.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from redisagg.task import Task

TRACEPARENT = "traceparent"

LINKS = "redisagg-links"
"""The traceparents of all merged tasks, each once, in order, with a comma between."""


def linked(headers: Mapping[str, str], tasks: Sequence[Task]) -> Mapping[str, str]:
    """The headers of a merged task with the trace context of `tasks`; the same if none has any."""
    parents = [task.headers[TRACEPARENT] for task in tasks if TRACEPARENT in task.headers]
    if not parents:
        return headers
    return {TRACEPARENT: parents[0], LINKS: ",".join(dict.fromkeys(parents)), **headers}
