"""One group committer for each partition of a cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from redisagg.protocol.entries import EncodedTask
from redisagg.protocol.keys import Keyspace

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Committer(Protocol[R_co]):
    """Adds tasks, several in one round trip."""

    def add(self, task: EncodedTask, /) -> R_co:
        """Adds a task."""
        ...


def partitioned_add(
    make_committer: Callable[[], Committer[R]], keyspace: Keyspace, *, clustered: bool
) -> Callable[[EncodedTask], R]:
    """Returns the `add` of one committer, or on a cluster that of the task's partition.

    On a cluster the partitions must not wait for each other: one of the primaries may be down.
    If the namespace was moved to more partitions, some of these share a committer.
    """
    if not clustered:
        return make_committer().add
    committers = [make_committer() for _ in keyspace.partitions]

    def add(task: EncodedTask) -> R:
        partition, *_ = keyspace.place(task.group)
        return committers[partition.number % len(committers)].add(task)

    return add
