"""The names of all keys. ARCHITECTURE.md describes their contents.

All keys of a partition share the hash tag ``{name:partition}``, and thus a slot of Redis Cluster.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple
from zlib import crc32

from redisagg.errors import InvalidConfig

SCHEMA = 1
"""The version of the key schema; recorded in Redis at a namespace's first use."""

MOVER = b"move:"
"""The ids of movers begin with it; they are among the flushers, which then lead nothing."""

WITH_POLICIES = b" policies"
"""Behind the number of partitions in a state, if the namespace has policies."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Layout(NamedTuple):
    """Where the groups of a namespace are."""

    name: str
    partitions: int
    """The number of partitions."""


class PartitionKeys:
    """The keys of one partition.

    Args:
        name: name of the namespace.
        number: number of the partition.
        partitions: number of partitions of the namespace.
    """

    def __init__(self, name: str, number: int, partitions: int) -> None:
        self.layout = Layout(name, partitions)
        """That of the namespace, for which these keys are right."""
        self.number = number
        self.digits = b"%d" % number
        self.label = b"%d/%d" % (number, partitions)
        """Its number and the number of partitions, such as ``3/16``."""
        self.label_with_policies = self.label + WITH_POLICIES
        """As `label`, of a caller that has read the policies of the namespace."""
        self.slot = f"{{{name}:{number}}}"
        self.answers_channel = f"redisagg:{{{name}}}:answers".encode()
        """That of the namespace."""
        self._prefix = f"redisagg:{self.slot}:".encode()
        for part in self.__annotations__:
            setattr(self, part, self._prefix + part.encode())

    state: bytes
    groups: bytes
    batches: bytes
    claims: bytes
    retry: bytes
    suspects: bytes
    due: bytes
    ready: bytes
    dead: bytes
    seen: bytes
    seen_before: bytes

    def tasks(self, group: bytes) -> bytes:
        """The list of the tasks of a group."""
        return self._prefix + b"tasks:" + group

    def ids(self, group: bytes) -> bytes:
        """The hash of the task ids that wait in a group."""
        return self._prefix + b"ids:" + group

    def dead_tasks(self, batch_id: bytes) -> bytes:
        """The list of the tasks of a dead letter."""
        return self._prefix + b"dead:" + batch_id

    def result(self, batch_id: bytes) -> bytes:
        """The hash with the parts of a batch's merge result that is stored apart."""
        return self._prefix + b"result:" + batch_id

    def permits(self, group: bytes) -> bytes:
        """The hash of the permits of a group."""
        return self._prefix + b"permits:" + group

    def answer(self, group: bytes, task_id: bytes) -> bytes:
        """The string with the outcome of a task that was submitted."""
        return b"%banswer:%d:%b:%b" % (self._prefix, len(group), group, task_id)

    def call(self, producer: bytes) -> bytes:
        """The string with the number and reply of the last call of a call sequence."""
        return self._prefix + b"call:" + producer


class Keyspace:
    """The keys of a namespace. They change if the namespace moves; each partition keeps its own.

    Args:
        name: 1 to 64 letters, digits, dots, underscores and hyphens.
        partitions: number of partitions.

    Raises:
        InvalidConfig: the name has another form.
    """

    def __init__(self, name: str, partitions: int) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidConfig(
                "the name of an aggregator must be 1 to 64 letters, digits, dots, underscores and "
                f"hyphens, and start with a letter or digit, not {name!r}"
            )
        self.name = name
        prefix = f"redisagg:{{{name}}}:".encode()
        self.meta = prefix + b"meta"
        self.flushers = prefix + b"flushers"
        self.policies = prefix + b"policies"
        self.status = prefix + b"status"
        self.permits = prefix + b"permits"
        self.samples = prefix + b"samples"
        self.history = prefix + b"history"
        self.wake_channel = prefix + b"wake"
        self.answers_channel = prefix + b"answers"
        """The channel on which the outcomes of submitted tasks are announced."""
        self.partitions = [PartitionKeys(name, number, partitions) for number in range(partitions)]
        self.place = lru_cache(maxsize=16_384)(self._place)

    @property
    def layout(self) -> Layout:
        """The present name and number of partitions."""
        return self.partitions[0].layout

    def become(self, layout: Layout) -> None:
        """Follows the namespace to another layout; in one step, for any number of threads."""
        if layout != self.layout:
            vars(self).update(vars(Keyspace(*layout)))

    def partition_of(self, group: bytes) -> PartitionKeys:
        """Returns the partition of a group: CRC-32 (IEEE) of its key modulo their number."""
        return self.partitions[crc32(group) % len(self.partitions)]

    def _place(self, group: bytes) -> tuple[PartitionKeys, bytes, bytes]:
        """Returns a group's partition, tasks key and ids key; `place` caches them."""
        partition = self.partition_of(group)
        return partition, partition.tasks(group), partition.ids(group)
