"""Batched functions: calls for single items that share calls of a function of lists."""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from redisagg import AggregationConfig, App, RetryAfter, Settings
from redisagg.app.batched import Batched, Lanes
from redisagg.errors import InvalidConfig, PayloadError, ResultTimeout, TaskFailed
from redisagg.protocol.keys import Keyspace
from tests.support.cli import Spawn
from tests.support.servers import wait_until

QUICK = AggregationConfig(lease_time=2, retry_delay=0.02, retry_max_delay=0.1, shutdown_timeout=5)


@pytest.fixture
def app(redis_url: str) -> Iterator[App]:
    """An app; closed at the end."""
    app = App(redis_url, settings=Settings(config=QUICK))
    yield app
    app.close()


def double(items: list[int]) -> list[int]:
    return [2 * item for item in items]


def double_by_item(items: list[int]) -> dict[int, int]:
    return {item: 2 * item for item in set(items)}


async def double_later(items: list[int]) -> list[int]:
    await asyncio.sleep(0)
    return double(items)


async def double_by_item_later(items: list[int]) -> dict[int, int]:
    await asyncio.sleep(0)
    return double_by_item(items)


def double_by_coroutine(items: list[int]) -> Any:
    return double_later(items)


def in_loop(app: App, main: Callable[[], Any]) -> Any:
    """Awaits something on an event loop of its own."""

    async def run() -> Any:
        try:
            return await main()
        finally:
            await app.aclose()

    return asyncio.run(run())


FUNCTIONS: list[Callable[[list[int]], Any]] = [
    *(double, double_by_item, double_later, double_by_item_later, double_by_coroutine),
]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_each_call_gets_the_value_of_its_item(
    app: App, function: Callable[[list[int]], Any]
) -> None:
    batched: Batched[int, int] = app.batched()(function)

    async def call_all() -> list[int]:
        return await asyncio.gather(*(batched(n % 50) for n in range(300)))

    with app:
        assert in_loop(app, call_all) == [2 * (n % 50) for n in range(300)]
        assert batched.call(21) == 42
        assert batched.call_many(range(100)) == list(range(0, 200, 2))
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(batched.call, range(64))) == list(range(0, 128, 2))
    assert batched.function is function
    assert batched.aggregator.stats().batches_dead == 0


def test_calls_share_batches_within_both_limits(app: App) -> None:
    sizes: list[list[int]] = []

    @app.batched(max_size=10, max_weight=100, weight=lambda item: item, grace=1)
    def echo(items: list[int]) -> list[int]:
        sizes.append(items)
        return items

    with app:
        assert echo.call_many([5] * 25) == [5] * 25
        assert sorted(map(len, sizes)) == [5, 10, 10]
        sizes.clear()
        assert echo.call_many([40, 40, 40, 40, 150, 1]) == [40, 40, 40, 40, 150, 1]
        assert sorted(sizes) == [[1], [40, 40], [40, 40], [150]]  # merged by several threads


def test_a_call_alone_waits_for_the_grace_only(app: App) -> None:
    @app.batched(grace=0.4)
    def echo(items: list[int]) -> list[int]:
        return items

    with app:
        echo.call(0)  # subscribes, and waits until somebody leads
        began = time.monotonic()
        assert echo.call(1) == 1
        assert 0.35 < time.monotonic() - began < 2


# --- failures ------------------------------------------------------------------------------------


def test_an_exception_fails_all_calls_of_a_batch(app: App) -> None:
    calls: list[list[str]] = []

    @app.batched(grace=0.2)
    def embed(items: list[str]) -> list[str]:
        calls.append(items)
        raise OSError(f"no model for {len(items)}")

    async def call_all() -> list[Any]:
        return await asyncio.gather(*(embed(str(n)) for n in range(3)), return_exceptions=True)

    with app:
        errors = in_loop(app, call_all)
        assert [type(error) for error in errors] == [TaskFailed] * 3
        assert {error.reason for error in errors} == {"OSError: no model for 3"}
        with pytest.raises(TaskFailed, match="no model for 1"):
            embed.call("x")
    assert len(calls) == 2  # nothing is tried again, or becomes a dead letter
    assert embed.aggregator.stats().batches_dead == 0


