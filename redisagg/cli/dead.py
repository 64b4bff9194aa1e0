"""The commands for dead letters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import click
from rich.progress import track

from redisagg.aggregator import Aggregator
from redisagg.cli.options import argument_or_all, json_option, with_aggregator
from redisagg.cli.output import ago, echo, print_json, print_table, printable, stderr, task_text
from redisagg.cli.worker import load_aggregator
from redisagg.errors import UnknownBatch
from redisagg.flusher.dry_run import dry_run
from redisagg.views import DeadLetter


@click.group()
def dead() -> None:
    """List, show, try, requeue or drop dead letters: batches and tasks that failed for good."""


def _filters(command: Callable[..., None]) -> Callable[..., None]:
    """Adds ``--group``, ``--type`` and ``--error``; passes those that are given as `filters`."""

    @click.option("--group", metavar="KEY", help="Only those of this group.")
    @click.option("--type", "type_", metavar="TYPE", help="Only those with a task of this type.")
    @click.option("--error", metavar="TEXT", help="Only those with this text in their error.")
    @functools.wraps(command)
    def run(*, group: str | None, type_: str | None, error: str | None, **arguments: Any) -> None:
        filters = {"group_key": group, "type": type_, "error": error}
        given = {name: value for name, value in filters.items() if value is not None}
        command(filters=given, **arguments)

    return run


@dead.command("list")
@_filters
@with_aggregator
@click.option("--limit", type=click.IntRange(1), metavar="N", help="The first N only.")
@click.option("--after", metavar="BATCH_ID", help="Those behind this one, for a further page.")
@json_option
def list_(
    aggregator: Aggregator,
    as_json: bool,
    limit: int | None,
    after: str | None,
    filters: dict[str, Any],
) -> None:
    """List the dead letters, oldest first."""
    letters = aggregator.dead_letters(limit=limit, after=after, **filters)
    if as_json:
        for letter in letters:
            print_json(letter)
        return
    print_table(
        ("batch", "group", "tasks", "attempts", "died", "error"),
        (
            (
                letter.batch_id,
                letter.group_key,
                letter.size,
                letter.attempts,
                ago(letter.died_at),
                letter.error,
            )
            for letter in letters
        ),
    )


@dead.command()
@with_aggregator
@json_option
def reasons(aggregator: Aggregator, as_json: bool) -> None:
    """Count the dead letters by their error, with # in place of numbers."""
    found = aggregator.dead_reasons()
    if as_json:
        for reason in found:
            print_json(reason)
        return
    print_table(
        ("batches", "tasks", "last", "error"),
        ((each.batches, each.tasks, ago(each.last_died_at), each.error) for each in found),
    )


def _read(aggregator: Aggregator, batch_id: str) -> DeadLetter:
    letter = aggregator.get_dead_letter(batch_id)
    if letter is None:
        raise click.ClickException(
            f"no dead letter has the batch id {printable(batch_id)!r}; "
            "redisagg dead list shows the ids"
        )
    return letter


@dead.command("try")
@click.argument("batch_id")
@click.argument("target")
@with_aggregator
@json_option
def try_(aggregator: Aggregator, batch_id: str, target: str, as_json: bool) -> None:
    """Merge a dead letter here, and show what comes of it; nothing is enqueued or removed.

    TARGET is MODULE:AGGREGATOR, whose merge function is called. What it does itself, such as an
    insert, is done.
    """
    letter = _read(aggregator, batch_id)
    done = dry_run(load_aggregator(target).config.group_aggregator, letter)
    if as_json:
        print_json(done)
    else:
        for task in done.merged:
            echo(f"merged: {task.type} {task.payload!r}")
        for task_id, reason in done.failed.items():
            echo(f"failed: {task_id}: {reason}")
        for line in (done.error, *done.traceback.splitlines()) if done.error else ():
            echo(line)
        if not (done.merged or done.failed or done.error):
            echo("the merge succeeds and returns nothing")
    if done.error:
        raise SystemExit(1)


@dead.command()
@click.argument("batch_id")
@with_aggregator
@json_option
def show(aggregator: Aggregator, batch_id: str, as_json: bool) -> None:
    """Show a dead letter with its tasks and traceback."""
    letter = _read(aggregator, batch_id)
    if as_json:
        print_json(letter)
        return
    echo(f"batch {letter.batch_id} of group {letter.group_key}")
    echo(f"{letter.size} tasks, {letter.attempts} attempts, died {ago(letter.died_at)}")
    echo(letter.error)
    for line in letter.traceback.splitlines():
        echo(f"    {line}")
    for stored in letter.tasks or ():
        echo(f"{stored.task.id if stored.task else '-'}  {task_text(stored)}")


@dead.command()
@_filters
@argument_or_all("batch_ids", "batch ids", nargs=-1)
@click.option(
    "--only",
    multiple=True,
    metavar="TASK_ID",
    help="Only this task of it; repeatable.",
)
@click.option(
    "--except",
    "excluding",
    multiple=True,
    metavar="TASK_ID",
    help="Not this task; repeatable.",
)
@with_aggregator
@json_option
def requeue(
    aggregator: Aggregator,
    batch_ids: tuple[str, ...],
    as_json: bool,
    filters: dict[str, Any],
    only: tuple[str, ...],
    excluding: tuple[str, ...],
) -> None:
    """Requeue dead letters under the same batch ids, to be merged and enqueued anew.

    With --only or --except some tasks of one dead letter are requeued, as a batch with an id of its
    own; the others stay a dead letter.
    """
    if (only or excluding) and len(batch_ids) != 1:
        raise click.UsageError("--only and --except go with one batch id")
    if only and excluding:
        raise click.UsageError("give either --only or --except")
    action = partial(aggregator.requeue_dead_letter, only=only or None, excluding=excluding or None)
    _apply(action, "requeued", aggregator, batch_ids, as_json, filters)


@dead.command()
@_filters
@argument_or_all("batch_ids", "batch ids", nargs=-1)
@with_aggregator
@json_option
def drop(
    aggregator: Aggregator, batch_ids: tuple[str, ...], as_json: bool, filters: dict[str, Any]
) -> None:
    """Delete dead letters with their tasks."""
    _apply(aggregator.drop_dead_letter, "dropped", aggregator, batch_ids, as_json, filters)


def _apply(
    action: Callable[[str], int],
    participle: str,
    aggregator: Aggregator,
    batch_ids: tuple[str, ...],
    as_json: bool,
    filters: dict[str, Any],
) -> None:
    """Applies an action to the given dead letters, or to all that the filters leave."""
    if batch_ids and filters:
        raise click.UsageError("--group, --type and --error go with --all")
    ids = batch_ids or [letter.batch_id for letter in aggregator.dead_letters(**filters)]
    batches = tasks = 0
    for batch_id in _with_progress(ids, participle):
        try:
            tasks += action(batch_id)
        except UnknownBatch:
            if batch_ids:
                raise
            continue  # somebody else has requeued or dropped it meanwhile
        batches += 1
    if as_json:
        print_json({"batches": batches, "tasks": tasks})
    else:
        echo(f"{batches} batches with {tasks} tasks {participle}")


def _with_progress(ids: Iterable[str], participle: str) -> Iterable[str]:
    """Adds a progress bar if standard error is a terminal."""
    console = stderr()
    if not console.is_terminal:
        return ids
    return track(list(ids), description=participle, console=console, transient=True)
