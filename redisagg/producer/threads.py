"""Adding from threads: group commit without a thread of its own.

The first caller sends its task at once. The callers that come while its round trip is in flight
form the next commit group, and one of them sends the tasks of all. They wait at the group's gate, a
lock that lets one thread through, which then opens it for the next: if all were woken at once, they
would compete for the interpreter lock.
"""

from __future__ import annotations

import copy
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

from redisagg.errors import RedisUnavailable
from redisagg.producer.options import AddOptions
from redisagg.producer.partitioned import partitioned_add
from redisagg.producer.rounds import COMMIT_ROUND_TASKS, AddResults, Round, W
from redisagg.producer.sequences import SequencePool
from redisagg.producer.stream import NO_RESULTS, Receive, Send, Step, Steps, Stream
from redisagg.protocol.entries import EncodedTask
from redisagg.transport.threads import Transport

# How many round trips of a committer may be in flight.
_MAX_IN_FLIGHT = 2


class CommitGroup:
    """The callers whose tasks share a round trip, and the gate at which they wait."""

    __slots__ = ("_errors", "_gate", "elected", "round_", "sent")

    def __init__(self, options: AddOptions) -> None:
        self.round_: Round[EncodedTask] = Round(options, COMMIT_ROUND_TASKS)
        self.elected = False
        """Whether a caller has been chosen to send the round."""
        self.sent = False
        """Whether the results are known."""
        self._errors: dict[int, Exception] = {}  # by id() of the task
        self._gate = threading.Lock()
        self._gate.acquire()

    def wait_at_gate(self) -> None:
        """Waits until another thread opens the gate for this one."""
        self._gate.acquire()

    def open_gate(self) -> None:
        """Lets one waiting thread through; if none waits, the next one that comes."""
        self._gate.release()

    def store_results(self, results: AddResults[EncodedTask]) -> None:
        """Stores the results for `raise_error`."""
        self.sent = True
        for tasks, error in results:
            if error is not None:
                self._errors.update((id(task), error) for task in tasks)

    def raise_error(self, task: EncodedTask) -> None:
        """Raises the error for which this task was not added, if there is one."""
        if self._errors and (error := self._errors.get(id(task))) is not None:
            raise copy.copy(error)  # each caller gets its own


class GroupCommitter:
    """Adds the tasks of many threads by group commit.

    Args:
        options: what all calls have in common.
        exchange: sends a round and returns its results; raises nothing.
    """

    def __init__(
        self,
        options: AddOptions,
        exchange: Callable[[Round[EncodedTask]], AddResults[EncodedTask]],
    ) -> None:
        self._options = options
        self._exchange = exchange
        self._reset_after_fork()

    def add(self, task: EncodedTask) -> None:
        """Adds a task; returns when Redis has acknowledged it.

        Raises:
            RedisAggError: it was refused, or Redis could not be reached.
        """
        if self._pid != os.getpid():
            self._reset_after_fork()
        with self._lock:
            group = self._groups[-1]
            if group.round_.full:
                group = CommitGroup(self._options)
                self._groups.append(group)
            group.round_.put(task, task)
            elected = self._elect_sender(group)
        if not elected:
            group.wait_at_gate()
        try:
            if not group.sent:
                self._send(group)
        finally:
            group.open_gate()
        group.raise_error(task)

    def _elect_sender(self, group: CommitGroup) -> bool:
        """Whether the calling thread is to see to it that this group's round is sent.

        A thread of the group sends it; another one opens the gate for a thread that will. The
        lock is held.

        A second round trip is sent when as many tasks have gathered as are in flight. With fewer,
        both would be small; with more, Redis would idle. Measured with 32 threads: 36,000 adds/s,
        but 24,000 with half as many tasks or with one round trip at a time.
        """
        first = group is self._groups[0]
        if group.elected or not first or len(group.round_) < self._min_tasks:
            return False
        group.elected = True
        self._in_flight.append(group)
        self._update_min_tasks()
        return True

    def _update_min_tasks(self) -> None:
        """Sets how many tasks must have gathered before the next round trip is sent."""
        if len(self._in_flight) >= _MAX_IN_FLIGHT:
            self._min_tasks = sys.maxsize
        else:
            self._min_tasks = max((len(each.round_) for each in self._in_flight), default=1)

    def _send(self, group: CommitGroup) -> None:
        """Sends the round of the caller's group, then elects a sender for the next group."""
        if self._options.linger:
            time.sleep(self._options.linger)
        with self._lock:
            self._groups.popleft()  # this group; later callers join the next one
            if not self._groups:
                self._groups.append(CommitGroup(self._options))
            self._update_min_tasks()  # this group has grown since its sender was elected
        results = group.round_.failed(RedisUnavailable("the thread that sent was interrupted"))
        try:
            results = self._exchange(group.round_)
        finally:
            group.store_results(results)
            with self._lock:
                self._in_flight.remove(group)
                self._update_min_tasks()
                if self._elect_sender(self._groups[0]):
                    self._groups[0].open_gate()

    def _reset_after_fork(self) -> None:
        # A forked child has none of its parent's threads, and must not wait for them.
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._groups = deque([CommitGroup(self._options)])
        self._in_flight: list[CommitGroup] = []
        self._update_min_tasks()


