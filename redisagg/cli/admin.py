"""Looking at a namespace and steering it."""

from __future__ import annotations

import click

from redisagg.cli.options import json_option, namespace_options, open_aggregator
from redisagg.cli.output import ago, echo, print_json, print_table, task_text


@click.command()
@namespace_options
@click.option("--tasks", is_flag=True, help="With --json, the waiting tasks too.")
@json_option
def groups(name: str, redis_url: str, partitions: int | None, tasks: bool, as_json: bool) -> None:
    """List the groups, the next one due first."""
    with_tasks = tasks and as_json
    entries = open_aggregator(name, redis_url, partitions).get_groups(tasks=with_tasks)
    states = sorted(entries.values(), key=lambda state: state.due_at or 0)
    if as_json:
        for state in states:
            print_json(state)
        return
    print_table(
        ("group", "waiting", "in flight", "first", "last", "due", "priority", "held"),
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
            )
            for state in states
        ),
    )


@click.command()
@click.argument("group")
@namespace_options
@json_option
def peek(group: str, name: str, redis_url: str, partitions: int | None, as_json: bool) -> None:
    """Show the tasks that wait in GROUP."""
    state = open_aggregator(name, redis_url, partitions).get_group(group)
    if state is None:
        raise click.ClickException("there is no such group")
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
@namespace_options
@json_option
def stats(name: str, redis_url: str, partitions: int | None, as_json: bool) -> None:
    """Show counts, in total and for each partition."""
    found = open_aggregator(name, redis_url, partitions).stats()
    if as_json:
        print_json(found)
        return
    columns = ["pending", "in_flight", "dead", "flushed", "groups", "batches_in_flight"]
    columns += ["batches_in_retry", "batches_dead", "batches_flushed"]
    rows: list[tuple[object, ...]] = [("total", *(getattr(found, c) for c in columns), "")]
    for partition in found.partitions:
        counts = (getattr(partition, column) for column in columns)
        rows.append((partition.partition, *counts, partition.leader or "no leader"))
    print_table(("partition", *(c.replace("_", " ") for c in columns), "leader"), rows)
    echo(f"flushers: {len(found.flushers)}" + (", paused" if found.paused else ""))


@click.command()
@click.argument("group", required=False)
@click.option("--all", "all_groups", is_flag=True, help="All groups.")
@namespace_options
@json_option
def flush(
    group: str | None,
    all_groups: bool,
    name: str,
    redis_url: str,
    partitions: int | None,
    as_json: bool,
) -> None:
    """Make GROUP, or all groups, due now."""
    if (group is None) != all_groups:
        raise click.UsageError("give a group or --all")
    aggregator = open_aggregator(name, redis_url, partitions)
    told = aggregator.flush_all() if group is None else aggregator.flush(group)
    _report(as_json, {"flushed": told}, f"{told} tasks are due now")


@click.command()
@click.argument("group")
@click.argument("task_id", required=False)
@namespace_options
@json_option
def cancel(
    group: str,
    task_id: str | None,
    name: str,
    redis_url: str,
    partitions: int | None,
    as_json: bool,
) -> None:
    """Take one task, or all, out of GROUP; tasks in a batch stay."""
    aggregator = open_aggregator(name, redis_url, partitions)
    if task_id is None:
        cancelled = aggregator.cancel_group(group)
    else:
        cancelled = int(aggregator.cancel_task(group, task_id))
    _report(as_json, {"cancelled": cancelled}, f"{cancelled} tasks cancelled")


@click.command()
@namespace_options
@json_option
def pause(name: str, redis_url: str, partitions: int | None, as_json: bool) -> None:
    """Stop flushing on all nodes; adding goes on."""
    open_aggregator(name, redis_url, partitions).pause()
    _report(as_json, {"paused": True}, "paused")


@click.command()
@namespace_options
@json_option
def resume(name: str, redis_url: str, partitions: int | None, as_json: bool) -> None:
    """End a pause."""
    open_aggregator(name, redis_url, partitions).resume()
    _report(as_json, {"paused": False}, "resumed")


def _report(as_json: bool, value: object, text: str) -> None:
    if as_json:
        print_json(value)
    else:
        echo(text)
