"""Printing of untrusted texts: tables for people, JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Any

import click
from rich.cells import cell_len
from rich.console import Console

from redisagg.errors import PayloadError
from redisagg.payload import to_plain
from redisagg.protocol.entries import StoredTask
from redisagg.task import Task

_MAX_CELL = 120
"""Length to which a table cuts a text, in characters."""

_MEASURED = 100  # rows that set the widths of a table


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
    """Prints a table row by row; long cells are cut.

    The first rows set the widths of the columns: a layout of all rows would take longer than
    reading them, and would print the first one last.
    """
    lines = ([printable(_cell(value), _MAX_CELL) for value in row] for row in rows)
    first = [list(columns), *islice(lines, _MEASURED)]
    widths = [max(map(cell_len, column)) for column in zip(*first, strict=True)]
    for line in chain(first, lines):
        cells = zip(line, widths, strict=True)
        padded = (cell + " " * (width - cell_len(cell)) for cell, width in cells)
        click.echo(" ".join(padded).rstrip())


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
