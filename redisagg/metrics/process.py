"""What the aggregators of this process do, as a collector of prometheus-client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from redisagg.instruments.definitions import PROCESS, Definition
from redisagg.instruments.process import ProcessRecorder
from redisagg.metrics.values import Counter, Histogram, family_of


class Metrics(ProcessRecorder):
    """A collector of what the aggregators do that it watches; thread-safe.

    No metric has a label of a group key, so their number does not grow with that of groups.
    """

    _gather = 256  # some µs for each, so less than 1 ms of the event loop

    def __init__(self) -> None:
        self._values: list[Counter | Histogram] = []
        super().__init__(self._counter, self._histogram)

    def _counter(self, definition: Definition) -> Counter:
        made = Counter(definition)
        self._values.append(made)
        return made

    def _histogram(self, definition: Definition) -> Histogram:
        made = Histogram(definition)
        self._values.append(made)
        return made

    def collect(self) -> Iterator[Any]:
        """Returns all metrics."""
        self._count_noted()
        with self._lock:
            families = [each.collect() for each in self._values]
        yield from families
        for name, values in self.gauges().items():
            yield family_of(PROCESS[name], values)
