"""What a leader has to tell Redis about its batches, in the order in which it has to be told."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from redisagg.flusher.merging.merger import Batch, Failure


@dataclass(slots=True, eq=False)
class Failed:
    """A failed job in the queue to Redis, behind what is older in its group."""

    job: Batch
    failure: Failure
    followers: list[Batch] = field(default_factory=list)
    """Jobs behind it that have left their lane."""

    @property
    def counts(self) -> bool:
        """Whether the batch may be to blame."""
        return self.failure.pause is None

    @property
    def attempt(self) -> int:
        """Which attempt it was: of those to merge it, or of those to enqueue it."""
        merged_now = not self.job.merged and self.job.outcome and self.job.outcome.merged
        return 1 if merged_now else self.job.attempt


Item: TypeAlias = "Batch | Failed"


class CommitQueue:
    """Merged jobs on their way to a commit, and failed ones on their way back."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._filled = asyncio.Event()

    async def wait(self) -> None:
        """Waits until something new is in it."""
        await self._filled.wait()
        self._filled.clear()

    def put(self, item: Item) -> None:
        """Puts something behind all the rest."""
        self._items.append(item)
        self._filled.set()

    def put_first(self, jobs: list[Batch]) -> None:
        """Puts jobs, the oldest first, before all the rest."""
        self._items.extendleft(reversed(jobs))

    @property
    def head(self) -> Item | None:
        """What comes next, if anything."""
        return self._items[0] if self._items else None

    def remove(self, item: Item) -> None:
        """Takes something out, wherever it is."""
        self._items.remove(item)

    def take_out(self, job: Batch, failure: Failure) -> Failed:
        """Takes a job that failed out, and all behind it in its group."""
        mine = [each for each in self._items if isinstance(each, Batch) and each.group == job.group]
        behind = mine[mine.index(job) + 1 :]
        taken = {id(each) for each in (job, *behind)}
        self._items = deque(each for each in self._items if id(each) not in taken)
        return Failed(job, failure, behind)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)
