"""The order of a group's batches between the claim and the queue to Redis."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from redisagg.flusher.leader.deliverer import Deliverer
from redisagg.flusher.leader.hand import Hand
from redisagg.flusher.leader.queue import CommitQueue, Failed
from redisagg.flusher.merging.merger import Batch, Failure


class Lanes:
    """A lane for each group: its batches in hand, in order, until they go into the queue.

    A group is blocked from the moment one of its jobs has failed until Redis has heard of that:
    what is behind the failed one must not overtake it.
    """

    def __init__(self, hand: Hand, queue: CommitQueue, deliverer: Deliverer) -> None:
        self._hand = hand
        self._queue = queue
        self._deliverer = deliverer
        self._lanes: dict[bytes, deque[Batch]] = {}
        self._blocked: set[bytes] = set()
        self._unsettled: dict[bytes, Failed] = {}
        """By group, failed jobs behind which merges are under way."""

    def join(self, job: Batch) -> None:
        """A batch has been claimed: it goes to the end of its group's lane."""
        self._lanes.setdefault(job.group, deque()).append(job)

    def merged(self, job: Batch) -> None:
        """A job has an outcome."""
        if failed := self._unsettled.pop(job.group, None):
            self._queue.put(failed)
        elif job.batch_id in self._hand:
            self.advance(job.group)

    def advance(self, group: bytes) -> None:
        """Sends on what is merged at the front of a group's lane."""
        if group in self._blocked:
            return
        lane = self._lanes.get(group)
        while lane and (outcome := lane[0].outcome) and not lane[0].delivering:
            job = lane[0]
            if outcome.failure is not None:
                self.fail(job, outcome.failure)
                return
            if outcome.deliveries:  # the lane goes on when it has been delivered
                self._deliverer.start(job, outcome, self.advance)
                return
            lane.popleft()
            self._queue.put(job)
        if not lane:
            self._lanes.pop(group, None)

    def fail(self, job: Batch, failure: Failure) -> None:
        """Puts the job at the front of its lane, which has failed, into the queue."""
        self._lanes[job.group].popleft()
        self.block(job.group)
        self._queue.put(Failed(job, failure))

    def block(self, group: bytes) -> None:
        """Nothing of this group goes on."""
        self._blocked.add(group)

    def unblock(self, group: bytes) -> None:
        """Redis has heard of the job that failed."""
        self._blocked.discard(group)
        self.advance(group)

    def postpone(self, failed: Failed) -> bool:
        """Puts a failed job off if merges are under way behind it; returns whether there are.

        It comes into the queue once more when the next of them has ended: what is being merged is
        not merged a second time, its outcome goes back with the failed job. What has not begun is
        given up.
        """
        lane = self._lanes.get(failed.job.group, ())
        under_way = [job for job in lane if not job.give_up() and job.outcome is None]
        if under_way:
            self._unsettled[failed.job.group] = failed
        return bool(under_way)

    def has_unsettled(self, group: bytes) -> bool:
        """Whether a failed job of this group waits for merges behind it."""
        return group in self._unsettled

    def close(self, group: bytes) -> list[Batch]:
        """Takes all jobs out of a lane."""
        return list(self._lanes.pop(group, ()))

    def leave(self, job: Batch) -> None:
        """Takes a job out, if it is in its lane still."""
        lane = self._lanes.get(job.group)
        if lane and job in lane:
            lane.remove(job)

    def fronts(self) -> Iterator[Batch]:
        """The first job of each lane that is not blocked."""
        for group, lane in list(self._lanes.items()):
            if lane and group not in self._blocked:
                yield lane[0]
