"""Printing of untrusted texts: tables for people, JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from redisagg.errors import PayloadError
from redisagg.payload import to_plain
from redisagg.protocol.entries import StoredTask
from redisagg.task import Task

_MAX_CELL = 120
"""Length to which a table cuts a text, in characters."""

_WIDE = 1_000  # columns


def stdout() -> Console:
    """Returns the console for data; a new one each time, since tests replace standard output."""
    # Output to a file or pipe must not be folded at the width of a terminal.
    width = None if sys.stdout.isatty() else _WIDE
    return Console(markup=False, highlight=False, emoji=False, width=width)


def stderr() -> Console:
    """Returns the console for everything but data."""
    return Console(stderr=True, markup=False, highlight=False, emoji=False)


def printable(text: str, most: int | None = None) -> str:
    """Returns a text with control and other unprintable characters as escapes.

    Args:
        text: the text.
        most: length in characters to which it is cut; None for no cut.
    """
    if most is not None and len(text) > most:
        text = text[: most - 1] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def echo(text: str) -> None:
    """Prints a line of data."""
    click.echo(printable(text))


def print_json(value: Any) -> None:
    """Prints a line of JSON in ASCII; other characters are escaped."""
    click.echo(json.dumps(plain(value), separators=(",", ":")))


def plain(value: Any) -> Any:
    """Reduces a value to the types of JSON: dataclasses to objects, payloads by `to_plain`."""
    if isinstance(value, StoredTask):
        return _plain_task(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return to_plain(value)


def _plain_task(stored: StoredTask) -> dict[str, Any]:
    task = stored.task
    shown: dict[str, Any] = {"arrived_at": stored.arrived_at}
    if task is None:
        return {**shown, "undecodable": to_plain(stored.raw)}
    return {
        **shown,
        "id": task.id,
        "type": task.type,
        "payload": _payload(task),
        "headers": to_plain(task.headers),
    }


def _payload(task: Task) -> Any:
    """Reduces a payload to the types of JSON; one without a form is replaced by the error."""
    try:
        return to_plain(task.payload)
    except PayloadError as error:
        return str(error)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Prints a table; long cells are cut."""
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(_cell(value), _MAX_CELL)) for value in row))
    stdout().print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value)


def ago(moment: float | None) -> str:
    """Formats a time in seconds since the epoch relative to this machine's clock."""
    if moment is None:
        return "-"
    seconds = time.time() - moment
    return f"{seconds:.1f} s ago" if seconds >= 0 else f"in {-seconds:.1f} s"


def task_text(stored: StoredTask) -> str:
    """Formats a stored task in one line."""
    if stored.task is None:
        return f"undecodable: {stored.raw!r}"
    return json.dumps(_payload(stored.task), ensure_ascii=False)
