"""Adding from threads: group commit without a thread of its own.

The first caller sends its task at once. The callers that come while its round trip is in flight
wait in a queue, and one of them sends the tasks of all. Each waits at a gate of its own, and opens
the gate of the next when it leaves: if all were woken at once, they would compete for the
interpreter lock.

**An interruption is harmless.** A signal handler may raise in any caller, between any two
instructions. Therefore

- there is no lock that an interrupted caller could keep. Shared state changes by single steps of
  the interpreter (`append`, `popleft`, `setdefault`), each of which leaves it valid;
- a round is prepared once, with numbered calls. Sending it again is safe, since Redis carries out
  a numbered call once. So any caller of a group can complete it, and the first results count;
- a caller that leaves passes on what it was to do, and a caller that was not woken for `_PATIENCE`
  seconds looks for itself. This finds what was lost by an interruption on the way out.
"""

from __future__ import annotations

import copy
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from itertools import chain
from typing import Any, Generic, Protocol

from redisagg.errors import AggregatorFull, RedisAggError, RedisUnavailable
from redisagg.producer.options import FORGOTTEN, AddOptions
from redisagg.producer.partitioned import partitioned_add
from redisagg.producer.room import Attempt, Line, Lines, Ticket
from redisagg.producer.rounds import COMMIT_ROUND_TASKS, AddResults, Round, W, was_moved
from redisagg.producer.sequences import SequencePool
from redisagg.producer.stream import NO_RESULTS, Receive, Send, Step, Steps, Stream
from redisagg.protocol.entries import EncodedTask
from redisagg.transport.threads import Transport

# How many round trips of a committer may be in flight.
_MAX_IN_FLIGHT = 2

# After how many seconds a caller that was not woken looks whether its task still gets sent.
_PATIENCE = 1.0


class PreparedRound(Protocol):
    """A round with numbered calls, which can be sent any number of times by any thread."""

    def exchange(self) -> AddResults[EncodedTask]:
        """Sends the round and returns its results."""
        ...

    def release(self) -> None:
        """Makes the numbers available for another round; to be called once at most."""
        ...


class _Caller:
    """A call that adds a task, in progress."""

    __slots__ = ("_gate", "group", "left", "task", "thread", "turn")

    def __init__(self, task: EncodedTask) -> None:
        self.task = task
        self.thread = threading.get_ident()
        self.group: CommitGroup | None = None
        """The group that took its task from the queue."""
        self.turn: CommitGroup | None = None
        """The group that it is to fill from the queue and to send."""
        self.left = False
        """Whether its call has ended, or ends."""
        self._gate = threading.Lock()
        self._gate.acquire()

    def wait(self, seconds: float) -> bool:
        """Waits at the gate, for this time at most. Returns whether the caller was woken."""
        return self._gate.acquire(timeout=seconds)

    def wake(self) -> None:
        """Opens the gate: now if the caller waits, else when it comes."""
        with suppress(RuntimeError):  # the gate is open already
            self._gate.release()


class CommitGroup:
    """The callers whose tasks share a round trip.

    Args:
        sender: the caller that sends the round; it may be one whose own task comes later.
    """

    __slots__ = ("_once", "_waking", "callers", "sender")

    def __init__(self, sender: _Caller) -> None:
        self.sender = sender
        self.callers: list[_Caller] = []
        self._once: dict[str, Any] = {}
        """Set once, by `setdefault`: the prepared round, and the errors by id() of the task."""
        self._waking = iter(self.callers)

    @property
    def done(self) -> bool:
        """Whether the results are known."""
        return "errors" in self._once

    def take(self, queue: deque[_Caller], options: AddOptions) -> Round[EncodedTask]:
        """Moves callers from the queue to the group until a round is full; returns that round."""
        round_: Round[EncodedTask] = Round(options, COMMIT_ROUND_TASKS)
        while queue and not round_.full:
            try:
                # One step of the interpreter, so that a caller is always in one of the two.
                self.callers.extend(map(deque.popleft, (queue,)))
            except IndexError:  # another thread took the last one
                break
            task = self.callers[-1].task
            round_.put(task, task)
        return round_

    def complete(
        self,
        sender: _Caller,
        prepare: Callable[[Round[EncodedTask]], PreparedRound],
        build: Callable[[], Round[EncodedTask]],
    ) -> None:
        """Sends the round and stores its results, unless there are some already.

        Args:
            sender: the caller that does so.
            prepare: numbers the calls of a round.
            build: returns the round; called if none was prepared before.
        """
        self.sender = sender
        for caller in self.callers:
            caller.group = self
        if "prepared" not in self._once:
            own = prepare(build())
            if self._once.setdefault("prepared", own) is not own:
                own.release()
        prepared: PreparedRound = self._once["prepared"]
        errors = {
            id(task): error
            for tasks, error in prepared.exchange()
            if error is not None
            for task in tasks
        }
        if self._once.setdefault("errors", errors) is errors:
            prepared.release()

    def wake_next(self) -> None:
        """Wakes the next caller to leave; every caller does so when it leaves."""
        for caller in self._waking:
            if not caller.left:
                caller.wake()
                break

    def wake_all(self) -> None:
        """Wakes all callers, since an interrupted one may have lost its turn."""
        for caller in self.callers:
            if not caller.left:
                caller.wake()

    def first_waiting(self) -> _Caller | None:
        """Returns a caller that has not left, if there is one."""
        return next((caller for caller in self.callers if not caller.left), None)

    def raise_error(self, task: EncodedTask) -> None:
        """Raises the error for which this task was not added, if there is one."""
        errors: dict[int, Exception] = self._once["errors"]
        if errors and (error := errors.get(id(task))) is not None:
            raise copy.copy(error)  # each caller gets its own


