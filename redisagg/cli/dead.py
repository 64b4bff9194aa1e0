"""The dead letters."""

from __future__ import annotations

import click

from redisagg.cli.options import json_option, namespace_options, open_aggregator
from redisagg.cli.output import ago, echo, print_json, print_table, printable, task_text


@click.group()
def dead() -> None:
    """Look at batches whose attempts are used up; requeue or drop them."""


@dead.command("list")
@namespace_options
@json_option
def list_(name: str, redis_url: str, partitions: int | None, as_json: bool) -> None:
    """List the dead letters, the oldest first."""
    letters = open_aggregator(name, redis_url, partitions).dead_letters()
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
@namespace_options
@json_option
def show(batch_id: str, name: str, redis_url: str, partitions: int | None, as_json: bool) -> None:
    """Show a dead letter with its tasks and traceback."""
    letter = open_aggregator(name, redis_url, partitions).get_dead_letter(batch_id)
    if letter is None:
        raise click.ClickException(f"no dead letter has the batch id {printable(batch_id)!r}")
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
@click.argument("batch_ids", nargs=-1)
@click.option("--all", "all_letters", is_flag=True, help="All dead letters.")
@namespace_options
@json_option
def requeue(
    batch_ids: tuple[str, ...],
    all_letters: bool,
    name: str,
    redis_url: str,
    partitions: int | None,
    as_json: bool,
) -> None:
    """Give dead letters another life as the same batches."""
    _each("requeue", batch_ids, all_letters, name, redis_url, partitions, as_json)


@dead.command()
@click.argument("batch_ids", nargs=-1)
@click.option("--all", "all_letters", is_flag=True, help="All dead letters.")
@namespace_options
@json_option
def drop(
    batch_ids: tuple[str, ...],
    all_letters: bool,
    name: str,
    redis_url: str,
    partitions: int | None,
    as_json: bool,
) -> None:
    """Delete dead letters with their tasks."""
    _each("drop", batch_ids, all_letters, name, redis_url, partitions, as_json)


def _each(
    action: str,
    batch_ids: tuple[str, ...],
    all_letters: bool,
    name: str,
    redis_url: str,
    partitions: int | None,
    as_json: bool,
) -> None:
    if bool(batch_ids) == all_letters:
        raise click.UsageError("give batch ids or --all")
    aggregator = open_aggregator(name, redis_url, partitions)
    if all_letters:
        batch_ids = tuple(letter.batch_id for letter in aggregator.dead_letters())
    tasks = sum(getattr(aggregator, f"{action}_dead_letter")(batch_id) for batch_id in batch_ids)
    if as_json:
        print_json({"batches": len(batch_ids), "tasks": tasks})
    else:
        echo(f"{action}: {len(batch_ids)} batches with {tasks} tasks")
