"""The kinds of sinks.

- A `ScriptSink` is a queue in the same Redis. Its commit script checks the lease, enqueues the
  merged task and removes the batch in one step, so each batch is enqueued exactly once.
- A `DeliverySink` is any other queue. The batch is removed after the delivery: if a flusher dies
  in between, the batch is delivered again, with the same batch id.
- A `BlockingSink` is a `DeliverySink` for a library without asyncio.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

from redisagg.config import check_range
from redisagg.durations import to_seconds
from redisagg.errors import InvalidConfig
from redisagg.merge_function import Partial
from redisagg.protocol.keys import Keyspace
from redisagg.protocol.operations import Operation
from redisagg.sinks.limited_calls import ThreadedCalls, value_of
from redisagg.task import Task
from redisagg.texts import shorten
from redisagg.transport.aio import AsyncTransport


@dataclass(frozen=True, slots=True)
class MergedTask:
    """A merged task and the batch that it was made from, as a sink receives it."""

    batch_id: str
    """The same whenever the batch is claimed, merged or delivered again. If the merge function
    returned several tasks, the ids are ID-1, ID-2 and so on, in their order."""
    group: str
    """The text form of the group key."""
    count: int
    """The number of tasks that were merged."""
    task: Task
    """The merged task."""
    reason: str = ""
    """Why the batch was due, as in `redisagg.BatchInfo`."""


@dataclass(frozen=True, slots=True)
class EnqueuedBatch:
    """A merged task that was read back from a queue in Redis."""

    batch_id: str
    """The id of the batch, as in `MergedTask`."""
    type: str
    """The type of the merged task."""
    group: str
    """The text form of the group key."""
    count: int
    """The number of tasks that were merged."""
    payload: Any
    """The payload of the merged task."""
    headers: dict[str, str]
    """The headers of the merged task, with those of its trace."""
    reason: str
    """Why the batch was due, as in `redisagg.BatchInfo`."""


Cursor: TypeAlias = "dict[str, Any]"
"""The position up to which each key of a queue has been read."""


@dataclass(frozen=True, slots=True)
class SinkPage:
    """Batches read from a queue, and the cursor from which to read on."""

    batches: Sequence[EnqueuedBatch]
    """The batches, oldest first."""
    cursor: Cursor
    """The position behind them, for the next call."""
    unreadable: Sequence[str] = ()
    """The key and place of each entry that is left out, since redisagg did not write it or another
    format is set, and the error."""


@dataclass(frozen=True, slots=True)
class SinkContext:
    """The parts of a flusher that a sink may use."""

    keyspace: Keyspace
    """The names of the keys of the namespace; its `name` is that of the aggregator."""
    transport: AsyncTransport
    """The flusher's own connection to Redis."""


class Sink:
    """A queue for merged tasks; write a subclass of one of the three kinds."""

    inherits: ClassVar[Sequence[str]] = ()
    """Names in `Task.options`. For each, a merged task takes the value of the first of its tasks
    that has one, unless the merge function set another."""

    max_bytes: ClassVar[int | None] = None
    """The largest size in bytes of one merged task; None if the queue has no limit. A batch with a
    larger one fails for good. A `ScriptSink` counts its arguments, others the task in msgpack."""

    delivers: ClassVar[bool] = False
    """Whether it is a `DeliverySink`, which is slow to find out from the class."""

    takes_json: bool = False
    """Whether the queue takes only payloads that have a form in JSON (`redisagg.payload.to_json`).
    With the default merge function, others are then refused when they are added."""

    def resolve(self, *, clustered: bool) -> Sink:
        """Returns the sink to use: itself, unless it needs another one on Redis Cluster.

        Args:
            clustered: whether Redis is a cluster.
        """
        return self


@dataclass(frozen=True, slots=True)
class RedisQueue:
    """A queue in Redis, as the commit script takes it. Can be pickled."""

    sink: str = field(compare=False)
    """The name of the sink's class."""
    script: str
    keys: Sequence[bytes]
    options: Sequence[Any]

    @property
    def id(self) -> Hashable:
        """Identifies the queue, in whichever process the sink was asked."""
        return self.script, *self.keys


