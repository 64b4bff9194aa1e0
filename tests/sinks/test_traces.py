"""A trace goes from the add through the flusher to a real Celery worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from redisagg import Task
from redisagg.otel import Tracing
from tests.aggregator.test_tracing import Spans, id_of
from tests.sinks.harness import System, Trial, running
from tests.support.aggregators import Make
from tests.support.servers import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.registry, pytest.mark.timeout(300)]  # an installation

MODULE = "tests.sinks.workers.traced_celery"

SYSTEM = System(
    extra="celery,otel",
    sink="celery://digests?broker={url}",
    worker=(
        *("{python}", "-m", "celery", "-A", MODULE, "worker", "--pool=solo"),
        *("--queues=digests", "--without-gossip", "--without-mingle"),
    ),
    env={"REDISAGG_TEST_REDIS": "{url}", "REDISAGG_TEST_INSTRUMENTED": "1"},
    also=("opentelemetry-sdk>=1.30", "opentelemetry-instrumentation-celery>=0.51b0"),
)


@pytest.mark.parametrize("instrumented", ["", "1"], ids=["flusher", "instrumented-flusher"])
def test_a_trace_reaches_the_worker(make: Make, trial: Trial, instrumented: str) -> None:
    """The instrumentation for Celery may be in the flusher too, and then sends its own context."""
    spans, agg = Spans(), make(group_max_size=2)
    Tracing(spans.provider).watch(agg)
    flusher: list[str | Path] = [
        trial.python,
        "-m",
        "redisagg",
        "worker",
        f"{MODULE}:agg",
        "--otel",
    ]
    env = {**trial.env, "REDISAGG_TEST_INSTRUMENTED": instrumented}
    with trial.worker(), running(flusher, trial.log("flusher"), env=env):
        for payload in range(2):
            agg.add_task(Task("test", payload, "a"))
        wait_until(
            lambda: any(each["name"].startswith("run/") for each in trial.received()),
            timeout=60,
            what="the worker's span has ended",
        )
    added: list[ReadableSpan] = spans.named("add")
    found = {each["name"].split()[0]: each for each in trial.received()}
    path = ["claim", "merge", "deliver"]
    if instrumented:
        path.append("apply_async/test:aggregated")
        assert parents(found, "apply_async/test:aggregated") == path[:3][::-1]
    job = parents(found, "run/test:aggregated")
    assert job == (path[::-1] if instrumented else ["merge", "claim"])
    assert parents(found, "work")[0] == "run/test:aggregated"
    assert len({each["trace"] for each in found.values()}) == 1
    for name in ("claim", "merge", "work"):
        assert found[name]["links"] == list(map(id_of, added))


def parents(found: dict[str, dict[str, Any]], name: str) -> list[str]:
    """The names of the spans above a span, the nearest first."""
    by_id = {each["span"]: name for name, each in found.items()}
    above = []
    while (parent := found[name]["parent"]) is not None:
        name = by_id[parent]
        above.append(name)
    return above
