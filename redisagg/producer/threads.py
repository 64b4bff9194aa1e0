"""Adding from threads."""

from __future__ import annotations

import copy
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

import tenacity

from redisagg.errors import RedisUnavailable
from redisagg.producer.room import patience
from redisagg.producer.rounds import (
    COMMIT_ROUND_TASKS,
    Outcomes,
    Round,
    Tally,
    Terms,
    W,
    stream_round,
)
from redisagg.producer.sequences import Lanes
from redisagg.protocol.entries import EncodedTask
from redisagg.transport.durability import Durability
from redisagg.transport.threads import Transport

# Round trips at the same time.
_MAX_ON_WIRE = 2


class _Room:
    """Where threads wait together whose tasks will go out together.

    They wait at one gate, which lets through one at a time: the first one sends the tasks of all,
    then each that comes through opens it for the next. Waking all at once would have them fight
    for the interpreter's lock.
    """

    __slots__ = ("_errors", "_gate", "elected", "sent", "together")

    def __init__(self, terms: Terms) -> None:
        self.together: Round[EncodedTask] = Round(terms, COMMIT_ROUND_TASKS)
        self.elected = False
        """Whether somebody is on the way to send what has gathered."""
        self.sent = False
        self._errors: dict[int, Exception] = {}
        self._gate = threading.Lock()
        self._gate.acquire()

    def wait(self) -> None:
        self._gate.acquire()

    def open_for_one(self) -> None:
        self._gate.release()

    def note(self, outcomes: Outcomes[EncodedTask]) -> None:
        """Keeps what became of the tasks."""
        self.sent = True
        for tasks, error in outcomes:
            if error is not None:
                self._errors.update((id(task), error) for task in tasks)

    def raise_error(self, task: EncodedTask) -> None:
        """Raises what kept this task out, if anything did."""
        if self._errors and (error := self._errors.get(id(task))) is not None:
            raise copy.copy(error)  # each caller gets its own


class _Hall:
    """The rooms in which those wait whose tasks share round trips, one after the other.

    Args:
        exchange: sends what a room has gathered, and raises nothing.
        linger: seconds for which a call waits for company; 0 for none.
    """

    def __init__(
        self,
        terms: Terms,
        exchange: Callable[[Round[EncodedTask]], Outcomes[EncodedTask]],
        linger: float,
    ) -> None:
        self._terms = terms
        self._exchange = exchange
        self._linger = linger
        self._forget()

    def add(self, task: EncodedTask) -> None:
        """As `ThreadAdder.add`."""
        if self._pid != os.getpid():
            self._forget()
        with self._lock:
            room = self._rooms[-1]
            if room.together.full:
                room = _Room(self._terms)
                self._rooms.append(room)
            room.together.put(task, task)
            my_turn = self._elect_sender(room)
        if not my_turn:
            room.wait()
        try:
            if not room.sent:
                self._send(room)
        finally:
            room.open_for_one()
        room.raise_error(task)

    def _elect_sender(self, room: _Room) -> bool:
        """Whether it is time to send what a room has gathered; asked with the lock held.

        A second round trip goes out when as many have gathered as are on their way: fewer would
        make both small, and more would leave Redis idle. Measured with 32 threads: 36,000 adds/s
        so, 24,000 with half as many or with one round trip at a time.
        """
        if room.elected or room is not self._rooms[0] or len(room.together) < self._enough:
            return False
        room.elected = True
        self._on_wire.append(room)
        self._count_on_wire()
        return True

    def _count_on_wire(self) -> None:
        """Sets how many tasks are enough for the next round trip."""
        if len(self._on_wire) >= _MAX_ON_WIRE:
            self._enough = sys.maxsize
        else:
            self._enough = max((len(each.together) for each in self._on_wire), default=1)

    def _send(self, room: _Room) -> None:
        """Sends what a room has gathered, the caller's task among it, and passes the turn on."""
        if self._linger:
            time.sleep(self._linger)
        with self._lock:
            self._rooms.popleft()  # ours: who comes now waits for the next round trip
            if not self._rooms:
                self._rooms.append(_Room(self._terms))
            self._count_on_wire()  # it has grown since it was elected
        outcomes = room.together.failed(RedisUnavailable("the thread that sent was interrupted"))
        try:
            outcomes = self._exchange(room.together)
        finally:
            room.note(outcomes)
            with self._lock:
                self._on_wire.remove(room)
                self._count_on_wire()
                if self._elect_sender(self._rooms[0]):
                    self._rooms[0].open_for_one()

    def _forget(self) -> None:
        # A forked child has none of its parent's threads, and must not wait for them.
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._rooms = deque([_Room(self._terms)])
        self._on_wire: list[_Room] = []
        self._count_on_wire()