class GroupCommitter:
    """Adds the tasks of many threads by group commit.

    Args:
        options: what all calls have in common.
        prepare: numbers the calls of a round.
    """

    def __init__(
        self,
        options: AddOptions,
        prepare: Callable[[Round[EncodedTask]], PreparedRound],
    ) -> None:
        self._options = options
        self._prepare = prepare
        self._of_process = _ProcessCommitter(options, prepare)

    def add(self, task: EncodedTask) -> None:
        """Adds a task; returns when Redis has acknowledged it.

        Raises:
            RedisAggError: it was refused, or Redis could not be reached.

        What a signal handler raises meanwhile is raised as it is; the task may have been added.
        """
        committer = self._of_process
        if committer.pid != os.getpid():
            # A forked child has none of its parent's threads, and must not wait for them.
            committer = self._of_process = _ProcessCommitter(self._options, self._prepare)
        committer.add(task)


class _ProcessCommitter:
    """As `GroupCommitter`, for one process."""

    def __init__(
        self,
        options: AddOptions,
        prepare: Callable[[Round[EncodedTask]], PreparedRound],
    ) -> None:
        self.pid = os.getpid()
        self._options = options
        self._prepare = prepare
        self._queue: deque[_Caller] = deque()
        self._in_flight: dict[CommitGroup, None] = {}
        """The groups without results whose tasks have left the queue, or are about to."""
        self._slow: dict[CommitGroup, None] = {}
        """As `_in_flight`; groups for which the next round trip does not wait any longer."""

    def add(self, task: EncodedTask) -> None:
        """As `GroupCommitter.add`."""
        caller = _Caller(task)
        try:
            self._queue.append(caller)
            group = self._await_results(caller)
            caller.left = True
            group.wake_next()
            if caller.turn is not None:  # it came too late
                self._end(caller.turn)
        except BaseException:
            self._give_up(caller)
            raise
        caller.group = None  # no reference cycle: see `rounds`
        group.raise_error(task)

    def _await_results(self, caller: _Caller) -> CommitGroup:
        """Returns the caller's group when its results are known; sends what is to be sent."""
        while True:
            if caller.turn is not None:
                turn, caller.turn = caller.turn, None
                self._send_next(caller, turn)
            group = caller.group
            if group is None:
                if self._is_due():
                    self._give_turn(caller)
                    continue
            elif group.done:
                return group
            elif group.sender.left:
                self._send_again(caller, group)
                continue
            if not caller.wait(_PATIENCE):
                self._recover(caller)

    def _is_due(self) -> bool:
        """Whether the next round trip is to be sent now.

        A second round trip is sent when as many tasks have gathered as are in flight. With fewer,
        both would be small; with more, Redis would idle. Measured with 32 threads: 36,000 adds/s,
        but 24,000 with half as many tasks or with one round trip at a time.
        """
        waiting = len(self._queue)
        in_flight = self._in_flight
        if not waiting or len(in_flight) >= _MAX_IN_FLIGHT:
            return False
        if not in_flight:
            return True
        first = next(iter(list(in_flight)), None)
        # A group without callers will take those that wait now.
        return first is None or waiting >= len(first.callers) > 0

    def _give_turn(self, caller: _Caller) -> None:
        """Has a caller send the next round. From now on that round is in flight."""
        caller.turn = group = caller.turn or CommitGroup(caller)
        self._in_flight[group] = None

    def _send_next(self, caller: _Caller, group: CommitGroup) -> None:
        """Sends the tasks at the head of the queue, that of the caller or others."""
        self._in_flight[group] = None  # if the caller that gave the turn was interrupted
        if self._options.linger:
            time.sleep(self._options.linger)
        round_ = group.take(self._queue, self._options)
        if group.callers:
            group.complete(caller, self._prepare, lambda: round_)
            if caller.group is not group:  # else it wakes the next one when it leaves
                group.wake_next()
        self._end(group)

    def _send_again(self, caller: _Caller, group: CommitGroup) -> None:
        """Sends the round of the caller's group in place of a caller that was interrupted."""

        def build() -> Round[EncodedTask]:
            round_: Round[EncodedTask] = Round(self._options, COMMIT_ROUND_TASKS)
            for each in group.callers:
                if not each.left:
                    round_.put(each.task, each.task)
            return round_

        group.complete(caller, self._prepare, build)
        self._end(group)

    def _end(self, group: CommitGroup) -> None:
        """Has another caller send the next round, or this one again if it has no results."""
        waiting = None if group.done else group.first_waiting()
        if waiting is None:
            self._in_flight.pop(group, None)
            self._slow.pop(group, None)
        else:
            waiting.group = group
            waiting.wake()
        self._wake_sender()

    def _wake_sender(self) -> None:
        """Wakes a caller that will send the next round, if one is due."""
        while self._is_due():
            try:
                head = self._queue[0]
            except IndexError:
                return
            if head.left:
                self._remove(head)
                continue
            self._give_turn(head)
            head.wake()
            if head.left and head.turn is not None:
                self._end(head.turn)
            return

    def _remove(self, caller: _Caller) -> None:
        with suppress(ValueError):  # a group has taken it
            self._queue.remove(caller)

    def _give_up(self, caller: _Caller) -> None:
        """Leaves to others what an interrupted caller would have done; can be repeated."""
        caller.left = True
        self._remove(caller)
        for group in self._unfinished():
            if group.done or group.sender.left:
                self._end(group)
            else:
                group.sender.wake()  # this caller may have given it the turn
            if group.done:
                group.wake_all()
        if caller.group is not None and caller.group.done:
            caller.group.wake_all()
        self._wake_sender()

    def _recover(self, caller: _Caller) -> None:
        """Does what nobody else may do any more, for a caller that was not woken for long."""
        unfinished = self._unfinished()
        group = caller.group or next((each for each in unfinished if caller in each.callers), None)
        if group is None:
            # Redis is slow, or a caller was interrupted while it gave up.
            for each in unfinished:
                self._slow[each] = None
                self._in_flight.pop(each, None)
                if _is_gone(each.sender):
                    self._end(each)
            self._give_turn(caller)
        elif group.done:
            caller.group = group
        elif _is_gone(group.sender):
            self._send_again(caller, group)

    def _unfinished(self) -> list[CommitGroup]:
        return [*self._slow, *self._in_flight]


