"""What the leaders of a flusher share."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from redisagg.config import AggregationConfig
from redisagg.durations import seconds
from redisagg.flusher.backoff import break_delay
from redisagg.flusher.breaker import Breaker, Breakers, Report
from redisagg.flusher.budget import Isolation, MemoryBudget
from redisagg.flusher.leader import Leader
from redisagg.flusher.merging import Merger, make_merger
from redisagg.flusher.permits import Permits
from redisagg.flusher.reporter import Reporter
from redisagg.protocol.keys import Keyspace, PartitionKeys
from redisagg.protocol.status import MERGE_FUNCTION
from redisagg.sinks.base import ScriptSink, Sink, SinkContext, timeout_of
from redisagg.sinks.routing import Deliveries, Route, Router
from redisagg.transport.aio import AsyncTransport


class Health:
    """The circuit breakers of a flusher: of its sinks, and of its merge function.

    Args:
        changed: called when one has opened or closed.
        report: reports their changes.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        config: AggregationConfig,
        changed: Callable[[], None],
        report: Report,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        delay = partial(break_delay, config)
        self.sinks = Breakers(delay, changed, report, clock)
        self.merges = Breaker(MERGE_FUNCTION, delay, changed, clock, report=report)


class Parts:
    """Makes the leaders of a flusher, and what they share; on the event loop.

    Args:
        flusher_id: unique among all flushers.
        transport: for batches.
        report: reports what happens.
        health: the breakers; made anew if None.
        report_breaker: reports changes of breakers that are made anew; `report` alone if None.
        make: makes the merger.
    """

    def __init__(
        self,
        *,
        flusher_id: str,
        keyspace: Keyspace,
        config: AggregationConfig,
        sink: Sink | Route,
        transport: AsyncTransport,
        report: Reporter,
        health: Health | None = None,
        report_breaker: Report | None = None,
        make: Callable[[AggregationConfig, Router], Merger] = make_merger,
    ) -> None:
        self.leaders: dict[int, Leader] = {}
        """Those that lead now, by partition."""
        self._config = config
        self._transport = transport
        self._report = report
        router = Router(sink, transport.clustered, config.max_merged_bytes)
        self.merger = make(config, router)
        self._deliveries = Deliveries(router, SinkContext(keyspace, transport))
        self._budget, self._isolation = MemoryBudget(self.wake_all), Isolation()
        self.health = health or Health(
            config, self.breakers_changed, report_breaker or report.breaker
        )
        self.permits: Permits | None = None
        """What limits all flushers together, if anything does."""
        if config.limits_work:
            self.permits = Permits(
                flusher_id=flusher_id,
                keyspace=keyspace,
                config=config,
                transport=transport,
                most=self.merger.most,
                sink_timeout=_sink_timeout(router),
            )

    def wake_all(self) -> None:
        """Something may have become due in any partition, or there may be room."""
        for leader in self.leaders.values():
            leader.wake()

    def breakers_changed(self) -> None:
        """A breaker has opened or closed."""
        for leader in self.leaders.values():
            leader.breakers_changed()

    def make_leader(self, partition: PartitionKeys, token: int) -> Leader:
        """Makes the leader for a partition and a fencing token."""
        return Leader(
            partition=partition,
            token=token,
            config=self._config,
            transport=self._transport,
            merger=self.merger,
            deliveries=self._deliveries,
            breakers=self.health.sinks,
            merges=self.health.merges,
            budget=self._budget,
            isolation=self._isolation,
            idle=seconds(self._config.lease_time),
            permits=self.permits,
            report=self._report if self._report.of_batches else None,
        )

    def abandon(self) -> None:
        """Ends as a process that is killed: nothing is given back."""
        if self.permits is not None:
            self.permits.cancel()

    async def close(self) -> None:
        """Gives the permits back, and closes the sinks; no leader runs any more."""
        if self.permits is not None:
            await self.permits.close()
        await self._deliveries.close()


def _sink_timeout(router: Router) -> float | None:
    """Seconds that a delivery takes at most; 0 for a queue in Redis, None if that is not known."""
    with suppress(Exception):  # of the sink's own code; each batch fails by it, and says so
        sink = router.only()
        if isinstance(sink, ScriptSink):
            return 0.0
        if sink is not None:
            return timeout_of(sink)
    return None
