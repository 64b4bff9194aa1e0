"""The sinks to which the batches of a partition go, and whether they work."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from redisagg.flusher.breaker import Breaker, Breakers, State
from redisagg.flusher.merging.merger import Commit, Failure
from redisagg.sinks.base import DeliverySink, ScriptSink

# How many batches are claimed at once to try a sink that was down.
_PROBES = 2


@dataclass(slots=True)
class Probe:
    """The right to claim a few batches, to find out whether a sink works again."""

    breaker: Breaker
    left: int

    def end(self) -> None:
        """Gives back what was not made use of."""
        self.breaker.unreserve(self.left)


def failure_at(breaker: Breaker, batch_id: bytes, admitted: int, error: BaseException) -> Failure:
    """What the failure of a batch at a sink means, once the sink's breaker has heard of it.

    Args:
        admitted: the number with which the breaker let the batch through.
    """
    counts = breaker.failed(batch_id, admitted)
    return Failure.of(error, None if counts else breaker.pause())


class KnownSinks:
    """The breakers of the sinks that batches of one partition have gone to so far.

    Args:
        breakers: of the whole flusher.
        only: the sink of all batches, if there is but one.
        slot: the hash tag of the partition on a cluster, else None.
    """

    def __init__(
        self, breakers: Breakers, only: ScriptSink | DeliverySink | None, slot: str | None
    ) -> None:
        self._breakers = breakers
        self._slot = slot
        self._met: dict[Hashable, Breaker] = {}
        if only is not None:
            self.breaker_of(only)

    def breaker_of(self, sink: ScriptSink | DeliverySink) -> Breaker:
        """The breaker of a sink."""
        if isinstance(sink, DeliverySink):
            return self._breaker(id(sink), type(sink).__name__)
        return self.breaker_for(Commit.into(sink, self._slot))

    def breaker_for(self, commit: Commit) -> Breaker:
        """The breaker of the sink to which a commit goes."""
        return self._breaker(commit.queue, commit.sink)

    def states(self) -> set[State]:
        """What they are now; empty if no sink has been met yet."""
        return {breaker.state for breaker in self._met.values()}

    def pause(self) -> float:
        """Seconds until the first of them may let something through."""
        return min(breaker.pause() for breaker in self._met.values())

    def reserve(self) -> Probe | None:
        """The right to claim a few batches for a sink that was down; None if there is none now."""
        for breaker in self._met.values():
            if granted := breaker.reserve(_PROBES):
                return Probe(breaker, granted)
        return None

    def _breaker(self, key: Hashable, name: str) -> Breaker:
        breaker = self._met.get(key)
        if breaker is None:
            breaker = self._met[key] = self._breakers.of(key, name)
        return breaker
