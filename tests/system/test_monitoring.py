"""The alert rules, their runbook and the Grafana board in the folder monitoring."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from redisagg import Task, Unrecoverable
from redisagg.errors import AggregatorFull
from redisagg.instruments.definitions import NAMESPACE, PROCESS, Definition
from redisagg.instruments.namespace import CAUSES
from redisagg.metrics import Metrics, NamespaceCollector
from redisagg.metrics.server import MetricsServer
from redisagg.metrics.values import Histogram, family_of
from redisagg.sinks import CallableSink
from tests.support.aggregators import Make
from tests.support.markdown import CHECKOUT, anchors, read, rows, section
from tests.support.servers import wait_until
from tests.support.tasks import numbered

ALERTS = read("monitoring/alerts.yml")
CASES = read("monitoring/alerts_test.yml")
BOARD = json.loads(read("monitoring/grafana.json"))

NAMES: list[str] = re.findall(r"- alert: (\w+)", ALERTS)

each_alert = pytest.mark.parametrize("alert", NAMES)

_METRIC = re.compile(r"\bredisagg_\w+")

_SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}

EXPORTED = {
    f"{each.name}{suffix}": each
    for each in (*PROCESS.values(), *NAMESPACE.values())
    for suffix in _SUFFIXES[each.kind]
}
"""The names of all time series, each with the metric that it belongs to."""


def metrics_in(text: str) -> set[str]:
    """The names of time series in an expression or a file."""
    return set(_METRIC.findall(text))


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool, of Debian's package prometheus, is not on PATH")
    return found


@pytest.fixture
def free_port() -> int:
    """A port on which a program can listen."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(*arguments: str | Path) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- alerts --------------------------------------------------------------------------------------


def test_promtool_takes_the_rules(promtool: str) -> None:
    assert f"{len(NAMES)} rules found" in run(
        promtool, "check", "rules", CHECKOUT / "monitoring" / "alerts.yml"
    )


def test_the_alerts_fire_and_are_quiet_as_their_cases_say(promtool: str) -> None:
    assert "SUCCESS" in run(promtool, "test", "rules", CHECKOUT / "monitoring" / "alerts_test.yml")


@each_alert
def test_each_alert_has_a_quiet_and_a_firing_case(alert: str) -> None:
    cases = re.findall(rf"alertname: {alert}\n\s+exp_alerts:( \[\])?", CASES)
    assert set(cases) == {"", " []"}


@each_alert
def test_each_alert_names_its_entry_in_the_runbook(alert: str) -> None:
    rule = re.split(r"- alert: ", ALERTS)[1 + NAMES.index(alert)]
    [url] = re.findall(r"runbook_url: (.*)", rule)
    assert url == f"docs/runbook.md#{alert.lower()}"
    assert "severity: " in rule
    assert "**Meaning.**" in section(read("docs/runbook.md"), alert)


def test_the_runbook_has_no_other_entries() -> None:
    title, *entries = anchors(read("docs/runbook.md"))
    assert {title, *entries} == {"runbook", *(name.lower() for name in NAMES)}


def test_the_runbook_has_each_cause_of_a_trouble() -> None:
    table = rows(section(read("docs/runbook.md"), "RedisaggTrouble"))
    assert {cause for row in table for cause in re.findall(r"`(\w+)`", row[0])} == {*CAUSES}


def test_the_alerts_use_metrics_that_exist() -> None:
    assert metrics_in(ALERTS) <= EXPORTED.keys()
    assert metrics_in(CASES) == metrics_in(ALERTS)


# --- the board -----------------------------------------------------------------------------------