def _is_gone(caller: _Caller) -> bool:
    """Whether a caller's call has ended, even if it could not say so.

    Of a greenlet that does not run now nothing can be seen; its call counts as going on.
    """
    if caller.left:
        return True
    frame = sys._current_frames().get(caller.thread)
    if frame is None:
        return "greenlet" not in sys.modules
    # A signal handler may add too, so the thread may have more than one call.
    while frame is not None:
        if frame.f_code is _ADD and frame.f_locals.get("caller") is caller:
            return False
        frame = frame.f_back
    return True


_ADD = _ProcessCommitter.add.__code__


class ThreadAdder:
    """Adds tasks for any number of threads."""

    def __init__(self, options: AddOptions, transport: Transport) -> None:
        self.options = options
        self.sequences = SequencePool()
        self.transport = transport
        self.add = partitioned_add(
            lambda: GroupCommitter(options, self.prepare),
            options.keyspace,
            clustered=transport.clustered,
        )
        """As `GroupCommitter.add`."""
        self.lines = Lines(options, _PATIENCE)

    def add_in_turn(
        self, task: EncodedTask, full_timeout: float, refusal: AggregatorFull | None = None
    ) -> None:
        """Adds a task behind those of its group that wait for room, and waits for room itself.

        Args:
            task: the task.
            full_timeout: seconds for which it waits.
            refusal: why the task was not added before, if it was tried.

        Raises:
            RedisAggError: it was refused, or Redis could not be reached.
        """
        now = time.monotonic()
        caller = _Caller(task)
        ticket = self.lines.enter(task.group, task, now + full_timeout, caller.wake)
        try:
            if refusal is not None:
                ticket.line.refused_outside(refusal, now)
            while (step := ticket.step(time.monotonic())) is not None:
                if isinstance(step, Attempt):
                    self._send_attempt(ticket.line, step)
                else:
                    caller.wait(step)
        finally:
            self.lines.leave(task.group, ticket, time.monotonic())
        if ticket.error is not None:
            raise copy.copy(ticket.error)  # each caller gets its own

    def _send_attempt(self, line: Line, attempt: Attempt) -> None:
        if "prepared" not in attempt.once:
            own = self.prepare(attempt.round)
            if attempt.once.setdefault("prepared", own) is not own:
                own.release()
        prepared: NumberedRound[Ticket] = attempt.once["prepared"]
        if line.settle(attempt, prepared.exchange(), time.monotonic()):
            prepared.release()

    def prepare(self, round_: Round[W]) -> NumberedRound[W]:
        """Numbers the calls of a round."""
        return NumberedRound(self, round_)


