"""The commands for the life of a namespace: list, remove, move, repartition."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from redisagg.cli.options import client_of, json_option, name_option, redis_option
from redisagg.cli.output import echo, print_json, print_table
from redisagg.operations.moving import Mover
from redisagg.operations.removing import (
    NamespaceState,
    describe,
    find_namespaces,
    remove_namespace,
)
from redisagg.transport.threads import Transport

_TIMEOUT = 60.0
"""Seconds for which a call is repeated while Redis does not answer."""

_wait_option = click.option(
    "--wait",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="For how long flushers may finish the batches in flight; the rest is merged once more.",
)
_replicas_option = click.option(
    "--replicas",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Have N replicas confirm each step, so that a failover to one of them loses none.",
)
_new_partitions = click.IntRange(1, 4096)


@contextmanager
def _transport(redis_url: str) -> Iterator[Transport]:
    with client_of(redis_url) as client:
        yield Transport(client, _TIMEOUT)


@click.command()
@redis_option
@json_option
def namespaces(redis_url: str, as_json: bool) -> None:
    """List the namespaces in a Redis, with their counts."""
    with _transport(redis_url) as transport:
        names = find_namespaces(transport)
        states = [transport.run(describe(name)) for name in names.found]
    if not names.complete:
        click.echo("not all keys were looked at; there may be more namespaces", err=True)
    if as_json:
        for state in states:
            print_json(_as_dict(state))
        return
    headings = ("namespace", "partitions", "groups", "pending", "in flight", "dead", "flushers", "")
    print_table(headings, (_row(state) for state in states))


def _as_dict(state: NamespaceState) -> dict[str, object]:
    counts: dict[str, object] = {}
    if (found := state.stats) is not None:
        columns = ("groups", "pending", "in_flight", "dead", "batches_dead", "flushed", "paused")
        counts = {name: getattr(found, name) for name in columns}
        counts["flushers"] = len(found.flushers)
    notes = ("moved_to", "moving_to", "error")
    told = {name: getattr(state, name) for name in notes if getattr(state, name) is not None}
    return {"name": state.name, "partitions": state.partitions, **counts, **told}


def _row(state: NamespaceState) -> tuple[object, ...]:
    found = state.stats
    notes = []
    if state.moved_to is not None:
        notes.append(f"moved to {state.moved_to}")
    if state.moving_to is not None:
        notes.append(f"being moved to {state.moving_to}")
    if found is not None and found.paused:
        notes.append("paused")
    if state.error is not None:
        notes.append(state.error)
    counts: tuple[object, ...] = (None,) * 5
    if found is not None:
        counts = (found.groups, found.pending, found.in_flight, found.dead, len(found.flushers))
    return (state.name, state.partitions, *counts, ", ".join(notes))


@click.command()
@click.argument("name")
@redis_option
@click.option("--force", is_flag=True, help="Remove its tasks and dead letters too.")
@json_option
def remove(name: str, redis_url: str, force: bool, as_json: bool) -> None:
    """Remove the namespace NAME with all of its keys.

    Refused while a flusher runs in it and, without --force, while it has tasks or dead letters. A
    producer that still runs makes it anew with its next task. The queue of merged tasks is no part
    of it.
    """
    with _transport(redis_url) as transport:
        removed = remove_namespace(transport, name, force=force)
    _report(as_json, {"removed": removed}, f"{removed} keys removed")


@click.command()
@click.argument("old")
@click.argument("new")
@redis_option
@click.option("--partitions", type=_new_partitions, help="Its new number; by default the same.")
@_wait_option
@_replicas_option
@json_option
def move(
    old: str,
    new: str,
    redis_url: str,
    partitions: int | None,
    wait: float,
    replicas: int,
    as_json: bool,
) -> None:
    """Give the namespace OLD the name NEW, while producers and flushers run.

    Adds wait while its groups are copied; then producers and flushers follow by themselves. If this
    command was ended early, call it again.
    """
    _move(redis_url, (old, new, partitions), wait, replicas, as_json)


@click.command()
@redis_option
@name_option
@click.option("--partitions", type=_new_partitions, required=True, help="Its new number.")
@_wait_option
@_replicas_option
@json_option
def repartition(
    redis_url: str, name: str, partitions: int, wait: float, replicas: int, as_json: bool
) -> None:
    """Give a namespace another number of partitions, while producers and flushers run.

    As move, with the same name. A process that starts with the number of before follows too. With
    the present number it mends partitions that a failover has left frozen.
    """
    _move(redis_url, (name, name, partitions), wait, replicas, as_json)


def _move(
    redis_url: str, to: tuple[str, str, int | None], wait: float, replicas: int, as_json: bool
) -> None:
    with _transport(redis_url) as transport:
        moved = Mover(transport, *to, drain=wait, min_replicas=replicas).run()
    layout = moved.layout
    _report(
        as_json,
        {
            "name": layout.name,
            "partitions": layout.partitions,
            "groups": moved.groups,
            "dead_letters": moved.dead_letters,
            "paused": round(moved.paused, 3),
        },
        f"{layout.name} has {layout.partitions} partitions; {moved.groups} groups and "
        f"{moved.dead_letters} dead letters were moved; adds waited for {moved.paused:.1f} s",
    )


def _report(as_json: bool, value: object, text: str) -> None:
    if as_json:
        print_json(value)
    else:
        echo(text)
