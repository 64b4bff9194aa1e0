"""Metrics for Prometheus: of a process, of what is in Redis, and over HTTP."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import redis
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from redisagg import Aggregator, AsyncAggregator, Health, RetryAfter, Task, errors
from redisagg.errors import AggregatorFull, InvalidTask
from redisagg.flusher.batch import Claim
from redisagg.instruments.namespace import CAUSES
from redisagg.metrics import Metrics, NamespaceCollector
from redisagg.metrics.server import MetricsServer
from redisagg.producer.rounds import stream_round
from redisagg.sinks import CallableSink
from redisagg.testing.embedded import EmbeddedRedis
from redisagg.views import Trouble
from tests.support.aggregators import Make
from tests.support.markdown import CHECKOUT, read, rows, section
from tests.support.servers import wait_until
from tests.support.tasks import await_batches, await_dead, await_led, numbered, quick_config


def samples(*collectors: Any) -> dict[str, float]:
    """The values of all samples, by name and labels as in the text format."""
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    return parsed(generate_latest(registry).decode())


def parsed(text: str) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(
                f"{key}={value}" for key, value in sample.labels.items() if key != "namespace"
            )
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def nonzero(found: dict[str, float], *names: str) -> dict[str, float]:
    """The samples of some metrics that are not 0."""
    return {key: value for key, value in found.items() if value and key.startswith(names)}


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


# --- producers -----------------------------------------------------------------------------------


def test_what_a_producer_adds(make_both: Make, metrics: Metrics) -> None:
    agg = make_both()
    metrics.watch(agg, agg)
    tasks = numbered("a", 5)
    agg.add_tasks(tasks)
    agg.add_tasks([*tasks[:2], Task("test", 9, "b")])
    agg.add_task(tasks[0])
    agg.add_task(Task("test", 1, "c", id="x"))
    agg.add_task(Task("test", 2, "c", id="x", on_conflict="replace"))  # neither new nor known
    assert nonzero(samples(metrics), "redisagg_tasks") == {
        "redisagg_tasks_added_total{}": 7,
        "redisagg_tasks_deduplicated_total{}": 3,
    }


def test_what_a_producer_refuses(make_both: Make, metrics: Metrics) -> None:
    agg = make_both(partitions=1, max_pending_tasks=4, max_task_bytes=1000)
    metrics.watch(agg)
    agg.add_tasks(numbered("a", 4))
    with pytest.raises(AggregatorFull):
        agg.add_task(Task("test", 4, "a"))
    with pytest.raises(AggregatorFull):
        agg.submit(Task("test", 4, "a"))
    with pytest.raises(AggregatorFull):
        agg.add_tasks(numbered("b", 3))
    with pytest.raises(InvalidTask):
        agg.add_tasks([Task("test", "x" * 2000, "a")])
    with pytest.raises(InvalidTask):
        agg.add_tasks(iter([Task("test", object(), "a")]))
    found = nonzero(samples(metrics), "redisagg_tasks")
    assert found == {
        "redisagg_tasks_added_total{}": 4,
        "redisagg_tasks_refused_total{reason=full}": 5,
        "redisagg_tasks_refused_total{reason=too_large}": 1,
        "redisagg_tasks_refused_total{reason=payload}": 1,
    }


def test_a_refusal_is_counted_once_after_the_wait_for_room(
    make_both: Make, metrics: Metrics
) -> None:
    agg = make_both(partitions=1, max_pending_tasks=2, full_timeout=0.3)
    metrics.watch(agg)
    agg.add_tasks(numbered("a", 2))
    with pytest.raises(AggregatorFull):
        agg.add_task(Task("test", 4, "a"))
    with pytest.raises(AggregatorFull):
        agg.add_tasks(numbered("b", 3))
    # The stream ends with the first of its tasks; the others are not sent.
    assert nonzero(samples(metrics), "redisagg_tasks") == {
        "redisagg_tasks_added_total{}": 2,
        "redisagg_tasks_refused_total{reason=full}": 2,
    }


def test_an_outage_refuses_tasks(
    make_both: Make, metrics: Metrics, redis_server: EmbeddedRedis
) -> None:
    agg = make_both(add_timeout=0.5)
    metrics.watch(agg)
    agg.add_task(Task("test", 1, "a"))
    redis_server.stop()
    with pytest.raises(errors.RedisUnavailable):
        agg.add_task(Task("test", 2, "a"))
    with pytest.raises(errors.RedisUnavailable):
        agg.add_tasks(numbered("a", 2))
    redis_server.start()
    found = nonzero(samples(metrics), "redisagg_tasks_refused")
    assert found == {"redisagg_tasks_refused_total{reason=unavailable}": 3}


def test_a_call_that_is_repeated_is_counted_once(make: Make, metrics: Metrics) -> None:
    """Redis answers it twice, and both replies are read."""
    agg = make()
    metrics.watch(agg)
    agg.add_task(Task("test", 0, "a"))
    encoded = [agg._namespace.encoder(task) for task in numbered("a", 3)]
    numbered_round = agg._adder.prepare(stream_round(agg._adder.options, encoded))
    for _ in range(2):
        assert [error for _, error in numbered_round.exchange()] == [None]
    assert nonzero(samples(metrics), "redisagg_tasks") == {"redisagg_tasks_added_total{}": 4}


def test_two_watch_the_same_aggregator(make: Make, metrics: Metrics) -> None:
    agg, other = make(max_task_bytes=100), Metrics()
    metrics.watch(agg)
    other.watch(agg)
    agg.add_tasks(numbered("a", 3))
    with pytest.raises(InvalidTask):
        agg.add_task(Task("test", "x" * 200, "a"))
    for each in (metrics, other):
        assert nonzero(samples(each), "redisagg_tasks") == {
            "redisagg_tasks_added_total{}": 3,
            "redisagg_tasks_refused_total{reason=too_large}": 1,
        }


# --- flushers ------------------------------------------------------------------------------------


def test_what_a_flusher_does(make_both: Make, metrics: Metrics) -> None:
    agg = make_both(group_max_size=3)
    metrics.watch(agg)
    with agg:
        agg.add_tasks(numbered("a", 3) + numbered("b", 3) + numbered("c", 2))
        agg.flush("c")
        await_batches(agg, 3)
    found = samples(metrics)
    assert nonzero(found, "redisagg_batches_flushed") == {
        "redisagg_batches_flushed_total{reason=size,sink=StreamSink}": 2,
        "redisagg_batches_flushed_total{reason=flush,sink=StreamSink}": 1,
    }
    assert found["redisagg_batch_size_count{}"] == 3
    assert found["redisagg_batch_size_sum{}"] == 8
    assert found["redisagg_batch_size_bucket{le=2.0}"] == 1
    assert found["redisagg_batch_size_bucket{le=5.0}"] == 3
    assert found["redisagg_batch_bytes_count{}"] == 3
    assert found["redisagg_batch_bytes_sum{}"] > 8 * 20
    assert found["redisagg_task_wait_seconds_count{}"] == 8
    assert found["redisagg_flush_lag_seconds_count{}"] == 3
    assert 0 <= found["redisagg_flush_lag_seconds_sum{}"] < 30
    assert found["redisagg_merge_duration_seconds_count{outcome=ok}"] == 3
    assert found["redisagg_sink_duration_seconds_count{outcome=ok,sink=StreamSink}"] == 3
    assert found["redisagg_breaker_state{sink=StreamSink}"] == 0
    assert all(part != "a" for key in found for part in re.split(r"[={},]", key))  # no group key


def test_a_merge_that_fails(make: Make, metrics: Metrics) -> None:
    def merge(group: str, tasks: list[Task]) -> None:
        raise ValueError

    agg = make(group_max_size=1, group_aggregator=merge, max_attempts=2)
    metrics.watch(agg)
    with agg:
        agg.add_task(Task("test", 1, "a"))
        await_dead(agg)
    found = samples(metrics)
    assert found["redisagg_merge_duration_seconds_count{outcome=error}"] == 2
    assert nonzero(found, "redisagg_batches_flushed") == {}


def test_a_sink_and_its_breaker(redis_url: str, metrics: Metrics) -> None:
    end, calls = threading.Event(), list[Task]()

    def send(task: Task, batch_id: str) -> None:
        calls.append(task)
        if not end.is_set():
            raise RetryAfter(1, "aggregator")

    config = quick_config(group_max_size=1)
    agg = Aggregator("tests", redis_url, config=config, sink=CallableSink(send))
    metrics.watch(agg)
    state = "redisagg_breaker_state{sink=CallableSink}"
    with agg:
        agg.add_task(Task("test", 1, "a"))
        wait_until(lambda: samples(metrics).get(state) == 2, what="the breaker is open")
        end.set()
        wait_until(lambda: samples(metrics).get(state) == 0, what="the breaker is closed")
    found = samples(metrics)
    sink = "redisagg_sink_duration_seconds_count{outcome=%s,sink=CallableSink}"
    assert found[sink % "error"] == len(calls) - 1
    assert found[sink % "ok"] == 1


def test_how_long_tasks_waited_is_counted_for_each(make: Make, metrics: Metrics) -> None:
    now = 1_000_000.0
    arrivals = [now - wait for wait in (4000, 300, 200, 120, 59, 58, 0.05, 0.0)]
    entries = [int(1000 * at).to_bytes(6, "big") + b"rest" for at in arrivals]
    claim = Claim(*(b"id", b"a", 1, b"", b"", entries, len(entries), 99, 0, None), b"size")
    agg = make()
    metrics.watch(agg)
    assert agg.observers.batch_counter is not None
    agg.observers.batch_counter.count_flushed(claim, "StreamSink", now - 1, now, 0.1)
    found = samples(metrics)
    expected = {"0.1": 2, "30.0": 2, "60.0": 4, "120.0": 5, "300.0": 7, "3600.0": 7, "21600.0": 8}
    assert {
        bound: found[f"redisagg_task_wait_seconds_bucket{{le={bound}}}"] for bound in expected
    } == expected
    assert found["redisagg_task_wait_seconds_count{}"] == 8
    assert found["redisagg_task_wait_seconds_sum{}"] == pytest.approx(
        sum(now - a for a in arrivals)
    )


def test_who_is_not_watched_pays_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    monkeypatch.setattr("redisagg.producer.rounds._Call.count", lambda *args: counted.append(args))
    agg = make()
    agg.add_tasks(numbered("a", 3))
    assert counted == []
    Metrics().watch(agg)
    agg.add_tasks(numbered("a", 3))
    assert len(counted) == 1


# --- what is in Redis ----------------------------------------------------------------------------


def test_what_is_in_redis(make: Make, sync_redis: redis.Redis) -> None:
    agg = make(group_max_size=3)
    state = samples(NamespaceCollector(agg))
    assert nonzero(state, "redisagg") == {
        "redisagg_partitions{}": 2,
        "redisagg_troubles{cause=no_flusher}": 1,
    }
    agg.add_tasks(numbered("waits", 2))
    agg.add_tasks(numbered("full", 3))
    agg.add_tasks(numbered("urgent", 3, priority=5))
    agg.add_tasks(numbered("paused", 2))
    agg.pause("paused")
    wait_until(
        lambda: samples(NamespaceCollector(agg))["redisagg_oldest_overdue_seconds{}"] > 0.3,
        what="it is overdue",
    )
    assert nonzero(samples(NamespaceCollector(agg)), "redisagg_tasks", "redisagg_groups") == {
        "redisagg_tasks{state=waiting}": 10,
        "redisagg_groups{state=waiting}": 1,
        "redisagg_groups{state=due}": 2,
        "redisagg_groups{state=held}": 1,
    }


@pytest.mark.parametrize("index", [0, 1])
def test_the_oldest_is_found_whatever_its_priority(
    make: Make, sync_redis: redis.Redis, index: int
) -> None:
    agg = make(group_max_size=1, partitions=1)
    groups = ["low", "high"] if index else ["high", "low"]
    for group in groups:
        agg.add_task(Task("test", 1, group, priority=7 if group == "high" else -3))
        time.sleep(0.2 if group == groups[0] else 0)
    first = samples(NamespaceCollector(agg))["redisagg_oldest_overdue_seconds{}"]
    assert 0.2 <= first < 10


def test_a_group_of_which_the_index_names_an_earlier_time_is_not_due(make: Make) -> None:
    agg = make(group_grace_period=0.5)
    agg.add_task(Task("test", 1, "a"))
    end = time.monotonic() + 0.7
    while time.monotonic() < end:  # each renews the grace period; nobody corrects the index
        agg.add_task(Task("test", 1, "a"))
        time.sleep(0.05)
    state = samples(NamespaceCollector(agg))
    assert state["redisagg_groups{state=waiting}"] == 1
    assert state["redisagg_oldest_overdue_seconds{}"] == 0
    wait_until(
        lambda: samples(NamespaceCollector(agg))["redisagg_groups{state=due}"] == 1, what="due"
    )


def test_dead_letters_retries_leases_and_flushers(make: Make) -> None:
    def merge(group: str, tasks: list[Task]) -> None:
        raise errors.Unrecoverable("no") if group == "dead" else ValueError("later")

    agg = make(
        group_max_size=2,
        group_aggregator=merge,
        retry_delay=60,
        retry_max_delay=60,
        max_attempts=9,
    )
    collector = NamespaceCollector(agg)
    with agg:
        await_led(agg)
        agg.add_tasks(numbered("dead", 2))
        agg.add_tasks(numbered("retry", 2))
        await_dead(agg)
        wait_until(lambda: agg.stats().batches_in_retry == 1, what="the batch is in retry")
        first = samples(collector)
        wait_until(
            lambda: samples(collector)["redisagg_oldest_overdue_seconds{}"] > 0.3, what="overdue"
        )
    names = ("tasks", "dead", "leases", "flushers")
    assert nonzero(first, *(f"redisagg_{name}" for name in names)) == {
        "redisagg_tasks{state=in_flight}": 2,
        "redisagg_tasks{state=dead}": 2,
        "redisagg_dead_batches{}": 1,
        "redisagg_leases{}": 2,
        "redisagg_flushers{}": 1,
    }
    assert first["redisagg_groups{state=held}"] == 1


def test_how_full_the_fullest_partition_is(make: Make, metrics: Metrics) -> None:
    agg = make(max_pending_tasks=21, max_pending_bytes=4_000, max_task_bytes=500)
    metrics.watch(agg, make())  # the other one has no limits
    first, *_ = numbered("a", 1)
    agg.add_tasks([first, *(Task("test", n, f"group-{n}") for n in range(8))])
    assert nonzero(samples(metrics), "redisagg_partition") == {
        "redisagg_partition_limit_tasks{}": 10,
        "redisagg_partition_limit_bytes{}": 2_000,
    }
    partitions = agg.stats().partitions
    fullest = samples(NamespaceCollector(agg))
    assert fullest["redisagg_fullest_partition_tasks{}"] == max(p.pending for p in partitions)
    assert fullest["redisagg_fullest_partition_bytes{}"] == max(p.stored_bytes for p in partitions)
    assert max(p.pending for p in partitions) < 9  # both have some


def test_changes_of_leaders(make: Make) -> None:
    agg, collector = make(), NamespaceCollector(make())
    names = ("redisagg_lease_changes", "redisagg_leases", "redisagg_partitions")
    assert nonzero(samples(collector), *names) == {"redisagg_partitions{}": 2}
    for changes in (2, 4):
        with agg:
            await_led(agg)
            for _ in range(2):  # without a change nothing is counted
                assert samples(collector)["redisagg_lease_changes_total{}"] == changes


def test_troubles(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    agg = make()
    collector = NamespaceCollector(agg)
    agg.pause()
    expected = {"redisagg_troubles{cause=no_flusher}": 1, "redisagg_troubles{cause=paused}": 1}
    found = samples(collector)
    assert nonzero(found, "redisagg_troubles") == expected
    assert len([key for key in found if key.startswith("redisagg_troubles")]) == len(CAUSES)
    agg.resume()
    with agg:
        await_led(agg)
        wait_until(lambda: not nonzero(samples(collector), "redisagg_troubles"), what="it is well")
    # A master of a cluster is away, so nothing can be counted.
    away = Trouble("partition_away", "Partition 1 can't be reached.", "Bring it back.")
    seen = replace(agg.overview(), stats=None, groups_due=None, troubles=[away])
    monkeypatch.setattr(agg, "overview", lambda: seen)
    assert nonzero(samples(collector), "redisagg") == {
        "redisagg_partitions{}": 2,
        "redisagg_troubles{cause=partition_away}": 1,
    }
    assert "redisagg_flushers{}" not in samples(collector)


def test_paused_partitions(make: Make) -> None:
    agg = make()
    agg.pause()
    assert samples(NamespaceCollector(agg))["redisagg_paused_partitions{}"] == 2
    agg.resume()
    assert samples(NamespaceCollector(agg))["redisagg_paused_partitions{}"] == 0


def test_keys_that_redisagg_did_not_write_spoil_no_other_number(
    make: Make, sync_redis: redis.Redis
) -> None:
    agg = make(group_max_size=1)
    agg.add_task(Task("test", 1, "a"))
    for number in range(2):
        sync_redis.set(f"redisagg:{{tests:{number}}}:retry", "foreign")
    state = samples(NamespaceCollector(agg))
    assert state["redisagg_oldest_overdue_seconds{}"] >= 0


# --- over HTTP -----------------------------------------------------------------------------------


@contextmanager
def serving(*collectors: Any, health: Any = None) -> Iterator[str]:
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    server = MetricsServer(registry, "127.0.0.1", 0, health)
    server.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def get(url: str, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_server_answers_probes() -> None:
    found = [Health(reachable=True, led=False, overdue=1.5)]
    with serving(health=lambda: found[0]) as url:
        assert get(f"{url}/live") == (200, "ok\n")
        status, text = get(f"{url}/health")
        assert (status, json.loads(text)["overdue"]) == (200, 1.5)
        found[0] = Health(reachable=False, led=False, overdue=0, error="away")
        status, text = get(f"{url}/health?verbose")
        assert (status, json.loads(text)["error"]) == (503, "away")
    with serving() as url:
        assert get(f"{url}/live")[0] == 200
        assert get(f"{url}/health")[0] == 404


def test_the_server(make: Make, redis_server: EmbeddedRedis, caplog: Any) -> None:
    agg = make(add_timeout=0.3)
    agg.add_task(Task("test", 1, "a"))
    with serving(NamespaceCollector(agg)) as url:
        status, text = get(f"{url}/metrics")
        assert (status, parsed(text)["redisagg_tasks{state=waiting}"]) == (200, 1)
        assert get(f"{url}/other")[0] == 404
        assert get(f"{url}/metrics", Accept="application/openmetrics-text")[1].endswith("# EOF\n")
        redis_server.stop()
        assert [get(f"{url}/metrics")[0] for _ in range(2)] == [503, 503]
        assert caplog.text.count("metrics can't be collected") == 1
        redis_server.start()
        assert get(f"{url}/metrics")[0] == 200


def test_promtool_has_nothing_against_the_metrics(make: Make, metrics: Metrics) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool, of Debian's package prometheus, is not on PATH")
    agg = make(group_max_size=1, max_pending_tasks=2)
    metrics.watch(agg)
    with agg:
        agg.add_task(Task("test", 1, "a"))
        await_batches(agg, 1)
    with pytest.raises(AggregatorFull):
        agg.add_tasks(numbered("a", 9))
    registry = CollectorRegistry()
    registry.register(metrics)
    registry.register(NamespaceCollector(agg))
    text = generate_latest(registry)
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")
    assert b"redisagg_tasks_refused_total{" in text


def names_of(url: str) -> set[str]:
    status, text = get(url)
    assert status == 200
    return {family.name for family in text_string_to_metric_families(text)}


PROCESS = {
    "redisagg_tasks_added",
    "redisagg_tasks_deduplicated",
    "redisagg_tasks_refused",
    "redisagg_batches_flushed",
    "redisagg_batch_size",
    "redisagg_batch_bytes",
    "redisagg_task_wait_seconds",
    "redisagg_flush_lag_seconds",
    "redisagg_merge_duration_seconds",
    "redisagg_sink_duration_seconds",
    "redisagg_breaker_state",
    "redisagg_partition_limit_tasks",
    "redisagg_partition_limit_bytes",
}
NAMESPACE = {
    "redisagg_troubles",
    "redisagg_tasks",
    "redisagg_groups",
    "redisagg_oldest_overdue_seconds",
    "redisagg_dead_batches",
    "redisagg_partitions",
    "redisagg_leases",
    "redisagg_lease_changes",
    "redisagg_flushers",
    "redisagg_paused_partitions",
    "redisagg_fullest_partition_tasks",
    "redisagg_fullest_partition_bytes",
}


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["worker", "tests", "--metrics-port", "0"], PROCESS),
        (["exporter", "-n", "tests", "--port", "0"], NAMESPACE),
    ],
    ids=["worker", "exporter"],
)
def test_the_commands(make: Make, redis_url: str, arguments: list[str], names: set[str]) -> None:
    make().add_task(Task("test", 1, "a"))
    line = [sys.executable, "-m", "redisagg", *arguments, "--redis", redis_url]
    with subprocess.Popen(line, cwd=CHECKOUT, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = next(each for each in process.stderr if "metrics at" in each)
            url = said.split()[-1]
            assert url.startswith("http://127.0.0.1:")
            assert names <= names_of(url)
            if arguments[0] == "worker":
                next(each for each in process.stderr if "starts as" in each)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()


def test_an_exporter_names_what_is_wrong(redis_url: str) -> None:
    line = [sys.executable, "-m", "redisagg", "exporter", "-n", "none", "--redis", redis_url]
    done = subprocess.run(line, cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "there is no namespace 'none'" in done.stderr


def test_without_the_extra_the_message_has_the_command(redis_url: str) -> None:
    program = "import sys; sys.modules['prometheus_client'] = None; import redisagg.metrics"
    done = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True)
    assert b"pip install 'redisagg[metrics]'" in done.stderr


async def test_an_async_aggregator_is_watched_too(redis_url: str, metrics: Metrics) -> None:
    agg = AsyncAggregator("tests", redis_url, config=quick_config(group_max_size=1))
    metrics.watch(agg)
    flushed = "redisagg_batches_flushed_total{reason=size,sink=StreamSink}"
    async with agg:
        await agg.add_task(Task("test", 1, "a"))
        while flushed not in samples(metrics):  # noqa: ASYNC110 - nothing says so
            await asyncio.sleep(0.01)
    assert samples(metrics)["redisagg_tasks_added_total{}"] == 1


# --- docs ----------------------------------------------------------------------------------------


def test_the_tables_are_complete(make: Make, metrics: Metrics) -> None:
    page = read("docs/metrics.md")
    for heading, collector, expected in (
        ("Of a process", metrics, PROCESS),
        ("Of a namespace", NamespaceCollector(make()), NAMESPACE),
    ):
        families = {family.name: family for family in collector.collect()}
        assert families.keys() == expected
        table = rows(section(page, heading))
        documented = {row[0].strip("`").removesuffix("_total"): row for row in table}
        assert documented.keys() == expected
        for name, family in families.items():
            labels = set(re.findall(r"`(\w+)`", documented[name][1]))
            known = set(family._labelnames)
            assert labels | {"namespace"} == known, name
