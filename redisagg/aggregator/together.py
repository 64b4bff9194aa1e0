"""Running the flushers of several aggregators in one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from redisagg.aggregator.aio import AsyncAggregator
from redisagg.aggregator.threads import Aggregator
from redisagg.flusher import run

AnyAggregator: TypeAlias = "Aggregator | AsyncAggregator"


def run_together(aggregators: Sequence[AnyAggregator], concurrency: int | None) -> None:
    """Runs a flusher for each aggregator until SIGTERM or SIGINT.

    Args:
        aggregators: the aggregators, one at least.
        concurrency: number of batches that each merges at the same time, in place of the setting.

    Raises:
        InvalidConfig: `concurrency` is out of range.
        Exception: as of `redisagg.flusher.run.run_together`.
    """
    run.run_together([each._namespace.with_concurrency(concurrency) for each in aggregators])


def have_one_namespace(one: AnyAggregator, other: AnyAggregator) -> bool:
    """Whether both have the same name in the same Redis."""
    return one.name == other.name and one._namespace.endpoint == other._namespace.endpoint
