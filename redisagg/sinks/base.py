"""What a sink is. There are three kinds:

- A `ScriptSink` writes into the same Redis: its commit script checks the lease, enqueues and
  removes the batch in one step, so that each batch is enqueued exactly once.
- A `DeliverySink` hands the merged task to anything else, and the batch is removed after that: a
  flusher that dies in between leaves a batch that is delivered again, with the same batch id.
- A `BlockingSink` is a `DeliverySink` for a library that knows no asyncio.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from redisagg.errors import InvalidConfig
from redisagg.protocol.keys import Keyspace
from redisagg.protocol.operations import Operation
from redisagg.task import Task
from redisagg.transport.aio import AsyncTransport


@dataclass(frozen=True, slots=True)
class MergedTask:
    """A merged task with the batch it was made from, as a sink gets it."""

    batch_id: str
    """Stable: the same however often the batch is claimed, merged or delivered. If the merge
    returned several tasks, the first is ID-1, the second ID-2 and so on."""
    group: str
    count: int
    """How many tasks were merged."""
    task: Task
    """The merged task."""


@dataclass(frozen=True, slots=True)
class EnqueuedBatch:
    """A merged task as it was read back from a queue in Redis."""

    batch_id: str
    type: str
    group: str
    count: int
    payload: Any
    headers: dict[str, str]


Cursor: TypeAlias = "dict[str, Any]"
"""How far each key of a queue has been read."""


@dataclass(frozen=True, slots=True)
class SinkPage:
    """Batches read from a queue, and the cursor that reads on behind them."""

    batches: Sequence[EnqueuedBatch]
    cursor: Cursor


@dataclass(frozen=True, slots=True)
class SinkContext:
    """What a flusher lends to a sink."""

    keyspace: Keyspace
    transport: AsyncTransport
    """The flusher's own way to Redis."""


class Sink:
    """Where merged tasks go; make a subclass of one of the three kinds."""

    inherits: ClassVar[Sequence[str]] = ()
    """Names in `Task.options` that a merged task takes over from the first of its tasks that has
    them, unless the merge function gave it others."""

    def resolve(self, *, clustered: bool) -> Sink:
        """The sink to use on this kind of Redis, itself unless it is another one on a cluster."""
        return self


class ScriptSink(Sink, ABC):
    """A queue in the same Redis, enqueued to by the script that removes the batch.

    Args:
        name: the key of the queue. On Redis Cluster each partition has its own, with the
            partition's hash tag behind it: ``NAME:{aggregator:partition}``.

    Raises:
        InvalidConfig: the name is empty or has braces, which would move the queue to another slot.
    """

    script: ClassVar[str]
    """The name of the commit script, a file in lua/."""

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or not name or "{" in name or "}" in name:
            raise InvalidConfig(f"the name of a queue is a str without braces, not {name!r}")
        self.name = name

    def key(self, slot: str | None) -> bytes:
        """The key of the queue, for the partition with this hash tag, or None off a cluster."""
        return f"{self.name}:{slot}".encode() if slot else self.name.encode()

    def keys(self, keyspace: Keyspace, *, clustered: bool) -> list[bytes]:
        """All keys of the queue."""
        if not clustered:
            return [self.key(None)]
        return [self.key(partition.slot) for partition in keyspace.partitions]

    def commit_keys(self, slot: str | None) -> Sequence[bytes]:
        """The keys that the commit script needs once for all batches."""
        return (self.key(slot),)

    def options(self) -> Sequence[Any]:
        """The arguments of the commit script that hold for all batches."""
        return ()

    def entry_keys(self, batch: MergedTask) -> Sequence[bytes]:
        """The keys that the commit script needs for one merged task."""
        return ()

    @abstractmethod
    def arguments(self, batch: MergedTask) -> Sequence[bytes]:
        """The arguments of the commit script for one merged task: what is enqueued.

        Raises:
            PayloadError: the merged task can't be written in the form of this queue.
        """


class ReadableSink(ScriptSink):
    """A queue that `Aggregator.read_sink` can read back."""

    @abstractmethod
    def read(self, keys: Sequence[bytes], cursor: Cursor, limit: int) -> Operation[SinkPage]:
        """Reads on from `cursor`, at most `limit` batches a key, and removes nothing."""


class DeliverySink(Sink, ABC):
    """Anything else; at least once."""

    async def open(self, context: SinkContext) -> None:
        """Called by a flusher before its first delivery: makes connections."""

    async def close(self) -> None:
        """Called by a flusher that ends, if it called `open`."""

    @abstractmethod
    async def deliver(self, batch: MergedTask) -> None:
        """Enqueues the merged task; raises if that failed, and it will be tried again."""


class BlockingSink(DeliverySink):
    """A `DeliverySink` for a blocking library: deliveries are made in threads."""

    async def deliver(self, batch: MergedTask) -> None:
        await asyncio.to_thread(self.deliver_blocking, batch)

    @abstractmethod
    def deliver_blocking(self, batch: MergedTask) -> None:
        """As `deliver`, in a thread; several may run at the same time."""


def option(task: Task, name: str, default: Any) -> Any:
    """The setting that the merged task asks for in `Task.options`, or the sink's own."""
    options: Mapping[str, Any] = task.options
    return options.get(name, default)
