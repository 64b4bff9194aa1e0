"""Templates, and the texts that they make of values.

All that comes from outside (group keys, payloads, errors) is escaped by Jinja's autoescape, which
is on for every template. No filter here returns markup.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from redisagg.dashboard import charts, formats
from redisagg.errors import PayloadError
from redisagg.payload import to_plain
from redisagg.protocol.entries import StoredTask
from redisagg.task import Task
from redisagg.texts import logger

_log = logger("dashboard")

HERE = Path(__file__).parent

_MOST_PAYLOAD = 20_000
"""Characters of a payload that a page shows."""

Redact = Callable[[Task], Task]
"""A function that returns the task as it may be shown."""

RedactText = Callable[[str], str]
"""The same for errors and tracebacks."""


def environment() -> Environment:
    """Makes the environment of the templates."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters.update(
        count=formats.count,
        short=formats.short,
        span=formats.span,
        compact=formats.compact,
        bytesize=formats.bytesize,
        visible=visible,
        clip=clip,
        iso=formats.iso,
        clock=formats.clock,
        rate=formats.rate,
        plural=formats.plural,
        setting=formats.setting,
        query=urlencode,
        segment=lambda text: quote(str(text), safe=""),
    )
    made.globals.update(line_chart=charts.line_chart, span_text=formats.compact)
    for name in made.list_templates():  # else the first pages would take longer
        made.get_template(name)
    return made


# --- texts from outside --------------------------------------------------------------------------


def visible(value: object) -> str:
    """A text with control and invisible characters as escapes, so that none hides or reverses."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(map(_visible, text))


def _visible(char: str) -> str:
    if char.isprintable() or char == "\n":
        return char
    if char == "\t":
        return "    "
    if unicodedata.category(char) == "Zs":
        return "\u00b7"
    return char.encode("unicode_escape", "backslashreplace").decode()


def clip(value: object, most: int = 160) -> str:
    """The first characters of a text in one line."""
    text = visible(str(value)[: most + 1]).replace("\n", " ")
    return f"{text[: most - 1]}…" if len(text) > most else text


class ShownTask:
    """A stored task as it may be shown.

    Args:
        stored: the task.
        redact: function of the user.
    """

    def __init__(self, stored: StoredTask, redact: Redact | None) -> None:
        self.arrived_at = stored.arrived_at
        self.id = ""
        """Its own, by which it can be cancelled or requeued; empty if it can't be read."""
        self.type = ""
        self.headers: dict[str, str] = {}
        self.trace = ""
        self.weight = 1
        self.is_readable = stored.task is not None
        if stored.task is None:
            size = len(stored.raw)
            raw = "" if redact is not None else repr(stored.raw[:2_000])
            self.payload = f"{size:,} bytes that are no task of redisagg\n{raw}"
            return
        self.id = stored.task.id
        task = redacted(stored.task, redact)
        if task is None:
            self.payload = "(not shown: the redaction failed; see the log)"
            return
        self.type = task.type
        self.weight = task.weight
        self.headers = dict(task.headers)
        self.trace = _trace_of(self.headers)
        self.payload = payload_text(task)

    @property
    def summary(self) -> str:
        """The payload in one line."""
        return clip(" ".join(self.payload[:1_000].split()), 140)


def redacted(task: Task, redact: Redact | None) -> Task | None:
    """The task as it may be shown; None if the function fails, so that nothing is shown."""
    if redact is None:
        return task
    try:
        shown = redact(task)
    except Exception:
        _log.exception("redact failed; the task is not shown")
        return None
    return shown if isinstance(shown, Task) else None


def payload_text(task: Task) -> str:
    """The payload as indented JSON, cut."""
    try:
        text = json.dumps(to_plain(task.payload), indent=2, ensure_ascii=False)
    except (PayloadError, ValueError, RecursionError) as error:
        text = str(error)
    if len(text) > _MOST_PAYLOAD:
        text = f"{text[:_MOST_PAYLOAD]}…\n({len(text):,} characters)"
    return visible(text)


def _trace_of(headers: dict[str, str]) -> str:
    """The trace id of the header ``traceparent``, if it has one."""
    parts = headers.get("traceparent", "").split("-")
    return parts[1] if len(parts) == 4 and len(parts[1]) == 32 else ""
