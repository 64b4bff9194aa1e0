"""Moving a namespace to another name or another number of partitions, while it is in use."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import redis

from redisagg import Aggregator, Task
from redisagg.errors import NamespaceInUse
from redisagg.operations.moving import Moved, Mover
from redisagg.transport.endpoint import close, endpoint_of
from redisagg.transport.threads import Transport
from tests.support.aggregators import Make, making
from tests.support.tasks import quick_config

LAYOUTS = [("tests", 5), ("tests", 2), ("other", 4), ("other", 3)]
"""From 4 partitions of the namespace ``tests``."""


@pytest.fixture
def transport(redis_url: str) -> Iterator[Transport]:
    client = endpoint_of(redis_url).answering_within(5).blocking()
    yield Transport(client, 10)
    close(client)


class Killed(Exception):
    """Stands for the death of a mover."""


def move(
    transport: Transport,
    new: str,
    partitions: int | None,
    *,
    old: str = "tests",
    die_at: int | None = None,
) -> tuple[Moved | None, int]:
    """Moves a namespace; returns what came of it, and the number of steps."""
    steps = 0

    def step(_: str) -> None:
        nonlocal steps
        steps += 1
        if steps == die_at:
            raise Killed

    mover = Mover(transport, old, new, partitions, drain=10, lifetime=0.2, on_step=step)
    if die_at is not None:
        mover._leave = lambda: None  # type: ignore[method-assign]
    while True:
        try:
            return mover.run(), steps
        except Killed:
            return None, steps
        except NamespaceInUse as error:
            if "another mover is at work" not in str(error):  # it counts as dead soon
                raise
            steps = 0
            time.sleep(0.02)


def tasks_of(agg: Aggregator) -> dict[str, list[str]]:
    """The ids of the waiting tasks by group."""
    return {
        key: [each.task.id for each in state.tasks or () if each.task]
        for key, state in agg.get_groups(tasks=True).items()
    }


def bytes_in(client: redis.Redis, name: str) -> int:
    """The bytes of all tasks, as the states count them."""
    keys = client.keys(f"redisagg:{{{name}:*}}:state")
    return sum(int(client.hget(key, "bytes") or 0) for key in keys)


@pytest.mark.parametrize(("name", "partitions"), LAYOUTS)
def test_what_waits_is_moved_as_it_is(
    make_both: Make, transport: Transport, sync_redis: redis.Redis, name: str, partitions: int
) -> None:
    agg = make_both(partitions=4, group_grace_period=3600, group_max_delay=7200)
    agg.add_tasks(Task("t", n, f"g{n % 30}", f"id{n}") for n in range(120))
    agg.add_tasks(Task("t", n, "large", f"id{n}", priority=n % 3) for n in range(1500))
    agg.add_tasks(Task("t", "x" * 100_000, "heavy", f"id{n}") for n in range(8))
    agg.pause("g7")
    before, stats = agg.get_groups(tasks=True), agg.stats()
    size = bytes_in(sync_redis, "tests")
    moved, _ = move(transport, name, partitions)
    assert moved is not None
    assert moved.layout == (name, partitions)
    wanted = make_both(name=name, partitions=partitions)
    assert wanted.get_groups(tasks=True) == before
    after = wanted.stats()
    assert (after.pending, after.groups) == (stats.pending, stats.groups)
    assert bytes_in(sync_redis, name) == size > 0
    assert len(after.partitions) == partitions
    # The ids still wait, and the producer of before follows by itself.
    agg.add_tasks(Task("t", n, f"g{n % 30}", f"id{n}") for n in range(121))
    agg.add_task(Task("t", 1, "large", "id1499"))
    assert wanted.stats().pending == stats.pending + 1
    assert tasks_of(wanted)["g0"][-1] == "id120"


class Producer:
    """Adds numbered tasks to some groups, in order, until it is stopped."""

    def __init__(self, agg: Aggregator, prefix: str) -> None:
        self.added: dict[str, int] = {}
        self._agg, self._prefix = agg, prefix
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            n = 0
            while not self._stop.is_set():
                group = f"{self._prefix}{n % 7}"
                number = self.added.get(group, 0)
                if n % 3:
                    self._agg.add_task(Task("t", number, group, f"{group}-{number}"))
                    self.added[group] = number + 1
                else:
                    some = range(number, number + 5)
                    self._agg.add_tasks(Task("t", m, group, f"{group}-{m}") for m in some)
                    self.added[group] = number + 5
                n += 1
                time.sleep(0.001)
        except BaseException as error:
            self._error = error

    def stop(self) -> dict[str, int]:
        """Ends it; returns the number of tasks by group."""
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self.added


def sometimes(group: str, tasks: list[Task]) -> Task:
    """Merges the payloads to a list; fails at some attempts."""
    if time.time_ns() // 1000 % 5 == 0:
        raise RuntimeError("fails now and then")
    return Task("merged", [task.payload for task in tasks])


def enqueued(agg: Aggregator) -> dict[str, list[int]]:
    """The payloads of all tasks that were enqueued, by group."""
    found: dict[str, list[int]] = {}
    cursor = None
    while True:
        page = agg.read_sink(cursor)
        for batch in page.batches:
            found.setdefault(batch.group, []).extend(batch.payload)
        if not page.batches:
            return found
        cursor = page.cursor


@pytest.mark.parametrize(
    ("new", "partitions", "stride"),
    [
        ("tests", 3, 5),
        ("other", 4, 7),
        pytest.param("tests", 6, 1, marks=pytest.mark.slow),
        pytest.param("other", 3, 1, marks=pytest.mark.slow),
    ],
)
def test_nothing_is_lost_doubled_or_reordered_whenever_the_mover_dies(
    transport: Transport, redis_url: str, new: str, partitions: int, stride: int
) -> None:
    with making("threads") as threads, making("asyncio") as loops:
        config = quick_config(
            partitions=4,
            group_max_size=13,
            add_timeout=30,
            group_aggregator=sometimes,
            max_attempts=50,
        )
        made = [
            maker("tests", redis_url, config=config, sink="stream://queue")
            for maker in (threads, loops, threads)
        ]
        for each in made[1:]:
            each.start()
        producers = [Producer(made[0], "a"), Producer(made[1], "b")]
        layout, target = ("tests", 4), (new, partitions)
        step, kills = 1, 0
        while True:
            old, (to, number) = layout[0], target
            done, _ = move(transport, to, number, old=old, die_at=step)
            if done is None:
                kills += 1
                done, _ = move(transport, to, number, old=old)
                assert done is not None
            else:
                step = 0
            assert done.layout == target
            layout, target = target, layout
            if not step:
                break
            step += stride
        added = {**producers[0].stop(), **producers[1].stop()}
        last = made[2]
        last.flush_all()
        assert last.wait_until_idle(20)
        found = enqueued(last)
        assert kills > 3
        assert found == {group: list(range(n)) for group, n in added.items()}
