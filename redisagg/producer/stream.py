"""A stream: many tasks of one caller, in order. Which round is sent when, without I/O.

`ThreadStream` and `AsyncStream` put tasks into `Stream.filling` and carry out the steps that `send`
and `finish` yield. One round is in flight while the next one is filled. To keep the order, the next
one is sent only when the one in flight has been answered and all its tasks have found room.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import tenacity

from redisagg.errors import AggregatorFull, RedisUnavailable
from redisagg.observers import Observers
from redisagg.producer.options import AddOptions
from redisagg.producer.room import WAITS_BEHIND, Lines, Ticket, room_retry_options
from redisagg.producer.rounds import AddResults, Round, stream_round
from redisagg.protocol.entries import EncodedTask


@dataclass(frozen=True, slots=True)
class Send:
    """A step: send a round, without waiting for the replies."""

    round_: Round[EncodedTask]


@dataclass(frozen=True, slots=True)
class Receive:
    """A step: wait for the replies to the round sent last, and send its results back."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """A step: wait."""

    seconds: float


Step: TypeAlias = "Send | Receive | Sleep"

Steps: TypeAlias = Generator[Step, AddResults[EncodedTask], None]
"""Yields steps; is sent the results after a `Receive`, and `NO_RESULTS` after any other step."""

NO_RESULTS: AddResults[EncodedTask] = iter(())


class StreamResult:
    """What Redis answered to the rounds of a stream so far.

    Args:
        progress: called after each round with the number of tasks acknowledged so far.
        waits_for_room: whether tasks that find no room are sent again.
        observers: those of the producer.
    """

    def __init__(
        self,
        progress: Callable[[int], object] | None,
        *,
        waits_for_room: bool,
        observers: Observers,
    ) -> None:
        self._observers = observers
        self._progress = progress
        self._waits_for_room = waits_for_room
        self._acknowledged = 0
        self._refusal: Exception | None = None
        self._full: AggregatorFull | None = None
        self.without_room: list[EncodedTask] = []
        """The tasks of the last round that are to be sent again."""

    def count(self, results: AddResults[EncodedTask], behind: Sequence[EncodedTask] = ()) -> None:
        """Counts the results of a round.

        Args:
            results: the results.
            behind: tasks that were not sent, since earlier ones of their groups wait for room.

        Raises:
            RedisUnavailable: the round trip failed.
        """
        self._full, self.without_room = None, []
        for tasks, error in results:
            if isinstance(error, RedisUnavailable):
                self.refused(error, tasks)
                raise error
            if error is None:
                self._acknowledged += len(tasks)
            elif self._waits_for_room and isinstance(error, AggregatorFull):
                self._full = error
                self.without_room += tasks
            else:
                self._refusal = self._refusal or error
                self.refused(error, tasks)
        if behind:
            self._full = self._full or AggregatorFull(WAITS_BEHIND)
            self.without_room += behind
        if self._progress is not None:
            self._progress(self._acknowledged)

    def refused(self, error: Exception, tasks: Sequence[EncodedTask]) -> None:
        """Counts tasks that were not added, if somebody counts."""
        if (counter := self._observers.counter) is not None:
            counter.count_refused(error, len(tasks))

    def raise_if_full(self) -> None:
        """Raises `AggregatorFull` if tasks of the last round are to be sent again."""
        if self._full is not None:
            raise self._full

    def raise_refusal(self) -> None:
        """Raises the first refusal of all rounds, if there was one."""
        if self._refusal is not None:
            raise self._refusal


class Stream:
    """Decides which round of a stream is sent when.

    Args:
        progress: called after each round with the number of tasks acknowledged so far.
        full_timeout: seconds for which tasks wait for room; 0 for not at all.
        lines: the lines of the producer.
    """

    def __init__(
        self,
        options: AddOptions,
        progress: Callable[[int], object] | None,
        full_timeout: float,
        lines: Lines,
    ) -> None:
        self._options = options
        self._full_timeout = full_timeout
        self._lines = lines
        self._result = StreamResult(
            progress, waits_for_room=full_timeout > 0, observers=options.observers
        )
        self._in_flight = False
        self.filling = stream_round(options)
        """The round that takes the next task. When it is full, `send` is due."""

    def send(self) -> Steps:
        """Sends the filled round once the one in flight is acknowledged, and begins another.

        Raises:
            RedisUnavailable: the round trip in flight failed.
            AggregatorFull: its tasks found no room within `full_timeout`.
        """
        yield from self._receive()
        filling, self.filling = self.filling, stream_round(self._options)
        if self._lines.by_group:
            yield from self._send_behind_lines(list(filling.waiters()))
        else:
            yield Send(filling)
            self._in_flight = True

    def finish(self) -> Steps:
        """Sends the rest and waits until all is acknowledged.

        Raises:
            RedisAggError: a round trip failed, or some tasks were refused; the first reason.
        """
        if self.filling:
            yield from self.send()
        yield from self._receive()
        self._result.raise_refusal()

    def _receive(self) -> Steps:
        """Waits for the round in flight, and for room if it found none."""
        if not self._in_flight:
            return
        self._in_flight = False
        self._result.count((yield Receive()))
        if self._result.without_room:
            yield from self._send_when_there_is_room()

    def _send_behind_lines(self, tasks: list[EncodedTask]) -> Steps:
        """Sends a round while adds of some groups wait for room: tasks of these wait behind."""
        waiting = self._lines.by_group
        behind = [task for task in tasks if task.group in waiting]
        others = [task for task in tasks if task.group not in waiting]
        yield from self._exchange(others, behind)
        if self._result.without_room:
            yield from self._send_when_there_is_room()

    def _send_when_there_is_room(self) -> Steps:
        waits: list[float] = []  # tenacity "sleeps" by appending to it
        retrying = tenacity.Retrying(sleep=waits.append, **room_retry_options(self._full_timeout))
        deadline = time.monotonic() + self._full_timeout
        groups = dict.fromkeys(task.group for task in self._result.without_room)
        tickets: dict[bytes, Ticket] = {}
        try:
            for group in groups:
                tickets[group] = self._lines.enter(group, None, deadline)
            for attempt in retrying:
                if waits:
                    yield Sleep(waits.pop())
                now = time.monotonic()
                first = {group for group in tickets if tickets[group].is_first(now)}
                tasks = self._result.without_room
                ready = [task for task in tasks if task.group in first]
                behind = [task for task in tasks if task.group not in first]
                yield from self._exchange(ready, behind)
                for group in first.difference(task.group for task in self._result.without_room):
                    self._lines.leave(group, tickets.pop(group), time.monotonic())
                with attempt:
                    self._result.raise_if_full()
        except AggregatorFull as error:
            self._result.refused(error, self._result.without_room)
            raise
        finally:
            for group, ticket in tickets.items():
                self._lines.leave(group, ticket, time.monotonic())

    def _exchange(self, tasks: list[EncodedTask], behind: list[EncodedTask]) -> Steps:
        """Sends tasks, and counts those behind the lines of their groups as without room."""
        results = NO_RESULTS
        if tasks:
            yield Send(stream_round(self._options, tasks))
            results = yield Receive()
        self._result.count(results, behind)
