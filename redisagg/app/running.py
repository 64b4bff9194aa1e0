"""Running all aggregators that import strings, apps and aggregators stand for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from redisagg.aggregator import Aggregator, AsyncAggregator
from redisagg.aggregator.together import AnyAggregator, run_together
from redisagg.app.app import App
from redisagg.app.selection import select
from redisagg.app.targets import load
from redisagg.errors import InvalidConfig
from redisagg.texts import shorten


def run_all(
    *targets: App | Aggregator | AsyncAggregator | str,
    only: Collection[str] = (),
    concurrency: int | None = None,
) -> None:
    """Runs flushers for all aggregators in this process until SIGTERM or SIGINT.

    They run on one event loop. Those with the same Redis share a client and a listener: 33
    connections at most. Plain merge functions run in threads; an ``async`` one that blocks its
    event loop delays all flushers. If a flusher is ended by an error, the others are stopped. A
    second signal ends the process at once. To be called in the main thread.

    Args:
        targets: apps, aggregators, and import strings ``MODULE:ATTRIBUTE`` of them.
        only: names of the aggregators to run; all if empty.
        concurrency: number of batches that each flusher merges at the same time, in place of the
            setting.

    Raises:
        InvalidConfig: a target is something else, there is no aggregator of a name in `only`, two
            aggregators have the same name and Redis, or `concurrency` is out of range.
        RedisAggError: Redis can't be used; see `Aggregator`.
        Exception: the error that ended a flusher.
    """
    run_together(select(aggregators_of(targets), only), concurrency)


def aggregators_of(
    targets: Iterable[App | Aggregator | AsyncAggregator | str],
) -> Iterator[AnyAggregator]:
    """Yields the aggregators that targets of `run_all` stand for.

    Raises:
        InvalidConfig: a target stands for something else.
    """
    for target in targets:
        found: object = load(target) if isinstance(target, str) else target
        if isinstance(found, App):
            yield from found.aggregators.values()
        elif isinstance(found, Aggregator | AsyncAggregator):
            yield found
        else:
            named = isinstance(target, str)
            what = f"{target} is a {type(found).__name__}" if named else f"not {shorten(found)}"
            raise InvalidConfig(f"give an App, an Aggregator or an AsyncAggregator; {what}")
