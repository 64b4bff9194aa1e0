"""Merging by a plain function, in threads."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from redisagg.config import AggregationConfig
from redisagg.flusher.batch import Batch, Failure, MergeOutcome
from redisagg.flusher.merging.merger import Merger
from redisagg.flusher.merging.steps import merge
from redisagg.flusher.merging.turns import Turns
from redisagg.sinks.routing import Router
from redisagg.texts import group_text, logger

_log = logger("merges")

# Seconds for which threads have batches in their queue. A quiet group waits that long for its turn.
_AHEAD_SECONDS = 0.2

# Seconds for which ended merges are counted to learn how many end in `_AHEAD_SECONDS`.
_ADAPT_SECONDS = 0.02


@dataclass(slots=True, eq=False)
class _Running:
    """One merge in a thread. Whoever removes it from those that run decides about its batch."""

    batch: Batch
    since: float


class ThreadMerger(Merger):
    """Calls the merge function in threads of its own.

    All threads take batches from one queue, so that a slow merge delays no other. They report to
    the event loop in one call everything that has ended since its last look. Groups take turns: a
    batch gets into the queue about `_AHEAD_SECONDS` before a thread is free for it, so that no
    thread waits for the event loop.

    A thread can't be stopped. One whose merge exceeds its timeout is given up, and another one
    takes its place, until `most_hung` threads hang. From then on no further merge begins.
    """

    def __init__(self, config: AggregationConfig, router: Router) -> None:
        super().__init__(config, router)
        self._loop = asyncio.get_running_loop()
        self._submitted: list[Batch] = []
        self._turns: Turns[Batch] = Turns()
        self._ahead = config.concurrency
        """How many batches may be in the queue beside those that are merged."""
        self._adapted = time.monotonic()
        self._ended_lately = 0
        """How many merges have ended since `_adapted`."""
        self._queue: SimpleQueue[Batch | None] = SimpleQueue()
        self._ended: deque[tuple[Batch, MergeOutcome]] = deque()
        self._collecting = False
        """Whether the loop has been told to call `_collect`, and has not begun."""
        self._threads = 0
        self._hung: set[_Running] = set()  # merges that were given up and have not ended
        self._open = 0  # batches that were put into the queue and have not ended
        self._running: set[_Running] = set()
        self._closed = False
        self._watch: asyncio.TimerHandle | None = None

    def submit(self, batch: Batch) -> None:
        # Not at once: a thread that begins takes the interpreter from the event loop, which is
        # about to send the next claim. Redis would have nothing to do meanwhile.
        if not self._submitted:
            self._loop.call_soon(self._hand_over_submitted)
        self._submitted.append(batch)

    def _hand_over_submitted(self) -> None:
        submitted, self._submitted = self._submitted, []
        for batch in submitted:
            if not self._turns and self._open < self.concurrency + self._ahead and not self._closed:
                self._hand_over(batch)
            else:
                self._turns.put(batch.group, batch)

    def _hand_over_next(self) -> None:
        while self._turns and not self._closed and self._open < self.concurrency + self._ahead:
            self._hand_over(self._turns.pop())

    def _hand_over(self, batch: Batch) -> None:
        self._open += 1
        if self._hung and len(self._hung) >= self.most_hung:
            self._refuse(batch, len(self._hung))
            return
        if self._open > self._threads < self.concurrency:
            try:
                self._start_thread()
            except RuntimeError as error:  # the system allows no further thread
                _log.error("no thread can be started for a merge: %s", error)
                if not self._threads:
                    self._fail(batch, self.not_begun(batch.claim, error))
                    return
        self._queue.put(batch)
        if self._watch is None:
            self._watch = self._loop.call_later(self._watch_interval(), self._check_timeouts)

    def close(self) -> None:
        self._closed = True
        for _ in range(self._threads):
            self._queue.put(None)
        if self._watch is not None:
            self._watch.cancel()

    def _start_thread(self) -> None:
        # A daemon: a merge that never ends must not keep the process alive.
        threading.Thread(target=self._work, name="redisagg-merge", daemon=True).start()
        self._threads += 1

    def _refuse(self, batch: Batch, hung: int) -> None:
        self._fail(batch, self.refused(batch.claim, hung))

    def _fail(self, batch: Batch, outcome: MergeOutcome) -> None:
        """Ends a batch without a merge."""
        if not batch.begin():
            outcome = MergeOutcome()  # nobody reads it
        self._end(batch, outcome)

    def _work(self) -> None:
        while (batch := self._queue.get()) is not None:
            running = _Running(batch, time.monotonic())
            self._running.add(running)
            outcome = self._merge(batch)
            if not self._remove(running):
                self._hung.discard(running)
                return  # it timed out, and another thread may have taken the place of this one
            self._end(batch, outcome)

    def _merge(self, batch: Batch) -> MergeOutcome:
        """Merges a batch; raises nothing: a thread that ended would be missing for ever."""
        try:
            if batch.begin():
                return merge(self.function, self.router, batch.claim, informed=self.informed)
        except BaseException as error:
            return MergeOutcome(Failure.of(error))
        return MergeOutcome()  # nobody reads it

    def _remove(self, running: _Running) -> bool:
        """Takes a merge out of those that run; returns False if it is not among them any more."""
        try:
            self._running.remove(running)  # one step of the interpreter
        except KeyError:
            return False
        return True

    def _end(self, batch: Batch, outcome: MergeOutcome) -> None:
        # `_collect` clears the mark before it looks. So what is appended while the mark is set will
        # be seen, without a lock; two threads that both set it make one call too many.
        self._ended.append((batch, outcome))
        if self._collecting:
            return
        self._collecting = True
        try:
            self._loop.call_soon_threadsafe(self._collect)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return

    def _collect(self) -> None:
        self._collecting = False
        before = self._open
        while self._ended:
            batch, outcome = self._ended.popleft()
            self._open -= 1
            batch.end_merge(outcome)
        self._adapt(before - self._open)
        if self._turns:
            self._hand_over_next()

    def _adapt(self, ended: int) -> None:
        """Learns how many merges end in `_AHEAD_SECONDS`."""
        self._ended_lately += ended
        now = time.monotonic()
        took = now - self._adapted
        if took >= _ADAPT_SECONDS:
            self._ahead = max(self.concurrency, int(self._ended_lately * _AHEAD_SECONDS / took))
            self._ended_lately, self._adapted = 0, now

    def _watch_interval(self) -> float:
        return min(1.0, self.timeout / 4)

    def _check_timeouts(self) -> None:
        self._watch = None
        now = time.monotonic()
        for running in list(self._running):
            if now - running.since > self.timeout:
                self._give_up(running)
        if self._open:
            self._watch = self._loop.call_later(self._watch_interval(), self._check_timeouts)

    def _give_up(self, running: _Running) -> None:
        """Ends a batch whose merge is late, and replaces its thread."""
        self._hung.add(running)  # before its thread can find out
        if not self._remove(running):  # it has ended just now
            self._hung.discard(running)
            return
        hung = len(self._hung)
        _log.warning(
            "a merge of group '%s' exceeds merge_timeout; its thread is given up; %d of %d such "
            "threads hang",
            *(group_text(running.batch.group), hung, self.most_hung),
        )
        self._threads -= 1
        self._end(running.batch, self.timed_out())
        if hung < self.most_hung:
            try:
                self._start_thread()
            except RuntimeError as error:  # the system allows no further thread
                _log.error("no thread can be started for a merge: %s", error)
            else:
                return
        if not self._threads:
            self._refuse_all(hung)

    def _refuse_all(self, hung: int) -> None:
        """Ends all batches that wait for a thread; there is none left."""
        while True:
            try:
                batch = self._queue.get_nowait()
            except Empty:
                return
            if batch is not None:
                self._refuse(batch, hung)
