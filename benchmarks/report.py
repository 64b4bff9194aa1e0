"""Results as Markdown tables and SVG charts."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from benchmarks.measure import Check, Series

_WIDTH, _ROW, _LABEL, _BAR = 760, 26, 270, 360  # pixels

_INTRODUCTION = (
    "[benchmarks/](../../benchmarks/README.md) explains the contenders and the method.",
    "[Notes](notes.md) explain the missed requirements. Each table has the median, the least and",
    "the greatest value of all turns. A requirement of the form *A / B* is the ratio of A to B",
    "within a turn.",
)


@dataclass(frozen=True, slots=True)
class Run:
    """The origin of the results."""

    command: str
    machine: str


def markdown(series: Sequence[Series], checks: Sequence[Check], run: Run) -> str:
    """The tables of a run as Markdown."""
    lines = [
        "# Benchmark results",
        "",
        f"Command: `{run.command}`.",
        "",
        f"Machine: {run.machine}.",
    ]
    lines += ["", *_INTRODUCTION, ""]
    if checks:
        lines += [
            "| requirement | required | median (least to greatest) | result |",
            "|---|---|---|---|",
        ]
        for check in checks:
            mark = "met" if check.passed else "**missed**"
            lines.append(f"| {check.what} | {check.required} | {check.measured} | {mark} |")
        lines.append("")
    for each in series:
        lines += [
            f"## {each.title[0].upper()}{each.title[1:]}",
            "",
            f"![{each.title}]({file_name(each)})",
            "",
        ]
        lines += [f"| | median, {each.unit} | least | greatest |", "|---|---|---|---|"]
        for name, values in each.values.items():
            numbers = (statistics.median(values), min(values), max(values))
            lines.append(f"| {name} | " + " | ".join(map(_number, numbers)) + " |")
        lines.append("")
    return "\n".join(lines)


def file_name(series: Series) -> str:
    """The file name of a chart."""
    return "-".join("".join(c if c.isalnum() else " " for c in series.title).split()) + ".svg"


def svg(series: Series, command: str) -> str:
    """A chart with a bar for each contender: its median, and a line from least to greatest."""
    top = max(max(values) for values in series.values.values()) or 1
    height = 60 + _ROW * len(series.values)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="8" y="20" font-weight="bold">{escape(series.title)}, {escape(series.unit)}</text>',
    ]
    for row, (name, values) in enumerate(series.values.items()):
        y = 34 + row * _ROW
        median = statistics.median(values)
        scale = _BAR / top
        colour = "#c0392b" if name.startswith("redisagg") else "#8fa3b0"
        parts += [
            f'<text x="{_LABEL - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{_LABEL}" y="{y + 3}" width="{median * scale:.1f}" height="16" fill="{colour}"/>',
            f'<path d="M{_LABEL + min(values) * scale:.1f} {y + 11}H{_LABEL + max(values) * scale:.1f}" '
            'stroke="#333"/>',
            f'<text x="{_LABEL + max(values) * scale + 8:.1f}" y="{y + 15}">{_number(median)}</text>',
        ]
    parts.append(
        f'<text x="8" y="{height - 8}" fill="#777" font-size="11">{escape(command)}</text>'
    )
    return "\n".join([*parts, "</svg>"])


def write(series: Sequence[Series], checks: Sequence[Check], run: Run, folder: Path) -> None:
    """Writes the tables and charts of a run into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for each in series:
        (folder / file_name(each)).write_text(svg(each, run.command), "utf-8")
    (folder / "README.md").write_text(markdown(series, checks, run) + "\n", "utf-8")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
