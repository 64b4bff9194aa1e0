"""Merges in worker processes, for merge functions that need much CPU or may crash."""

from __future__ import annotations

import asyncio
import multiprocessing
import multiprocessing.popen_spawn_posix
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from redisagg import Task, merges
from redisagg.errors import InvalidConfig
from redisagg.flusher.merging.processes import _check_worker, _Pool, _PoolKilled
from redisagg.sinks import CallableSink
from redisagg.sinks.base import BlockingSink, MergedTask, SinkContext
from tests.support.aggregators import Make
from tests.support.servers import wait_until
from tests.support.tasks import await_batches, await_dead, await_led, enqueued, numbered, payloads

# These functions are at the top of the module because a worker process has to import them.


def merge(group: str, tasks: list[Task]) -> Task:
    """Merges as the default function does, and adds the process id."""
    return Task("merged", {"payloads": [task.payload for task in tasks], "by": os.getpid()})


def spin(group: str, tasks: list[Task]) -> Task:
    """Uses 0.2 s of CPU time and hardly releases the interpreter lock."""
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    return merge(group, tasks)


def misbehave(group: str, tasks: list[Task]) -> Any:
    """Fails in the way that its group names; ``hangs`` creates the file in its payload first."""
    if group == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if group == "exits":
        os._exit(0)
    if group == "hangs":
        Path(tasks[0].payload).touch()
        threading.Event().wait()
    if group == "signalled":
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    if group == "raises":
        raise ValueError("no way")
    if group == "junk":
        return {1, 2}
    if group == "unpicklable":
        raise Unpicklable(lambda: None)
    return merge(group, tasks)


class Unpicklable(Exception):
    """An error that can't be sent to another process."""


def test_merges_run_in_other_processes(make: Make) -> None:
    agg = make(group_aggregator=merge, executor="process", group_max_size=5)
    with agg:
        agg.add_tasks(Task("test", n, f"g{n % 4}") for n in range(200))
        await_batches(agg, 40, timeout=20)
    batches = enqueued(agg)
    assert sorted(payloads(batches)) == list(range(200))
    assert os.getpid() not in {batch.payload["by"] for batch in batches}


def test_a_flusher_leads_when_its_worker_processes_have_started(make: Make) -> None:
    """Else the first batches of each of its partitions would wait for them."""
    with make(group_aggregator=merge, executor="process", concurrency=1) as agg:
        await_led(agg)
        assert len(multiprocessing.active_children()) == 1
    what = "the worker process has ended"
    wait_until(lambda: not multiprocessing.active_children(), timeout=10, what=what)


class SlowToLoad:
    """A merge function whose worker processes take a second to start."""

    def __init__(self) -> None:
        self.loads_in = 1.0

    def __setstate__(self, state: dict[str, float]) -> None:
        time.sleep(state["loads_in"])

    def __call__(self, group: str, tasks: list[Task]) -> Task:
        return misbehave(group, tasks)  # type: ignore[no-any-return]


def test_the_start_of_a_worker_process_is_no_part_of_a_merge(make: Make) -> None:
    """Else a busy machine would kill processes that start, again and again."""
    agg = make(
        group_aggregator=SlowToLoad(),
        executor="process",
        merge_timeout=0.6,
        max_attempts=2,
        group_max_size=1,
    )
    with agg:
        agg.add_tasks([Task("test", 0, "killed"), Task("test", 1, "fine")])
        await_batches(agg, 1, timeout=30)
        [letter] = await_dead(agg, 1, timeout=30)
    assert (letter.group_key, letter.attempts) == ("killed", 2)
    assert "ended its process" in letter.error


