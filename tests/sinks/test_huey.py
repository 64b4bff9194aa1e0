"""HueySink against real Huey consumers, on a list and on a queue with priorities."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.sinks.environment import CHECKOUT
from tests.sinks.harness import System, Trial, verify_received_once

pytestmark = [pytest.mark.registry, pytest.mark.timeout(300)]

TASKS = "tests.sinks.workers.huey_tasks"

SYSTEM = System(
    extra="huey",
    sink=f"huey://digests?redis={{url}}&task={TASKS}.digest:all",
    worker=("{python}", "-m", "huey.bin.huey_consumer", f"{TASKS}.huey", "--max-delay", "0.1"),
    env={"REDISAGG_TEST_REDIS": "{url}", "REDISAGG_TEST_KIND": "list"},
)
PRIORITY = replace(
    SYSTEM,
    sink=f"{SYSTEM.sink}&kind=priority",
    env={**SYSTEM.env, "REDISAGG_TEST_KIND": "priority"},
)

A_HUEY_OF_ONES_OWN = """
import asyncio
from huey import MemoryHuey
from redisagg import Task
from redisagg.errors import InvalidConfig
from redisagg.sinks import HueySink, MergedTask

huey = MemoryHuey("digests", compression=True)
huey.task(name="digest")(print)

async def deliver_twice():
    sink = HueySink(huey)
    await sink.open(None)
    for _ in range(2):
        await sink.deliver(MergedTask("B1", "g", 1, Task("builtins.digest", [1], priority=3)))
    await sink.close()

asyncio.run(deliver_twice())
for _ in range(2):
    task = huey.dequeue()
    assert (task.id, task.args, task.priority) == ("B1", ([1],), 3), task
assert huey.dequeue() is None
try:
    HueySink(MemoryHuey(immediate=True))
except InvalidConfig:
    pass
else:
    raise AssertionError("a Huey without a queue was accepted")
"""


@pytest.mark.slow  # a fault run: a flusher is killed while the worker runs
@pytest.mark.parametrize("system", [SYSTEM, PRIORITY], ids=["list", "priority"])
def test_every_task_is_received_once(system: System, redis_url: str, tmp_path: Path) -> None:
    verify_received_once(Trial(system, redis_url, tmp_path).run())


@pytest.mark.parametrize("kind", ["list", "priority"])
def test_a_repeat_is_refused_for_as_long_as_the_id_is_remembered(
    kind: str, redis_url: str, tmp_path: Path
) -> None:
    trial = Trial({"list": SYSTEM, "priority": PRIORITY}[kind], redis_url, tmp_path)
    kept = {"id": "B1", "type": f"{TASKS}.anything"}
    forgotten = {"id": "B2", "type": f"{TASKS}.anything"}
    sink = f"huey://digests?redis={{url}}&kind={kind}"
    with trial.worker():
        trial.deliver(kept, kept, sink=sink)
        trial.deliver(forgotten, forgotten, sink=f"{sink}&remember=0.9")
        # Waits for longer than the sink remembers B2.
        assert [entry["id"] for entry in trial.await_received(2)] == ["B1", "B2"]
        trial.deliver(kept, forgotten, sink=sink)
        assert [entry["id"] for entry in trial.await_received(3)] == ["B1", "B2", "B2"]


def test_what_the_worker_sees(trial: Trial) -> None:
    task = f"{TASKS}.anything"
    trial.deliver(
        {"id": "B1", "type": task, "payload": {"a": [1, None]}, "priority": 4},
        {"id": "B2", "type": task, "payload": [1, 2], "options": {"retries": 1, "delay": 1}},
        {"id": "B3", "type": task, "options": {"expires": 0.001}},
        sink="huey://digests?redis={url}",
    )
    trial.deliver(
        {"id": "B4", "type": "x", "payload": {"a": 1}, "headers": {"h": "x"}},
        sink=f"huey://digests?redis={{url}}&task={task}&headers_as=headers&arguments=payload",
    )
    with trial.worker():
        entries = {entry.pop("id"): entry for entry in trial.await_received(3)}
    usual: dict[str, Any] = {
        "args": [],
        "kwargs": {},
        "retries": [3, 7],
        "priority": None,
        "delayed": False,
    }
    assert entries == {
        "B1": {**usual, "kwargs": {"a": [1, None]}},
        "B2": {**usual, "args": [[1, 2]], "retries": [1, 7], "delayed": True},
        "B4": {**usual, "args": [{"a": 1}], "kwargs": {"headers": {"h": "x"}}},
    }


def test_the_highest_priority_goes_first(redis_url: str, tmp_path: Path) -> None:
    trial = Trial(PRIORITY, redis_url, tmp_path)
    task = f"{TASKS}.anything"
    trial.deliver(
        {"id": "B1", "type": task},
        {"id": "B2", "type": task, "priority": -3},
        {"id": "B3", "type": task, "priority": 4},
        {"id": "B4", "type": task, "priority": 4, "options": {"priority": 5}},
        sink="huey://digests?redis={url}&kind=priority",
    )
    with trial.worker():
        entries = [(entry["id"], entry["priority"]) for entry in trial.await_received(4)]
    assert entries == [("B4", 5), ("B3", 4), ("B1", None), ("B2", -3)]


def test_another_storage_and_serializer(trial: Trial) -> None:
    command: list[str | Path] = [trial.python, "-c", A_HUEY_OF_ONES_OWN]
    assert subprocess.run(command, cwd=CHECKOUT, timeout=60).returncode == 0
