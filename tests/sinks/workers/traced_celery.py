"""A Celery application and a flusher for it, both traced by OpenTelemetry."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from celery import Celery, Task
from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from redisagg import AggregationConfig, Aggregator
from redisagg.otel import links_of
from redisagg.sinks import CelerySink
from tests.sinks.workers.note import note


class Noting(SpanExporter):
    """Records each span."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            note(
                name=span.name,
                kind=span.kind.name,
                trace=span.context.trace_id,
                span=span.context.span_id,
                parent=span.parent and span.parent.span_id,
                links=[link.context.span_id for link in span.links],
            )
        return SpanExportResult.SUCCESS


provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(Noting()))
trace.set_tracer_provider(provider)
if os.environ.get("REDISAGG_TEST_INSTRUMENTED"):
    CeleryInstrumentor().instrument()

app = Celery("traced", broker=os.environ["REDISAGG_TEST_REDIS"])
app.conf.broker_connection_retry_on_startup = True


@app.task(bind=True, name="test:aggregated")
def digest(self: Task[Any, Any], /, **batch: Any) -> None:
    """Works in a span of its own, which links to the tasks of the batch."""
    links = links_of(self.request.headers or {})
    with trace.get_tracer("worker").start_as_current_span("work", links=links):
        pass


agg = Aggregator(
    "tests",
    os.environ["REDISAGG_TEST_REDIS"],
    config=AggregationConfig(partitions=2, group_max_size=2),
    sink=CelerySink(app, queue="digests"),
)
