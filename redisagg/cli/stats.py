"""The command that shows the counts of a namespace, its flushers and what is wrong."""

from __future__ import annotations

import click

from redisagg.aggregator import Aggregator
from redisagg.cli.options import json_option, with_aggregator
from redisagg.cli.output import ago, echo, plain, print_json, print_table
from redisagg.cli.watching import repeat, watch_options
from redisagg.operations.observing import sink_name, span
from redisagg.views import FlusherState, Overview, Stats


@click.command()
@with_aggregator
@json_option
@watch_options
def stats(aggregator: Aggregator, as_json: bool, watch: float | None, count: int | None) -> None:
    """Show the counts of tasks, groups and batches, the flushers, and what is wrong."""

    def show() -> None:
        found = aggregator.overview()
        if as_json:
            print_json(_as_json(found))
        else:
            _print(found)

    repeat(show, watch, count)


def _as_json(found: Overview) -> dict[str, object]:
    """The counts, as ever, and beside them all else; what flushers say has a name of its own."""
    rest: dict[str, object] = plain(found)
    del rest["stats"]
    rest["flusher_states"] = rest.pop("flushers")
    counts = plain(found.stats) if found.stats else {}
    return {**counts, **rest}


def _print(found: Overview) -> None:
    if found.stats is not None:
        _print_counts(found.stats)
        echo(
            f"groups: {found.groups_due} due, {found.groups_waiting} waiting, "
            f"{found.groups_held} held"
        )
        echo(f"oldest overdue: {span(1000 * (found.oldest_overdue or 0))}")
        if found.stats.batches_in_retry:
            echo(f"retries: {found.stats.batches_in_retry} batches; redisagg batches lists them")
    paused = ", paused" if found.stats and found.stats.paused else ""
    echo(f"flushers: {len(found.flushers)}{paused}")
    if found.flushers:
        columns = ("flusher", "leads", "started", "concurrency", "sinks down", "waits")
        print_table(columns, map(flusher_row, found.flushers))
    if found.stats is not None and found.stats.unreadable:
        echo(f"partitions that can't be read: {', '.join(map(str, found.stats.unreadable))}")
    for trouble in found.troubles:
        echo(f"trouble: {trouble.text} {trouble.advice}".rstrip())


def _print_counts(found: Stats) -> None:
    columns = ["pending", "in_flight", "dead", "flushed", "groups", "batches_in_flight"]
    columns += ["batches_in_retry", "batches_dead", "batches_flushed"]
    rows: list[tuple[object, ...]] = [("total", *(getattr(found, c) for c in columns), "")]
    for partition in found.partitions:
        counts = (getattr(partition, column) for column in columns)
        rows.append((partition.partition, *counts, partition.leader or "no leader"))
    print_table(("partition", *(c.replace("_", " ") for c in columns), "leader"), rows)


def flusher_row(flusher: FlusherState) -> tuple[object, ...]:
    """What a table says of a flusher."""
    down = ", ".join(sink_name(each) for each in flusher.sinks_down)
    return (
        flusher.flusher_id,
        len(flusher.partitions),
        ago(flusher.started_at),
        flusher.concurrency,
        down or "none",
        "" if flusher.waits_since is None else f"for a permit, since {ago(flusher.waits_since)}",
    )