class NumberedRound(Generic[W]):
    """A round whose calls have numbers of a sequence; see `PreparedRound`."""

    __slots__ = ("_adder", "_followers", "_repeat_until", "_requests", "_round", "_sequence")

    def __init__(self, adder: ThreadAdder, round_: Round[W]) -> None:
        self._adder = adder
        self._round = round_
        self._sequence = adder.sequences.take()
        self._requests = round_.requests(self._sequence)
        self._repeat_until = time.monotonic() + adder.options.repeatable
        self._followers: dict[str, list[NumberedRound[W]]] = {}
        """Set once, by `setdefault`: what carries the tasks on if the namespace was moved."""

    def exchange(self) -> AddResults[W]:
        """Sends the round and returns its results; raises only what a signal handler raises."""
        return self.begin()()

    def begin(self) -> Callable[[], AddResults[W]]:
        """Sends the round without waiting for the replies.

        Returns:
            A function, to be called once, that waits for the replies and returns the results.
        """
        if time.monotonic() > self._repeat_until:  # an earlier sender was interrupted
            return partial(self._round.failed, RedisUnavailable(FORGOTTEN))
        replies = self._adder.transport.begin(
            self._requests,
            durability=self._adder.options.durability,
            repeat_until=self._repeat_until,
        )

        def finish() -> AddResults[W]:
            try:
                received = replies()
            except RedisAggError as error:
                return self._round.failed(error)
            if was_moved(received):
                return self._follow(received)
            return self._round.results(received)

        return finish

    def _follow(self, replies: list[Any]) -> AddResults[W]:
        """Sends the tasks that the namespace has left behind to where it is now.

        A repetition of this round sends the same numbered calls again.
        """
        if "rounds" not in self._followers:
            own = list(map(self._adder.prepare, self._round.follow(replies)))
            self._followers.setdefault("rounds", own)
        followers = self._followers["rounds"]
        # All are sent now, also if nobody reads the results.
        results = [list(each.exchange()) for each in followers]
        return chain(self._round.results(replies), *results)

    def release(self) -> None:
        """Makes the sequence available for the next round."""
        self._adder.sequences.give_back(self._sequence)
        if self._followers:
            for each in self._followers["rounds"]:
                each.release()


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
        self._stream = Stream(adder.options, progress, full_timeout, adder.lines)
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
        with closing(steps), suppress(StopIteration):
            step = next(steps)
            while True:
                step = steps.send(self._carry_out_step(step))

    def _carry_out_step(self, step: Step) -> AddResults[EncodedTask]:
        if isinstance(step, Receive):
            return self._receive()
        if isinstance(step, Send):
            self._in_flight = self._begin(step.round_)
        else:
            time.sleep(step.seconds)
        return NO_RESULTS

    def _begin(self, round_: Round[EncodedTask]) -> Callable[[], AddResults[EncodedTask]]:
        numbered = self._adder.prepare(round_)
        finish = numbered.begin()

        def receive() -> AddResults[EncodedTask]:
            results = finish()
            numbered.release()  # not in `finally`: an interrupted call is not used again
            return results

        return receive

    def _receive(self) -> AddResults[EncodedTask]:
        in_flight, self._in_flight = self._in_flight, None
        return in_flight() if in_flight is not None else NO_RESULTS
