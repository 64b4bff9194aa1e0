"""Sequence numbers of calls, by which Redis carries out a repeated call only once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from redisagg.protocol.keys import Keyspace
from redisagg.protocol.operations import Operation, ask_all
from redisagg.protocol.scripts import call


class CallSequence:
    """A sequence of calls of which one at most is in flight.

    The script `add` stores the number and the reply of the last call of each sequence.
    """

    __slots__ = ("id", "number", "partitions", "pid")

    def __init__(self) -> None:
        self.pid = os.getpid()
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
    """The call sequences of one producer: as many as it ever had round trips in flight.

    Without a lock: each operation is one step of the interpreter, so an interrupted caller can at
    most lose a sequence, which then is not used again.
    """

    def __init__(self) -> None:
        self._free = _Free(os.getpid(), [])

    def take(self) -> CallSequence:
        """Returns a sequence for one round trip; to be given back with `give_back`."""
        try:
            return self._of_process().sequences.pop()
        except IndexError:
            return CallSequence()

    def give_back(self, sequence: CallSequence) -> None:
        """Makes a sequence available for the next round trip; once for each `take`."""
        free = self._of_process()
        if sequence.pid == free.pid:  # else the process was forked during the round trip
            free.sequences.append(sequence)

    def drain(self) -> list[CallSequence]:
        """Removes all sequences without a round trip in flight, and returns them."""
        sequences: list[CallSequence] = []
        with suppress(IndexError):
            while True:
                sequences.append(self._of_process().sequences.pop())
        return sequences

    def _of_process(self) -> _Free:
        # A forked child must neither continue its parent's sequences nor have them forgotten.
        free = self._free
        if free.pid != os.getpid():
            free = self._free = _Free(os.getpid(), [])
        return free


@dataclass(frozen=True, slots=True)
class _Free:
    """The sequences of a process that have no round trip in flight."""

    pid: int
    sequences: list[CallSequence]


def forget_calls(keyspace: Keyspace, sequences: Sequence[CallSequence]) -> Operation[None]:
    """Deletes the stored last calls of these sequences, which would expire otherwise."""
    calls: dict[int, list[bytes]] = {}
    for sequence in sequences:
        for number in sequence.partitions:
            if number >= len(keyspace.partitions):  # the namespace was moved
                continue
            calls.setdefault(number, []).append(keyspace.partitions[number].call(sequence.id))
    yield from ask_all([call("forget_calls", keys) for keys in calls.values()])
