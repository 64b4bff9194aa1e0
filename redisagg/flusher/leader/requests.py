"""What the leader of a partition asks of Redis: its calls of the scripts, each with its token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from redisagg.config import AggregationConfig
from redisagg.durations import seconds, to_ms
from redisagg.flusher.merging.merger import Commit, Failure
from redisagg.protocol.keys import PartitionKeys
from redisagg.protocol.scripts import Request, call

# What one claim may bring, so that it keeps Redis busy for a few milliseconds at most.
MAX_CLAIM_BATCHES = 64
_CLAIM_TASKS = 2_000
_CLAIM_BYTES = 2 * 1024 * 1024

# What one commit may carry, likewise.
MAX_COMMIT_BATCHES = 64
MAX_COMMIT_BYTES = 1024 * 1024

# How long a group is left alone whose keys hold a foreign type, ms.
_LEFT_ALONE_MS = 30_000

# For a batch of which nothing is enqueued by the commit.
_NOTHING = Commit("", "commit", (), ())


class DueItem(NamedTuple):
    """Something that `poll` found: a batch that came back, or a group with a batch to be cut."""

    batch_id: bytes
    """Empty for a group."""
    group: bytes


class Due(NamedTuple):
    """What `poll` found."""

    wait_ms: int
    """Until there is more; 0 if there is now, less while the namespace is paused."""
    items: list[DueItem]

    @classmethod
    def of(cls, reply: Any) -> Due:
        """From the script's reply."""
        wait_ms, flat = reply
        return cls(int(wait_ms), list(map(DueItem, flat[::2], flat[1::2])))


class Returned(NamedTuple):
    """A batch that is given back, to be claimed again later."""

    batch_id: bytes
    delay: float | None
    """Seconds until then. None: it stays claimed, and only what it was merged to is stored."""
    merged: bytes
    """What it was merged to, if Redis does not have that yet."""
    failure: Failure | None = None
    """Why, if it has failed."""


class LeaderCalls:
    """The calls of one leader.

    Args:
        token: the fencing token of its lease.
        idle: the longest sleep between two polls, seconds.
    """

    def __init__(
        self, partition: PartitionKeys, token: int, config: AggregationConfig, idle: float
    ) -> None:
        self._partition = partition
        self._token = token
        self._idle_ms = to_ms(idle)
        # A claim outlives the merge; what a dead leader held is freed by its lease, not by this.
        self._claim_ms = to_ms(seconds(config.merge_timeout) + seconds(config.lease_time))
        self._dedupe_ms = to_ms(config.dedupe_window)
        p = partition
        self._indexes = [p.state, p.groups, p.batches, p.claims, p.retry, p.due, p.ready]

    def poll(self, limit: int) -> Request:
        """Names at most `limit` items that are due."""
        return call("poll", self._indexes, self._token, limit, self._idle_ms)

    def claim(self, items: Iterable[DueItem], limit: int) -> Request:
        """Takes at most `limit` batches of these items in hand."""
        p = self._partition
        keys = [*self._indexes, p.seen, p.seen_before]
        args: list[Any] = [self._token, self._claim_ms, p.label]
        args += (limit, _CLAIM_TASKS, _CLAIM_BYTES, _LEFT_ALONE_MS, self._dedupe_ms)
        for item in items:
            keys += (p.tasks(item.group), p.ids(item.group))
            args += item
        return call("claim", keys, *args)

    def extend(self, batch_ids: Iterable[bytes]) -> Request:
        """Claims batches for longer that are still in hand."""
        p = self._partition
        return call("extend", [p.state, p.claims], self._token, self._claim_ms, *batch_ids)

    def recall(self, in_hand: Iterable[bytes]) -> Request:
        """Frees all that this leader has claimed but for these batches."""
        p = self._partition
        return call("recall", [p.state, p.claims], self._token, self._claim_ms, *in_hand)

    def commit(self, batches: Sequence[tuple[bytes, bytes, Commit | None]]) -> Request:
        """Enqueues batches and removes them.

        Args:
            batches: of each the id, the group, and what is enqueued; all goes into one queue.
        """
        p = self._partition
        commits = [commit or _NOTHING for *_, commit in batches]
        common = next((each for each in commits if each is not _NOTHING), _NOTHING)
        keys = [p.state, p.groups, p.batches, p.claims, p.due, p.ready, *common.queue_keys]
        args: list[Any] = [self._token, *common.options]
        for (batch_id, group, _), commit in zip(batches, commits, strict=True):
            keys += (p.tasks(group), *commit.entry_keys)
            args += (batch_id, len(commit.arguments), *commit.arguments)
        return call(common.script, keys, *args)

    def retry(self, batches: Iterable[Returned]) -> Request:
        """Gives batches back, all in one step."""
        args: list[Any] = []
        for batch_id, delay, merged, failure in batches:
            counts = failure is not None and failure.pause is None
            error = _utf8(failure.error) if failure else b""
            delay_ms = "" if delay is None else to_ms(delay)
            args += (batch_id, delay_ms, int(counts), error, merged)
        return call("retry", self._indexes, self._token, *args)

    def bury(self, batch_id: bytes, group: bytes, failure: Failure) -> Request:
        """Puts a batch among the dead letters."""
        p = self._partition
        keys = [p.state, p.groups, p.batches, p.claims, p.dead]
        keys += (p.tasks(group), p.dead_tasks(batch_id))
        why = (_utf8(failure.error), _utf8(failure.traceback))
        return call("bury", keys, self._token, batch_id, *why)

    def set_aside(
        self, batch_id: bytes, group: bytes, places: Sequence[int], error: str
    ) -> Request:
        """Makes a dead letter of entries of a batch that are no tasks."""
        p = self._partition
        letter = batch_id + b"-undecodable"
        keys = [p.state, p.groups, p.batches, p.dead, p.tasks(group), p.dead_tasks(letter)]
        return call("set_aside", keys, self._token, batch_id, letter, _utf8(error), *places)


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
