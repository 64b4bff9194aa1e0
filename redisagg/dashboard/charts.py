"""Charts as SVG, drawn on the server.

They have no style of their own: classes and attributes only, which the content security policy
allows. Each has a title for screen readers, and one for each point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone

from markupsafe import Markup

from redisagg.dashboard.formats import short

_WIDTH, _HEIGHT = 600, 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 10, 22

Series = tuple[str, str, Sequence["float | None"]]
"""Name, class and values of a line."""


def line_chart(
    title: str,
    times: Sequence[float],
    series: Sequence[Series],
    *,
    unit: str = "",
    text: Callable[[float], str] | None = None,
) -> Markup:
    """Draws lines over time.

    Args:
        title: what the chart shows.
        times: seconds since the epoch, rising.
        series: the lines; None in their values is a gap.
        unit: what stands behind numbers.
        text: how a number is shown; few digits by default.
    """
    show = text or short
    values = [each for _, _, line in series for each in line if each is not None]
    if len(times) < 2 or not values:
        return Markup(
            '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">'
            '<text class="chart-empty" x="{}" y="{}" text-anchor="middle">nothing noted yet</text>'
            "</svg>"
        ).format(_WIDTH, _HEIGHT, f"{title}: nothing noted yet", _WIDTH // 2, _HEIGHT // 2)
    top, step = _scale(max(values))
    first, last = times[0], times[-1]

    def x(at: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (at - first) / (last - first)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * value / top

    latest = ", ".join(
        f"{name} {show(line[-1])}{unit}"
        for name, _, line in series
        if line and line[-1] is not None
    )
    parts = [
        Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            _WIDTH, _HEIGHT, f"{title}: {latest or 'no value now'}"
        )
    ]
    tick = 0.0
    while tick <= top * 1.0001:
        parts.append(
            Markup(
                '<line class="chart-grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
                '<text class="chart-label" x="{}" y="{:.1f}" text-anchor="end">{}</text>'
            ).format(_LEFT, _WIDTH - _RIGHT, y(tick), y(tick), _LEFT - 6, y(tick) + 4, show(tick))
        )
        tick += step
    for at, form in _moments(first, last):
        parts.append(
            Markup(
                '<text class="chart-label" x="{:.1f}" y="{}" text-anchor="middle"'
                ' data-clock="{:.0f}" data-form="{}">{}</text>'
            ).format(
                x(at), _HEIGHT - 5, at, form, f"{datetime.fromtimestamp(at, timezone.utc):{form}}"
            )
        )
    for _, kind, line in series:
        for run in _runs(times, line):
            points = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in run)
            if len(series) == 1 and len(run) > 1:
                area = f"{x(run[0][0]):.1f},{y(0):.1f} {points} {x(run[-1][0]):.1f},{y(0):.1f}"
                parts.append(
                    Markup('<polygon class="chart-area {}" points="{}"/>').format(kind, area)
                )
            if len(run) > 1:
                parts.append(
                    Markup('<polyline class="chart-line {}" points="{}"/>').format(kind, points)
                )
            else:
                at, value = run[0]
                parts.append(
                    Markup('<circle class="chart-dot {}" cx="{:.1f}" cy="{:.1f}" r="2"/>').format(
                        kind, x(at), y(value)
                    )
                )
    parts += _hovers(times, series, x, show, unit)
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def _hovers(
    times: Sequence[float],
    series: Sequence[Series],
    x: Callable[[float], float],
    show: Callable[[float], str],
    unit: str,
) -> Iterator[Markup]:
    """Invisible columns whose titles tell the values."""
    width = (_WIDTH - _LEFT - _RIGHT) / (len(times) - 1)
    for place, at in enumerate(times):
        told = ", ".join(
            f"{name} {show(value)}{unit}"
            for name, _, line in series
            if (value := line[place]) is not None
        )
        if told:
            yield Markup(
                '<rect class="chart-hover" x="{:.1f}" y="{}" width="{:.1f}" height="{}">'
                "<title>{}</title></rect>"
            ).format(
                x(at) - width / 2,
                _TOP,
                width,
                _HEIGHT - _TOP - _BOTTOM,
                f"{datetime.fromtimestamp(at, timezone.utc):%b %d %H:%M:%S} UTC: {told}",
            )


def _runs(
    times: Sequence[float], line: Sequence[float | None]
) -> Iterator[list[tuple[float, float]]]:
    """The parts of a line between its gaps."""
    run: list[tuple[float, float]] = []
    for at, value in zip(times, line, strict=True):
        if value is not None:
            run.append((at, value))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _scale(most: float) -> tuple[float, float]:
    """The top of an axis and the step between its lines."""
    if most <= 0:
        return 1.0, 1.0
    rough = most / 3
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * each for each in (1, 2, 2.5, 5, 10) if power * each >= rough * 0.999)
    return step * math.ceil(most / step - 1e-9), step


def _moments(first: float, last: float) -> Iterator[tuple[float, str]]:
    """Round times between two times, each with the form of its label."""
    length = last - first
    step, form = next(
        (step, form)
        for step, form in (
            (15, "%H:%M:%S"),
            (60, "%H:%M"),
            (300, "%H:%M"),
            (900, "%H:%M"),
            (3_600, "%H:%M"),
            (21_600, "%H:%M"),
            (86_400, "%b %d"),
            (432_000, "%b %d"),
            (math.inf, "%b %d"),
        )
        if length / step <= 6
    )
    at = math.ceil(first / step) * step if step < math.inf else last
    while at <= last:
        if at - first > length * 0.03 and last - at > length * 0.03:
            yield at, form
        at += step
