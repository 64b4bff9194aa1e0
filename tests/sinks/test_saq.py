"""SAQSink against a real SAQ worker."""

from __future__ import annotations

import pytest

from tests.sinks.harness import System, Trial, verify_received_once, verify_repeats_are_refused

pytestmark = [pytest.mark.registry, pytest.mark.timeout(300)]

SYSTEM = System(
    extra="saq",
    sink="saq://digests?redis={url}",
    worker=("{python}", "-m", "saq", "tests.sinks.workers.saq_settings.settings"),
    env={"REDISAGG_TEST_REDIS": "{url}"},
)


@pytest.mark.slow  # a fault run: a flusher is killed while the worker runs
def test_every_task_is_received_once(trial: Trial) -> None:
    verify_received_once(trial.run())


def test_a_repeat_is_refused_while_saq_knows_the_job(trial: Trial) -> None:
    kept = {"id": "B1", "type": "anything"}
    forgotten = {"id": "B2", "type": "anything", "options": {"ttl": -1}}
    failed = {"id": "B3", "type": "failing", "payload": {}}
    verify_repeats_are_refused(trial, kept, failed, forgotten=forgotten)


def test_what_the_worker_sees(trial: Trial) -> None:
    trial.deliver(
        {"id": "B1", "type": "anything", "payload": {"a": [1, None]}, "headers": {"h": "x"}},
        {"id": "B2", "type": "anything", "payload": [1, 2], "options": {"timeout": 0}},
        {"id": "B3", "type": "anything", "options": {"queue": "other"}},
    )
    trial.deliver(
        {"id": "B4", "type": "x", "payload": {"a": 1}, "options": {"ttl": 60}},
        sink="saq://digests?redis={url}&function=anything&arguments=payload",
    )
    with trial.worker():
        entries = {entry.pop("id"): entry for entry in trial.await_received(3)}
    usual = {"headers": {}, "timeout": 10, "ttl": 600}
    assert entries == {
        "B1": {**usual, "kwargs": {"a": [1, None]}, "headers": {"h": "x"}},
        "B2": {**usual, "kwargs": {"payload": [1, 2]}, "timeout": 0},
        "B4": {**usual, "kwargs": {"payload": {"a": 1}}, "ttl": 60},
    }
