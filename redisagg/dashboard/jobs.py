"""Actions on many dead letters: they run on while their page shows the progress."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from redisagg.dashboard.sources import Place
from redisagg.errors import RedisAggError, RedisUnavailable, UnknownBatch

_AT_ONCE = 32
"""Calls that are under way at a time."""

_KEPT = 50
"""Jobs that are kept after their end."""

_MOST_ERRORS = 20


@dataclass
class Job:
    """An action on many dead letters."""

    id: str
    place: Place
    action: str
    """Its name, such as ``"requeue"``."""
    user: str
    total: int | None = None
    """Number of dead letters; None while they are being looked for."""
    done: int = 0
    """Those that the action was applied to."""
    gone: int = 0
    """Those that somebody else has requeued or dropped meanwhile."""
    failed: int = 0
    tasks: int = 0
    """Tasks of those that are done."""
    errors: list[str] = field(default_factory=list)
    """The first errors, without repetition."""
    state: Literal["running", "done", "stopped", "failed"] = "running"
    started_at: float = field(default_factory=time.time)
    ended_at: float | None = None
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def handled(self) -> int:
        """Number of dead letters that are finished in any way."""
        return self.done + self.gone + self.failed

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return (self.ended_at or time.time()) - self.started_at

    @property
    def summary(self) -> str:
        """What it did, for the audit log."""
        text = f"{self.done} dead letters with {self.tasks} tasks"
        if self.gone:
            text += f", {self.gone} were gone"
        if self.failed:
            text += f", {self.failed} failed: {self.errors[0] if self.errors else ''}"
        return text if self.state == "done" else f"{self.state}: {text}"


class Jobs:
    """The jobs of this process."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}

    def get(self, job_id: str) -> Job | None:
        """Returns a job by its id."""
        return self._jobs.get(job_id)

    def of(self, place: Place) -> list[Job]:
        """Returns the jobs of a namespace, newest first."""
        return [each for each in reversed(self._jobs.values()) if each.place == place]

    def start(
        self,
        place: Place,
        action: str,
        user: str,
        find: Callable[[], Awaitable[Sequence[str]]],
        apply: Callable[[str], Awaitable[int]],
        end: Callable[[Job], Awaitable[None]],
    ) -> Job:
        """Starts a job.

        Args:
            place: the namespace.
            action: the name of the action.
            user: who started it.
            find: finds the ids.
            apply: applies the action to one, and returns the number of its tasks.
            end: is called at the end.
        """
        job = Job(secrets.token_urlsafe(12), place, action, user)
        self._jobs[job.id] = job
        ended = [each for each in self._jobs.values() if each.ended_at is not None]
        for each in ended[:-_KEPT]:
            del self._jobs[each.id]
        job.task = asyncio.create_task(_run(job, find, apply, end))
        return job

    async def close(self) -> None:
        """Stops all jobs."""
        for job in self._jobs.values():
            if job.task is not None and not job.task.done():
                job.state = "stopped"
                job.task.cancel()
                with suppress(asyncio.CancelledError):
                    await job.task


async def _run(
    job: Job,
    find: Callable[[], Awaitable[Sequence[str]]],
    apply: Callable[[str], Awaitable[int]],
    end: Callable[[Job], Awaitable[None]],
) -> None:
    try:
        ids = await find()
        job.total = len(ids)
        left = iter(ids)
        await asyncio.gather(*(_work(job, left, apply) for _ in range(_AT_ONCE)))
        if job.state == "running":
            job.state = "done"
    except RedisAggError as error:
        job.state = "failed"
        job.errors.append(str(error))
    finally:
        job.ended_at = time.time()
        await end(job)


async def _work(job: Job, left: Iterator[str], apply: Callable[[str], Awaitable[int]]) -> None:
    for batch_id in left:
        if job.state != "running":
            return
        try:
            tasks = await apply(batch_id)  # `+=` would add to the sum of before
        except UnknownBatch:
            job.gone += 1
        except RedisUnavailable as error:
            if job.state == "running":
                job.state = "failed"
                job.errors.append(str(error))
            job.failed += 1
            return
        except RedisAggError as error:
            job.failed += 1
            text = str(error)
            if text not in job.errors and len(job.errors) < _MOST_ERRORS:
                job.errors.append(text)
        else:
            job.done += 1
            job.tasks += tasks
