"""The command that adds the lines of a file as tasks."""

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
from redisagg.cli.options import json_option, limit_options, with_new_aggregator
from redisagg.cli.output import print_json, printable, stderr
from redisagg.errors import InvalidTask
from redisagg.task import Task

_CHUNK = 2_000  # tasks in memory at a time
_SHOWN = 20  # rejected lines that are reported one by one
_SOME_REJECTED = 3  # exit code


@dataclass
class _Counts:
    """The numbers of added and rejected lines, and the first messages."""

    added: int = 0
    rejected: int = 0
    shown: list[str] = field(default_factory=list)

    def reject(self, number: int, reason: str) -> None:
        self.rejected += 1
        if len(self.shown) < _SHOWN:
            self.shown.append(f"line {number}: {printable(reason, 200)}")


@click.command()
@click.argument("file", type=click.File("rb"), default="-")
@click.option(
    "--regex", help="Regular expression for plain text; its named groups are the payload."
)
@click.option(
    "--group-by",
    "fields",
    multiple=True,
    required=True,
    metavar="FIELD",
    help="Field with the group key; a.b is the field b of the object a; repeat it for a tuple.",
)
@click.option(
    "--type", "task_type", default="ingested", show_default=True, help="Type of the tasks."
)
@limit_options
@with_new_aggregator
@json_option
def ingest(
    aggregator: Aggregator,
    file: IO[bytes],
    regex: str | None,
    fields: tuple[str, ...],
    task_type: str,
    as_json: bool,
) -> None:
    """Add a task for each line of FILE, or of standard input; gzip is decompressed.

    A line is a JSON object, or with --regex plain text. Lines of another form are rejected: they
    are reported, the others are added, and the exit code is 3.
    """
    parse = regex_lines(_compiled(regex, fields)) if regex is not None else json_lines
    counts = _Counts()
    tasks = _tasks(uncompressed(_with_progress(file)), parse, fields, task_type, counts)
    try:
        while chunk := list(islice(tasks, _CHUNK)):
            _add(aggregator, chunk, counts)
    except (EOFError, OSError) as error:
        raise click.ClickException(f"the file can't be read to its end: {error}") from error
    finally:
        _report(counts, as_json)
    if counts.rejected:
        click.get_current_context().exit(_SOME_REJECTED)


def _compiled(regex: str, fields: tuple[str, ...]) -> re.Pattern[str]:
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise click.UsageError(f"--regex can't be compiled: {error}") from None
    missing = [name for name in fields if name not in pattern.groupindex]
    if missing:
        raise click.UsageError(
            f"--regex has no group named {missing[0]!r}; write it as (?P<{missing[0]}>...)"
        )
    return pattern


def _tasks(
    lines: IO[bytes], parse: Parse, fields: tuple[str, ...], task_type: str, counts: _Counts
) -> Iterator[tuple[int, Task]]:
    """Yields line numbers and tasks; counts the lines that are no task."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            payload = parse(line)
            yield number, Task(task_type, payload, group_key(payload, fields))
        except ValueError as error:  # InvalidTask is one
            counts.reject(number, str(error))


def _add(aggregator: Aggregator, chunk: list[tuple[int, Task]], counts: _Counts) -> None:
    try:
        aggregator.add_tasks([task for _, task in chunk], ids=False)
        counts.added += len(chunk)
    except InvalidTask:  # such as one that is too large; nothing was written
        for number, task in chunk:
            try:
                aggregator.add_task(task)
                counts.added += 1
            except InvalidTask as error:
                counts.reject(number, str(error))


def _with_progress(file: IO[bytes]) -> IO[bytes]:
    """Adds a progress bar to a file if standard error is a terminal."""
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


def _report(counts: _Counts, as_json: bool) -> None:
    for line in counts.shown:
        click.echo(line, err=True)
    if counts.rejected > len(counts.shown):
        click.echo(f"... and {counts.rejected - len(counts.shown)} more lines", err=True)
    if as_json:
        print_json({"added": counts.added, "rejected": counts.rejected})
    else:
        click.echo(f"{counts.added} tasks added, {counts.rejected} lines rejected", err=True)
