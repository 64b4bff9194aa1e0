"""Measuring side by side: contenders take turns, and what counts is the ratio within a turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Contender = Callable[[], "float | None"]
"""One measurement; None if it can't be made here."""


@dataclass
class Series:
    """What the contenders of one benchmark measured, a value for each turn."""

    title: str
    unit: str
    values: dict[str, list[float]] = field(default_factory=dict)

    def median(self, name: str) -> float:
        """The median of one contender."""
        return statistics.median(self.values[name])

    def ratio(self, name: str, to: str) -> tuple[float, float, float]:
        """The median, least and greatest ratio of two contenders, taken turn by turn."""
        pairs = zip(self.values[name], self.values[to], strict=True)
        ratios = [mine / other for mine, other in pairs]
        return statistics.median(ratios), min(ratios), max(ratios)


def take_turns(title: str, unit: str, contenders: Mapping[str, Contender], turns: int) -> Series:
    """Measures all contenders once in each turn, so that noise hits all of them alike."""
    series = Series(title, unit)
    missing: set[str] = set()
    for turn in range(turns):
        # Every other turn backwards: nobody always comes after the same one.
        names = list(contenders) if turn % 2 == 0 else list(reversed(contenders))
        for name in names:
            if name in missing:
                continue
            value = contenders[name]()
            if value is None:
                missing.add(name)
            else:
                series.values.setdefault(name, []).append(value)
                print(f"  {title}: {name}: {value:,.4g} {unit}", flush=True)
    return series


@dataclass
class Check:
    """A requirement and what was measured."""

    what: str
    required: str
    measured: str
    passed: bool


def ratio_check(
    series: Series, what: str, name: str, to: str, least: float, checks: list[Check]
) -> None:
    """Checks that the median ratio of two contenders is at least `least`."""
    if name not in series.values or to not in series.values:
        checks.append(Check(what, f">= {least:g}", "not measured here", False))
        return
    median, low, high = series.ratio(name, to)
    measured = f"{median:.2f} ({low:.2f} to {high:.2f})"
    checks.append(Check(what, f">= {least:g}", measured, median >= least))
