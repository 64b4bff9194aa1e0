"""The open groups, and one of them."""

from __future__ import annotations

from starlette.responses import Response

from redisagg.dashboard import queries
from redisagg.dashboard.causes import cause_of
from redisagg.dashboard.context import Context
from redisagg.dashboard.queries import Sort
from redisagg.policies import LIMITS, Policies
from redisagg.task import group_key_bytes

PER_PAGE = 50
TASKS_PER_PAGE = 25


async def groups(context: Context) -> Response:
    """Lists open groups, searched by the start of their keys."""
    prefix = context.given("prefix")
    given = context.given("sort")
    sort: Sort = "size" if given == "size" else "age" if given == "age" else "due"
    due = context.given("due") == "1"
    look = await context.look()
    found = await queries.groups(
        context.shown,
        prefix=prefix,
        sort=sort,
        place=context.given("after"),
        limit=PER_PAGE,
        due_at=look.now if due else None,
    )
    return await context.page(
        "groups.html",
        "Groups",
        "groups",
        prefix=prefix,
        sort=sort,
        due=due,
        after=context.given("after"),
        found=found,
        rows=[(each, cause_of(each, look)) for each in found.groups],
    )


async def group(context: Context) -> Response:
    """Shows a group with its waiting tasks, and what holds it."""
    key = context.given("key")
    raw = group_key_bytes(key)
    offset = context.number("offset")
    look = await context.look()
    found = await queries.group(context.shown, key, offset=offset, limit=TASKS_PER_PAGE)
    why = await queries.explain(context.shown, key)
    policies = await context.shown.aggregator.policies()
    decisions = Policies(policies).decisions_of(raw) if policies else {}
    return await context.page(
        "group.html",
        "Group",
        "groups",
        key=key,
        group=found,
        cause=None if found is None else cause_of(found, look),
        why=why,
        tasks=[] if found is None else [context.task(each) for each in found.state.tasks or ()],
        offset=offset,
        per_page=TASKS_PER_PAGE,
        batches=await queries.batches_of(context.shown, key) if why.in_flight else [],
        decisions={name: decisions[name] for name in LIMITS if name in decisions},
        partition=queries.keyspace_of(context.shown).partition_of(raw).number,
    )
