"""Spans of what producers and flushers do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.trace import TracerProvider
from opentelemetry.util.types import AttributeValue

from redisagg.aggregator import Aggregator, AsyncAggregator
from redisagg.events import EventBatch
from redisagg.otel.adding import trace_adds
from redisagg.otel.spans import BatchSpans

if TYPE_CHECKING:
    from typing_extensions import Self


class Tracing:
    """Makes spans of what aggregators do, by the semantic conventions for messaging.

    Args:
        tracer_provider: takes the spans; None for the global one.
        group_keys: whether spans of batches tell the group key.
    """

    def __init__(
        self, tracer_provider: TracerProvider | None = None, *, group_keys: bool = True
    ) -> None:
        self._tracer = trace.get_tracer("redisagg", tracer_provider=tracer_provider)
        self._group_keys = group_keys

    def watch(self, *aggregators: Aggregator | AsyncAggregator) -> Self:
        """Traces what these aggregators add from now on, and what their flushers do.

        Of a flusher that runs already nothing is traced, so call it before `start` and `run`. An
        aggregator that is traced already stays as it is.

        Returns:
            The same object.
        """
        for each in aggregators:
            if each.observers.tracer is not None:
                continue
            each.observers.tracer = self
            trace_adds(each, self._tracer)
            twin = getattr(each, "asyncio", None)  # of an aggregator that an app made
            if isinstance(twin, AsyncAggregator):
                trace_adds(twin, self._tracer)
        return self

    def claimed(
        self, namespace: str, flusher: str, batch: EventBatch, begun: int, ended: int
    ) -> BatchSpans:
        """Begins to trace a batch; see `redisagg.observers.Tracer`."""
        common: dict[str, AttributeValue] = {
            "messaging.client.id": flusher,
            "messaging.destination.partition.id": str(batch.partition),
            "redisagg.batch_id": batch.batch_id,
            "redisagg.attempt": batch.attempt,
            "redisagg.reason": batch.reason,
        }
        if self._group_keys:
            common["redisagg.group_key"] = batch.group_key
        return BatchSpans(self._tracer, namespace, common, batch.size, begun, ended)