def test_an_exception_as_a_value_fails_one_call(app: App) -> None:
    @app.batched(grace=0.2)
    def parse(items: list[str]) -> list[int | Exception]:
        return [int(item) if item.isdigit() else ValueError(item) for item in items]

    async def call_all() -> list[Any]:
        return await asyncio.gather(*map(parse, ["1", "two", "3"]), return_exceptions=True)

    with app:
        one, error, three = in_loop(app, call_all)
    assert (one, three) == (1, 3)
    assert isinstance(error, TaskFailed)
    assert error.reason == "ValueError: two"


@pytest.mark.parametrize(
    ("returned", "why"),
    [
        ([1], "1 values for 2 items"),
        ([1, 2, 3], "3 values for 2 items"),
        (None, "not NoneType"),
        ("ab", "not str"),
        (b"ab", "not bytes"),
        ({1: 1}, "a mapping without this item"),
    ],
)
def test_what_a_function_must_not_return(app: App, returned: Any, why: str) -> None:
    @app.batched(grace=0.2)
    def wrong(items: list[int]) -> Any:
        return returned

    async def call_all() -> list[Any]:
        return await asyncio.gather(*(wrong(n) for n in (1, 2)), return_exceptions=True)

    with app:
        *_, error = in_loop(app, call_all)
    assert isinstance(error, TaskFailed)
    assert why in error.reason


def test_a_value_without_a_form_fails_its_batch(app: App) -> None:
    @app.batched()
    def wrong(items: list[int]) -> list[Any]:
        return [object() for _ in items]

    with app, pytest.raises(TaskFailed, match="PayloadError"):
        wrong.call(1)
    with pytest.raises(PayloadError):
        wrong.call(object())  # type: ignore[arg-type]


def test_retry_after_has_the_batch_tried_again(app: App) -> None:
    tries: list[int] = []

    @app.batched()
    def busy(items: list[int]) -> list[int]:
        tries.append(len(items))
        if len(tries) < 3:
            raise RetryAfter(0.05)
        return items

    with app:
        assert busy.call(7) == 7
    assert len(tries) == 3


def test_a_function_that_takes_too_long_fails_its_calls(app: App) -> None:
    end = threading.Event()

    @app.batched(merge_timeout=0.2)
    def slow(items: list[int]) -> list[int]:
        end.wait(20)
        return items

    with app, pytest.raises(TaskFailed, match="merge_timeout") as raised:
        slow.call(1)
    end.set()
    assert raised.value.dead_letter
    assert slow.aggregator.stats().batches_dead == 1


def test_a_call_without_a_worker_times_out(app: App) -> None:
    @app.batched(timeout=0.2)
    def echo(items: list[int]) -> list[int]:
        return items

    with pytest.raises(ResultTimeout):
        echo.call(1)
    with pytest.raises(TimeoutError):
        echo.call_many([1, 2])
    with pytest.raises(ResultTimeout):
        in_loop(app, lambda: echo(1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_size": 0},
        {"max_weight": 10},
        {"weight": len},
        {"grace": -1},
        {"timeout": 0},
        {"spread": 0},
        {"spread": 17},
        {"partitions": 4, "spread": 5},
        {"name": "a b"},
        {"unknown": 1},
    ],
)
def test_wrong_arguments(app: App, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig):
        app.batched(**wrong)(double)


def test_what_is_no_function_is_refused(app: App) -> None:
    with pytest.raises(InvalidConfig):
        app.batched()(3)  # type: ignore[arg-type]


# --- groups --------------------------------------------------------------------------------------


def test_lanes_are_the_same_in_all_processes_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr("redisagg.app.batched.time.time", lambda: now)
    one, other = (Lanes("n", 16, 16, 64, 0.005) for _ in range(2))
    used = []
    for _ in range(32):
        used.append(one.next())
        assert other.next() == used[-1] == one.next()
        now += 0.0051
    keyspace = Keyspace("n", 16)
    places = {keyspace.partition_of(group.encode()).number for group in used}
    assert len(places) == len(set(used)) == 16


def test_a_lane_that_has_filled_a_batch_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redisagg.app.batched.time.time", lambda: 1_000.0)
    lanes = Lanes("n", 16, 4, 3, 0.005)
    used = [lanes.next() for _ in range(12)]
    assert [len(set(used[start : start + 3])) for start in range(0, 12, 3)] == [1] * 4
    assert len(set(used)) == 4


