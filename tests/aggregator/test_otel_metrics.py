"""Metrics as instruments of OpenTelemetry: the same values, and the same names in Prometheus."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, Metric
from prometheus_client import REGISTRY, generate_latest

from redisagg import RetryAfter, Task
from redisagg.errors import InvalidTask
from redisagg.instruments.definitions import NAMESPACE, PROCESS
from redisagg.metrics import Metrics as PrometheusMetrics
from redisagg.metrics import NamespaceCollector
from redisagg.otel import Metrics, NamespaceMetrics
from redisagg.otel.metrics import _MOST_AT_ONCE, _Histogram, name_of, unit_of
from redisagg.sinks import CallableSink
from redisagg.testing.embedded import EmbeddedRedis
from tests.aggregator.test_metrics import parsed, samples
from tests.support.aggregators import Make
from tests.support.servers import wait_until
from tests.support.tasks import await_led, numbered


class Reading:
    """A provider, and what its instruments say."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self.provider = MeterProvider([self._reader])

    def metrics(self) -> dict[str, Metric]:
        data = self._reader.get_metrics_data()
        if data is None:
            return {}
        return {
            metric.name: metric
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def points(self, name: str) -> dict[tuple[str, ...], Any]:
        """The values of an instrument by those of its attributes, but for the namespace."""
        metric = self.metrics().get(name)
        return {
            tuple(str(v) for k, v in (point.attributes or {}).items() if k != "namespace"): point
            for point in (metric.data.data_points if metric is not None else ())
        }


@pytest.fixture
def reading() -> Reading:
    return Reading()


def test_a_process(make_both: Make, reading: Reading) -> None:
    """Both count the same aggregator, and come to the same."""
    refuse = list(range(3))

    def send(task: Task, batch_id: str) -> None:
        if refuse:
            refuse.pop()
            raise RetryAfter(0.1, "aggregator")

    agg = make_both(
        group_max_size=3, max_pending_tasks=100, max_task_bytes=1000, sink=CallableSink(send)
    )
    watched, prometheus = getattr(agg, "_inner", agg), PrometheusMetrics()
    assert Metrics(reading.provider).watch(watched) is not None
    prometheus.watch(watched)
    with agg:
        tasks = numbered("a", 3)
        agg.add_tasks([*tasks, tasks[0], *numbered("b", 3)])
        with pytest.raises(InvalidTask):
            agg.add_task(Task("test", "x" * 2000, "a"))
        assert agg.wait_until_idle(20)
        size = "redisagg_batch_size_count{}"
        wait_until(lambda: samples(prometheus).get(size) == 2, what="both batches are counted")
        wait_until(
            lambda: samples(prometheus)["redisagg_breaker_state{sink=CallableSink}"] == 0,
            what="the breaker is closed",
        )
    found = samples(prometheus)
    assert reading.points("redisagg.tasks.added")[()].value == 6
    assert reading.points("redisagg.tasks.deduplicated")[()].value == 1
    assert reading.points("redisagg.tasks.refused")[("too_large",)].value == 1
    assert reading.points("redisagg.batches.flushed")[("size", "CallableSink")].value == 2
    assert reading.points("redisagg.breaker.state")[("CallableSink",)].value == 0
    assert reading.points("redisagg.partition.limit.tasks")[()].value == 50
    for metric, name, attributes, labels in (
        ("batch.size", "redisagg_batch_size", (), ""),
        ("batch.bytes", "redisagg_batch_bytes", (), ""),
        ("flush.lag", "redisagg_flush_lag_seconds", (), ""),
        ("task.wait", "redisagg_task_wait_seconds", (), ""),
        ("merge.duration", "redisagg_merge_duration_seconds", ("ok",), "outcome=ok"),
        (
            "sink.duration",
            "redisagg_sink_duration_seconds",
            ("CallableSink", "error"),
            "outcome=error,sink=CallableSink",
        ),
    ):
        point = reading.points(f"redisagg.{metric}")[attributes]
        assert point.count == found[f"{name}_count{{{labels}}}"], metric
        assert point.sum == pytest.approx(found[f"{name}_sum{{{labels}}}"]), metric
        assert point.explicit_bounds == PROCESS[name].bounds
    assert reading.metrics().keys() <= {name_of(each) for each in PROCESS.values()}


def test_the_waits_of_a_large_batch_are_recorded_in_a_thread(
    reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = reading.provider.get_meter("test")
    histogram = _Histogram(meter, PROCESS["redisagg_task_wait_seconds"])
    recorded = list[str]()
    record = histogram._histogram.record

    def noted(*args: Any) -> None:
        recorded.append(threading.current_thread().name)
        record(*args)

    monkeypatch.setattr(histogram._histogram, "record", noted)
    histogram.count(("n",), 2, _MOST_AT_ONCE, _MOST_AT_ONCE * 0.7)
    histogram.count(("n",), 2, _MOST_AT_ONCE + 1, (_MOST_AT_ONCE + 1) * 0.7)
    total = 2 * _MOST_AT_ONCE + 1
    wait_until(
        lambda: reading.points("redisagg.task.wait")[()].count == total, what="all are recorded"
    )
    [point] = reading.points("redisagg.task.wait").values()
    assert point.bucket_counts[2] == total
    assert {each.partition("_")[0] for each in recorded[:_MOST_AT_ONCE]} == {"MainThread"}
    assert {each.partition("_")[0] for each in recorded[_MOST_AT_ONCE:]} == {"redisagg-metrics"}


def test_each_instrument_has_a_unit() -> None:
    for each in (*PROCESS.values(), *NAMESPACE.values()):
        assert re.fullmatch(r"s|By|\{[a-z]+\}", unit_of(each)), each.name


def test_a_namespace(make: Make, reading: Reading) -> None:
    agg = make(group_max_size=3)
    NamespaceMetrics(agg, meter_provider=reading.provider)
    collector = NamespaceCollector(agg)
    agg.add_tasks(numbered("waits", 2))
    agg.add_tasks(numbered("full", 3))
    assert reading.points("redisagg.tasks")[("waiting",)].value == 5
    with agg:
        await_led(agg)
        wait_until(lambda: agg.stats().flushed == 3, what="the full group is flushed")
        wait_until(lambda: reading.points("redisagg.leases")[()].value == 2, what="it is led")
    found = samples(collector)
    assert reading.metrics().keys() == {name_of(each) for each in NAMESPACE.values()}
    assert reading.points("redisagg.groups")[("waiting",)].value == 1
    assert found["redisagg_groups{state=waiting}"] == 1
    metric = reading.metrics()["redisagg.lease.changes"]
    assert metric.data.is_monotonic  # type: ignore[union-attr]


def test_one_collection_asks_redis_once(
    make: Make, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[int]()

    def read(self: Any) -> dict[str, Any]:
        calls.append(1)
        return {name: {("x",) * len(each.labels): 1.0} for name, each in NAMESPACE.items()}

    monkeypatch.setattr("redisagg.instruments.namespace.NamespaceReader.read", read)
    NamespaceMetrics(make(), meter_provider=reading.provider)
    assert len(reading.metrics()) == len(NAMESPACE)
    assert len(calls) == 1


def test_an_outage_leaves_the_values_out(
    make: Make,
    reading: Reading,
    redis_server: EmbeddedRedis,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("redisagg.otel.metrics._SAME_LOOK", 0.0)
    agg = make(add_timeout=0.1)
    agg.add_task(Task("test", 1, "a"))
    NamespaceMetrics(agg, meter_provider=reading.provider)
    assert reading.points("redisagg.tasks")[("waiting",)].value == 1
    redis_server.stop()
    assert reading.points("redisagg.tasks") == {}
    assert caplog.text.count("metrics can't be collected") == 1
    redis_server.start()
    assert reading.points("redisagg.partitions")[()].value == 2


def test_prometheus_sees_the_same_names(make: Make) -> None:
    """So the alerts and the board are right for both."""
    provider = MeterProvider([PrometheusMetricReader()])
    agg = make(group_max_size=1, max_pending_tasks=100, max_pending_bytes=10**8)
    mine, namespace = PrometheusMetrics().watch(agg), NamespaceCollector(agg)
    Metrics(provider).watch(agg)
    NamespaceMetrics(agg, meter_provider=provider)
    try:
        with agg:
            agg.add_task(Task("test", 1, "a"))
            with pytest.raises(InvalidTask):
                agg.add_task(Task("test", object(), "a"))
            lag = "redisagg_flush_lag_seconds_count{}"
            wait_until(lambda: samples(mine).get(lag) == 1, what="the batch is counted")
        text = re.sub(r'otel_scope_\w+="[^"]*",?', "", generate_latest(REGISTRY).decode())
        found = parsed(text.replace(",}", "}"))
    finally:
        provider.shutdown()
    expected = samples(mine, namespace)
    assert {key for key in found if key.startswith("redisagg_")} == expected.keys()
