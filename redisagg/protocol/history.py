"""The stored history of a namespace, as `lua/record.lua` writes it."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from redisagg.protocol.keys import Keyspace, PartitionKeys
from redisagg.protocol.scripts import Request, call

_POINT = struct.Struct(">8d")
"""Number of the step, four sums, three maxima."""

MOST_PARTITIONS = 256
"""Largest number of partitions in one call of `record`."""


class Ring(NamedTuple):
    """A part of the history: the latest steps, each at the place of its number modulo `steps`."""

    first: int
    """Place of its first byte."""
    step_ms: int
    steps: int

    @property
    def last(self) -> int:
        """Place of its last byte."""
        return self.first + self.steps * _POINT.size - 1


FINE = Ring(0, 20_000, 180)
COARSE = Ring(FINE.last + 1, 3_600_000, 720)


def points(raw: bytes, ring: Ring, now_ms: int) -> Iterator[tuple[float, ...]]:
    """Decodes the steps of a ring up to now, oldest first; leaves out what is no step."""
    newest = now_ms // ring.step_ms
    found: list[tuple[float, ...]] = []
    whole = len(raw) // _POINT.size * _POINT.size
    for place, point in enumerate(_POINT.iter_unpack(raw[:whole])):
        step = point[0]
        sound = all(0 <= value <= 2**53 for value in point)
        if sound and newest - ring.steps < step <= newest and step % ring.steps == place:
            found.append(point)
    return iter(sorted(found))


def sample(p: PartitionKeys) -> Request:
    """What reads a sample of a partition."""
    keys = [p.state, p.groups, p.batches, p.claims, p.retry, p.suspects, p.due, p.ready]
    return call("sample", keys)


def record(keyspace: Keyspace, samples: Sequence[tuple[int, Sequence[int]]]) -> Request:
    """What adds samples of partitions to the history.

    Args:
        samples: each with the number of its partition; `MOST_PARTITIONS` of them at most.
    """
    values = [value for number, each in samples for value in (number, *each)]
    return call("record", [keyspace.samples, keyspace.history], len(keyspace.partitions), *values)
