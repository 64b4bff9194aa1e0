"""Contenders take turns within one run. Requirements apply to the ratio within a turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Contender = Callable[[], "float | None"]
"""Makes one measurement; None if that is impossible on this machine."""


@dataclass
class Series:
    """The measured values of the contenders of one benchmark, one for each turn."""

    title: str
    unit: str
    values: dict[str, list[float]] = field(default_factory=dict)

    def median(self, name: str) -> float:
        """The median of one contender."""
        return statistics.median(self.values[name])

    def ratio(self, name: str, reference: str) -> tuple[float, float, float]:
        """The median, least and greatest ratio of `name` to `reference`, turn by turn."""
        pairs = zip(self.values[name], self.values[reference], strict=True)
        ratios = [value / other for value, other in pairs]
        return statistics.median(ratios), min(ratios), max(ratios)


def take_turns(title: str, unit: str, contenders: Mapping[str, Contender], turns: int) -> Series:
    """Measures all contenders once in each turn, so that noise affects all of them equally."""
    series = Series(title, unit)
    missing: set[str] = set()
    for turn in range(turns):
        # Every other turn backwards, so that no contender always follows the same one.
        names = list(contenders) if turn % 2 == 0 else list(contenders)[::-1]
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
    """A requirement and the measured value."""

    what: str
    required: str
    measured: str
    passed: bool


def ratio_check(
    series: Series, what: str, name: str, reference: str, least: float, checks: list[Check]
) -> None:
    """Adds the check that the median ratio of two contenders is at least `least`."""
    if name not in series.values or reference not in series.values:
        checks.append(Check(what, f">= {least:g}", "not measured", False))
        return
    median, low, high = series.ratio(name, reference)
    measured = f"{median:.2f} ({low:.2f} to {high:.2f})"
    checks.append(Check(what, f">= {least:g}", measured, median >= least))
