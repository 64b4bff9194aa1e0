"""Somebody who operates the namespace during a run: cancels, flushes, pauses, looks after the dead.

Its calls go to Redis directly, so only faults of the servers disturb them.
"""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from random import Random
from typing import Any

from redisagg import Aggregator, DeadLetter, RedisAggError
from redisagg.operations.moving import Mover
from tests.faults.faulty import cure
from tests.faults.history import Journal, OperatorLog
from tests.faults.workload import CONFIG, LIMITS, NAME, REVOKED, class_of

JOURNAL = "operator.journal"

_BETWEEN = (0.1, 0.6)
"""Shortest and longest time between two actions, seconds."""

_PAUSE = (0.5, 2.0)
"""Shortest and longest pause, seconds."""

_PAUSE_EVERY = 20.0
"""Seconds from one pause of all groups to the next; while it lasts nothing can be late."""

_MOVE_EVERY = 6.0
"""Seconds from the end of one move of the namespace to the next."""

_MOVE_WITHIN = 60.0
"""Seconds after which a move that does not succeed is an error."""

_DEADLY = 0.5
"""The share of movers that die at one of their first steps."""

_FIRST_STEPS = 40

_CANCELLED = ("quiet", "bulky", "single")
"""The classes of groups whose tasks are cancelled one by one; no producer offers these again."""

_TASKS_READ = 20


class Operator:
    """Operates in a thread of this process until `stop`.

    Args:
        aggregator: of the namespace; is not closed.
        folder: where the journal is written.
        seed: of all random choices.
        moves: whether the namespace gets other numbers of partitions, by movers that may die.
    """

    def __init__(
        self, aggregator: Aggregator, folder: Path, seed: int, *, moves: bool = False
    ) -> None:
        self._moves = moves
        self._partitions: int = CONFIG["partitions"]
        self._moved_at = time.monotonic()
        self._aggregator = aggregator
        self._folder = folder
        self._rng = Random(f"{seed}/operator")
        self._journal = Journal(folder / JOURNAL)
        self._log = OperatorLog(self._journal)
        self._stopping = threading.Event()
        self._paused_at = time.monotonic()
        self._paused: dict[str, float] = {}
        """The groups that are paused alone, and until when."""
        self._were_paused: set[str] = set()
        """All groups that were paused alone; the empty text if all were paused together."""
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="operator")
        self._thread.start()

    def stop(self) -> None:
        """Ends its work, resumes what is paused, and returns."""
        self._stopping.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        actions = {
            self._cancel_task: 6,
            self._cancel_group: 2,
            self._flush: 3,
            self._flush_all: 1,
            self._pause: 1,
            self._pause_group: 7,
            self._look_after_the_dead: 3,
            self._count: 6,
        }
        try:
            while not self._stopping.wait(self._rng.uniform(*_BETWEEN)):
                [action] = self._rng.choices(list(actions), list(actions.values()))
                with contextlib.suppress(RedisAggError):  # the journal has it
                    action()
                self._resume_groups(time.monotonic())
                if self._moves and time.monotonic() > self._moved_at + _MOVE_EVERY:
                    self._repartition(self._rng.randint(1, CONFIG["partitions"] - 1))
            # All of them, since a failover may have lost what a call had done.
            for group in sorted(self._were_paused):
                self._resume(group)
            self._repartition(CONFIG["partitions"])
        except BaseException as error:  # is raised by `stop`
            self._error = error

    def _cancel_task(self) -> None:
        group = self._rng.choice([each for each in LIMITS if class_of(each) in _CANCELLED])
        state = self._aggregator.get_group(group, limit=_TASKS_READ)
        ids = [each.task.id for each in (state.tasks if state else None) or () if each.task]
        if ids:
            target = self._rng.choice(ids)
            self._log.call(self._aggregator.cancel_task, group=group, target=target)

    def _cancel_group(self) -> None:
        self._log.call(self._aggregator.cancel_group, group=self._rng.choice(REVOKED))

    def _repartition(self, partitions: int) -> None:
        """Gives the namespace another number of partitions, never more than it had first.

        So the queues on a cluster are some of those that it had first.
        """
        if partitions == self._partitions:
            return
        began, movers = time.time(), 0
        deadline = time.monotonic() + _MOVE_WITHIN
        while True:
            movers += 1
            die_at = self._rng.randint(1, _FIRST_STEPS) if self._rng.random() < _DEADLY else 0
            try:
                _move(self._aggregator, partitions, die_at)
                break
            except (_Died, RedisAggError) as error:  # the next one takes over
                if "partitions already" in str(error):
                    break
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        self._partitions, self._moved_at = partitions, time.monotonic()
        self._journal.write("moved", began, time.time(), partitions, movers)

    def _flush(self) -> None:
        self._log.call(self._aggregator.flush, group=self._rng.choice(list(LIMITS)))

    def _flush_all(self) -> None:
        self._log.call(self._aggregator.flush_all)

    def _pause(self) -> None:
        if time.monotonic() < self._paused_at + _PAUSE_EVERY:
            return
        self._were_paused.add("")
        try:
            self._log.call(self._aggregator.pause)
            self._stopping.wait(self._rng.uniform(*_PAUSE))
        finally:
            self._resume()
            self._paused_at = time.monotonic()

    def _resume(self, group: str = "") -> None:
        while True:
            try:
                self._log.call(self._aggregator.resume, group=group)
                return
            except RedisAggError:
                time.sleep(0.1)

    def _pause_group(self) -> None:
        group = self._rng.choice([each for each in LIMITS if each not in self._paused])
        # Also if the call raises, since it may have been carried out.
        self._were_paused.add(group)
        self._paused[group] = time.monotonic() + self._rng.uniform(*_PAUSE)
        self._log.call(self._aggregator.pause, group=group)

    def _resume_groups(self, now: float) -> None:
        for group in [each for each, until in self._paused.items() if until <= now]:
            del self._paused[group]
            self._resume(group)

    def _look_after_the_dead(self) -> None:
        letters = self._aggregator.dead_letters(tasks=True)
        if not letters:
            return
        letter = self._rng.choice(letters)
        names = task_names(letter)
        drop = self._rng.random() < 0.5
        if not drop:
            for name in names:
                cure(self._folder, name)
        method = "drop_dead_letter" if drop else "requeue_dead_letter"
        self._log.call(
            getattr(self._aggregator, method),
            group=letter.group_key,
            target=letter.batch_id,
            tasks=names,
        )

    def _count(self) -> None:
        stats = self._aggregator.stats()
        self._journal.write("pending", time.time(), stats.pending + stats.in_flight)


class _Died(Exception):
    """Stands for the death of a mover."""


def _move(aggregator: Aggregator, partitions: int, die_at: int) -> None:
    """Moves the namespace; dies at a step, or lives if that is 0."""
    steps = 0

    def step(_: str) -> None:
        nonlocal steps
        steps += 1
        if steps == die_at:
            mover._leave = lambda: None  # type: ignore[method-assign]
            raise _Died

    options: dict[str, Any] = {
        "drain": 5,
        "lifetime": 1,
        "min_replicas": aggregator.config.min_replicas,
    }
    mover = Mover(aggregator._transport, NAME, NAME, partitions, on_step=step, **options)
    mover.run()


def task_names(letter: DeadLetter) -> list[str]:
    """The names of the tasks of a dead letter; the bytes of one that can't be decoded."""
    return [each.task.id if each.task else str(each.raw) for each in letter.tasks or ()]
