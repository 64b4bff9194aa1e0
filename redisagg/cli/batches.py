"""The command that lists the batches in flight."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import click

from redisagg.aggregator import Aggregator
from redisagg.cli.options import json_option, with_aggregator
from redisagg.cli.output import ago, print_json, print_table
from redisagg.views import BatchState, GroupPlace


def _place(context: click.Context, option: click.Parameter, value: str | None) -> GroupPlace | None:
    """Reads the place between two pages, as `batches` prints it."""
    if value is None:
        return None
    parts = value.split(":")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        raise click.BadParameter("it is no place that this command has printed", context, option)
    partition, cursor, size = map(int, parts)
    return GroupPlace(partition, cursor, min(max(1, size), 500))


@click.command()
@with_aggregator
@click.option(
    "--state",
    type=click.Choice(["claimed", "retry"]),
    help="Only those that a flusher works on, or that wait for a retry.",
)
@click.option("--group", metavar="KEY", help="Only those of this group.")
@click.option("--error", metavar="TEXT", help="Only those with this text in their last error.")
@click.option(
    "--limit",
    type=click.IntRange(0),
    default=50,
    show_default=True,
    help="End after the page with which this many are listed; 0 for all.",
)
@click.option("--after", callback=_place, metavar="PLACE", help="Go on where a listing ended.")
@click.option("--tasks", is_flag=True, help="With --json, print their tasks too.")
@json_option
def batches(
    aggregator: Aggregator,
    state: Literal["claimed", "retry"] | None,
    group: str | None,
    error: str | None,
    limit: int,
    after: GroupPlace | None,
    tasks: bool,
    as_json: bool,
) -> None:
    """List the batches in flight, in any order, as they are read."""
    if tasks and not as_json:
        raise click.UsageError("--tasks needs --json")

    def found() -> Iterator[BatchState]:
        place, listed, seen = after, 0, set[str]()
        while True:
            page = aggregator.read_batches(
                place, tasks=tasks, state=state, group_key=group, error=error
            )
            new = [each for each in page.states if each.batch_id not in seen]
            seen.update(each.batch_id for each in new)
            listed += len(new)
            yield from new
            place = page.next
            if place is None:
                return
            if limit and listed >= limit:
                where = f"{place.partition}:{place.cursor}:{place.size}"
                click.echo(f"there may be more: --after {where}", err=True)
                return

    if as_json:
        for each in found():
            print_json(each)
        return
    columns = ("batch", "group", "tasks", "state", "attempts", "age", "next", "why due", "error")
    print_table(columns, map(_row, found()))


def _row(batch: BatchState) -> tuple[object, ...]:
    return (
        batch.batch_id,
        batch.group_key,
        batch.size,
        batch.state,
        batch.attempts,
        ago(batch.claimed_at),
        # What a claim ends at is of interest to flushers only.
        ago(batch.until) if batch.state == "retry" else "",
        batch.reason,
        batch.error.partition("\n")[0],
    )
