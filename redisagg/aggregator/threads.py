"""The aggregator for threads. `redisagg.aggregator.aio` has the same one for asyncio."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from types import TracebackType
from typing import TypeVar

import tenacity
from redis import Redis, RedisCluster

from redisagg.aggregator import reading
from redisagg.config import AggregationConfig
from redisagg.durations import seconds
from redisagg.errors import AggregatorFull, RedisAggError
from redisagg.flusher.run import FlusherThread, run_until_signalled
from redisagg.namespace import Namespace, group_bytes
from redisagg.operations import inspecting, steering
from redisagg.producer.room import patience
from redisagg.producer.rounds import Terms
from redisagg.producer.sequences import forget_calls
from redisagg.producer.threads import ThreadAdder, ThreadStream
from redisagg.protocol.operations import Operation
from redisagg.sinks import Sink, SinkPage
from redisagg.sinks.base import Cursor
from redisagg.sinks.routing import Route
from redisagg.task import GroupKey, Task
from redisagg.transport.endpoint import AnyClient, close
from redisagg.transport.threads import Transport
from redisagg.views import BatchState, DeadLetter, GroupState, Stats

T = TypeVar("T")


class Aggregator:
    """Gathers tasks in groups on Redis, and flushes groups that are due.

    Any number of processes on any number of machines may share a namespace; each may add tasks,
    run a flusher, or both. Safe in threads.

    Args:
        name: the namespace of the keys; 1 to 64 letters, digits, dots, underscores, hyphens.
        redis: a URL (see `redisagg.transport.endpoint.endpoint_of`) or a client of redis-py:
            `Redis`, what `Sentinel.master_for` returns, or `RedisCluster`.
        config: when groups are due and how they are merged; the defaults if None.
        sink: where merged tasks go: a sink, a URL such as ``"stream://email-batches"``, or None
            for the stream ``NAME-batches``; or a function of the merged task that returns one.

    Raises:
        InvalidConfig: an argument is out of range or of the wrong type.

    All methods that talk to Redis raise `RedisUnavailable` when it could not be reached for
    `add_timeout` seconds, and `AuthenticationFailed`, `RedisReadOnly`, `RedisOutOfMemory`,
    `KeyConflict` or `NamespaceMismatch` when that is what Redis answers.
    """

    def __init__(
        self,
        name: str,
        redis: AnyClient = "redis://localhost:6379/0",
        *,
        config: AggregationConfig | None = None,
        sink: Sink | Route | str | None = None,
    ) -> None:
        self._namespace = Namespace.make(name, redis, config, sink)
        self._keyspace = self._namespace.keyspace
        self._config = self._namespace.config
        self._own_client = not isinstance(redis, (Redis, RedisCluster))
        client = self._namespace.producer_endpoint().blocking() if self._own_client else redis
        self._transport = Transport(client, seconds(self._config.add_timeout))  # type: ignore[arg-type]
        self._adder = ThreadAdder(
            Terms.of(self._keyspace, self._config),
            self._transport,
            seconds(self._config.linger),
            self._namespace.durability,
        )
        self._full_timeout = seconds(self._config.full_timeout)
        self._registered = False
        self._flusher: FlusherThread | None = None
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The namespace."""
        return self._keyspace.name

    @property
    def config(self) -> AggregationConfig:
        """The settings in force."""
        return self._config

    @property
    def sink(self) -> Sink | Route:
        """Where merged tasks go."""
        return self._namespace.sink

    # --- adding ----------------------------------------------------------------------------

    def add_task(self, task: Task) -> str:
        """Adds a task to its group; when this returns, Redis has it, and so have its replicas if
        that is configured.

        Returns:
            The id of the task.

        Raises:
            InvalidTask: the task is wrong (`PayloadError`, `TaskTooLarge` and `InvalidGroupKey`
                are kinds of it); nothing was written.
            AggregatorFull: there was no room within `full_timeout`: `max_pending_tasks` or
                `max_pending_bytes` is reached, or Redis is out of memory; nothing was written.
            NotReplicated: with `min_replicas`: too few replicas have it; the primary has.
        """
        encoded = self._namespace.encoder(task)
        if not self._registered:
            self._register()
        try:
            self._adder.add(encoded)
        except AggregatorFull:
            if not self._full_timeout:
                raise
            tenacity.Retrying(**patience(self._full_timeout))(self._adder.add, encoded)
        return task.id

    def add_tasks(
        self,
        tasks: Iterable[Task],
        *,
        progress: Callable[[int], object] | None = None,
        ids: bool = True,
    ) -> list[str]:
        """Adds many tasks in few round trips, in order.

        A collection (a list, a tuple) is checked as a whole before anything is written. Any other
        iterable is a stream: its tasks are checked and written as they come. Until it ends it holds
        one connection of the client, off a cluster; should it read from Redis by the same client,
        that needs a second one.

        Args:
            progress: called now and then with the number of tasks acknowledged so far.
            ids: whether to collect the ids. Without them a stream takes constant memory, however
                long it is.

        Returns:
            The ids of the tasks, in their order; empty with ``ids=False``.

        Raises:
            InvalidTask: a task is wrong; nothing was written, or of a stream what came before.
            RedisAggError: some tasks were refused, the first reason; the others were added, but
                for those behind an `AggregatorFull` after `full_timeout`. Adding all of them again
                is safe while they wait.
        """
        encoder = self._namespace.encoder
        if isinstance(tasks, Collection):
            for task in tasks:
                encoder(task)
        if not self._registered:
            self._register()
        collected: list[str] = []
        stream = ThreadStream(self._adder, progress, self._full_timeout)
        try:
            for task in tasks:
                stream.put(encoder(task))
                if ids:
                    collected.append(task.id)
            stream.finish()
        finally:
            stream.close()
        return collected

    # --- flushing --------------------------------------------------------------------------

    def start(self) -> None:
        """Starts a flusher in a thread of this process; does nothing if it runs already.

        Raises:
            RedisAggError: Redis can't be used; see the class.
        """
        with self._lock:
            if self._flusher is None or not self._flusher.is_alive():
                self._register()
                self._flusher = FlusherThread(self._namespace)
                self._flusher.start()

    def stop(self, flush: bool = False) -> None:
        """Ends this process's flusher: merges in hand are finished, its leases given back.

        Args:
            flush: first make all open groups due and wait until they are enqueued, for at most
                `shutdown_timeout` seconds.
        """
        with self._lock:
            flusher, self._flusher = self._flusher, None
        if flusher is None:
            return
        if flush:
            self.flush_all()
            self.wait_until_idle(seconds(self._config.shutdown_timeout))
        flusher.stop()

    def run(self, *, concurrency: int | None = None) -> None:
        """Runs a flusher until SIGTERM or SIGINT; a second signal ends the process at once.

        Args:
            concurrency: how many batches it merges at the same time, instead of the configured
                number.

        Raises:
            RedisAggError: Redis can't be used; see the class.
        """
        self._register()
        run_until_signalled(self._namespace.with_concurrency(concurrency))

    def wait_until_idle(self, timeout: float) -> bool:
        """Waits until no task waits or is in flight; False if some were left after `timeout` s."""
        return reading.wait_blocking(self.stats, timeout)

    def flush(self, group_key: GroupKey) -> int:
        """Makes what waits in a group due now; returns how many tasks that newly are."""
        return self._run(steering.flush(self._keyspace, group_bytes(group_key)))

    def flush_all(self) -> int:
        """Makes all that waits due now; returns how many tasks that newly are."""
        return self._run(steering.flush_all(self._keyspace))

    def pause(self) -> None:
        """Stops flushing on all nodes, until `resume`. Adding goes on, merges in hand end."""
        self._run(steering.pause(self._keyspace, paused=True))

    def resume(self) -> None:
        """Ends a pause."""
        self._run(steering.pause(self._keyspace, paused=False))

    # --- cancelling ------------------------------------------------------------------------

    def cancel_task(self, group_key: GroupKey, task_id: str) -> bool:
        """Takes a task out of its group; False if it does not wait there (any more)."""
        return self._run(
            steering.cancel_task(self._keyspace, group_bytes(group_key), task_id.encode())
        )

    def cancel_group(self, group_key: GroupKey) -> int:
        """Takes all waiting tasks out of a group; returns how many. Batches go on."""
        return self._run(steering.cancel_group(self._keyspace, group_bytes(group_key)))

    # --- looking ---------------------------------------------------------------------------

    def get_entries(self, *, tasks: bool = False) -> dict[str, GroupState]:
        """All groups with a task that waits or is in flight, by group key.

        Args:
            tasks: whether to fetch the waiting tasks too.
        """
        return self._run(inspecting.entries(self._keyspace, tasks=tasks))

    def get_group(self, group_key: GroupKey) -> GroupState | None:
        """One group with its waiting tasks, or None if there is no such group."""
        return self._run(inspecting.group(self._keyspace, group_bytes(group_key)))

    def get_batches(self, *, tasks: bool = False) -> list[BatchState]:
        """All batches that are being merged or wait for a retry, oldest first."""
        return self._run(inspecting.batches(self._keyspace, tasks=tasks))

    def stats(self) -> Stats:
        """Counts, in total and for each partition; in constant time for each partition."""
        return self._run(inspecting.stats(self._keyspace))

    # --- dead letters ----------------------------------------------------------------------

    def dead_letters(self, *, tasks: bool = False) -> list[DeadLetter]:
        """All dead letters, oldest first."""
        return self._run(inspecting.dead_letters(self._keyspace, tasks=tasks))

    def get_dead_letter(self, batch_id: str) -> DeadLetter | None:
        """One dead letter with its tasks, or None."""
        return self._run(inspecting.dead_letter(self._keyspace, batch_id))

    def requeue_dead_letter(self, batch_id: str) -> int:
        """Gives a dead letter another life as the same batch; returns how many tasks it has.

        Raises:
            UnknownBatch: no dead letter has this id.
        """
        return self._run(steering.requeue_dead_letter(self._keyspace, batch_id))

    def drop_dead_letter(self, batch_id: str) -> int:
        """Deletes a dead letter; returns how many tasks it had.

        Raises:
            UnknownBatch: no dead letter has this id.
        """
        return self._run(steering.drop_dead_letter(self._keyspace, batch_id))

    # --- reading the queue -----------------------------------------------------------------

    def sink_keys(self) -> list[bytes]:
        """The keys of the queue: one, or on Redis Cluster one for each partition.

        Raises:
            SinkError: the sink is no queue in this Redis.
        """
        return reading.sink_keys(self._namespace, clustered=self._transport.clustered)

    def read_sink(self, cursor: Cursor | None = None, *, limit: int = 1000) -> SinkPage:
        """Reads enqueued batches over all keys of the queue, removing nothing.

        Args:
            cursor: that of the page before; None for the oldest.
            limit: at most so many from each key.

        Raises:
            SinkError: the sink is no queue in this Redis.
        """
        keys = self.sink_keys()
        return self._run(reading.read_sink(self._namespace, keys, cursor or {}, limit))

    # --- its life --------------------------------------------------------------------------

    def close(self) -> None:
        """Stops the flusher and closes the connections that the aggregator made itself."""
        self.stop()
        # What Redis remembers of this producer's calls would expire; no harm if this fails.
        with suppress(RedisAggError):
            self._transport.once(forget_calls(self._keyspace, self._adder.lanes.drain()))
        if self._own_client:
            close(self._transport.client)

    def __enter__(self) -> Aggregator:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _register(self) -> None:
        self._transport.run(self._namespace.register())
        self._registered = True

    def _run(self, operation: Operation[T]) -> T:
        if not self._registered:
            self._register()
        return self._transport.run(operation)
