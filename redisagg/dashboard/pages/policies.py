"""The policies, and which of them decides for a group."""

from __future__ import annotations

from starlette.responses import Response

from redisagg.dashboard.context import Context
from redisagg.policies import LIMITS, Policies
from redisagg.task import group_key_bytes


async def policies(context: Context) -> Response:
    """Lists the policies."""
    found = await context.shown.aggregator.policies()
    key = context.given("test")
    decisions = Policies(found).decisions_of(group_key_bytes(key)) if key else {}
    return await context.page(
        "policies.html",
        "Policies",
        "policies",
        policies=[(pattern, each.given()) for pattern, each in found.items()],
        tested=key,
        decisions=[(name, decisions.get(name)) for name in LIMITS],
        limits=LIMITS,
        known=context.shown.known,
    )
