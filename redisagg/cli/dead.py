"""The commands for dead letters."""

from __future__ import annotations

from collections.abc import Callable

import click

from redisagg.aggregator import Aggregator
from redisagg.cli.options import argument_or_all, json_option, with_aggregator
from redisagg.cli.output import ago, echo, print_json, print_table, printable, task_text


@click.group()
def dead() -> None:
    """List, show, requeue or drop dead letters: batches whose attempts are used up."""


@dead.command("list")
@with_aggregator
@json_option
def list_(aggregator: Aggregator, as_json: bool) -> None:
    """List the dead letters, oldest first."""
    letters = aggregator.dead_letters()
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
@click.argument("batch_id")
@with_aggregator
@json_option
def show(aggregator: Aggregator, batch_id: str, as_json: bool) -> None:
    """Show a dead letter with its tasks and traceback."""
    letter = aggregator.get_dead_letter(batch_id)
    if letter is None:
        raise click.ClickException(
            f"no dead letter has the batch id {printable(batch_id)!r}; "
            "redisagg dead list shows the ids"
        )
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
@argument_or_all("batch_ids", "batch ids", nargs=-1)
@with_aggregator
@json_option
def requeue(aggregator: Aggregator, batch_ids: tuple[str, ...], as_json: bool) -> None:
    """Requeue dead letters under the same batch ids, to be merged and enqueued anew."""
    _apply(aggregator.requeue_dead_letter, "requeued", aggregator, batch_ids, as_json)


@dead.command()
@argument_or_all("batch_ids", "batch ids", nargs=-1)
@with_aggregator
@json_option
def drop(aggregator: Aggregator, batch_ids: tuple[str, ...], as_json: bool) -> None:
    """Delete dead letters with their tasks."""
    _apply(aggregator.drop_dead_letter, "dropped", aggregator, batch_ids, as_json)


def _apply(
    action: Callable[[str], int],
    participle: str,
    aggregator: Aggregator,
    batch_ids: tuple[str, ...],
    as_json: bool,
) -> None:
    """Applies an action to the given dead letters, or to all if none is given."""
    ids = batch_ids or [letter.batch_id for letter in aggregator.dead_letters()]
    tasks = sum(map(action, ids))
    if as_json:
        print_json({"batches": len(ids), "tasks": tasks})
    else:
        echo(f"{len(ids)} batches with {tasks} tasks {participle}")
