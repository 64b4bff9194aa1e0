"""Whether the sinks work to which the batches of a partition go."""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass, replace

from redisagg.flusher.batch import Batch, Blame, Failure, MergeOutcome
from redisagg.flusher.breaker import Breaker, Breakers, BreakerState, RecentBreakers
from redisagg.sinks.base import DeliverySink, RedisQueue, ScriptSink

# The number of batches that are claimed at once to try a sink that was down.
_PROBES = 2


@dataclass(slots=True)
class Probe:
    """Permission to claim a few batches, to find out whether a sink works again."""

    breaker: Breaker
    left: int

    def end(self) -> None:
        """Returns the permits that were not used."""
        self.breaker.unreserve(self.left)


def reserve_probe(breaker: Breaker) -> Probe | None:
    """Permission to claim a few batches, if the breaker is half open; None if none is free now."""
    granted = breaker.reserve(_PROBES)
    return Probe(breaker, granted) if granted else None


def failure_at(breaker: Breaker, batch_id: bytes, admitted: int, error: BaseException) -> Failure:
    """Reports an error to the breaker of a sink, and returns the failure that the batch has.

    Args:
        admitted: the number with which the breaker let the batch through.
    """
    failure = Failure.of(error)
    if failure.blames is Blame.AWAY:
        return replace(failure, pause=breaker.away(batch_id, admitted))
    if failure.blames is Blame.BUSY:
        breaker.hold(failure.pause or 0.0)
    if not failure.counts or failure.permanent:  # it says nothing about the sink
        return failure
    counts = breaker.failed(batch_id, admitted)
    return failure if counts else replace(failure, pause=breaker.pause())


def merge_ended(breaker: Breaker, batch: Batch, outcome: MergeOutcome) -> None:
    """Reports the end of a merge to the breaker of the merge function.

    A failure of the outcome gets the pause that the breaker wants.
    """
    failure = outcome.failure
    if failure is None:
        if breaker.troubled and not batch.claim.stored_result:
            breaker.succeeded()
    elif failure.blames is Blame.BUSY:
        breaker.hold(failure.pause or 0.0)
    elif failure.blames is Blame.AWAY:
        # While it is half open, only the batches that try it decide.
        asked = batch.probing or breaker.state is BreakerState.CLOSED
        pause = breaker.away(batch.batch_id, breaker.admit() if asked else None)
        outcome.failure = replace(failure, pause=pause)


class SinkHealth:
    """The breakers of the sinks to which batches of one partition have gone.

    Args:
        breakers: of the whole flusher.
        only: the sink of all batches, or None if a function chooses it.
        slot: the hash tag of the partition on a cluster, else None.
    """

    def __init__(
        self, breakers: Breakers, only: ScriptSink | DeliverySink | None, slot: str | None
    ) -> None:
        self._breakers = breakers
        self._slot = slot
        self._known = RecentBreakers()
        self.only_one = only is not None
        """Whether all batches go to the same sink."""
        if only is not None:
            with suppress(Exception):  # of the sink's own code; each batch fails by it, and says so
                self.breaker_of(only)

    def breaker_of(self, sink: ScriptSink | DeliverySink) -> Breaker:
        """The breaker of a sink."""
        if isinstance(sink, DeliverySink):
            return self._breaker(id(sink), type(sink).__name__)
        return self.breaker_for(sink.queue(self._slot))

    def breaker_for(self, queue: RedisQueue) -> Breaker:
        """The breaker of a queue in Redis."""
        return self._breaker(queue.id, queue.sink)

    def states(self) -> set[BreakerState]:
        """Their present states, or `CLOSED` alone if one is closed; empty before any is known."""
        if self._known.any_closed():  # the others do not matter then, and there may be thousands
            return {BreakerState.CLOSED}
        return {breaker.state for breaker in self._known}

    def pause(self) -> float:
        """Seconds until the first of them may let a batch through."""
        return min(breaker.pause() for breaker in self._known)

    def reserve(self) -> Probe | None:
        """Permission to claim a few batches for a sink that was down; None if none is free now."""
        for breaker in self._known:
            if (probe := reserve_probe(breaker)) is not None:
                return probe
        return None

    def _breaker(self, key: Hashable, name: str) -> Breaker:
        breaker = self._breakers.of(key, name)
        if self._known.get(key) is not breaker:
            self._known.put(key, breaker)
        return breaker
