"""Turning the lines of a file into tasks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import IO, BinaryIO, cast

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from redisagg.aggregator import Aggregator
from redisagg.cli.lines import Parse, group_key, json_lines, regex_lines, uncompressed
from redisagg.cli.options import json_option, limit_options, namespace_options, open_aggregator
from redisagg.cli.output import print_json, printable, stderr
from redisagg.errors import InvalidTask
from redisagg.task import Task

_CHUNK = 2_000  # tasks that are in memory at a time
_SHOWN = 20  # rejected lines that are shown one by one
_SOME_REJECTED = 3  # exit code


@dataclass
class _Tally:
    """What became of the lines."""

    added: int = 0
    rejected: int = 0
    shown: list[str] = field(default_factory=list)

    def reject(self, number: int, reason: str) -> None:
        self.rejected += 1
        if len(self.shown) < _SHOWN:
            self.shown.append(f"line {number}: {printable(reason, 200)}")


@click.command()
@click.argument("file", type=click.File("rb"), default="-")
@click.option("--regex", help="Lines are plain text; the named groups of a match are the payload.")
@click.option(
    "--group-by",
    "fields",
    multiple=True,
    required=True,
    metavar="FIELD",
    help="The field with the group key; dots lead into objects; several make a tuple.",
)
@click.option("--type", "task_type", default="ingested", show_default=True, help="Of the tasks.")
@limit_options
@namespace_options
@json_option
@click.pass_context
def ingest(
    context: click.Context,
    file: IO[bytes],
    regex: str | None,
    fields: tuple[str, ...],
    task_type: str,
    grace: float | None,
    max_delay: float | None,
    max_size: int | None,
    name: str,
    redis_url: str,
    partitions: int | None,
    as_json: bool,
) -> None:
    """Add a task for each line of FILE, or of standard input; gzip is read as such.

    A line is a JSON object, or with --regex plain text. Lines that are neither are counted and
    reported, and do not stop the rest; the exit code is 3 then.
    """
    parse = regex_lines(_compiled(regex, fields)) if regex is not None else json_lines
    aggregator = open_aggregator(
        name, redis_url, partitions, grace=grace, max_delay=max_delay, max_size=max_size
    )
    tally = _Tally()
    tasks = _tasks(uncompressed(_with_progress(file)), parse, fields, task_type, tally)
    try:
        while chunk := list(islice(tasks, _CHUNK)):
            _add(aggregator, chunk, tally)
    except (EOFError, OSError) as error:
        raise click.ClickException(f"the file can't be read to its end: {error}") from error
    finally:
        _report(tally, as_json)
    if tally.rejected:
        context.exit(_SOME_REJECTED)


def _compiled(regex: str, fields: tuple[str, ...]) -> re.Pattern[str]:
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise click.UsageError(f"--regex can't be compiled: {error}") from None
    missing = [name for name in fields if name not in pattern.groupindex]
    if missing:
        raise click.UsageError(f"--regex has no group named {missing[0]!r}: (?P<{missing[0]}>...)")
    return pattern


def _tasks(
    lines: IO[bytes], parse: Parse, fields: tuple[str, ...], task_type: str, tally: _Tally
) -> Iterator[tuple[int, Task]]:
    """The tasks in the lines, with their line numbers; counts what is none."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            payload = parse(line)
            yield number, Task(task_type, payload, group_key(payload, fields))
        except ValueError as error:  # InvalidTask is one
            tally.reject(number, str(error))


def _add(aggregator: Aggregator, chunk: list[tuple[int, Task]], tally: _Tally) -> None:
    try:
        aggregator.add_tasks([task for _, task in chunk], ids=False)
        tally.added += len(chunk)
    except InvalidTask:  # one of them is too large, say: nothing was written
        for number, task in chunk:
            try:
                aggregator.add_task(task)
                tally.added += 1
            except InvalidTask as error:
                tally.reject(number, str(error))


def _with_progress(file: IO[bytes]) -> IO[bytes]:
    """The file, with a progress bar while it is read, if somebody watches."""
    console = stderr()
    if not console.is_terminal:
        return file
    try:
        size: int | None = os.fstat(file.fileno()).st_size or None
    except OSError:
        size = None
    columns = (TextColumn("reading"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    progress = Progress(*columns, console=console, transient=True)
    context = click.get_current_context()
    context.with_resource(progress)
    return progress.wrap_file(cast(BinaryIO, file), total=size)


def _report(tally: _Tally, as_json: bool) -> None:
    for line in tally.shown:
        click.echo(line, err=True)
    if tally.rejected > len(tally.shown):
        click.echo(f"... and {tally.rejected - len(tally.shown)} more lines", err=True)
    if as_json:
        print_json({"added": tally.added, "rejected": tally.rejected})
    else:
        click.echo(f"{tally.added} tasks added, {tally.rejected} lines rejected", err=True)
