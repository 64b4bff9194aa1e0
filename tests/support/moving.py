"""Moves of a namespace that is in use, by movers that die."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from redisagg import Aggregator, Task
from redisagg.errors import NamespaceInUse
from redisagg.operations.moving import Moved, Mover
from redisagg.transport.threads import Transport
from tests.support.aggregators import making
from tests.support.tasks import quick_config


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


class InUse(NamedTuple):
    """A namespace after its moves."""

    last: Aggregator
    """One that has added nothing, and whose flusher runs."""
    added: dict[str, int]
    """The number of tasks that were added meanwhile, by group."""
    kills: int
    """The number of movers that died."""


@contextlib.contextmanager
def moved_in_use(
    transport: Transport,
    url: str,
    sink: Any,
    layout: tuple[str, int],
    target: tuple[str, int],
    die_at: Iterable[int | None],
) -> Iterator[InUse]:
    """Moves a namespace back and forth while two producers and two flushers work.

    Args:
        layout: its name and number of partitions.
        target: those to which it is moved first.
        die_at: the steps at which movers die; another one ends the move. A mover that comes to its
            end is the last one.
    """
    with making("threads") as threads, making("asyncio") as loops:
        config = quick_config(
            partitions=layout[1],
            group_max_size=13,
            add_timeout=30,
            group_aggregator=sometimes,
            max_attempts=50,
        )
        made = [
            maker(layout[0], url, config=config, sink=sink) for maker in (threads, loops, threads)
        ]
        for each in made[1:]:
            each.start()
        producers = [Producer(made[0], "a"), Producer(made[1], "b")]
        kills = 0
        for step in die_at:
            old, (to, number) = layout[0], target
            done, _ = move(transport, to, number, old=old, die_at=step)
            died = done is None
            if died:
                kills += 1
                done, _ = move(transport, to, number, old=old)
            assert done is not None
            assert done.layout == target
            layout, target = target, layout
            if not died:
                break
        added = {**producers[0].stop(), **producers[1].stop()}
        yield InUse(made[2], added, kills)
