"""The requests of a leader: its calls of the scripts, each with the fencing token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from redisagg.config import AggregationConfig
from redisagg.durations import seconds, to_ms
from redisagg.flusher.batch import Enqueue, Failure
from redisagg.merge_function import wants_info
from redisagg.protocol.answers import Answered
from redisagg.protocol.failed_tasks import FailedBatch, group_of
from redisagg.protocol.keys import PartitionKeys
from redisagg.protocol.scripts import Request, call, command
from redisagg.sinks.base import RedisQueue
from redisagg.transport.round_trip import as_bytes

# The limits of one claim, so that it keeps Redis busy for a few milliseconds at most.
MAX_CLAIM_BATCHES = 64
MAX_CLAIM_BYTES = 2 * 1024 * 1024
_CLAIM_TASKS = 2_000

# The limits of one commit, for the same reason. A batch with more entries or bytes is enqueued in
# slices. That number of entries takes 1 to 2 ms on a fast machine, less than 5 ms on a slow one.
MAX_COMMIT_BATCHES = 64
_COMMIT_ENTRIES = {"commit_list": 300, "commit_stream": 300, "commit_asynq": 200}
MAX_COMMIT_BYTES = 1024 * 1024

# Bytes of one part of a merge result that is stored apart from its batch. Redis accepts calls of
# 1 MiB whatever its limits are.
PART_BYTES = 512 * 1024

# Milliseconds for which a group is not claimed whose keys hold a foreign type.
_QUARANTINE_MS = 30_000

# For a batch for which the commit enqueues nothing.
_NOTHING = Enqueue(RedisQueue("", "commit", (), ()))

_NO_ANSWERS: Mapping[bytes, Sequence[Answered]] = {}


def max_commit_entries(script: str) -> int:
    """Returns how many entries one call of a commit script may have."""
    return _COMMIT_ENTRIES.get(script, min(_COMMIT_ENTRIES.values()))


class DueItem(NamedTuple):
    """An item of a poll: a batch that can be claimed again, or a group that is due."""

    batch_id: bytes
    """Empty for a group."""
    group: bytes


class Due(NamedTuple):
    """The reply to a poll."""

    wait_ms: int
    """Milliseconds until more is due; 0: now, negative: the namespace is paused."""
    items: list[DueItem]
    suspect: DueItem | None
    """A batch with which flushers died; it is claimed while no other suspect is in flight."""

    @classmethod
    def of(cls, reply: Any) -> Due:
        """Reads the reply of the script."""
        wait_ms, flat, suspect = reply
        items = list(map(DueItem, flat[::2], flat[1::2]))
        return cls(int(wait_ms), items, DueItem(*suspect) if suspect else None)


class Returned(NamedTuple):
    """A batch that is given back, to be claimed again later."""

    batch_id: bytes
    delay: float | None
    """Seconds until the next claim. None: it stays claimed, and only its result is stored."""
    counts: bool
    """Whether the attempt counts."""
    result: bytes
    """The serialized merge result, or empty if Redis has it or there is none."""
    error: str = ""
    """Why it failed, or empty to keep what is stored."""


CommitEntry: TypeAlias = "tuple[bytes, bytes, Enqueue | None]"
"""The id of a batch, its group, and what its commit enqueues, if anything."""


class Retried(NamedTuple):
    """A batch that is made of tasks that failed alone."""

    batch: FailedBatch
    delay: float
    """Seconds until it can be claimed."""
    error: str


class Parts(NamedTuple):
    """Tasks of a batch that failed alone, of which one call makes dead letters, or a batch."""

    failed: list[tuple[int, str]]
    """Their positions in the batch, each with the reason."""
    before: int
    """How many have left in earlier calls."""
    left: int
    """How many are left for later ones."""
    retried: Retried | None = None
    """The batch that is made of them; None for dead letters."""


class LeaderRequests:
    """Makes the requests of one leader.

    Args:
        token: the fencing token of its lease.
        idle: seconds between two polls at most.
        wants_cause: whether it is needed when and why each claimed batch was due, and its weight.
    """

    def __init__(
        self,
        partition: PartitionKeys,
        token: int,
        config: AggregationConfig,
        idle: float,
        *,
        wants_cause: bool = False,
    ) -> None:
        self._partition = partition
        self._token = b"%d" % token
        self._results = 0
        """The number of results that were stored apart."""
        self._idle_ms = to_ms(idle)
        # A claim outlives its merge. The batches of a dead leader are freed by the next lease.
        claim_time = seconds(config.merge_timeout) + seconds(config.lease_time)
        self._claim_ms = b"%d" % to_ms(claim_time)
        self._dedupe_ms = to_ms(config.dedupe_window)
        self._wants_cause = wants_info(config.group_aggregator) or wants_cause
        p = partition
        self._indexes = [p.state, p.groups, p.batches]
        self._indexes += [p.claims, p.retry, p.suspects, p.due, p.ready]

    def poll(self, limit: int, skipped: Iterable[bytes]) -> Request:
        """Asks for at most `limit` items that are due, without groups to be skipped."""
        keys = [*self._indexes, self._partition.seen, self._partition.seen_before]
        return call("poll", keys, self._token, limit, self._idle_ms, *skipped)

    def claim(self, items: Iterable[DueItem], limit: int, max_bytes: int) -> Request:
        """Claims at most `limit` batches of these items, up to about `max_bytes` bytes."""
        p = self._partition
        keys = [*self._indexes, p.seen, p.seen_before]
        limits = (limit, _CLAIM_TASKS, max_bytes, _QUARANTINE_MS, self._dedupe_ms)
        # Bytes only, as in `commit`, so that the transport need not look at each argument.
        args: list[Any] = [self._token, self._claim_ms, p.digits, *map(as_bytes, limits)]
        for item in items:
            keys += (p.tasks(item.group), p.ids(item.group))
            args += item
        if self._wants_cause:
            args.append(b"cause")
        return call("claim", keys, *args)

    def put_off(self, items: Iterable[tuple[DueItem, int]]) -> Request:
        """Has items wait for a permit, each for a number of milliseconds."""
        args = [part for (item, wait_ms) in items for part in (*item, wait_ms)]
        return call("put_off", self._indexes, self._token, *args)

    def read_tasks(self, batch_id: bytes, group: bytes, start: int, max_bytes: int) -> Request:
        """Reads tasks of a large batch, from the one at the place `start` on."""
        p = self._partition
        keys = [p.state, p.groups, p.batches, p.claims, p.seen, p.seen_before]
        keys += (p.tasks(group), p.ids(group))
        args = (self._token, batch_id, start, self._dedupe_ms, max_bytes)
        return call("read_tasks", keys, *args)

    def extend(self, batch_ids: Iterable[bytes]) -> Request:
        """Prolongs the claims of batches that are still in flight."""
        p = self._partition
        return call("extend", [p.state, p.claims], self._token, self._claim_ms, *batch_ids)

    def recall(self, in_flight: Iterable[bytes]) -> Request:
        """Frees all claims of the partition except those of these batches."""
        p = self._partition
        return call("recall", [p.state, p.claims], self._token, self._claim_ms, *in_flight)

    def commit(
        self,
        batches: Sequence[CommitEntry],
        answers: Mapping[bytes, Sequence[Answered]] = _NO_ANSWERS,
    ) -> Request:
        """Enqueues batches and removes them.

        Args:
            batches: what each enqueues; all go into the same queue.
            answers: the answers to submitted tasks, by the id of their batch.
        """
        p = self._partition
        queue = next((enqueue for *_, enqueue in batches if enqueue is not None), _NOTHING).queue
        keys = [p.state, p.groups, p.batches, p.claims, p.due, p.ready, *queue.keys]
        args: list[Any] = [self._token, *map(as_bytes, queue.options)]
        for batch_id, group, enqueue in batches:
            keys.append(p.tasks(group))
            if answers and batch_id in answers:
                entries = enqueue or _NOTHING
                extent = b"%d a%d" % (len(entries.arguments), len(answers[batch_id]))
                keys += entries.entry_keys
                args += (batch_id, extent, *entries.arguments)
                self._add_answers(keys, args, group, answers[batch_id])
            elif enqueue is None:
                args += (batch_id, b"0")
            else:
                keys += enqueue.entry_keys
                arguments = enqueue.arguments
                args += (batch_id, b"%d" % len(arguments), *arguments)
        return call(queue.script, keys, *args)

    def commit_slice(
        self,
        batch_id: bytes,
        group: bytes,
        enqueue: Enqueue | None,
        before: int,
        left: int,
        parts: Parts | None = None,
        answers: Sequence[Answered] | None = None,
    ) -> Request:
        """Enqueues a slice of a batch; removes the batch with the last one.

        Args:
            enqueue: the entries of the slice.
            before: how many entries have been enqueued.
            left: how many entries are behind the slice.
            parts: with the last slice, the tasks that failed alone.
            answers: with the last slice, the answers to submitted tasks.
        """
        p = self._partition
        enqueue = enqueue or _NOTHING
        keys = [p.state, p.groups, p.batches, p.claims, p.due, p.ready, *enqueue.queue.keys]
        keys += (p.tasks(group), p.result(batch_id))
        extent = b"%d %d %d" % (len(enqueue.arguments), before, left)
        behind: list[bytes] = []
        if parts is not None:
            extent += b" %d %d %d" % (len(parts.failed), parts.before, parts.left)
            if parts.retried is not None:
                new, delay, error = parts.retried
                extent += b" %d %d" % (to_ms(delay), new.attempts)
                keys += (p.retry, p.tasks(new.group))
                behind += (new.batch_id, new.group, _utf8(error))
                behind += (b"%d" % position for position, _ in parts.failed)
            else:
                keys.append(p.dead)
                for position, reason in parts.failed:
                    letter = b"%b-task-%d" % (batch_id, position)
                    keys.append(p.dead_tasks(letter))
                    behind += (letter, b"%d" % position, _utf8(reason))
        keys += enqueue.entry_keys
        if answers:
            extent += b" a%d" % len(answers)
        options = map(as_bytes, enqueue.queue.options)
        args: list[Any] = [self._token, *options, batch_id, extent]
        args += (*enqueue.arguments, *behind)
        if answers:
            self._add_answers(keys, args, group, answers)
        return call(enqueue.queue.script, keys, *args)

    def answer(self, batch_id: bytes, group: bytes, answers: Sequence[Answered]) -> Request:
        """Stores answers to submitted tasks of a batch whose outcome is fixed."""
        p = self._partition
        keys = [p.state, p.batches, p.claims]
        args: list[Any] = [self._token, batch_id]
        self._add_answers(keys, args, group, answers)
        return call("answer", keys, *args)

    def _add_answers(
        self, keys: list[bytes], args: list[Any], group: bytes, answers: Sequence[Answered]
    ) -> None:
        args.append(self._partition.answers_channel)
        group = group_of(group)  # of the tasks
        for task_id, keep_ms, record in answers:
            keys.append(self._partition.answer(group, task_id))
            args += (b"%d" % keep_ms, record)

    def store_result(self, batch_id: bytes, result: bytes) -> tuple[bytes, list[Request]]:
        """Stores a merge result apart from its batch, in parts that are sent in this order.

        Returns:
            The label of the result, and the requests.
        """
        p = self._partition
        self._results += 1
        label = b"%b-%d" % (self._token, self._results)
        keys = [p.state, p.batches, p.claims, p.result(batch_id)]
        parts = [result[at : at + PART_BYTES] for at in range(0, len(result), PART_BYTES)]
        return label, [
            call("store_result", keys, self._token, batch_id, label, place, len(parts), part)
            for place, part in enumerate(parts)
        ]

    def read_result(self, batch_id: bytes, label: bytes, place: int, count: int) -> Request:
        """Reads parts of a merge result that is stored apart, from the one at `place` on."""
        fields = (b"%b:%d" % (label, at) for at in range(place, place + count))
        return command("HMGET", self._partition.result(batch_id), *fields)

    def retry(self, batches: Iterable[Returned]) -> Request:
        """Gives batches back, in one step."""
        args: list[Any] = []
        for batch_id, delay, counts, result, error in batches:
            delay_ms = "" if delay is None else to_ms(delay)
            args += (batch_id, delay_ms, int(counts), _utf8(error), result)
        return call("retry", self._indexes, self._token, *args)

    def split(self, batch_id: bytes, delay: float, error: str) -> Request:
        """Replaces a batch by its halves, which can be claimed after `delay` seconds."""
        keys = [*self._indexes, self._partition.result(batch_id)]
        return call("split", keys, self._token, batch_id, to_ms(delay), _utf8(error))

    def bury(
        self,
        batch_id: bytes,
        group: bytes,
        attempts: int,
        failure: Failure,
        *,
        only_begin: bool = False,
    ) -> Request:
        """Moves a batch to the dead letters, after this number of attempts.

        Args:
            only_begin: whether no task is moved yet, only that is fixed.
        """
        p = self._partition
        keys = [p.state, p.groups, p.batches, p.claims, p.dead]
        keys += (p.tasks(group), p.dead_tasks(batch_id), p.ids(group), p.result(batch_id))
        error = (_utf8(failure.error), _utf8(failure.traceback))
        begin = ("begin",) if only_begin else ()
        return call("bury", keys, self._token, batch_id, attempts, *error, *begin)

    def set_aside(
        self, batch_id: bytes, group: bytes, positions: Sequence[int], error: str, *, part: int = 1
    ) -> Request:
        """Copies entries of a batch that are no tasks into a dead letter.

        Args:
            part: the number of the dead letter, if there are several for the batch.
        """
        p = self._partition
        letter = batch_id + b"-undecodable"
        if part > 1:
            letter += b"-%d" % part
        keys = [p.state, p.groups, p.batches, p.dead, p.tasks(group), p.dead_tasks(letter)]
        return call("set_aside", keys, self._token, batch_id, letter, _utf8(error), *positions)


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
