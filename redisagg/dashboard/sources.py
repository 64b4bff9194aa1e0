"""The Redises and namespaces that a dashboard shows, and its connections to them."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from redisagg.aggregator import Aggregator, AsyncAggregator
from redisagg.config import AggregationConfig
from redisagg.errors import InvalidConfig, RedisAggError
from redisagg.namespace import Namespace, recorded_partitions
from redisagg.operations.removing import find_namespaces
from redisagg.protocol.operations import Operation
from redisagg.texts import logger
from redisagg.transport.aio import AsyncTransport
from redisagg.transport.endpoint import AnyClient, Endpoint, aclose, close, endpoint_of
from redisagg.transport.threads import Transport

_log = logger("dashboard")

T = TypeVar("T")

AnyAggregator = Aggregator | AsyncAggregator

DEFAULT_LABEL = "redis"
"""The label of a Redis that was given without one."""

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ANSWER_TIMEOUT = 3.0  # seconds that Redis has to answer a page
_FOUND_FOR = 30.0  # seconds for which a list of namespaces is shown before the next search
_DEFAULTS = {"host": "localhost", "port": 6379, "path": "", "db": 0}
_FIRST_SEARCH = 0.5  # seconds that a page waits for the first list


class Place(NamedTuple):
    """Which namespace."""

    source: str
    """Label of the Redis."""
    name: str
    """Name of the namespace."""


class _Reader(AsyncAggregator):
    """An aggregator made from checked settings; it never runs a flusher."""

    def __init__(self, namespace: Namespace) -> None:
        self._given = namespace
        super().__init__(namespace.keyspace.name)

    def _make_namespace(self, *arguments: Any, **named: Any) -> Namespace:
        return self._given


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """A namespace that is shown."""

    place: Place
    aggregator: AsyncAggregator
    known: AggregationConfig | None = None
    """The settings of its aggregator, if that was given: Redis does not hold them."""

    async def run(self, operation: Operation[T]) -> T:
        """Runs an operation.

        Raises:
            RedisAggError: as the methods of an aggregator.
        """
        return await self.aggregator._run(operation)


class Sources:
    """The Redises and namespaces of a dashboard.

    Args:
        redises: clients or URLs by label.
        names: namespaces to show, in each Redis; None for all that are found.
        aggregators: their settings and merge functions are known.

    Raises:
        InvalidConfig: a label is not 1 to 64 letters, digits, dots, underscores and hyphens.
    """

    def __init__(
        self,
        redises: Mapping[str, AnyClient],
        names: Sequence[str] | None,
        aggregators: Iterable[AnyAggregator],
    ) -> None:
        for label in redises:
            if not isinstance(label, str) or not _LABEL.fullmatch(label):
                raise InvalidConfig(
                    "the label of a Redis is 1 to 64 letters, digits, dots, underscores and "
                    f"hyphens, not {label!r:.80}"
                )
        self._endpoints = {label: endpoint_of(source) for label, source in redises.items()}
        self._names = names
        self._given: dict[Place, AnyAggregator] = {}
        for each in aggregators:
            self._given[Place(self._label_of(each), each.name)] = each
        self._open: dict[Place, Shown] = {}
        self._opening = asyncio.Lock()
        self._found: dict[str, list[str]] = {}
        self._searches: dict[str, asyncio.Task[None]] = {}
        self._searched_at: dict[str, float] = {}

    def _label_of(self, aggregator: AnyAggregator) -> str:
        """The label of an aggregator's Redis, which gets one if it has none."""
        endpoint = aggregator._namespace.endpoint
        for label, each in self._endpoints.items():
            if _same(each, endpoint):
                return label
        label = DEFAULT_LABEL
        number = 1
        while label in self._endpoints:
            number += 1
            label = f"{DEFAULT_LABEL}-{number}"
        self._endpoints[label] = endpoint
        return label

    @property
    def labels(self) -> list[str]:
        """The labels of all Redises."""
        return list(self._endpoints)

    def is_cluster(self, label: str) -> bool:
        """Whether a Redis is a cluster."""
        endpoint = self._endpoints.get(label)
        return endpoint is not None and bool(endpoint.cluster)

    async def places(self) -> list[Place]:
        """Returns the namespaces to choose from; searches for them from time to time.

        The first search is waited for, but not for long: the keys of Redis may be many.
        """
        places = dict.fromkeys(self._given)
        for label in self._endpoints:
            if self._names is not None:
                places.update(dict.fromkeys(Place(label, name) for name in self._names))
                continue
            await self._search(label)
            found = self._found.get(label, ())
            places.update(dict.fromkeys(Place(label, name) for name in found))
        return list(places)

    async def _search(self, label: str) -> None:
        search = self._searches.get(label)
        age = time.monotonic() - self._searched_at.get(label, -_FOUND_FOR)
        if search is None and age >= _FOUND_FOR:
            search = asyncio.create_task(self._find(label))
            self._searches[label] = search
        if search is not None and label not in self._found:
            await asyncio.wait([search], timeout=_FIRST_SEARCH)

    async def _find(self, label: str) -> None:
        endpoint = self._endpoints[label].answering_within(_ANSWER_TIMEOUT)

        def find() -> list[str]:
            client: Any = endpoint.blocking()
            try:
                return find_namespaces(Transport(client, _ANSWER_TIMEOUT)).found
            finally:
                close(client)

        try:
            self._found[label] = await asyncio.to_thread(find)
        except Exception as error:  # the user may have no right to SCAN, or Redis is away
            _log.warning("the namespaces of %s can't be listed: %s", label, error)
        finally:
            self._searched_at[label] = time.monotonic()
            self._searches.pop(label, None)

    async def open(self, place: Place) -> Shown | None:
        """Returns a namespace; None if it does not exist, or is not to be shown.

        Raises:
            RedisAggError: Redis can't be asked.
        """
        if (shown := self._open.get(place)) is not None:
            return shown
        endpoint = self._endpoints.get(place.source)
        given = self._given.get(place)
        if endpoint is None or (
            self._names is not None and place.name not in self._names and given is None
        ):
            return None
        async with self._opening:
            if (shown := self._open.get(place)) is not None:
                return shown
            if given is not None:
                config = replace(given.config, add_timeout=_ANSWER_TIMEOUT)
                namespace = replace(given._namespace, config=config)
                shown = Shown(place, _Reader(namespace), given.config)
            else:
                partitions = await self._recorded_partitions(endpoint, place.name)
                if partitions is None:
                    return None
                config = AggregationConfig(partitions=partitions, add_timeout=_ANSWER_TIMEOUT)
                made = Namespace.make(place.name, "redis://", config, None)
                shown = Shown(place, _Reader(replace(made, endpoint=endpoint)))
            self._open[place] = shown
        return shown

    async def _recorded_partitions(self, endpoint: Endpoint, name: str) -> int | None:
        try:
            operation = recorded_partitions(name)
            client = endpoint.answering_within(_ANSWER_TIMEOUT).asyncio()
        except InvalidConfig:
            return None
        try:
            return await AsyncTransport(client, _ANSWER_TIMEOUT).once(operation)
        except InvalidConfig:  # no name of a namespace
            return None
        finally:
            await aclose(client)

    async def forget(self, place: Place) -> None:
        """Closes the connections to a namespace, which may have other partitions now."""
        if (shown := self._open.pop(place, None)) is not None:
            with suppress(RedisAggError):
                await shown.aggregator.close()

    async def close(self) -> None:
        """Closes all connections."""
        for search in list(self._searches.values()):
            search.cancel()
        for place in list(self._open):
            await self.forget(place)


def _same(one: Endpoint, other: Endpoint) -> bool:
    """Whether two endpoints are the same server, whoever connects."""

    def server(endpoint: Endpoint) -> tuple[Any, ...]:
        options = endpoint.options
        named = tuple(options.get(key) or default for key, default in _DEFAULTS.items())
        sentinels = str(sorted(map(repr, endpoint.sentinels)))
        return (*named, endpoint.service, tuple(endpoint.cluster), sentinels)

    return server(one) == server(other)
