"""Counters and histograms that are cheap to change, and can count many tasks in one step."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from redisagg.instruments.definitions import Definition, Labels


def family_of(definition: Definition, values: Mapping[Labels, float]) -> Any:
    """Returns a counter or gauge with these values, as prometheus-client takes it."""
    kind = CounterMetricFamily if definition.kind == "counter" else GaugeMetricFamily
    family = kind(definition.name, definition.text, labels=definition.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


class Counter:
    """A counter for each combination of labels; see `redisagg.instruments.batches.AnyCounter`."""

    def __init__(self, definition: Definition) -> None:
        self._definition = definition
        self._values: dict[Labels, float] = {}

    def add(self, labels: Labels, amount: float = 1) -> None:
        self._values[labels] = self._values.get(labels, 0) + amount

    def collect(self) -> Any:
        """Returns the present values."""
        return family_of(self._definition, self._values)


class Histogram:
    """A histogram for each combination of labels; see `redisagg.instruments.batches`."""

    def __init__(self, definition: Definition) -> None:
        self.bounds = definition.bounds
        self._definition = definition
        self._values: dict[Labels, _Buckets] = {}

    def observe(self, labels: Labels, values: Sequence[float]) -> None:
        if not values:
            return
        buckets, bounds = self._of(labels), self.bounds
        counts = buckets.counts
        for value in values:
            counts[bisect_left(bounds, value)] += 1
        buckets.total += sum(values)

    def count(self, labels: Labels, bucket: int, values: int, total: float) -> None:
        buckets = self._of(labels)
        buckets.counts[bucket] += values
        buckets.total += total

    def _of(self, labels: Labels) -> _Buckets:
        found = self._values.get(labels)
        if found is None:
            found = self._values[labels] = _Buckets(len(self.bounds) + 1)
        return found

    def collect(self) -> Any:
        """Returns the present values."""
        definition = self._definition
        family = HistogramMetricFamily(definition.name, definition.text, labels=definition.labels)
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
