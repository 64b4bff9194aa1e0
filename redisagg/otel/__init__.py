"""Traces and metrics for OpenTelemetry, by the package opentelemetry-api: the extra ``otel``.

`Tracing` makes spans, `Metrics` and `NamespaceMetrics` are the metrics of `redisagg.metrics` as
instruments. Without an SDK in the process all of them do nothing. docs/tracing.md lists the spans.
"""

from __future__ import annotations

try:
    import opentelemetry.trace  # noqa: F401
except ImportError as error:
    raise ImportError(
        "redisagg.otel needs the package 'opentelemetry-api'; install it with: "
        "pip install 'redisagg[otel]'"
    ) from error

from redisagg.otel.context import links_of
from redisagg.otel.metrics import Metrics, NamespaceMetrics
from redisagg.otel.tracing import Tracing

__all__ = ["Metrics", "NamespaceMetrics", "Tracing", "links_of"]
