"""The part of an aggregator that is the same for threads and asyncio.

Its state, and the methods that need no round trip.
"""

from __future__ import annotations

import getpass
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redisagg.aggregator import reading
from redisagg.config import AggregationConfig
from redisagg.durations import seconds
from redisagg.errors import InvalidConfig, InvalidTask, KeyConflict
from redisagg.namespace import Namespace
from redisagg.observers import Observers
from redisagg.protocol.clock import ClockUnread
from redisagg.protocol.entries import EncodedTask
from redisagg.sinks import Sink
from redisagg.sinks.routing import Route
from redisagg.task import Task
from redisagg.texts import shorten
from redisagg.transport.endpoint import AnyClient
from redisagg.views import Stats

TASKS_PER_PAGE = 1_000
"""Largest number of tasks that `get_group` reads by default."""

GROUPS_PER_PAGE = 50
"""Number of groups at which a page of `find_groups` ends by default."""

IDLE_POLL_INTERVAL = 0.05
"""Seconds between two looks at the counts while `wait_until_idle` waits."""

FORGET_TIMEOUT = 1.0
"""Seconds that `close` spends on deleting the stored calls of its producer, which also expire."""

CLOSE_TIMEOUT = 0.15
"""Seconds that closing the connections may take at least, beyond the time of a flusher."""


OBSERVE_TIMEOUT = 5.0
"""Seconds for which an operation that looks at what may be broken is retried."""

KEPT_BYTES = 32 * 1024 * 1024
"""Bytes, about, of the encoded tasks of a collection that `add_tasks` keeps from its check, so that
it does not encode them twice."""

KEPT_OVERHEAD = 300
"""Bytes of an encoded task beside its body, about."""

_LONGEST_NAME = 256
"""Bytes of the name of who pauses."""


class AggregatorBase:
    """The common base class of `Aggregator` and `AsyncAggregator`, which document its arguments."""

    def __init__(
        self,
        name: str,
        redis: AnyClient,
        config: AggregationConfig | None,
        sink: Sink | Route | str | None,
    ) -> None:
        self._namespace = self._make_namespace(name, redis, config, sink)
        self._keyspace = self._namespace.keyspace
        self._config = self._namespace.config
        self._full_timeout = seconds(self._config.full_timeout)
        self._registered = False

    def _make_namespace(
        self,
        name: str,
        redis: AnyClient,
        config: AggregationConfig | None,
        sink: Sink | Route | str | None,
    ) -> Namespace:
        return Namespace.make(name, redis, config, sink)

    @property
    def name(self) -> str:
        """The name of the namespace."""
        return self._keyspace.name

    @property
    def config(self) -> AggregationConfig:
        """The settings of the aggregator."""
        return self._config

    @property
    def sink(self) -> Sink | Route:
        """The sink of merged tasks, or the function that chooses one for each."""
        return self._namespace.sink

    @property
    def observers(self) -> Observers:
        """Who watches the aggregator, and how many events were dropped.

        A listener that is added counts from the next start of the flusher on.
        """
        return self._namespace.observers

    def _count_refused(self, error: Exception) -> None:
        """Counts a task that was not added, if somebody counts."""
        if (counter := self.observers.counter) is not None:
            counter.count_refused(error, 1)

    def _encode(self, task: Task, index: int) -> EncodedTask | None:
        """Encodes a task of `add_tasks`; returns None if Redis' clock has to be read for that.

        Args:
            index: its place in the tasks.

        Raises:
            InvalidTask: a field of the task is wrong.
        """
        try:
            return self._namespace.encoder(task)
        except InvalidTask as error:
            self._count_refused(error)
            error.args = (f"tasks[{index}]: {error}",)
            raise error from None
        except ClockUnread:
            return None

    @asynccontextmanager
    async def lifespan(
        self, web_app: object = None, *, flusher: bool = False
    ) -> AsyncIterator[None]:
        """Closes the aggregator when a web application ends: ``FastAPI(lifespan=agg.lifespan)``.

        For FastAPI, Starlette, Litestar and all that take such a context manager. Nothing is asked
        of Redis before the first use, so the application also starts while Redis is away.

        Args:
            web_app: the web application, which the framework passes; it is not used.
            flusher: whether to run a flusher as long as the application runs. With
                ``functools.partial(agg.lifespan, flusher=True)`` for a framework.

        Returns:
            An asynchronous context manager.

        Raises:
            RedisAggError: with `flusher`, as for `start`.
        """
        try:
            if flusher:
                await self._start_here()
            yield
        finally:
            await self._close_here()

    async def _start_here(self) -> None:
        raise NotImplementedError

    async def _close_here(self) -> None:
        raise NotImplementedError

    def sink_keys(self) -> list[bytes]:
        """Returns the keys of the queue of merged tasks, without asking Redis.

        Returns:
            One key, or on Redis Cluster one for each partition.

        Raises:
            SinkError: the sink is not a stream or list in this Redis.
        """
        return reading.sink_keys(self._namespace, clustered=bool(self._namespace.endpoint.cluster))


def paused_by(by: str | None) -> bytes:
    """Checks the name of who pauses; by default the user and the host of this process.

    Raises:
        InvalidConfig: it is no text, or too long.
    """
    if by is None:
        try:
            user = getpass.getuser()
        except (OSError, KeyError, ImportError):  # the user has no entry in this container
            user = "somebody"
        return f"{user[:64]}@{socket.gethostname()[:64]}".encode(errors="replace")
    if not isinstance(by, str) or len(name := by.encode(errors="replace")) > _LONGEST_NAME:
        raise InvalidConfig(f"by must be a text of up to {_LONGEST_NAME} bytes, not {shorten(by)}")
    return name


def is_idle(stats: Stats) -> bool:
    """Whether no task waits or is in flight.

    Raises:
        KeyConflict: the counts of a partition can't be read.
    """
    if stats.unreadable:
        raise KeyConflict(
            f"the state of partition {stats.unreadable[0]} holds a value that redisagg did not "
            "write; find out who writes to redisagg's keys"
        )
    return stats.pending == 0 and stats.in_flight == 0
