"""Names for calls, so that Redis carries out just once a call that had to be repeated."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from redisagg.protocol.keys import Keyspace
from redisagg.protocol.operations import Operation, ask_all
from redisagg.protocol.scripts import call


class Lane:
    """A sequence of calls, one after the other; the script remembers the last one of each lane."""

    __slots__ = ("id", "number", "partitions")

    def __init__(self) -> None:
        self.id = os.urandom(9).hex().encode()
        self.number = 0
        self.partitions: set[int] = set()
        """Where a call of this lane is remembered."""

    def next_number(self, partition: int) -> int:
        """The number of the next call, which goes to this partition."""
        self.partitions.add(partition)
        self.number += 1
        return self.number


class Lanes:
    """The lanes of one producer: as many as there ever were calls at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: list[Lane] = []
        self._free: list[Lane] = []
        self._pid = os.getpid()

    def take(self) -> Lane:
        """A lane for the caller alone, until it gives it back."""
        if self._pid != os.getpid():
            self._forget()
        with self._lock:
            if self._free:
                return self._free.pop()
            lane = Lane()
            self._all.append(lane)
            return lane

    def give_back(self, lane: Lane) -> None:
        """Lets others have the lane."""
        with self._lock:
            self._free.append(lane)

    def drain(self) -> list[Lane]:
        """Gives up all lanes and returns them; later calls take new ones."""
        with self._lock:
            lanes, self._all, self._free = self._all, [], []
        return lanes

    def _forget(self) -> None:
        # A forked child must not go on in its parent's lanes, nor wait for its parent's threads.
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._all, self._free = [], []


def forget_calls(keyspace: Keyspace, lanes: Sequence[Lane]) -> Operation[None]:
    """Removes what Redis remembers of a producer's calls."""
    calls: dict[int, list[bytes]] = {}
    for lane in lanes:
        for number in lane.partitions:
            calls.setdefault(number, []).append(keyspace.partitions[number].call(lane.id))
    yield from ask_all([call("forget_calls", keys) for keys in calls.values()])
