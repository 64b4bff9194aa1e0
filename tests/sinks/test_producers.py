"""Producers in Go and Node, written by the contract in lua/README.md, feed a Python flusher."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from redisagg import Aggregator, BatchInfo, Policy, Results, Task
from redisagg.protocol.includes import expand_folder
from redisagg.sinks import EnqueuedBatch
from redisagg.testing.embedded import HOST, EmbeddedRedis
from tests.support.tasks import await_batches, await_led, enqueued, quick_config
from tests.support.toolchains import build_go, install_node

HERE = Path(__file__).parent
LUA = HERE.parents[1] / "lua"

LIMITS = "weight=2 due_at=4102444800000 not_before=1 flush=0 replace=0"
"""Named limits of each task that make no group due."""


class Produce(Protocol):
    """Runs a producer that adds tasks to ten groups in turn; returns the number of new ones."""

    def __call__(self, count: int, limits: str = ...) -> int: ...


@pytest.fixture(scope="session")
def go_producer() -> list[str]:
    """The command line of the producer in Go."""
    return [str(build_go(HERE / "producer_go"))]


@pytest.fixture(scope="session")
def node_producer() -> list[str]:
    """The command line of the producer in Node."""
    folder = install_node(HERE / "producer_node")
    return ["node", str(folder / "producer.js")]


def run(command: list[str], address: str, scripts: Path, count: int, limits: str) -> int:
    result = subprocess.run(
        [*command, address, "tests", str(scripts), str(count), limits],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    return int(result.stdout)


@pytest.fixture(params=["go", "node"])
def language(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def produce(
    language: str,
    request: pytest.FixtureRequest,
    redis_server: EmbeddedRedis,
    redis_url: str,
    tmp_path: Path,
) -> Produce:
    """The producer of a language, which loads the expanded scripts."""
    expand_folder(LUA, tmp_path)
    command: list[str] = request.getfixturevalue(f"{language}_producer")
    address = f"{HOST}:{redis_server.port}" if language == "go" else redis_url

    def produce(count: int, limits: str = LIMITS) -> int:
        return run(command, address, tmp_path, count, limits)

    return produce


def merge(group: str, tasks: list[Task]) -> Task:
    """Keeps all there is to see of the tasks."""
    return Task("merged", [[t.type, t.id, t.payload, dict(t.headers)] for t in tasks])


@pytest.fixture
def agg(redis_url: str) -> Iterator[Aggregator]:
    config = quick_config(group_aggregator=merge, partitions=16)
    with contextlib.closing(Aggregator("tests", redis_url, config=config)) as agg:
        yield agg


def by_group(batches: list[EnqueuedBatch]) -> dict[str, Any]:
    """The tasks of each group in the order in which they were enqueued."""
    found: dict[str, Any] = {}
    for batch in batches:
        found.setdefault(batch.group, []).extend(batch.payload)
    return found


def expected(language: str, count: int) -> dict[str, Any]:
    """What `by_group` has to find."""
    tasks = [
        [f"from-{language}", f"{language}-{n}", {"n": n}, {"by": language}] for n in range(count)
    ]
    return {f"g{n}": tasks[n::10] for n in range(10)}


@pytest.mark.registry
def test_a_flusher_merges_what_another_language_added(
    language: str, produce: Produce, agg: Aggregator
) -> None:
    assert produce(100) == 100
    assert produce(150) == 50  # ids that wait already change nothing
    assert agg.stats().pending == 150
    agg.start()
    agg.flush_all()
    assert agg.wait_until_idle(10)
    assert by_group(enqueued(agg)) == expected(language, 150)


@pytest.mark.registry
def test_a_flusher_is_woken_by_what_another_language_added(
    language: str, produce: Produce, agg: Aggregator
) -> None:
    """Ten groups become full by the limits that the producer gave."""
    agg.start()
    assert produce(205) == 205
    await_batches(agg, 10, timeout=5)
    batches = enqueued(agg)
    assert [batch.count for batch in batches] == [20] * 10
    assert by_group(batches) == expected(language, 200)
    assert agg.stats().pending == 5


@pytest.mark.registry
@pytest.mark.parametrize("language", ["node"])
def test_policies_count_for_another_language(produce: Produce, agg: Aggregator) -> None:
    agg.set_policy("g*", Policy(max_size=7, grace_period=9.5, max_bytes=10**6))
    agg.set_policy("g*1", Policy(max_size=3))
    agg.set_policy("g2", Policy(min_interval=60, max_weight=8))
    agg.set_policy("*2", Policy(min_interval=70, leading=True, priority=4))
    with agg:
        assert produce(100) == 100
        await_batches(agg, 8 + 3 + 1, timeout=5)
        counts = {name: state.size for name, state in agg.get_groups().items()}
    # The weight of each task is 2: four in a batch, and no other one within the minute.
    assert counts == {**{f"g{n}": 3 for n in range(10)}, "g1": 1, "g2": 6}
    assert agg.get_groups()["g2"].priority == 4


@pytest.mark.registry
@pytest.mark.parametrize("language", ["go"])
def test_who_does_not_read_policies_is_refused(produce: Produce, agg: Aggregator) -> None:
    agg.set_policy("x", Policy(max_size=7))
    with pytest.raises(subprocess.CalledProcessError):
        produce(1)
    assert agg.stats().pending == 0


@pytest.mark.registry
def test_limits_that_another_language_named(produce: Produce, redis_url: str) -> None:
    told: list[tuple[str, int, int]] = []

    def tell(group: str, tasks: list[Task], info: BatchInfo) -> None:
        told.append((info.reason, info.weight, len(tasks)))

    config = quick_config(group_aggregator=tell, partitions=16)
    with contextlib.closing(Aggregator("tests", redis_url, config=config)) as agg:
        assert produce(10, "weight=5 due_at=1 not_before=4102444800000") == 10
        assert {group.due_at for group in agg.get_entries().values()} == {4102444800}
        assert produce(10, "weight=7 due_at=1 replace=1") == 0  # each replaces one
        agg.start()
        assert agg.wait_until_idle(10)
        assert told == [("due_at", 7, 1)] * 10
        told.clear()
        assert produce(10, "flush=1") == 10
        assert agg.wait_until_idle(10)
        assert told == [("flush", 1, 1)] * 10


@pytest.mark.registry
@pytest.mark.parametrize("size", [10, 3_000], ids=["announced", "too long for a message"])
def test_a_result_reaches_another_language(
    language: str,
    size: int,
    request: pytest.FixtureRequest,
    redis_server: EmbeddedRedis,
    redis_url: str,
    tmp_path: Path,
) -> None:
    expand_folder(LUA, tmp_path)
    command: list[str] = request.getfixturevalue(f"{language}_producer")
    if language == "go":
        address, mode = f"{HOST}:{redis_server.port}", ["submit"]
    else:
        address, mode, command = (
            redis_url,
            [],
            [*command[:-1], str(Path(command[-1]).parent / "submit.js")],
        )

    def answer(group: str, tasks: list[Task]) -> Results:
        return Results({task.id: [task.payload["n"], "x" * size] for task in tasks})

    config = quick_config(group_aggregator=answer, partitions=16)
    with Aggregator("tests", redis_url, config=config) as agg:
        await_led(agg)  # all partitions are registered
        line = [*command, address, "tests", str(tmp_path), *mode, "grüße", "t:1"]
        told = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stderr
    state, batch_id, value = json.loads(told.stdout)
    assert (state, value) == ("result", [1, "x" * size])
    assert batch_id


@pytest.mark.parametrize(
    "source",
    [
        "producer_go/main.go",
        "producer_go/submit.go",
        "producer_node/producer.js",
        "producer_node/submit.js",
    ],
)
def test_a_producer_is_a_page_of_code(source: str) -> None:
    assert len((HERE / source).read_text().splitlines()) <= 70
