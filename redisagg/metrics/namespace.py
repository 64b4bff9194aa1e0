"""What is in Redis, as a collector of prometheus-client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from redisagg.aggregator import Aggregator
from redisagg.instruments.definitions import NAMESPACE
from redisagg.instruments.namespace import NamespaceReader
from redisagg.metrics.values import family_of


class NamespaceCollector:
    """A collector of what the namespaces of some aggregators have in Redis.

    One process in each deployment is enough, since all would say the same.

    Args:
        aggregators: their connections are used. A blocking one is needed, since collectors are
            called from a thread; it need not run a flusher.

    Collecting raises `RedisAggError` if Redis can't be asked within `add_timeout`. The scrape then
    fails, so that no old value is taken for a new one.
    """

    def __init__(self, *aggregators: Aggregator) -> None:
        self._reader = NamespaceReader(aggregators)

    def describe(self) -> list[Any]:
        """Returns the metrics without values, so that registering does not ask Redis."""
        return [family_of(each, {}) for each in NAMESPACE.values()]

    def collect(self) -> Iterator[Any]:
        """Asks Redis, and returns all metrics."""
        for name, values in self._reader.read().items():
            yield family_of(NAMESPACE[name], values)
