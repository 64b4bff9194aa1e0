"""TaskiqSink against real Taskiq workers, on a list and on a stream."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.sinks.harness import System, Trial, verify_received_once, verify_repeats_keep_their_id

pytestmark = [pytest.mark.registry, pytest.mark.timeout(300)]

SYSTEM = System(
    extra="taskiq",
    sink="taskiq://digests?redis={url}",
    worker=(
        *("{python}", "-m", "taskiq", "worker", "--workers", "1"),
        "tests.sinks.workers.taskiq_broker:broker",
    ),
    env={"REDISAGG_TEST_REDIS": "{url}", "REDISAGG_TEST_KIND": "list"},
)
STREAM = replace(
    SYSTEM,
    sink="taskiq://digests?redis={url}&kind=stream",
    env={**SYSTEM.env, "REDISAGG_TEST_KIND": "stream"},
)


@pytest.mark.slow  # a fault run: a flusher is killed while the worker runs
@pytest.mark.parametrize("system", [SYSTEM, STREAM], ids=["list", "stream"])
def test_every_task_is_received_once(system: System, redis_url: str, tmp_path: Path) -> None:
    trial = Trial(system, redis_url, tmp_path)
    entries = trial.run()
    verify_received_once(entries, may_repeat=trial.in_flight)


def test_a_repeat_has_the_same_id(trial: Trial) -> None:
    verify_repeats_keep_their_id(trial)


def test_what_the_worker_sees(trial: Trial) -> None:
    trial.deliver(
        {"id": "B1", "type": "anything", "payload": {"a": [1, None]}, "headers": {"h": "x"}},
        {"id": "B2", "type": "anything", "payload": [1, 2], "priority": -3},
        {"id": "B3", "type": "anything", "options": {"queue": "other"}},
    )
    trial.deliver(
        {"id": "B4", "type": "x", "payload": {"a": 1}, "options": {"timeout": 1.5}},
        sink="taskiq://digests?redis={url}&task=anything&arguments=payload",
    )
    with trial.worker():
        entries = {entry.pop("id"): entry for entry in trial.await_received(3)}
    assert entries == {
        "B1": {"args": [], "kwargs": {"a": [1, None]}, "labels": {"h": "x"}},
        "B2": {"args": [[1, 2]], "kwargs": {}, "labels": {"priority": -3}},
        "B4": {"args": [{"a": 1}], "kwargs": {}, "labels": {"timeout": 1.5}},
    }


def test_a_stream_keeps_what_came_before_its_first_worker(redis_url: str, tmp_path: Path) -> None:
    trial = Trial(STREAM, redis_url, tmp_path)
    trial.deliver({"id": "B1", "type": "anything", "payload": {"a": 1}})
    with trial.worker():
        [entry] = trial.await_received(1)
    assert (entry["id"], entry["kwargs"]) == ("B1", {"a": 1})
