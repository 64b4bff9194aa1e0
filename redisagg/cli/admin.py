"""The commands that inspect and steer a namespace."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from itertools import islice
from typing import Any

import click

from redisagg.aggregator import Aggregator
from redisagg.cli.options import argument_or_all, json_option, with_aggregator
from redisagg.cli.output import ago, echo, print_json, print_table, task_text
from redisagg.operations.listing import MOST_GROUPS, GroupOrder
from redisagg.views import GroupList, GroupPlace, GroupState

_PAGE_GROUPS = 500
"""Groups that are read in one step when all are listed."""


def _limit_option(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    text = f"Largest number of {what}; 0 for all."
    return click.option("--limit", type=click.IntRange(0), default=50, show_default=True, help=text)


@click.command()
@with_aggregator
@click.option("--tasks", is_flag=True, help="With --json, print the waiting tasks too.")
@click.option("--due", is_flag=True, help="List only groups that are due.")
@click.option("--prefix", default="", help="List only groups whose keys begin so.")
@click.option(
    "--order",
    type=click.Choice(["due", "size", "age"]),
    help="Next due, largest or oldest first. The last two look at all groups.",
)
@_limit_option("groups")
@json_option
def groups(
    aggregator: Aggregator,
    tasks: bool,
    due: bool,
    prefix: str,
    order: GroupOrder | None,
    limit: int,
    as_json: bool,
) -> None:
    """List the groups, next due first; with --limit 0 in any order, as they are read."""
    if tasks and not as_json:
        raise click.UsageError("--tasks needs --json")
    if prefix or order is not None:
        if due:
            raise click.UsageError("--due can't be combined with --prefix or --order")
        how = order or ("due" if limit else "any")
        states: Iterable[GroupState] = _search(aggregator, prefix, how, limit, tasks=tasks)
    elif limit:
        listed = aggregator.get_groups(tasks=tasks, limit=limit, due=due)
        if len(listed) == limit:
            click.echo(f"the first {limit} groups; --limit N lists N, --limit 0 all", err=True)
        states = listed.values()
    else:
        states = _all_groups(aggregator, tasks=tasks, due=due)
    if as_json:
        for state in states:
            print_json(state)
        return
    print_table(
        ("group", "waiting", "in flight", "first", "last", "due", "priority", "held", "paused"),
        (
            (
                state.group_key,
                state.size,
                state.in_flight,
                ago(state.first_task_at),
                ago(state.last_task_at),
                ago(state.due_at),
                state.priority,
                "yes" if state.held else "",
                "yes" if state.paused else "",
            )
            for state in states
        ),
    )


def _search(
    aggregator: Aggregator, prefix: str, order: GroupOrder, limit: int, *, tasks: bool
) -> Iterable[GroupState]:
    """The first groups with a prefix in an order; all of them if `limit` is 0."""
    pages = _pages(aggregator, prefix, order, limit, tasks=tasks)
    if order in ("due", "any"):
        return islice(_once(pages), limit or None)
    found: dict[str, GroupState] = {}
    for page in pages:  # each has the first groups of a part of all
        found.update((state.group_key, state) for state in page.states)
        if limit:
            found = {state.group_key: state for state in _ranked(found.values(), order)[:limit]}
            if page.exact and len(found) == limit:
                break
    return _ranked(found.values(), order)


def _ranked(states: Iterable[GroupState], order: GroupOrder) -> list[GroupState]:
    if order == "size":
        return sorted(states, key=lambda state: -state.size)
    return sorted(states, key=lambda state: state.first_task_at or math.inf)


def _once(pages: Iterable[GroupList]) -> Iterator[GroupState]:
    """The groups of pages, each one once."""
    seen: set[str] = set()
    for page in pages:
        yield from (state for state in page.states if state.group_key not in seen)
        seen.update(state.group_key for state in page.states)


def _pages(
    aggregator: Aggregator, prefix: str, order: GroupOrder, limit: int, *, tasks: bool
) -> Iterator[GroupList]:
    size = min(limit or _PAGE_GROUPS, MOST_GROUPS) if order != "any" else _PAGE_GROUPS
    cursor: str | None = None
    while True:
        page = aggregator.find_groups(
            prefix=prefix, order=order, limit=size, cursor=cursor, tasks=tasks
        )
        yield page
        if (cursor := page.cursor) is None:
            return


def _all_groups(aggregator: Aggregator, *, tasks: bool, due: bool) -> Iterator[GroupState]:
    """Reads all groups, page by page, so that the first rows are printed at once."""
    read: set[str] = set()
    place: GroupPlace | None = GroupPlace()
    while place is not None:
        page = aggregator.read_groups(place, tasks=tasks, due=due)
        yield from (state for state in page.states if state.group_key not in read)
        read.update(state.group_key for state in page.states)
        place = page.next


@click.command()
@click.argument("group")
@with_aggregator
@_limit_option("tasks")
@click.option("--offset", type=click.IntRange(0), default=0, help="Number of tasks to skip.")
@json_option
def peek(aggregator: Aggregator, group: str, limit: int, offset: int, as_json: bool) -> None:
    """Show the tasks that wait in GROUP, oldest first."""
    state = aggregator.get_group(group, offset=offset, limit=limit or sys.maxsize)
    if state is None:
        raise click.ClickException("there is no such group; redisagg groups lists the groups")
    shown = len(state.tasks or ())
    if shown < state.size - offset:
        text = f"{shown} of {state.size} tasks; --limit N shows N, --limit 0 all, --offset N later"
        click.echo(text, err=True)
    if as_json:
        print_json(state)
        return
    print_table(
        ("id", "type", "arrived", "payload"),
        (
            (
                stored.task.id if stored.task else None,
                stored.task.type if stored.task else None,
                ago(stored.arrived_at),
                task_text(stored),
            )
            for stored in state.tasks or ()
        ),
    )


@click.command()
@click.argument("group")
@click.argument("task_id")
@with_aggregator
@json_option
def locate(aggregator: Aggregator, group: str, task_id: str, as_json: bool) -> None:
    """Say where a task is, or what became of it; fails if nothing is known of it."""
    found = aggregator.locate(group, task_id)
    if as_json:
        print_json(found)
    elif found.state == "waiting":
        echo(f"waiting behind {found.place} tasks, due {ago(found.due_at) or 'when full'}")
    elif found.state == "in_batch":
        error = f": {found.error}" if found.error else ""
        echo(f"in batch {found.batch_id} ({found.batch_state}), attempt {found.attempt}{error}")
    elif found.state == "flushed":
        echo(f"flushed as batch {found.batch_id}")
    elif found.state == "failed":
        letter = f"dead letter {found.dead_letter}" if found.dead_letter else "no dead letter"
        echo(f"failed, {letter}: {found.error}")
    else:
        echo(found.state)
    if found.state == "unknown":
        raise SystemExit(1)


@click.command()
@argument_or_all("group", "a group")
@with_aggregator
@json_option
def flush(aggregator: Aggregator, group: str | None, as_json: bool) -> None:
    """Make the waiting tasks of GROUP, or of all groups, due now."""
    count = aggregator.flush_all() if group is None else aggregator.flush(group)
    _report(as_json, {"flushed": count}, f"{count} tasks are due now")


@click.command()
@click.argument("group")
@click.argument("task_id", required=False)
@with_aggregator
@json_option
def cancel(aggregator: Aggregator, group: str, task_id: str | None, as_json: bool) -> None:
    """Remove one waiting task, or all, from GROUP; tasks in batches stay."""
    if task_id is None:
        count = aggregator.cancel_group(group)
    else:
        count = int(aggregator.cancel_task(group, task_id))
    _report(as_json, {"cancelled": count}, f"{count} tasks cancelled")


@click.command()
@with_aggregator
@click.argument("group")
@click.argument("until", type=click.DateTime(["%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%dT%H:%M%z"]))
@json_option
def postpone(aggregator: Aggregator, group: str, until: datetime, as_json: bool) -> None:
    """Cut no batch from GROUP before UNTIL, such as 2026-11-27T08:00+01:00."""
    count = aggregator.postpone(group, until)
    _report(as_json, {"postponed": count}, f"{count} tasks wait until {until.isoformat()}")


@click.command()
@click.argument("group", required=False)
@with_aggregator
@click.option("--by", metavar="NAME", help="Who pauses, for `redisagg why`; by default USER@HOST.")
@json_option
def pause(aggregator: Aggregator, group: str | None, by: str | None, as_json: bool) -> None:
    """Stop flushing GROUP, or all groups, on all nodes; tasks can still be added."""
    aggregator.pause(group, by=by)
    _report(as_json, {"paused": True}, "paused")


@click.command()
@click.argument("group", required=False)
@with_aggregator
@json_option
def resume(aggregator: Aggregator, group: str | None, as_json: bool) -> None:
    """Resume flushing GROUP, or what a pause of all groups stopped, on all nodes."""
    aggregator.resume(group)
    _report(as_json, {"paused": False}, "resumed")


def _report(as_json: bool, value: object, text: str) -> None:
    if as_json:
        print_json(value)
    else:
        echo(text)
