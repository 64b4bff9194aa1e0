"""Sequence numbers of calls, by which Redis carries out a repeated call only once."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from redisagg.protocol.keys import Keyspace
from redisagg.protocol.operations import Operation, ask_all
from redisagg.protocol.scripts import call


class CallSequence:
    """A sequence of calls of which one at most is in flight.

    The script `add` stores the number and the reply of the last call of each sequence.
    """

    __slots__ = ("id", "number", "partitions")

    def __init__(self) -> None:
        self.id = os.urandom(9).hex().encode()
        self.number = 0
        """The number of the last call."""
        self.partitions: set[int] = set()
        """The numbers of the partitions in which a call of this sequence is stored."""

    def next_number(self, partition: int) -> int:
        """Returns the number of the next call, which goes to this partition."""
        self.partitions.add(partition)
        self.number += 1
        return self.number


class SequencePool:
    """The call sequences of one producer: as many as it ever had round trips in flight."""

    _all: list[CallSequence]
    _free: list[CallSequence]

    def __init__(self) -> None:
        self._reset_after_fork()

    def take(self) -> CallSequence:
        """Returns a sequence for one round trip; to be given back with `give_back`."""
        if self._pid != os.getpid():
            self._reset_after_fork()
        with self._lock:
            if self._free:
                return self._free.pop()
            sequence = CallSequence()
            self._all.append(sequence)
            return sequence

    def give_back(self, sequence: CallSequence) -> None:
        """Makes a sequence available for the next round trip."""
        with self._lock:
            self._free.append(sequence)

    def drain(self) -> list[CallSequence]:
        """Empties the pool and returns all its sequences; later round trips get new ones."""
        with self._lock:
            sequences, self._all, self._free = self._all, [], []
        return sequences

    def _reset_after_fork(self) -> None:
        # A forked child must not continue its parent's sequences, nor wait for a lock that one of
        # its parent's threads held.
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._all, self._free = [], []


def forget_calls(keyspace: Keyspace, sequences: Sequence[CallSequence]) -> Operation[None]:
    """Deletes the stored last calls of these sequences, which would expire otherwise."""
    calls: dict[int, list[bytes]] = {}
    for sequence in sequences:
        for number in sequence.partitions:
            calls.setdefault(number, []).append(keyspace.partitions[number].call(sequence.id))
    yield from ask_all([call("forget_calls", keys) for keys in calls.values()])