class ScriptSink(Sink, ABC):
    """A queue in the same Redis, written by the script that removes the batch.

    Args:
        name: the key of the queue. On Redis Cluster each partition has its own key,
            ``NAME:{aggregator:partition}``, with the hash tag of the partition.

    Raises:
        InvalidConfig: the name is empty or has braces, which would move the queue to another slot.
    """

    max_bytes = 512 * 1024 * 1024  # proto-max-bulk-len of Redis

    script: ClassVar[str]
    """The name of the commit script, a file in lua/."""

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or not name or "{" in name or "}" in name:
            raise InvalidConfig(f"the name of a queue is a str without braces, not {shorten(name)}")
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InvalidConfig(
                f"the name of a queue is valid Unicode, not {shorten(name)}"
            ) from None
        self.name = name

    def key(self, slot: str | None) -> bytes:
        """The key of the queue.

        Args:
            slot: the hash tag of the partition; None if Redis is not a cluster.
        """
        return f"{self.name}:{slot}".encode() if slot else self.name.encode()

    def keys(self, keyspace: Keyspace, *, clustered: bool) -> list[bytes]:
        """All keys of the queue."""
        if not clustered:
            return [self.key(None)]
        return [self.key(partition.slot) for partition in keyspace.partitions]

    def queue(self, slot: str | None) -> RedisQueue:
        """The queue of a partition with this hash tag (None without a cluster)."""
        name = type(self).__name__
        return RedisQueue(name, self.script, self.commit_keys(slot), self.options())

    def commit_keys(self, slot: str | None) -> Sequence[bytes]:
        """The keys that the commit script needs once for all batches of a call.

        A flusher with this sink alone asks for them, and for `options`, once for each partition.
        """
        return (self.key(slot),)

    def options(self) -> Sequence[Any]:
        """The arguments of the commit script that apply to all batches of a call."""
        return ()

    def entry_keys(self, merged: MergedTask) -> Sequence[bytes]:
        """The keys that the commit script needs for one merged task."""
        return ()

    @abstractmethod
    def arguments(self, merged: MergedTask) -> Sequence[bytes]:
        """The arguments of the commit script for one merged task: the entry to enqueue.

        Raises:
            PayloadError: this queue has no form for the merged task.
        """


class ReadableSink(ScriptSink):
    """A queue that `Aggregator.read_sink` can read back."""

    @abstractmethod
    def read(self, keys: Sequence[bytes], cursor: Cursor, limit: int) -> Operation[SinkPage]:
        """Reads batches behind `cursor` and removes nothing.

        Args:
            keys: the keys of the queue.
            cursor: the position from which to read; `{}` is the start.
            limit: the largest number of batches to read from each key.
        """


class DeliverySink(Sink, ABC):
    """A queue outside the commit script; batches arrive at least once."""

    delivers = True

    timeout: float = 30.0
    """Seconds after which `open` or `deliver` is cancelled. The delivery has
    failed then, with `SinkTimeout`. Set another value in the class or in the object."""

    concurrency: int | None = None
    """The number of deliveries that a flusher makes at the same time; None for no limit. The wait
    of further ones is not part of `timeout`. Set another value in the class or in the object,
    before the first delivery."""

    limits_itself: ClassVar[bool] = False
    """Whether `deliver` keeps to `timeout` by itself, so that a flusher does not cancel it. For a
    `deliver` that first waits for its turn, since that wait is no fault of the queue."""

    async def open(self, context: SinkContext) -> None:
        """Makes connections; a flusher calls it before its first delivery."""

    async def close(self) -> None:
        """Closes them; a flusher that called `open` calls it when it ends."""

    def _limit_to(self, concurrency: int | None) -> None:
        """Sets `concurrency`; None leaves it as it is.

        Raises:
            InvalidConfig: it is out of range or of the wrong type.
        """
        if concurrency is not None:
            check_range("concurrency", concurrency, 1, 1_000)
            self.concurrency = concurrency

    @abstractmethod
    async def deliver(self, merged: MergedTask) -> Partial | None:
        """Enqueues a merged task.

        If it raises, the attempt has failed and the task is delivered again after a delay.

        Returns:
            None, or the tasks of the batch that failed alone.

        Raises:
            PayloadError: this queue has no form for the merged task.
        """


class BlockingSink(DeliverySink):
    """A `DeliverySink` for a blocking library: deliveries run in daemon threads.

    A thread can't be stopped: a delivery that takes longer than `timeout` has failed, and its
    thread counts as hung until it ends. If all `concurrency` threads hang, further deliveries fail
    at once. `timeout` does not include the wait for a free thread.
    """

    limits_itself = True

    concurrency: int | None = 16
    """The number of deliveries that run at the same time. Set another value in the class or in the
    object, before the first delivery; None is 16."""

    _delivery_threads: ThreadedCalls | None = None

    async def deliver(self, merged: MergedTask) -> None:
        if self._delivery_threads is None:
            most = 16 if self.concurrency is None else self.concurrency
            check_range("concurrency", most, 1, 1_000)
            self._delivery_threads = ThreadedCalls(type(self).__name__, most)
        timeout = timeout_of(self)
        ended = await self._delivery_threads.run(self.deliver_blocking, merged, timeout=timeout)
        value_of(ended, type(self).__name__, timeout)

    @abstractmethod
    def deliver_blocking(self, merged: MergedTask) -> None:
        """As `deliver`, in a thread; several deliveries may run at the same time."""


def timeout_of(sink: DeliverySink) -> float:
    """The timeout of a sink in seconds.

    Raises:
        InvalidConfig: it is out of range or of the wrong type.
    """
    return to_seconds(sink.timeout, "timeout", InvalidConfig)
