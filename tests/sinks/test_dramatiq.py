"""DramatiqSink against a real Dramatiq worker."""

from __future__ import annotations

import pytest

from tests.sinks.harness import System, Trial, verify_received_once, verify_repeats_keep_their_id

pytestmark = [pytest.mark.registry, pytest.mark.timeout(300)]

SYSTEM = System(
    extra="dramatiq",
    sink="dramatiq://digests?redis={url}",
    worker=(
        *("{python}", "-m", "dramatiq", "tests.sinks.workers.dramatiq_actors"),
        *("--processes", "1", "--threads", "2"),
    ),
    env={"REDISAGG_TEST_REDIS": "{url}"},
)


@pytest.mark.slow  # a fault run: a flusher is killed while the worker runs
def test_every_task_is_received_once(trial: Trial) -> None:
    entries = trial.run()
    verify_received_once(entries, may_repeat=trial.in_flight)


def test_a_repeat_has_the_same_id(trial: Trial) -> None:
    verify_repeats_keep_their_id(trial)


def test_what_the_worker_sees(trial: Trial) -> None:
    trial.deliver(
        {"id": "B1", "type": "anything", "payload": {"a": [1, None]}, "headers": {"h": "x"}},
        {"id": "B2", "type": "urgent", "payload": [1, 2], "options": {"queue": "urgent"}},
        {"id": "B3", "type": "anything", "priority": 4, "options": {"max_retries": 2}},
    )
    trial.deliver(
        {"id": "B4", "type": "x", "payload": {"a": 1}, "options": {"delay": 500}},
        sink="dramatiq://digests?redis={url}&actor=anything&arguments=payload",
    )
    with trial.worker():
        entries = {entry.pop("id"): entry for entry in trial.await_received(4)}
    assert entries.pop("B4")["args"] == [{"a": 1}]
    assert entries == {
        "B1": {"args": [], "kwargs": {"a": [1, None]}, "options": {"headers": {"h": "x"}}},
        "B2": {"args": [[1, 2]], "kwargs": {}, "options": {}},
        "B3": {"args": [None], "kwargs": {}, "options": {"broker_priority": 4, "max_retries": 2}},
    }
