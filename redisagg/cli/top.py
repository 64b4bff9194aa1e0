"""The command that shows a namespace live in the terminal."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from textwrap import wrap

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from redisagg.aggregator import Aggregator
from redisagg.cli.keyboard import keyboard
from redisagg.cli.options import with_aggregator
from redisagg.cli.output import ago, printable
from redisagg.cli.stats import flusher_row
from redisagg.errors import RedisUnavailable
from redisagg.operations.observing import span
from redisagg.views import Explanation, GroupState, Overview

_BARS = " ▁▂▃▄▅▆▇█"
_SAMPLES = 60
_LONGEST_CELL = 60
_MOST_FLUSHERS = 8
_MOST_TROUBLES = 4
_MOST_LINES = 3  # of one text

_HEADINGS = ("group", "waiting", "in flight", "due", "")


@dataclass(slots=True)
class Frame:
    """What one frame shows."""

    name: str
    """The name of the namespace."""
    look: Overview | None = None
    groups: Sequence[GroupState] = ()
    """Those that are due next."""
    chosen: str | None = None
    """The key of the group that is explained."""
    explanation: Explanation | None = None
    away: str = ""
    """Why Redis can't be asked; empty if it can."""
    adds: deque[float] = field(default_factory=lambda: deque(maxlen=_SAMPLES))
    """Tasks that were added in a second, one number for each look."""
    flushed: deque[float] = field(default_factory=lambda: deque(maxlen=_SAMPLES))
    """Tasks that were flushed in a second."""
    batches: deque[float] = field(default_factory=lambda: deque(maxlen=_SAMPLES))
    """Batches that were flushed in a second."""

    def add(self, look: Overview) -> None:
        """Takes a further look, and the rates since the one before."""
        before, self.look = self.look, look
        if before is None or before.stats is None or look.stats is None:
            return
        old, new, seconds = before.stats, look.stats, look.at - before.at
        if seconds <= 0:
            return
        known = new.pending + new.in_flight + new.dead + new.flushed
        known -= old.pending + old.in_flight + old.dead + old.flushed
        for rates, change in (
            (self.adds, known),
            (self.flushed, new.flushed - old.flushed),
            (self.batches, new.batches_flushed - old.batches_flushed),
        ):
            rates.append(max(0.0, change / seconds))

    def choose(self, step: int) -> None:
        """Chooses the group that is `step` rows below the present one."""
        keys = [each.group_key for each in self.groups]
        if keys:
            place = keys.index(self.chosen) + step if self.chosen in keys else 0
            self.chosen = keys[min(max(place, 0), len(keys) - 1)]


def render(frame: Frame, width: int, height: int) -> RenderableType:
    """Makes what the terminal shows, at most `height` lines."""
    lines: list[RenderableType] = [_title(frame)]
    if frame.away:
        lines += _wrapped(f"Redis does not answer: {frame.away}", "bold red", width)
    look = frame.look
    if look is None:
        return Group(*lines)
    lines += _counts(frame, look)
    for trouble in look.troubles[:_MOST_TROUBLES]:
        lines += _wrapped(f"! {trouble.text}", "red", width)
        lines += _wrapped(f"  {trouble.advice}", "dim", width)
    flushers = look.flushers[:_MOST_FLUSHERS]
    below: list[RenderableType] = []
    if flushers:
        table = _table(("flusher", "leads", "started", "concurrency", "sinks down", "waits"))
        for each in flushers:
            row = flusher_row(each)
            style = "red" if each.sinks_down else ""
            table.add_row(*(_cell(value) for value in row), style=style)
        below.append(table)
    explained = _explained(frame, width)
    used = len(lines) + len(explained) + (len(flushers) + 2 if flushers else 0)
    rows = max(0, height - used - 4)
    groups = _table(_HEADINGS)
    for state in frame.groups[:rows]:
        chosen = state.group_key == frame.chosen
        groups.add_row(*map(_cell, _group_row(state)), style="reverse" if chosen else "")
    help_line = Text("↑ ↓ choose a group · q quit", "dim", no_wrap=True)
    return Group(*lines, Text(""), groups, *explained, Text(""), *below, help_line)


def _title(frame: Frame) -> Text:
    title = Text("redisagg top ", "bold", no_wrap=True, overflow="ellipsis")
    title.append(printable(frame.name))
    look = frame.look
    if look is not None:
        moment = datetime.fromtimestamp(look.at, timezone.utc)
        title.append(f"  {moment:%H:%M:%S} UTC  ", "dim")
        well = not look.troubles and not frame.away
        title.append(
            *((" all is well ", "black on green") if well else (" trouble ", "white on red"))
        )
    return title


