"""The health of the aggregators that a worker runs."""

from __future__ import annotations

from collections.abc import Iterable

from redisagg.aggregator.health import ask
from redisagg.aggregator.together import AnyAggregator
from redisagg.app.clients import Clients
from redisagg.views import Health


class Probe:
    """Says whether all of several aggregators work, by clients of its own.

    Args:
        aggregators: the aggregators.
    """

    def __init__(self, aggregators: Iterable[AnyAggregator]) -> None:
        clients = Clients()
        namespaces = [each._namespace for each in aggregators]
        self._targets = [(each, clients.blocking(each.producer_endpoint())) for each in namespaces]

    def __call__(self, timeout: float = 1.0) -> Health:
        """Returns the health of all together within `timeout` seconds."""
        return ask(self._targets, timeout)
