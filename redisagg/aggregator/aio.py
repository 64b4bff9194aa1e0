"""The aggregator for asyncio: the methods of `redisagg.aggregator.Aggregator` as coroutines."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterable, Callable, Collection, Iterable
from contextlib import suppress
from types import TracebackType
from typing import TypeVar

import tenacity
from redis.asyncio import Redis, RedisCluster

from redisagg.aggregator import reading
from redisagg.config import AggregationConfig
from redisagg.durations import seconds
from redisagg.errors import AggregatorFull, RedisAggError
from redisagg.flusher.run import flush_until, serve
from redisagg.namespace import Namespace, group_bytes
from redisagg.operations import inspecting, steering
from redisagg.producer.aio import AsyncAdder, AsyncStream, aiter_of
from redisagg.producer.room import patience
from redisagg.producer.rounds import Terms
from redisagg.producer.sequences import forget_calls
from redisagg.protocol.operations import Operation
from redisagg.sinks import Sink, SinkPage
from redisagg.sinks.base import Cursor
from redisagg.sinks.routing import Route
from redisagg.task import GroupKey, Task
from redisagg.transport.aio import AsyncTransport
from redisagg.transport.endpoint import AnyClient, aclose
from redisagg.views import BatchState, DeadLetter, GroupState, Stats

T = TypeVar("T")


class AsyncAggregator:
    """`Aggregator` for asyncio: same arguments, same methods, same errors.

    `redis` may be a URL or a client of `redis.asyncio`; a blocking client works too, and is then
    used for its settings only. Belongs to the event loop on which it is first used.
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
        self._own_client = not isinstance(redis, Redis | RedisCluster)
        client = self._namespace.producer_endpoint().asyncio() if self._own_client else redis
        self._transport = AsyncTransport(client, seconds(self._config.add_timeout))  # type: ignore[arg-type]
        self._adder = AsyncAdder(
            Terms.of(self._keyspace, self._config),
            self._transport,
            seconds(self._config.linger),
            self._namespace.durability,
        )
        self._full_timeout = seconds(self._config.full_timeout)
        self._registered = False
        self._registering: asyncio.Task[None] | None = None
        self._flusher: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()

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

    async def add_task(self, task: Task) -> str:
        """As `Aggregator.add_task`."""
        encoded = self._namespace.encoder(task)
        if not self._registered:
            await self._register()
        try:
            await self._adder.add(encoded)
        except AggregatorFull:
            if not self._full_timeout:
                raise
            async for attempt in tenacity.AsyncRetrying(**patience(self._full_timeout)):
                with attempt:
                    await self._adder.add(encoded)
        return task.id

    async def add_tasks(
        self,
        tasks: Iterable[Task] | AsyncIterable[Task],
        *,
        progress: Callable[[int], object] | None = None,
        ids: bool = True,
    ) -> list[str]:
        """As `Aggregator.add_tasks`; takes asynchronous iterables too, as streams."""
        encoder = self._namespace.encoder
        if isinstance(tasks, Collection):
            for task in tasks:
                encoder(task)
        if not self._registered:
            await self._register()
        collected: list[str] = []
        stream = AsyncStream(self._adder, progress, self._full_timeout)
        try:
            async for task in aiter_of(tasks):
                await stream.put(encoder(task))
                if ids:
                    collected.append(task.id)
            await stream.finish()
        finally:
            await stream.close()
        return collected

    async def start(self) -> None:
        """Starts a flusher on this event loop; does nothing if it runs already."""
        if self._flusher is None or self._flusher.done():
            await self._register()
            self._stop = asyncio.Event()
            self._flusher = asyncio.create_task(flush_until(self._namespace, self._stop))

    async def stop(self, flush: bool = False) -> None:
        """As `Aggregator.stop`."""
        flusher, self._flusher = self._flusher, None
        if flusher is None:
            return
        if flush:
            await self.flush_all()
            await self.wait_until_idle(seconds(self._config.shutdown_timeout))
        self._stop.set()
        await flusher

    async def run(self, *, concurrency: int | None = None) -> None:
        """As `Aggregator.run`; to be called on the main thread, as signals demand."""
        await self._register()
        await serve(self._namespace.with_concurrency(concurrency))

    async def wait_until_idle(self, timeout: float) -> bool:
        """As `Aggregator.wait_until_idle`."""
        return await reading.wait(self.stats, timeout)

    async def flush(self, group_key: GroupKey) -> int:
        """As `Aggregator.flush`."""
        return await self._run(steering.flush(self._keyspace, group_bytes(group_key)))

    async def flush_all(self) -> int:
        """As `Aggregator.flush_all`."""
        return await self._run(steering.flush_all(self._keyspace))

    async def pause(self) -> None:
        """As `Aggregator.pause`."""
        await self._run(steering.pause(self._keyspace, paused=True))

    async def resume(self) -> None:
        """As `Aggregator.resume`."""
        await self._run(steering.pause(self._keyspace, paused=False))

    async def cancel_task(self, group_key: GroupKey, task_id: str) -> bool:
        """As `Aggregator.cancel_task`."""
        return await self._run(
            steering.cancel_task(self._keyspace, group_bytes(group_key), task_id.encode())
        )

    async def cancel_group(self, group_key: GroupKey) -> int:
        """As `Aggregator.cancel_group`."""
        return await self._run(steering.cancel_group(self._keyspace, group_bytes(group_key)))

    async def get_entries(self, *, tasks: bool = False) -> dict[str, GroupState]:
        """As `Aggregator.get_entries`."""
        return await self._run(inspecting.entries(self._keyspace, tasks=tasks))

    async def get_group(self, group_key: GroupKey) -> GroupState | None:
        """As `Aggregator.get_group`."""
        return await self._run(inspecting.group(self._keyspace, group_bytes(group_key)))

    async def get_batches(self, *, tasks: bool = False) -> list[BatchState]:
        """As `Aggregator.get_batches`."""
        return await self._run(inspecting.batches(self._keyspace, tasks=tasks))

    async def stats(self) -> Stats:
        """As `Aggregator.stats`."""
        return await self._run(inspecting.stats(self._keyspace))

    async def dead_letters(self, *, tasks: bool = False) -> list[DeadLetter]:
        """As `Aggregator.dead_letters`."""
        return await self._run(inspecting.dead_letters(self._keyspace, tasks=tasks))

    async def get_dead_letter(self, batch_id: str) -> DeadLetter | None:
        """As `Aggregator.get_dead_letter`."""
        return await self._run(inspecting.dead_letter(self._keyspace, batch_id))

    async def requeue_dead_letter(self, batch_id: str) -> int:
        """As `Aggregator.requeue_dead_letter`."""
        return await self._run(steering.requeue_dead_letter(self._keyspace, batch_id))

    async def drop_dead_letter(self, batch_id: str) -> int:
        """As `Aggregator.drop_dead_letter`."""
        return await self._run(steering.drop_dead_letter(self._keyspace, batch_id))

    def sink_keys(self) -> list[bytes]:
        """As `Aggregator.sink_keys`; no coroutine, since it asks nobody."""
        return reading.sink_keys(self._namespace, clustered=self._transport.clustered)

    async def read_sink(self, cursor: Cursor | None = None, *, limit: int = 1000) -> SinkPage:
        """As `Aggregator.read_sink`."""
        keys = self.sink_keys()
        return await self._run(reading.read_sink(self._namespace, keys, cursor or {}, limit))

    async def close(self) -> None:
        """As `Aggregator.close`."""
        await self.stop()
        with suppress(RedisAggError):
            await self._transport.once(forget_calls(self._keyspace, self._adder.lanes.drain()))
        if self._own_client:
            await aclose(self._transport.client)

    async def __aenter__(self) -> AsyncAggregator:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _register(self) -> None:
        if self._registering is None or self._registering.done():
            self._registering = asyncio.create_task(self._transport.run(self._namespace.register()))
        try:  # who comes meanwhile shares the round trip; any of them may be cancelled
            await asyncio.shield(self._registering)
        except RedisAggError as error:
            raise copy.copy(error) from error.__cause__  # each caller gets its own
        self._registered = True

    async def _run(self, operation: Operation[T]) -> T:
        if not self._registered:
            await self._register()
        return await self._transport.run(operation)
