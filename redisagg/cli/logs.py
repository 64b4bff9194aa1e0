"""Log lines of a command: for people, or one JSON object a line for programs."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, TypeVar

import click
from rich.logging import RichHandler

from redisagg.cli.output import printable, stderr

F = TypeVar("F", bound=Callable[..., Any])

LEVELS = ("debug", "info", "warning", "error")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""The attributes that each record has; all others are fields of its line."""


def log_options(command: F) -> F:
    """Adds ``--log-level`` and ``--log-format``."""
    for option in (
        click.option(
            "--log-format",
            type=click.Choice(["text", "json"]),
            default="text",
            show_default=True,
            help="Form of log lines on standard error.",
        ),
        click.option(
            "--log-level",
            type=click.Choice(LEVELS, case_sensitive=False),
            default="info",
            show_default=True,
            help="Lowest level of log lines; debug has a line for each batch.",
        ),
    ):
        command = option(command)
    return command


def set_up_logs(level: str, form: str) -> None:
    """Writes log lines to standard error.

    Args:
        level: one of `LEVELS`. Loggers of other packages have at least the level info.
        form: ``text`` or ``json``.
    """
    number: int = getattr(logging, level.upper())
    handler = _json_handler() if form == "json" else _text_handler()
    logging.basicConfig(level=max(number, logging.INFO), format="%(message)s", handlers=[handler])
    logging.getLogger("redisagg").setLevel(number)
    # It logs URLs, which may hold secrets.
    logging.getLogger("httpx").setLevel(max(number, logging.WARNING))


class _SafeFormatter(logging.Formatter):
    """Escapes control characters in log lines, since these name groups."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON in ASCII, with the fields of ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        at = datetime.fromtimestamp(record.created, timezone.utc)
        line: dict[str, Any] = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in vars(record).items():
            if name not in _STANDARD:
                line.setdefault(name, value)
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            line["exception"] = record.exc_text
        return json.dumps(line, default=str)


def _json_handler() -> logging.Handler:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    return handler


def _text_handler() -> logging.Handler:
    console = stderr()
    if not console.is_terminal:
        handler: logging.Handler = logging.StreamHandler()
        handler.setFormatter(_SafeFormatter("%(asctime)s %(levelname)s %(message)s"))
        return handler
    handler = RichHandler(console=console, markup=False, show_path=False)
    handler.setFormatter(_SafeFormatter("%(message)s"))
    return handler
