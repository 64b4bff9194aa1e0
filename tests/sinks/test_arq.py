"""ArqSink against a real arq worker."""

from __future__ import annotations

import pytest

from tests.sinks.harness import System, Trial, verify_received_once, verify_repeats_are_refused

pytestmark = [pytest.mark.registry, pytest.mark.timeout(300)]

SYSTEM = System(
    extra="arq",
    sink="arq://digests?redis={url}",
    worker=("{python}", "-m", "arq", "tests.sinks.workers.arq_settings.WorkerSettings"),
    env={"REDISAGG_TEST_REDIS": "{url}"},
)


@pytest.mark.slow  # a fault run: a flusher is killed while the worker runs
def test_every_task_is_received_once(trial: Trial) -> None:
    verify_received_once(trial.run())


def test_a_repeat_is_refused_while_arq_knows_the_job(trial: Trial) -> None:
    kept = {"id": "B1", "type": "anything"}
    forgotten = {"id": "B2", "type": "forgotten"}
    verify_repeats_are_refused(trial, kept, forgotten=forgotten)


def test_what_the_worker_sees(trial: Trial) -> None:
    trial.deliver(
        {"id": "B1", "type": "anything", "payload": {"a": [1, None]}, "headers": {"h": "x"}},
        {"id": "B2", "type": "anything", "payload": [1, 2], "options": {"defer_by": 0.5}},
        {"id": "B3", "type": "anything", "options": {"queue_name": "other"}},
    )
    trial.deliver(
        {"id": "B4", "type": "x", "payload": {"a": 1}, "headers": {"h": "x"}},
        sink="arq://digests?redis={url}&function=anything&headers_as=headers",
    )
    with trial.worker():
        entries = {entry.pop("id"): entry for entry in trial.await_received(3)}
    assert entries == {
        "B1": {"args": [], "kwargs": {"a": [1, None]}},
        "B2": {"args": [[1, 2]], "kwargs": {}},
        "B4": {"args": [], "kwargs": {"a": 1, "headers": {"h": "x"}}},
    }
