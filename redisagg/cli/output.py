"""Printing what comes from outside: tables for people, JSON for programs."""

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

_SHOWN = 120
"""How much of a text a table shows, in characters."""

_WIDE = 1_000  # columns


def stdout() -> Console:
    """The console for data; made at each use, since tests replace standard output."""
    # Where nobody looks, lines must not be folded at the width of an assumed terminal.
    width = None if sys.stdout.isatty() else _WIDE
    return Console(markup=False, highlight=False, emoji=False, width=width)


def stderr() -> Console:
    """The console for everything else."""
    return Console(stderr=True, markup=False, highlight=False, emoji=False)


def printable(text: str, most: int | None = None) -> str:
    """`text` with everything that a terminal might obey written as an escape."""
    if most is not None and len(text) > most:
        text = text[: most - 1] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def echo(text: str) -> None:
    """One line of data."""
    click.echo(printable(text))


def print_json(value: Any) -> None:
    """One line of JSON; whatever could not be encoded in UTF-8 is escaped."""
    click.echo(json.dumps(plain(value), separators=(",", ":")))


def plain(value: Any) -> Any:
    """`value` as JSON takes it: dataclasses as objects, payloads by `redisagg.payload.to_plain`."""
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
    """The payload, or why it can't be shown: one task must not hide the others."""
    try:
        return to_plain(task.payload)
    except PayloadError as error:
        return str(error)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table; cells are shown as text, cut where they are long."""
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(_cell(value), _SHOWN)) for value in row))
    stdout().print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value)


def ago(moment: float | None) -> str:
    """How long ago a moment was, or how soon it will be, by this machine's clock."""
    if moment is None:
        return "-"
    seconds = time.time() - moment
    return f"{seconds:.1f} s ago" if seconds >= 0 else f"in {-seconds:.1f} s"


def task_text(stored: StoredTask) -> str:
    """A stored task in one line."""
    if stored.task is None:
        return f"undecodable: {stored.raw!r}"
    return json.dumps(_payload(stored.task), ensure_ascii=False)
