"""Metrics for Prometheus, by the package prometheus-client: the extra ``metrics``.

`Metrics` counts what the aggregators of this process do; `NamespaceCollector` reads what is in
Redis. Both are collectors for a registry of prometheus-client. docs/metrics.md lists the metrics.
"""

from __future__ import annotations

try:
    import prometheus_client  # noqa: F401
except ImportError as error:
    raise ImportError(
        "redisagg.metrics needs the package 'prometheus-client'; install it with: "
        "pip install 'redisagg[metrics]'"
    ) from error

from redisagg.metrics.namespace import NamespaceCollector
from redisagg.metrics.process import Metrics

__all__ = ["Metrics", "NamespaceCollector"]
