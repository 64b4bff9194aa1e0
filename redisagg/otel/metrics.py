"""The metrics of `redisagg.metrics` as instruments of OpenTelemetry.

An instrument is named as the metric, with dots in place of underscores, and without ``_seconds``,
which is its unit. Where OpenTelemetry hands it on to Prometheus it is named as the metric again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeAlias

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation

from redisagg.aggregator import Aggregator
from redisagg.errors import RedisAggError
from redisagg.instruments.definitions import NAMESPACE, PROCESS, Definition, Labels
from redisagg.instruments.namespace import NamespaceReader
from redisagg.instruments.process import ProcessRecorder
from redisagg.texts import logger

_log = logger("metrics")

_Read: TypeAlias = Callable[[], Mapping[str, Mapping[Labels, float]]]
"""Returns the values of metrics, by their names."""

_SECONDS = "_seconds"

_MOST_AT_ONCE = 500
"""The number of values that an event loop records in one step, which takes about a millisecond."""

_SAME_LOOK = 1.0
"""Seconds for which what was read from Redis counts: all instruments are collected together."""


def name_of(definition: Definition) -> str:
    """Returns the name of an instrument."""
    return definition.name.removesuffix(_SECONDS).replace("_", ".")


def unit_of(definition: Definition) -> str:
    """Returns the unit of an instrument."""
    if definition.name.endswith(_SECONDS):
        return "s"
    return "By" if definition.name.endswith("_bytes") else definition.unit


class Metrics(ProcessRecorder):
    """Instruments of what the aggregators do that it watches; thread-safe.

    Args:
        meter_provider: takes the values; None for the global one.
    """

    def __init__(self, meter_provider: MeterProvider | None = None) -> None:
        self._meter = _meter(meter_provider)
        super().__init__(partial(_Counter, self._meter), partial(_Histogram, self._meter))
        for each in PROCESS.values():
            if each.kind == "gauge":
                _observe(self._meter, each, self.gauges)


class NamespaceMetrics:
    """Instruments of what the namespaces of some aggregators have in Redis.

    One process in each deployment is enough, since all would say the same. If Redis can't be asked
    within `add_timeout`, there are no values, and the log says so.

    Args:
        aggregators: their connections are used; they need not run a flusher.
        meter_provider: takes the values; None for the global one.
    """

    def __init__(
        self, *aggregators: Aggregator, meter_provider: MeterProvider | None = None
    ) -> None:
        self._reader = NamespaceReader(aggregators)
        self._lock = threading.Lock()
        self._values: Mapping[str, Mapping[Labels, float]] = {}
        self._read_at = -_SAME_LOOK
        self._failed = False
        meter = _meter(meter_provider)
        for each in NAMESPACE.values():
            _observe(meter, each, self._read)

    def _read(self) -> Mapping[str, Mapping[Labels, float]]:
        with self._lock:
            if time.monotonic() - self._read_at >= _SAME_LOOK:
                try:
                    self._values, self._failed = self._reader.read(), False
                except RedisAggError as error:
                    if not self._failed:  # a collection every minute needs no line each
                        _log.warning("metrics can't be collected: %s", error)
                    self._values, self._failed = {}, True
                self._read_at = time.monotonic()
            return self._values


class _Counter:
    """A counter; see `redisagg.instruments.batches.AnyCounter`."""

    def __init__(self, meter: Meter, definition: Definition) -> None:
        named = (name_of(definition), unit_of(definition), definition.text)
        self._counter = meter.create_counter(*named)
        self._labels = definition.labels

    def add(self, labels: Labels, amount: float = 1) -> None:
        self._counter.add(amount, dict(zip(self._labels, labels, strict=True)))


class _Histogram:
    """A histogram; see `redisagg.instruments.batches.AnyHistogram`."""

    def __init__(self, meter: Meter, definition: Definition) -> None:
        named = (name_of(definition), unit_of(definition), definition.text)
        self.bounds = definition.bounds
        self._histogram = meter.create_histogram(
            *named, explicit_bucket_boundaries_advisory=[float(bound) for bound in self.bounds]
        )
        self._labels = definition.labels
        self._thread: ThreadPoolExecutor | None = None

    def observe(self, labels: Labels, values: Sequence[float]) -> None:
        attributes, record = dict(zip(self._labels, labels, strict=True)), self._histogram.record
        for value in values:
            record(value, attributes)

    def count(self, labels: Labels, bucket: int, values: int, total: float) -> None:
        value = total / values  # OpenTelemetry takes one at a time; their mean is in their bucket
        if values <= _MOST_AT_ONCE:
            self._record(labels, values, value)
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "redisagg-metrics")
        self._thread.submit(self._record, labels, values, value)

    def _record(self, labels: Labels, values: int, value: float) -> None:
        attributes, record = dict(zip(self._labels, labels, strict=True)), self._histogram.record
        for _ in range(values):
            record(value, attributes)


def _meter(provider: MeterProvider | None) -> Meter:
    return metrics.get_meter("redisagg", meter_provider=provider)


def _observe(meter: Meter, definition: Definition, read: _Read) -> None:
    """Makes an instrument whose values are read when they are collected."""

    def observed(options: CallbackOptions) -> Iterable[Observation]:
        for labels, value in read().get(definition.name, {}).items():
            yield Observation(value, dict(zip(definition.labels, labels, strict=True)))

    create = (
        meter.create_observable_counter
        if definition.kind == "counter"
        else meter.create_observable_gauge
    )
    create(name_of(definition), [observed], unit_of(definition), definition.text)
