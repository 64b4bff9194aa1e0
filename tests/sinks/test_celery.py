"""CelerySink against a real Celery worker."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sinks.harness import System, Trial, verify_received_once, verify_repeats_keep_their_id

pytestmark = [pytest.mark.registry, pytest.mark.timeout(300)]

SYSTEM = System(
    extra="celery",
    sink="celery://digests?broker={url}",
    worker=(
        *("{python}", "-m", "celery", "-A", "tests.sinks.workers.celery_app", "worker"),
        *("--concurrency=1", "--queues=digests,urgent", "--without-gossip", "--without-mingle"),
    ),
    env={"REDISAGG_TEST_REDIS": "{url}"},
)


def test_every_task_is_received_once(trial: Trial) -> None:
    entries = trial.run()
    verify_received_once(entries, may_repeat=trial.in_flight)


def test_a_repeat_has_the_same_id(trial: Trial) -> None:
    verify_repeats_keep_their_id(trial)


def test_what_the_worker_sees(trial: Trial) -> None:
    trial.deliver(
        {"id": "B1", "type": "anything", "payload": {"a": [1, None]}, "headers": {"h": "x"}},
        {"id": "B2", "type": "anything", "payload": [1, 2], "options": {"queue": "urgent"}},
        {"id": "B3", "type": "anything", "priority": -4},
        {"id": "B4", "type": "anything", "priority": 4},
    )
    trial.deliver(
        {"id": "B5", "type": "other", "payload": {"a": 1}},
        sink=("celery://urgent?broker={url}&task=anything&arguments=payload"),
    )
    with trial.worker():
        entries = {entry.pop("id"): entry for entry in trial.await_received(5)}
    usual: dict[str, Any] = {
        "args": [],
        "kwargs": {},
        "headers": None,
        "queue": "digests",
        "priority": 0,
    }
    assert entries == {
        "B1": {**usual, "kwargs": {"a": [1, None]}, "headers": {"h": "x"}},
        "B2": {**usual, "args": [[1, 2]], "queue": "urgent"},
        "B3": {**usual, "args": [None], "priority": 4},
        "B4": {**usual, "args": [None]},
        "B5": {**usual, "args": [{"a": 1}], "queue": "urgent"},
    }
