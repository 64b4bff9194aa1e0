"""The command that says why a group is late."""

from __future__ import annotations

import click

from redisagg.aggregator import Aggregator
from redisagg.cli.options import json_option, with_aggregator
from redisagg.cli.output import echo, print_json
from redisagg.operations.observing import span

WRONG = 4
"""The exit code that says that something is wrong, though the command did what it should."""


@click.command()
@click.argument("group")
@with_aggregator
@json_option
def why(aggregator: Aggregator, group: str, as_json: bool) -> None:
    """Say why GROUP is not flushed yet, and what to do; exit code 4 if it is late."""
    found = aggregator.explain(group)
    if as_json:
        print_json(found)
    else:
        late = f"late by {span(found.overdue * 1000)}" if found.overdue else "late"
        echo(f"{late if found.late else 'not late'}: {found.trouble.text}")
        if found.trouble.advice:
            echo(f"to do: {found.trouble.advice}")
        for trouble in found.also:
            echo(f"also: {trouble.text} {trouble.advice}".rstrip())
    if found.late:
        raise SystemExit(WRONG)
