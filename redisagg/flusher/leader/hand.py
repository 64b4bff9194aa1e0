"""What a leader has in hand: claimed batches that are neither committed nor given back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from redisagg.flusher.merging.merger import Batch


class Hand:
    """The jobs that a leader has in hand.

    Args:
        room: set whenever there may be room for more.
    """

    def __init__(self, room: asyncio.Event) -> None:
        self.jobs: dict[bytes, Batch] = {}
        """By batch id."""
        self.empty = asyncio.Event()
        """Set while nothing is in hand."""
        self.empty.set()
        self._room = room

    def take(self, job: Batch) -> None:
        """A batch has been claimed."""
        self.jobs[job.batch_id] = job
        self.empty.clear()

    def forget(self, jobs: Iterable[Batch]) -> None:
        """Batches have left: Redis has been told."""
        for job in jobs:
            self.jobs.pop(job.batch_id, None)
        if not self.jobs:
            self.empty.set()
        self._room.set()

    def abandon(self) -> None:
        """Nobody waits for anything in it any more."""
        for job in self.jobs.values():
            job.abandoned = True

    def __contains__(self, batch_id: bytes) -> bool:
        return batch_id in self.jobs

    def __len__(self) -> int:
        return len(self.jobs)