def panels() -> list[dict[str, Any]]:
    return [panel for panel in BOARD["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[str]:
    for panel in panels():
        for target in panel["targets"]:
            yield target["expr"]


def test_the_board_shows_each_metric_and_no_other() -> None:
    shown = metrics_in(" ".join(expressions()))
    assert shown <= EXPORTED.keys()
    assert {EXPORTED[name].name for name in shown} == {*PROCESS, *NAMESPACE}
    [variable] = (each for each in BOARD["templating"]["list"] if each["name"] == "namespace")
    assert metrics_in(variable["definition"]) <= EXPORTED.keys()


def test_each_query_selects_the_namespaces_and_uses_labels_that_exist() -> None:
    for expression in expressions():
        for name, selector in re.findall(r"\b(redisagg_\w+)(\{[^}]*\})?", expression):
            assert selector.startswith('{namespace=~"$namespace"'), expression
            used = {*re.findall(r"(\w+)=", selector)}
            assert used <= {*EXPORTED[name].labels}, expression
        for grouping in re.findall(r"by \(([^)]*)\)", expression):
            known = [{*EXPORTED[name].labels, "le"} for name in metrics_in(expression)]
            assert {*re.split(r", *", grouping)} <= set.intersection(*known), expression


def test_the_legends_use_labels_that_the_queries_keep() -> None:
    for panel in panels():
        for target in panel["targets"]:
            kept = {*re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", target["expr"])))}
            assert {*re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])} <= kept, panel["title"]


def test_promtool_takes_the_queries_of_the_board(promtool: str, tmp_path: Path) -> None:
    rules = [
        {"record": f"board:query{number}", "expr": each.replace("$__rate_interval", "5m")}
        for number, each in enumerate(expressions())
    ]
    file = tmp_path / "board.yml"  # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "board", "rules": rules}]}))
    assert f"{len(rules)} rules found" in run(promtool, "check", "rules", file)


def test_the_panels_of_the_board_lie_side_by_side() -> None:
    every = BOARD["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    fields = [
        {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        for place in (panel["gridPos"] for panel in every)
    ]
    assert all(0 <= x < 24 for each in fields for x, _ in each)
    assert not any(one & other for one, other in combinations(fields, 2))
    for panel in panels():
        assert panel["title"], panel["id"]
        assert panel["description"].endswith("."), panel["id"]


def test_the_names_of_time_series_are_those_of_prometheus() -> None:
    """What the tests above compare with is what prometheus-client makes of the definitions."""

    def made(definition: Definition) -> Any:
        labels = tuple("x" for _ in definition.labels)
        if definition.kind != "histogram":
            return family_of(definition, {labels: 1})
        histogram = Histogram(definition)
        histogram.observe(labels, [1])
        return histogram.collect()

    class Everything:
        def collect(self) -> Iterator[Any]:
            yield from map(made, {**PROCESS, **NAMESPACE}.values())

    registry = CollectorRegistry()
    registry.register(Everything())
    text = generate_latest(registry).decode()
    found = {s.name for family in text_string_to_metric_families(text) for s in family.samples}
    assert found == EXPORTED.keys()


# --- with a real Prometheus ----------------------------------------------------------------------

CONFIG = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
scrape_configs:
  - job_name: redisagg
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
rule_files: [alerts.yml]
"""


class Prometheus:
    """A server that scrapes a port, with all alerts firing at once."""

    def __init__(self, folder: Path, port: int, target: int) -> None:
        (folder / "alerts.yml").write_text(re.sub(r"\n +for: .*", "", ALERTS))
        (folder / "prometheus.yml").write_text(CONFIG.format(port=target))
        self._url = f"http://127.0.0.1:{port}/api/v1"
        self.command = (
            *("prometheus", f"--config.file={folder / 'prometheus.yml'}"),
            *(f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"),
        )

    def _get(self, path: str) -> Any:
        try:
            with urllib.request.urlopen(f"{self._url}/{path}", timeout=20) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code != 503:  # it starts
                raise AssertionError(error.read().decode()) from None
        except urllib.error.URLError:
            pass
        return None

    def has(self, expression: str) -> bool:
        """Whether an expression has a value."""
        found = self._get(f"query?query={urllib.parse.quote(expression)}")
        return bool(found and found["result"])

    def firing(self) -> set[str]:
        """The names of the alerts that fire."""
        found = self._get("alerts") or {"alerts": []}
        return {each["labels"]["alertname"] for each in found["alerts"]}


@pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not on PATH")
def test_a_real_prometheus(make: Make, free_port: int, tmp_path: Path) -> None:
    """Each query of the board has a value, and alerts fire."""

    def refuse(task: Task, batch_id: str) -> None:
        raise Unrecoverable("no")

    def merge(group: str, tasks: list[Task]) -> None:
        raise ValueError

    limits: dict[str, Any] = {
        "max_pending_tasks": 10_000,
        "max_pending_bytes": 10**8,
        "partitions": 2,
    }
    quick = make(group_max_size=2, max_attempts=1, **limits)
    failing = make(group_max_size=2, max_attempts=1, sink=CallableSink(refuse), **limits)
    merging = make(group_max_size=2, max_attempts=1, group_aggregator=merge, **limits)
    full = make(name="full", max_pending_tasks=2)
    metrics = Metrics().watch(quick, failing, merging, full)
    registry = CollectorRegistry()
    registry.register(metrics)
    registry.register(NamespaceCollector(quick))
    server = MetricsServer(registry, "127.0.0.1", 0)
    server.start()
    prometheus = Prometheus(tmp_path, free_port, server.server_address[1])

    def flush_some() -> None:
        for agg in (quick, failing, merging):
            dead = agg.stats().dead
            with agg:
                tasks = numbered("a", 2)
                agg.add_tasks([*tasks, tasks[0]])
                assert agg.wait_until_idle(20)
            assert (agg.stats().dead > dead) is (agg is not quick)

    def has_all(expressions: set[str]) -> bool:
        expressions -= {each for each in expressions if prometheus.has(each)}
        return not expressions

    left = {
        each.replace("$__rate_interval", "1m").replace("$namespace", ".*") for each in expressions()
    }
    with contextlib.ExitStack() as stack:
        stack.callback(server.server_close)
        stack.callback(server.shutdown)
        flush_some()
        with pytest.raises(AggregatorFull):
            full.add_tasks(numbered("b", 3))
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(prometheus.command, stdout=log, stderr=log)
        stack.callback(process.wait)
        stack.callback(process.kill)
        wait_until(lambda: prometheus.has("redisagg_flushers"), timeout=60, what="it scrapes")
        flush_some()
        with pytest.raises(AggregatorFull):
            full.add_tasks(numbered("b", 3))
        wait_until(lambda: has_all(left), timeout=60, what=f"each has a value: {left}")
        expected = {"RedisaggNoFlusher", "RedisaggDeadLettersGrowing", "RedisaggTasksRefused"}
        wait_until(lambda: prometheus.firing() >= expected, timeout=60, what="they fire")