class ThreadAdder:
    """Adds tasks for any number of threads.

    There is no thread of its own: the first caller sends, those who come meanwhile gather in a
    room, and when the reply is there one of them sends what all of them brought.

    Args:
        linger: seconds for which a call waits for company; 0 for none.
        durability: what an add waits for besides the primary's reply.
    """

    def __init__(
        self,
        terms: Terms,
        transport: Transport,
        linger: float,
        durability: Durability | None,
    ) -> None:
        self.lanes = Lanes()
        self.terms = terms
        self._transport = transport
        self._durability = durability
        # The partitions of a cluster don't wait for each other: one of its masters may be down.
        count = len(terms.keyspace.partitions) if transport.clustered else 1
        self._halls = [_Hall(terms, self.exchange, linger) for _ in range(count)]
        self.add = self._add_by_partition if transport.clustered else self._halls[0].add
        """Returns when Redis has acknowledged the task.

        Raises:
            RedisAggError: it was refused, or Redis could not be reached.
        """

    def exchange(self, together: Round[W]) -> Outcomes[W]:
        """Sends a round and tells what became of it; raises nothing."""
        return self.begin(together)()

    def begin(self, together: Round[W]) -> Callable[[], Outcomes[W]]:
        """The first half of `exchange`: sends the round. What it returns, to be called once, is
        the other half."""
        lane = self.lanes.take()
        replies = self._transport.begin(together.requests(lane), durability=self._durability)

        def finish() -> Outcomes[W]:
            try:
                return together.outcomes(replies())
            except Exception as error:
                return together.failed(error)
            finally:
                self.lanes.give_back(lane)

        return finish

    def _add_by_partition(self, task: EncodedTask) -> None:
        partition, *_ = self.terms.keyspace.place(task[0])
        self._halls[partition.number].add(task)


class ThreadStream:
    """Sends many tasks of one caller, in order: one round trip on the wire, the next in the making.

    Args:
        progress: called with the number of tasks acknowledged so far.
        full_timeout: seconds for which tasks wait for room.
    """

    def __init__(
        self,
        adder: ThreadAdder,
        progress: Callable[[int], object] | None,
        full_timeout: float,
    ) -> None:
        self._adder = adder
        self._tally = Tally(progress, waits=full_timeout > 0)
        self._full_timeout = full_timeout
        self._next = stream_round(self._adder.terms)
        self._on_wire: Callable[[], Outcomes[EncodedTask]] | None = None

    def put(self, task: EncodedTask) -> None:
        """Takes one more task.

        Raises:
            RedisUnavailable: an earlier round trip failed.
            AggregatorFull: there was no room within `full_timeout`.
        """
        self._next.put(task, task)
        if self._next.full:
            self._settle()
            self._on_wire = self._adder.begin(self._next)
            self._next = stream_round(self._adder.terms)

    def finish(self) -> None:
        """Sends what is left.

        Raises:
            RedisAggError: some tasks were refused; the first reason.
        """
        self._settle()
        if self._next:
            self._count(self._adder.exchange(self._next))
        self._tally.raise_refusal()

    def close(self) -> None:
        """Waits for what is on the wire, whatever becomes of it."""
        on_wire, self._on_wire = self._on_wire, None
        if on_wire is not None:
            on_wire()

    def _settle(self) -> None:
        on_wire, self._on_wire = self._on_wire, None
        if on_wire is not None:
            self._count(on_wire())

    def _count(self, outcomes: Outcomes[EncodedTask]) -> None:
        """Counts a round, and waits for room for what found none."""
        tally = self._tally
        tally.count(outcomes)
        if tally.without_room:
            for attempt in tenacity.Retrying(**patience(self._full_timeout)):
                with attempt:
                    together = stream_round(self._adder.terms, tally.without_room)
                    tally.count(self._adder.exchange(together))
                    tally.check_room()