class ThreadAdder:
    """Adds tasks for any number of threads."""

    def __init__(self, options: AddOptions, transport: Transport) -> None:
        self.options = options
        self.sequences = SequencePool()
        self._transport = transport
        self.add = partitioned_add(
            lambda: GroupCommitter(options, self.exchange),
            options.keyspace,
            clustered=transport.clustered,
        )
        """As `GroupCommitter.add`."""

    def exchange(self, round_: Round[W]) -> AddResults[W]:
        """Sends a round and returns its results; raises nothing."""
        return self.begin(round_)()

    def begin(self, round_: Round[W]) -> Callable[[], AddResults[W]]:
        """Sends a round without waiting for the replies; raises nothing.

        Returns:
            A function, to be called once, that waits for the replies and returns the results.
        """
        sequence = self.sequences.take()
        requests = round_.requests(sequence)
        replies = self._transport.begin(requests, durability=self.options.durability)

        def finish() -> AddResults[W]:
            try:
                return round_.results(replies())
            except Exception as error:
                return round_.failed(error)
            finally:
                self.sequences.give_back(sequence)

        return finish


class ThreadStream:
    """Adds many tasks of one caller, in order; carries out the steps of a `Stream`.

    Args:
        adder: what sends the rounds.
        progress: called after each round with the number of tasks acknowledged so far.
        full_timeout: seconds for which tasks wait for room; 0 for not at all.
    """

    def __init__(
        self,
        adder: ThreadAdder,
        progress: Callable[[int], object] | None,
        full_timeout: float,
    ) -> None:
        self._adder = adder
        self._stream = Stream(adder.options, progress, full_timeout)
        self._in_flight: Callable[[], AddResults[EncodedTask]] | None = None

    def put(self, task: EncodedTask) -> None:
        """Takes one more task; sends a round if that fills it.

        Raises:
            RedisUnavailable: an earlier round trip failed.
            AggregatorFull: earlier tasks found no room within `full_timeout`.
        """
        filling = self._stream.filling
        filling.put(task, task)
        if filling.full:
            self._carry_out(self._stream.send())

    def finish(self) -> None:
        """Sends the rest and waits until all is acknowledged.

        Raises:
            RedisAggError: a round trip failed, or some tasks were refused; the first reason.
        """
        self._carry_out(self._stream.finish())

    def close(self) -> None:
        """Waits for the round in flight, if there is one, and ignores its results."""
        self._receive()

    def _carry_out(self, steps: Steps) -> None:
        try:
            step = next(steps)
            while True:
                step = steps.send(self._carry_out_step(step))
        except StopIteration:
            pass

    def _carry_out_step(self, step: Step) -> AddResults[EncodedTask]:
        if isinstance(step, Receive):
            return self._receive()
        if isinstance(step, Send):
            self._in_flight = self._adder.begin(step.round_)
        else:
            time.sleep(step.seconds)
        return NO_RESULTS

    def _receive(self) -> AddResults[EncodedTask]:
        in_flight, self._in_flight = self._in_flight, None
        return in_flight() if in_flight is not None else NO_RESULTS
