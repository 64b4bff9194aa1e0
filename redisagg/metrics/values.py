"""Counters and histograms that are cheap to change, and can count many tasks in one step."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily


class Counter:
    """A counter for each combination of labels.

    Args:
        name: of the metric, without ``_total``.
        text: the help text.
        labels: the names of the labels.
    """

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        self._names = (name, text, labels)
        self._values: dict[tuple[str, ...], float] = {}

    def add(self, labels: tuple[str, ...], amount: float = 1) -> None:
        """Adds to the counter of these labels."""
        self._values[labels] = self._values.get(labels, 0) + amount

    def collect(self) -> Any:
        """Returns the present values."""
        name, text, labels = self._names
        family = CounterMetricFamily(name, text, labels=labels)
        for each, value in self._values.items():
            family.add_metric(each, value)
        return family


class Histogram:
    """A histogram for each combination of labels.

    Args:
        name, text, labels: as of `Counter`.
        bounds: the upper bounds of the buckets, without infinity.
    """

    def __init__(
        self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]
    ) -> None:
        self.bounds = bounds
        self._names = (name, text, labels)
        self._values: dict[tuple[str, ...], _Buckets] = {}

    def observe(self, labels: tuple[str, ...], value: float) -> None:
        """Counts a value."""
        self.count(labels, bisect_left(self.bounds, value), 1, value)

    def count(self, labels: tuple[str, ...], bucket: int, values: int, total: float) -> None:
        """Counts values that belong into one bucket.

        Args:
            bucket: the place of the first bound that is no less than they are.
            values: the number of the values.
            total: their sum.
        """
        buckets = self._values.get(labels)
        if buckets is None:
            buckets = self._values[labels] = _Buckets(len(self.bounds) + 1)
        buckets.counts[bucket] += values
        buckets.total += total

    def collect(self) -> Any:
        """Returns the present values."""
        name, text, labels = self._names
        family = HistogramMetricFamily(name, text, labels=labels)
        for each, buckets in self._values.items():
            family.add_metric(each, list(self._cumulated(buckets)), buckets.total)
        return family

    def _cumulated(self, buckets: _Buckets) -> Iterator[tuple[str, float]]:
        total = 0
        texts = (*(str(float(bound)) for bound in self.bounds), "+Inf")
        for text, count in zip(texts, buckets.counts, strict=True):
            total += count
            yield text, total


class _Buckets:
    __slots__ = ("counts", "total")

    def __init__(self, size: int) -> None:
        self.counts = [0] * size
        self.total = 0.0
