"""Counts what flushers do with batches: little work for each, and the rest for many at a time."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

from redisagg.instruments.definitions import Labels
from redisagg.observers import Claimed
from redisagg.protocol.entries import arrival_ms

T = TypeVar("T")


class AnyCounter(Protocol):
    """A counter for each combination of labels."""

    def add(self, labels: Labels, amount: float = 1) -> None:
        """Adds to the counter of these labels."""


class AnyHistogram(Protocol):
    """A histogram for each combination of labels."""

    bounds: Sequence[float]
    """The upper bounds of the buckets, without infinity."""

    def observe(self, labels: Labels, values: Sequence[float]) -> None:
        """Counts values."""

    def count(self, labels: Labels, bucket: int, values: int, total: float) -> None:
        """Counts values that belong into one bucket.

        Args:
            bucket: the place of the first bound that is no less than they are.
            values: the number of the values.
            total: their sum.
        """


class BatchInstruments(NamedTuple):
    """What counts batches."""

    flushed: AnyCounter
    size: AnyHistogram
    bytes: AnyHistogram
    wait: AnyHistogram
    lag: AnyHistogram
    merge: AnyHistogram
    sink: AnyHistogram


_MOST_BYTES = 1024 * 1024
"""Bytes of tasks, about, that are kept until they are counted."""

_Flushed: TypeAlias = tuple[Claimed, str, float, float, float]
"""What is noted of a batch that has left: the arguments of `count_flushed`."""


class BatchCounts:
    """Counts the batches of one namespace; see `redisagg.observers.BatchCounter`.

    Args:
        namespace: the value of the label.
        instruments: what counts; used under `lock` only.
        lock: is held while they change.
        gather: how many batches are noted until they are counted.
    """

    def __init__(
        self, namespace: str, instruments: BatchInstruments, lock: threading.Lock, gather: int
    ) -> None:
        self._namespace = namespace
        self._to = instruments
        self._lock = lock
        self._gather = gather
        self.sinks: set[str] = set()
        """The sinks so far."""
        # Others than the flusher take from these, when the values are asked for.
        self._flushed: deque[_Flushed] = deque()
        self._bytes = 0
        """The bytes of the tasks of these."""
        self._merges: deque[tuple[bool, float]] = deque()
        self._deliveries: deque[tuple[tuple[str, bool], float]] = deque()

    def count_merge(self, seconds: float, failed: bool) -> None:
        """Notes a merge that has ended."""
        self._merges.append((failed, seconds))
        if len(self._merges) >= self._gather:
            self.count_noted()

    def count_delivery(self, sink: str, seconds: float, failed: bool) -> None:
        """Notes a delivery that has ended."""
        self._deliveries.append(((sink, failed), seconds))
        if len(self._deliveries) >= self._gather:
            self.count_noted()

    def count_flushed(
        self, claim: Claimed, sink: str, due_at: float, now: float, seconds: float
    ) -> None:
        """Notes a batch that has left."""
        self._flushed.append((claim, sink, due_at, now, seconds))
        self._bytes += claim.length
        if self._bytes >= _MOST_BYTES or len(self._flushed) >= self._gather:
            self.count_noted()

    def count_noted(self) -> None:
        """Counts what was noted so far; from any thread."""
        with self._lock:
            self._bytes = 0
            flushed = _taken(self._flushed)
            if flushed:
                self._count_flushed(flushed)
                self._count_waits(flushed)
            merges: dict[bool, list[float]] = defaultdict(list)
            for failed, seconds in _taken(self._merges):
                merges[failed].append(seconds)
            for failed, times in merges.items():
                self._to.merge.observe((self._namespace, _outcome(failed)), times)
            deliveries: dict[tuple[str, bool], list[float]] = defaultdict(list)
            for key, seconds in _taken(self._deliveries):
                deliveries[key].append(seconds)
            for (sink, failed), times in deliveries.items():
                self._to.sink.observe((self._namespace, sink, _outcome(failed)), times)

    def _count_flushed(self, flushed: Sequence[_Flushed]) -> None:
        one = (self._namespace,)
        claims, sinks, *_ = zip(*flushed, strict=True)
        reasons = (claim.reason for claim in claims)
        for (reason, sink), count in Counter(zip(reasons, sinks, strict=True)).items():
            self._to.flushed.add((self._namespace, reason.decode("utf-8", "replace"), sink), count)
        self._to.size.observe(one, [claim.task_count for claim in claims])
        self._to.bytes.observe(one, [claim.length for claim in claims])
        self._to.lag.observe(one, [max(0.0, now - due_at) for _, _, due_at, now, _ in flushed])
        self.sinks.update(filter(None, sinks))
        for sink in set(sinks):
            times = [seconds for _, name, _, _, seconds in flushed if seconds and name == sink]
            self._to.sink.observe((self._namespace, sink, "ok"), times)

    def _count_waits(self, flushed: Sequence[_Flushed]) -> None:
        bounds = self._to.wait.bounds
        counts: defaultdict[int, int] = defaultdict(int)
        totals: defaultdict[int, float] = defaultdict(float)
        for claim, _, _, now, _ in flushed:
            entries = claim.entries
            if entries:  # in the order of arrival: the first task has waited longest
                count = len(entries)
                oldest = now - arrival_ms(entries[0]) / 1000
                youngest = now - arrival_ms(entries[-1]) / 1000 if count > 1 else oldest
            else:  # an earlier attempt merged them: only the first arrival is known
                count = claim.task_count
                oldest = youngest = now - claim.opened / 1000
            first, last = bisect_left(bounds, youngest), bisect_left(bounds, oldest)
            if first == last:
                counts[first] += count
                totals[first] += max(0.0, (oldest + youngest) / 2) * count
                continue
            for bucket, some, total in _waits(entries or (), now, bounds, first, last):
                counts[bucket] += some
                totals[bucket] += total
        for bucket, count in counts.items():
            self._to.wait.count((self._namespace,), bucket, count, totals[bucket])


def _taken(noted: deque[T]) -> list[T]:
    """Takes what was noted so far; the flusher may note more meanwhile."""
    return [noted.popleft() for _ in range(len(noted))]


def _outcome(failed: bool) -> str:
    return "error" if failed else "ok"


def _waits(
    entries: Sequence[bytes], now: float, bounds: Sequence[float], first: int, last: int
) -> Iterator[tuple[int, int, float]]:
    """How long tasks have waited: buckets with the number of tasks and the sum of the seconds.

    Args:
        entries: the stored tasks, in the order of their arrival.
        first, last: the buckets of the last and the first task.
    """
    end = len(entries)
    oldest, youngest = arrival_ms(entries[0]) / 1000, arrival_ms(entries[-1]) / 1000
    for bucket in range(first, last):
        # Who arrived from then on has waited no longer than the bound.
        start = _first_since(entries, 1000 * (now - bounds[bucket]), end)
        if start < end:
            at = arrival_ms(entries[start]) / 1000
            yield bucket, end - start, max(0.0, now - (at + youngest) / 2) * (end - start)
        if not start:
            return
        end, youngest = start, arrival_ms(entries[start - 1]) / 1000
    yield last, end, max(0.0, now - (oldest + youngest) / 2) * end


def _first_since(entries: Sequence[bytes], earliest: float, end: int) -> int:
    """The place of the first of the entries before `end` that arrived at `earliest` or later."""
    low, high = 0, end
    while low < high:
        middle = (low + high) // 2
        if arrival_ms(entries[middle]) < earliest:
            low = middle + 1
        else:
            high = middle
    return low