def test_spread_calls_are_answered(app: App) -> None:
    groups = set()

    @app.batched(max_size=4, spread=8)
    def echo(items: list[int]) -> list[int]:
        return items

    submit = echo.aggregator.asyncio.submit

    async def noting(task: Any) -> Any:
        groups.add(task.group_key)
        return await submit(task)

    echo.aggregator.asyncio.submit = noting  # type: ignore[method-assign]

    async def call_all() -> list[int]:
        return await asyncio.gather(*map(echo, range(500)))

    with app:
        assert in_loop(app, call_all) == list(range(500))
    assert len(groups) == 8


# --- in other processes --------------------------------------------------------------------------

MODEL = """
import asyncio, os, time
from redisagg import AggregationConfig, App, Settings

config = AggregationConfig(lease_time=2, retry_delay=0.02, shutdown_timeout=5)
app = App(os.environ["REDISAGG_URL"], settings=Settings(config=config))

@app.batched(max_size=32, grace=0.1, executor=os.environ.get("EXECUTOR", "thread"))
def embed(items: list[str]) -> list[list]:
    time.sleep(float(os.environ.get("SLOW", 0)))
    return [[item, os.getpid(), len(items)] for item in items]

def called(item):
    return embed.call(item)
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_url: str) -> Iterator[Path]:
    """The folder of a module `model_of_test`, which can be imported."""
    (tmp_path / "model_of_test.py").write_text(MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("REDISAGG_URL", redis_url)
    yield tmp_path
    if "model_of_test" in sys.modules:
        sys.modules.pop("model_of_test").app.close()


def imported() -> Any:
    import model_of_test  # type: ignore[import-not-found]

    return model_of_test.embed


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_processes_share_the_batches_of_a_worker(
    spawn: Spawn, model: Path, monkeypatch: pytest.MonkeyPatch, executor: str
) -> None:
    monkeypatch.setenv("EXECUTOR", executor)
    worker = spawn("worker", "model_of_test:app", cwd=model)
    embed = imported()
    embed.call("until it runs")
    code = (
        "import model_of_test as m, sys; from concurrent.futures import ThreadPoolExecutor as T;"
        "print('ready', flush=True); sys.stdin.readline();"
        "print(len(list(T(8).map(m.embed.call, map(str, range(8))))), flush=True)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=model,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "ready\n"
        most = 0
        other.stdin.write("go\n")
        other.stdin.flush()
        while other.poll() is None:
            item, pid, size = embed.call("mine")
            assert item == "mine"
            assert (pid == worker.pid) is (executor == "thread")
            most = max(most, size)
        assert other.stdout.readline() == "8\n"
        assert most > 1  # with calls of the other process
    finally:
        other.kill()
        other.wait()
    assert pickle.loads(pickle.dumps(embed)) is embed


def test_a_worker_that_is_killed_fails_no_call(
    spawn: Spawn, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLOW", "0.3")
    workers = [spawn("worker", "model_of_test:app", cwd=model) for _ in range(2)]
    embed = imported()
    wait_until(
        lambda: len(embed.aggregator.stats().flushers) == 2, timeout=30, what="both have joined"
    )
    by_pid = {each.pid: each for each in workers}
    _, leading, _ = embed.call("who")
    results: list[Any] = []
    calling = threading.Thread(target=lambda: results.extend(embed.call_many(map(str, range(96)))))
    calling.start()
    wait_until(lambda: embed.aggregator.stats().in_flight, what="a batch is merged")
    by_pid[leading].kill()
    calling.join(30)
    assert [item for item, *_ in results] == [str(n) for n in range(96)]
    assert {pid for _, pid, _ in results} - {leading}


def test_a_forked_child_calls_beside_its_parent(spawn: Spawn, model: Path) -> None:
    spawn("worker", "model_of_test:app", cwd=model)
    code = """
import asyncio, os
from model_of_test import app, embed
async def call_all(name):
    got = await asyncio.gather(*(embed(f"{name}{n}") for n in range(20)))
    assert [item for item, *_ in got] == [f"{name}{n}" for n in range(20)]
    await app.aclose()
assert embed.call("before")[0] == "before"
asyncio.run(call_all("before"))
child = os.fork()
name = "parent" if child else "child"
for n in range(5):
    assert embed.call(f"{name}{n}")[0] == f"{name}{n}"
asyncio.run(call_all(name))
if not child:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
app.close()
"""
    env = {**os.environ, "PYTHONWARNINGS": "ignore::DeprecationWarning"}
    done = subprocess.run([sys.executable, "-c", code], cwd=model, env=env, timeout=60, check=False)
    assert done.returncode == 0