def test_a_worker_process_that_does_not_start_is_no_attempt(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("redisagg.flusher.merging.processes._START_TIMEOUT", 0.01)
    agg = make(group_aggregator=SlowToLoad(), executor="process", max_attempts=1, group_max_size=1)
    with agg:
        agg.add_task(Task("test", 0, "fine"))
        wait_until(
            lambda: caplog.text.count("no worker process has started") > 2,
            timeout=20,
            what="some attempts have failed",
        )
        assert agg.stats().batches_dead == 0
        monkeypatch.undo()
        await_batches(agg, 1, timeout=30)


def test_a_flusher_stops_while_its_worker_processes_start(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = threading.Event()

    async def hang(*_: Any, **__: Any) -> None:
        began.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(_Pool, "start", hang)
    agg = make(group_aggregator=merge, executor="process", shutdown_timeout=20)
    agg.start()
    assert began.wait(10)
    start = time.monotonic()
    agg.stop()
    assert time.monotonic() - start < 5


def test_ready_made_functions_merge_in_other_processes(make: Make) -> None:
    function = merges.by_type({"test": merges.latest(by="n", then=merge)}, otherwise=merges.count())
    with make(group_aggregator=function, executor="process", group_max_size=10) as agg:
        tasks = [Task("test", {"n": n % 3, "at": n}, "g") for n in range(9)]
        agg.add_tasks([*tasks, Task("other", None, "g")])
        await_batches(agg, 2, timeout=20)
    batches = enqueued(agg)
    assert [batch.type for batch in batches] == ["merged", "other:aggregated"]
    assert [each["at"] for each in batches[0].payload["payloads"]] == [6, 7, 8]
    assert batches[0].payload["by"] != os.getpid()


def test_only_the_batch_fails_whose_merge_does(make: Make) -> None:
    agg = make(
        group_aggregator=misbehave,
        executor="process",
        group_max_size=2,
        max_attempts=1,
    )
    errors = {
        "killed": "ended its process",
        "exits": "ended its process",
        "raises": "ValueError: no way",
        "junk": "returned set",
        "unpicklable": "Unpicklable",
    }
    with agg:
        for group in errors:
            agg.add_tasks([*numbered(group, 2), *numbered(f"beside {group}", 2)])
        await_batches(agg, len(errors), timeout=30)
        letters = await_dead(agg, len(errors), timeout=30)
        assert agg.wait_until_idle(5)
    assert sorted(batch.group for batch in enqueued(agg)) == sorted(f"beside {e}" for e in errors)
    found = {letter.group_key: letter.error for letter in letters}
    assert set(found) == set(errors)
    for group, error in errors.items():
        assert error in found[group]
    [raised] = [letter for letter in letters if letter.group_key == "raises"]
    assert "in misbehave" in raised.traceback


def test_a_signal_to_all_processes_of_a_group_ends_no_merge(make: Make) -> None:
    """Ctrl-C, and systemd at a stop; the flusher finishes the merges that run."""
    agg = make(group_aggregator=misbehave, executor="process", group_max_size=1, max_attempts=1)
    with agg:
        agg.add_task(Task("test", 1, "signalled"))
        await_batches(agg, 1, timeout=20)
        assert agg.stats().batches_dead == 0


def test_a_merge_that_hangs_is_killed_after_merge_timeout(make: Make, tmp_path: Path) -> None:
    agg = make(
        group_aggregator=misbehave,
        executor="process",
        group_max_size=1,
        max_attempts=1,
        merge_timeout=2.0,
    )
    began = tmp_path / "began"
    with agg:
        agg.add_task(Task("test", str(began), "hangs"))
        [letter] = await_dead(agg, timeout=20)
    assert letter.group_key == "hangs"
    assert "MergeTimeout" in letter.error


def test_leases_are_renewed_while_heavy_merges_run(make: Make) -> None:
    agg = make(
        group_aggregator=spin, executor="process", group_max_size=2, lease_time=0.5, partitions=1
    )
    with agg:
        await_led(agg)
        token = agg.stats().partitions[0].token
        agg.add_tasks(numbered("a", 8))
        await_batches(agg, 4, timeout=20)
        assert agg.stats().partitions[0].token == token
    assert payloads(enqueued(agg)) == list(range(8))


def test_a_stop_leaves_no_process_behind(make: Make, tmp_path: Path) -> None:
    agg = make(
        group_aggregator=misbehave,
        executor="process",
        group_max_size=1,
        shutdown_timeout=0.5,
    )
    agg.start()
    agg.add_task(Task("test", 0, "fine"))
    await_batches(agg, 1, timeout=20)
    [by] = [batch.payload["by"] for batch in enqueued(agg)]
    began = tmp_path / "began"
    agg.add_task(Task("test", str(began), "hangs"))
    wait_until(began.exists, timeout=10, what="the merge has begun")
    start = time.monotonic()
    agg.stop()
    assert time.monotonic() - start < 5
    wait_until(lambda: not Path(f"/proc/{by}").exists(), timeout=2, what="the worker is gone")


class LockedSink(BlockingSink):
    """Holds an object that can't be pickled once it is open, as clients do."""

    opened = 0

    def __init__(self) -> None:
        self._lock: Any = None

    async def open(self, context: SinkContext) -> None:
        await asyncio.sleep(0.05)  # other deliveries begin meanwhile, and must not open it again
        self._lock = threading.Lock()
        LockedSink.opened += 1

    def deliver_blocking(self, batch: MergedTask) -> None:
        with self._lock:
            pass


def test_an_open_sink_does_not_keep_workers_from_being_started(make: Make) -> None:
    LockedSink.opened = 0
    agg = make(
        sink=LockedSink(),
        group_aggregator=misbehave,
        executor="process",
        group_max_size=1,
        max_attempts=1,
    )
    with agg:
        agg.add_tasks(Task("test", n, f"g{n}") for n in range(10))
        assert agg.wait_until_idle(20)
        agg.add_task(Task("test", 0, "killed"))  # the pool ends all worker processes then
        await_dead(agg, 1, timeout=20)
        agg.add_tasks(Task("test", n, f"g{n}") for n in range(10))
        assert agg.wait_until_idle(20)
        assert agg.stats().flushed == 20
    assert LockedSink.opened == 1


def test_functions_that_can_not_be_imported_are_refused(make: Make) -> None:
    with pytest.raises(InvalidConfig, match="top level of a module"):
        make(executor="process", group_aggregator=lambda group, tasks: None)
    with pytest.raises(InvalidConfig, match="top level of a module"):
        make(executor="process", sink=CallableSink(lambda task, batch_id: None))


def test_an_unknown_executor_is_refused(make: Make) -> None:
    with pytest.raises(InvalidConfig):
        make(executor="magic")


def test_a_daemonic_process_is_refused_before_anything_is_written(
    make_both: Make, sync_redis: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a Celery worker's, which may have no children."""
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    agg = make_both(executor="process", group_aggregator=merge)
    for start in (agg.start, agg.run):
        with pytest.raises(InvalidConfig, match="daemonic"):
            start()
    assert not agg.is_running
    assert sync_redis.keys() == []


def test_a_worker_that_can_not_be_started_fails_the_batch(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = True
    launch = multiprocessing.popen_spawn_posix.Popen._launch  # type: ignore[attr-defined]

    def fail(self: Any, process: Any) -> None:
        if failing:
            raise OSError(24, "Too many open files")
        launch(self, process)

    monkeypatch.setattr("multiprocessing.popen_spawn_posix.Popen._launch", fail)
    agg = make(executor="process", group_aggregator=merge, group_max_size=1, max_attempts=2)
    with agg:
        agg.add_task(Task("test", 0, "a"))
        [letter] = await_dead(agg)
        assert "no worker process can be started" in letter.error
        assert "Too many open files" in letter.error
        failing = False
        agg.requeue_dead_letter(letter.batch_id)
        await_batches(agg, 1, timeout=20)


def test_a_pool_that_can_not_be_made_fails_the_batch(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("redisagg.flusher.merging.processes.ProcessPoolExecutor", fail)
    agg = make(executor="process", group_aggregator=merge, group_max_size=1, max_attempts=2)
    with agg:
        agg.add_task(Task("test", 0, "a"))
        [letter] = await_dead(agg)
        assert agg.is_running
    assert "Too many open files" in letter.error


_SCRIPT = """
import os, sys, time
from redisagg import AggregationConfig, Aggregator, Task

def merge(group, tasks):
    return Task("merged", os.getpid())

config = AggregationConfig(
    partitions=1, group_max_size=1, executor="process", group_aggregator=merge, max_attempts=1
)
agg = Aggregator("script", sys.argv[1], config=config)
"""


@pytest.mark.parametrize("call", ["agg.run()", "agg.start(); time.sleep(60)"])
def test_a_script_without_a_main_guard_gets_an_error_that_says_so(
    make: Make, redis_url: str, tmp_path: Path, call: str
) -> None:
    script = tmp_path / "flusher.py"
    script.write_text(f"{_SCRIPT}\n{call}\n")
    looking = make(name="script", partitions=1, group_max_size=1)
    with subprocess.Popen(
        [sys.executable, script, redis_url], stderr=subprocess.PIPE, text=True
    ) as flusher:
        try:
            looking.add_task(Task("test", 0, "a"))
            [letter] = await_dead(looking, timeout=30)
        finally:
            flusher.kill()
        assert flusher.stderr is not None
        stderr = flusher.stderr.read()
    assert "if __name__ == '__main__':" in letter.error
    assert "InvalidConfig" in stderr


def test_worker_processes_end_with_a_flusher_that_is_killed(
    make: Make, redis_url: str, tmp_path: Path
) -> None:
    script = tmp_path / "flusher.py"
    script.write_text(f"{_SCRIPT}\nif __name__ == '__main__':\n    agg.run()\n")
    looking = make(name="script", partitions=1, group_max_size=1)
    with subprocess.Popen([sys.executable, script, redis_url]) as flusher:
        try:
            looking.add_tasks(Task("test", n, f"g{n}") for n in range(4))
            await_batches(looking, 4, timeout=30)
        finally:
            flusher.kill()
    workers = {batch.payload for batch in enqueued(looking)}
    assert workers
    wait_until(lambda: not any(map(_lives, workers)), timeout=10, what="all workers have ended")


async def test_a_call_beside_one_that_ends_the_pool_is_not_cancelled() -> None:
    """Else its batch would be blamed for the merge of another one."""
    interval = sys.getswitchinterval()
    for _ in range(2):
        pool = _Pool(1, pickle.dumps((merge, None)))
        await pool.run(_check_worker, timeout=60)
        sys.setswitchinterval(5)  # so that the pool's thread does not see the call before the end
        try:
            beside = asyncio.ensure_future(pool.run(time.sleep, 60, timeout=60))
            await asyncio.sleep(0)
            pool.kill()
        finally:
            sys.setswitchinterval(interval)
        with pytest.raises(_PoolKilled):
            await asyncio.wait_for(beside, 30)


def _lives(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
