"""BullMQSink against a real BullMQ worker in Node."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from redisagg.errors import InvalidConfig, SinkError
from redisagg.sinks import sink_from_url
from tests.sinks.harness import System, Trial, verify_received_once, verify_repeats_are_refused

pytestmark = [pytest.mark.registry, pytest.mark.timeout(300)]

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def trial(redis_url: str, tmp_path: Path, node: Path) -> Trial:
    system = System(
        extra="bullmq",
        sink="bullmq://digests?redis={url}&prefix=tests",
        worker=("node", str(node / "worker.js"), "{url}", "tests", "digests", "urgent"),
    )
    return Trial(system, redis_url, tmp_path)


@pytest.mark.slow  # a fault run: a flusher is killed while the worker runs
def test_every_task_is_received_once(trial: Trial) -> None:
    verify_received_once(trial.run())


def test_a_repeat_is_refused_while_bullmq_keeps_the_job(trial: Trial) -> None:
    kept = {"id": "B1-1", "type": "x"}
    later = {"id": "B2-1", "type": "x", "options": {"delay": 500}}
    ranked = {"id": "B3-1", "type": "x", "options": {"priority": 2}}
    removed = {"id": "B4-1", "type": "x", "options": {"removeOnComplete": True}}
    verify_repeats_are_refused(trial, kept, later, ranked, forgotten=removed)


def test_what_the_worker_sees(trial: Trial) -> None:
    trial.deliver(
        {"id": "B1-1", "type": "email:digest", "payload": {"a": [1, None, "ü"]}},
        {"id": "B2-1", "type": "x", "payload": None, "options": {"queue": "urgent", "other": 1}},
        {
            "id": "B3-1",
            "type": "x",
            "payload": [1],
            "headers": {"traceparent": TRACE, "tracestate": "a=1", "h": "x"},
            "options": {"attempts": 3, "backoff": {"type": "exponential", "delay": 100}},
        },
    )
    trial.deliver(
        {"id": "B4-1", "type": "x", "payload": {"a": 1}, "headers": {"h": "x"}},
        sink="bullmq://digests?redis={url}&prefix=tests&name=digest&headers_as=headers",
    )
    with trial.worker():
        entries = {entry.pop("id"): entry for entry in trial.await_received(4)}
    usual = {"attempts": 0, "delay": 0}

    def said(name: str, data: Any, queue: str = "digests", **opts: Any) -> dict[str, Any]:
        return {"name": name, "data": data, "queue": queue, "opts": {**usual, **opts}}

    for batch_id, entry in entries.items():
        assert entry["opts"].pop("jobId") == batch_id
        if entry["opts"].get("backoff", "") is None:
            del entry["opts"]["backoff"]
    assert entries == {
        "B1-1": said("email:digest", {"a": [1, None, "ü"]}),
        "B2-1": said("x", None, "urgent"),
        "B3-1": said(
            "x",
            [1],
            attempts=3,
            backoff={"type": "exponential", "delay": 100},
            telemetry={"metadata": json.dumps({"traceparent": TRACE, "tracestate": "a=1"})},
        ),
        "B4-1": said("digest", {"a": 1, "headers": {"h": "x"}}),
    }


@pytest.mark.parametrize(
    ("batch", "options"),
    [
        ({"options": {"queue": "a:b"}}, ""),
        ({"payload": [1]}, "&headers_as=headers"),
        ({"payload": {"headers": 1}}, "&headers_as=headers"),
    ],
)
def test_what_has_no_place_in_a_job_is_refused(
    trial: Trial, batch: dict[str, Any], options: str
) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        trial.deliver({"id": "B1-1", "type": "x", **batch}, sink=trial.system.sink + options)


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bullmq", None)
    with pytest.raises(SinkError, match=r"'bullmq': pip install 'redisagg\[bullmq\]'"):
        sink_from_url("bullmq://q?redis=redis://127.0.0.1")
    with pytest.raises(InvalidConfig, match="needs the option redis"):
        sink_from_url("bullmq://q")
