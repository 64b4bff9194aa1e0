"""StreaqSink against a real Streaq worker."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.sinks.environment import CHECKOUT
from tests.sinks.harness import System, Trial, verify_received_once, verify_repeats_are_refused

pytestmark = [
    pytest.mark.registry,
    pytest.mark.timeout(300),
    pytest.mark.usefixtures("functions"),
]

SYSTEM = System(
    extra="streaq",
    sink="streaq://digests?redis={url}",
    worker=("{python}", "-m", "streaq", "run", "tests.sinks.workers.streaq_worker:worker"),
    env={"REDISAGG_TEST_REDIS": "{url}"},
)

A_WORKER_OF_ONES_OWN = """
import asyncio
import sys
from coredis.exceptions import ConnectionError
from redisagg import Task
from redisagg.sinks import MergedTask, StreaqSink
from streaq import Worker

def batches():
    return [MergedTask(f"B{n}", "g", 1, Task("digest", [n])) for n in range(5)]

async def deliver():
    nowhere = StreaqSink("redis://127.0.0.1:1/0")
    for _ in range(2):
        try:
            await nowhere.open(None)
        except ConnectionError:
            pass
        else:
            raise AssertionError("connected to nothing")
    await nowhere.close()

    worker = Worker(sys.argv[1], queue_name="digests", priorities=["low"], signing_secret="secret")
    sink = StreaqSink(worker)
    for _ in range(2):
        await asyncio.gather(*(sink.open(None) for _ in range(3)))
        await asyncio.gather(*map(sink.deliver, batches()))
        for _ in range(2):
            await sink.close()
    async with worker:
        assert await worker.queue_size() == 5
        info = await worker.info_by_id("B3")
        assert (info.fn_name, info.args) == ("digest", ([3],)), info

asyncio.run(deliver())
"""


@pytest.mark.slow  # a fault run: a flusher is killed while the worker runs
def test_every_task_is_received_once(trial: Trial) -> None:
    verify_received_once(trial.run())


def test_a_repeat_is_refused_while_streaq_knows_the_task(trial: Trial) -> None:
    kept = {"id": "B1", "type": "anything"}
    forgotten = {"id": "B2", "type": "forgotten", "payload": {}}
    failed = {"id": "B3", "type": "failing", "payload": {}}
    verify_repeats_are_refused(trial, kept, failed, forgotten=forgotten)


def test_what_the_worker_sees(trial: Trial) -> None:
    taken = {"a": [1, None], "self": 1, "fn_name": 2, "args": 3}
    trial.deliver(
        {"id": "B1", "type": "anything", "payload": taken},
        {"id": "B2", "type": "anything", "payload": [1, 2], "options": {"priority": "urgent"}},
        {"id": "B3", "type": "anything", "options": {"expire": 1, "delay": 2}},
        {"id": "B4", "type": "anything", "options": {"delay": 2}},
        {"id": "B6", "type": "anything", "options": {"priority": "not the worker's"}},
    )
    trial.deliver(
        {"id": "B5", "type": "x", "payload": {"a": 1}, "headers": {"h": "x"}},
        sink="streaq://digests?redis={url}&task=anything&headers_as=headers&arguments=payload",
    )
    with trial.worker():
        entries = {entry.pop("id"): entry for entry in trial.await_received(4)}
    assert entries == {
        "B1": {"args": [], "kwargs": taken},
        "B2": {"args": [[1, 2]], "kwargs": {}},
        "B4": {"args": [None], "kwargs": {}},
        "B5": {"args": [{"a": 1}], "kwargs": {"headers": {"h": "x"}}},
    }


def test_a_worker_of_ones_own(trial: Trial) -> None:
    command: list[str | Path] = [trial.python, "-c", A_WORKER_OF_ONES_OWN, trial.url]
    assert subprocess.run(command, cwd=CHECKOUT, timeout=60).returncode == 0
