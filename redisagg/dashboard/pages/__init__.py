"""The pages, one module for each kind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.responses import Response

from redisagg.dashboard.context import Context
from redisagg.dashboard.pages.batches import batch, batches
from redisagg.dashboard.pages.dead import dead, dead_letter, job
from redisagg.dashboard.pages.flushers import flushers
from redisagg.dashboard.pages.groups import group, groups
from redisagg.dashboard.pages.news import news
from redisagg.dashboard.pages.overview import home, overview
from redisagg.dashboard.pages.policies import policies

_NAMESPACE = "/n/{source}/{name}"

PAGES: dict[str, Callable[[Context], Awaitable[Response]]] = {
    "/": home,
    f"{_NAMESPACE}/": overview,
    f"{_NAMESPACE}/groups": groups,
    f"{_NAMESPACE}/group": group,
    f"{_NAMESPACE}/batches": batches,
    f"{_NAMESPACE}/batch": batch,
    f"{_NAMESPACE}/dead": dead,
    f"{_NAMESPACE}/dead-letter": dead_letter,
    f"{_NAMESPACE}/jobs/{{job}}": job,
    f"{_NAMESPACE}/flushers": flushers,
    f"{_NAMESPACE}/policies": policies,
    f"{_NAMESPACE}/live": news,
}
"""The pages by their path."""
