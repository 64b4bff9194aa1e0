"""RQSink against a real RQ worker."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sinks.harness import System, Trial, verify_received_once, verify_repeats_are_refused

pytestmark = [pytest.mark.registry, pytest.mark.timeout(300)]

JOBS = "tests.sinks.workers.rq_jobs"

SYSTEM = System(
    extra="rq",
    sink=f"rq://digests?redis={{url}}&function={JOBS}.aggregated",
    worker=(
        *("{python}", "-m", "rq.cli", "worker", "--url", "{url}", "--path", "."),
        *("digests", "urgent"),
    ),
)


@pytest.mark.slow  # a fault run: a flusher is killed while the worker runs
def test_every_task_is_received_once(trial: Trial) -> None:
    verify_received_once(trial.run())


def test_a_repeat_is_refused_while_rq_knows_the_job(trial: Trial) -> None:
    sink = f"rq://digests?redis={{url}}&function={JOBS}.anything"
    kept = {"id": "B1", "type": "x"}
    forgotten = {"id": "B2", "type": "x", "options": {"result_ttl": 0}}
    verify_repeats_are_refused(trial, kept, forgotten=forgotten, sink=sink)


def test_what_the_worker_sees(trial: Trial) -> None:
    task = f"{JOBS}.anything"
    trial.deliver(
        {"id": "B1", "type": task, "payload": {"a": [1, None]}, "headers": {"h": "x"}},
        {"id": "B2", "type": task, "payload": [1, 2], "options": {"queue": "urgent"}},
        {"id": "B3", "type": task, "options": {"result_ttl": 60, "at_front": True}},
        sink="rq://digests?redis={url}",
    )
    with trial.worker():
        entries = {entry.pop("id"): entry for entry in trial.await_received(3)}
    usual: dict[str, Any] = {
        "args": [],
        "kwargs": {},
        "headers": {},
        "queue": "digests",
        "ttl": None,
    }
    assert list(entries) == ["B3", "B1", "B2"]
    assert entries == {
        "B1": {**usual, "kwargs": {"a": [1, None]}, "headers": {"h": "x"}},
        "B2": {**usual, "args": [[1, 2]], "queue": "urgent"},
        "B3": {**usual, "args": [None], "ttl": 60},
    }


def test_a_worker_may_use_json(trial: Trial) -> None:
    sink = f"rq://digests?redis={{url}}&function={JOBS}.anything&serializer=json"
    trial.deliver({"id": "B1", "type": "x", "payload": {"a": [1, None]}}, sink=sink)
    with trial.worker("--serializer", "rq.serializers.JSONSerializer"):
        [entry] = trial.await_received(1)
    assert entry["kwargs"] == {"a": [1, None]}


def test_a_half_of_a_batch_has_an_id_that_rq_allows(trial: Trial) -> None:
    sink = f"rq://digests?redis={{url}}&function={JOBS}.anything"
    trial.deliver({"id": "B1-0-1.0.1", "type": "x", "payload": {"a": 1}}, sink=sink)
    with trial.worker():
        [entry] = trial.await_received(1)
    assert entry["id"] == "B1-0-1_0_1"