def _counts(frame: Frame, look: Overview) -> list[RenderableType]:
    stats = look.stats
    if stats is None:
        return []
    overdue = look.oldest_overdue or 0.0
    first = Text(no_wrap=True, overflow="ellipsis")
    for name, value, style in (
        ("pending", f"{stats.pending:,}", ""),
        ("in flight", f"{stats.in_flight:,}", ""),
        ("retries", f"{stats.batches_in_retry:,}", "yellow" if stats.batches_in_retry else ""),
        ("dead", f"{stats.dead:,}", "red" if stats.dead else ""),
        ("groups due", f"{look.groups_due:,}", ""),
        ("held", f"{look.groups_held:,}", ""),
        ("oldest overdue", span(overdue * 1000), "red" if overdue > 1 else ""),
        ("memory", _memory(look), ""),
    ):
        first.append(f"{name} ", "dim").append(f"{value}  ", style or "bold")
    per_batch = sum(frame.flushed) / (sum(frame.batches) or 1)
    second = Text(no_wrap=True, overflow="ellipsis")
    second.append("adds/s ", "dim").append(f"{_last(frame.adds)} ", "bold")
    second.append(f"{_sparkline(frame.adds)}  ", "cyan")
    second.append("batches/s ", "dim").append(f"{_last(frame.batches)} ", "bold")
    second.append(f"{_sparkline(frame.batches)}  ", "green")
    second.append("tasks per batch ", "dim").append(f"{per_batch:.1f}", "bold")
    return [first, second]


def _memory(look: Overview) -> str:
    used = f"{look.memory_used / 2**20:,.0f} MiB"
    if look.memory_limit:
        used += f" ({100 * look.memory_used / look.memory_limit:.0f}%)"
    return used


def _last(rates: Sequence[float]) -> str:
    return f"{rates[-1]:,.0f}" if rates else "-"


def _sparkline(rates: Sequence[float], most: int = 20) -> str:
    shown = list(rates)[-most:]
    highest = max(shown, default=0.0) or 1.0
    top = len(_BARS) - 1
    return "".join(_BARS[round(top * rate / highest)] for rate in shown).rjust(most)


def _explained(frame: Frame, width: int) -> list[RenderableType]:
    found = frame.explanation
    if found is None:
        return []
    late = f"late by {span(found.overdue * 1000)}" if found.late else "not late"
    name = printable(found.group_key, _LONGEST_CELL)
    style = "bold red" if found.late else "bold"
    return [
        Text(""),
        *_wrapped(f"{name} is {late}: {found.trouble.text}", style, width),
        *_wrapped(f"  {found.trouble.advice}", "dim", width),
    ]


def _wrapped(text: str, style: str, width: int) -> list[Text]:
    """A text in a few lines."""
    lines = wrap(
        printable(text),
        max(20, width - 1),
        subsequent_indent="  ",
        drop_whitespace=True,
        max_lines=_MOST_LINES,
        placeholder=" …",
    )
    return [Text(line, style, no_wrap=True, overflow="ellipsis") for line in lines]


def _table(headings: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", expand=False)
    for heading in headings:
        table.add_column(heading, no_wrap=True, overflow="ellipsis")
    return table


def _cell(value: object) -> Text:
    return Text(printable("-" if value is None else str(value), _LONGEST_CELL))


def _group_row(state: GroupState) -> tuple[object, ...]:
    marks = [name for name in ("held", "paused") if getattr(state, name)]
    return (
        state.group_key,
        f"{state.size:,}",
        f"{state.in_flight:,}",
        ago(state.due_at) if state.due_at else ("when full" if state.size else ""),
        ", ".join(marks),
    )


@click.command()
@with_aggregator
@click.option(
    "--interval",
    type=click.FloatRange(0.2, 60),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two looks.",
)
@click.option("--once", is_flag=True, help="Print one frame and end.")
@click.option("--group", metavar="KEY", help="The group to explain at first.")
def top(aggregator: Aggregator, interval: float, once: bool, group: str | None) -> None:
    """Show a namespace live: rates, what is wrong, groups with why, flushers; q ends it."""
    console = Console(markup=False, highlight=False, emoji=False)
    frame = Frame(aggregator.name, chosen=group)
    if once:
        _look(aggregator, frame, console.height)
        console.print(render(frame, console.width, console.height))
        return
    if not console.is_terminal:
        raise click.UsageError("top needs a terminal; redisagg stats --watch does not")
    with keyboard() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                _look(aggregator, frame, console.height)
                until = time.monotonic() + interval
                while (left := until - time.monotonic()) > 0:
                    live.update(render(frame, console.width, console.height), refresh=True)
                    key = keys.wait(left)
                    if key == "quit":
                        return
                    if key in ("up", "down"):
                        frame.choose(1 if key == "down" else -1)
                        _explain(aggregator, frame)
        except KeyboardInterrupt:
            return


def _look(aggregator: Aggregator, frame: Frame, height: int) -> None:
    """Asks Redis; what it said before stays if it does not answer."""
    try:
        frame.add(aggregator.overview())
        frame.groups = list(aggregator.get_groups(limit=max(1, height)).values())
        if frame.chosen is None:
            frame.choose(0)
        frame.away = ""
    except RedisUnavailable as error:
        frame.away = str(error)
    _explain(aggregator, frame)


def _explain(aggregator: Aggregator, frame: Frame) -> None:
    frame.explanation = None
    if frame.chosen is not None and not frame.away:
        try:
            frame.explanation = aggregator.explain(frame.chosen)
        except RedisUnavailable as error:
            frame.away = str(error)
