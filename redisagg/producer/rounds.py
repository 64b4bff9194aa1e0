"""Packs tasks into the calls of one round trip, and reads their replies.

A round is what one round trip carries: one call of the script `add` for each partition that has
tasks. A call consists of sections, each with tasks of one group that have the same limits. The
script accepts or refuses a section as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Generic, TypeAlias, TypeVar

from redisagg.observers import AddCounter
from redisagg.producer.options import AddOptions, Shares
from redisagg.producer.sequences import CallSequence
from redisagg.protocol.entries import EncodedTask, has_further_limits
from redisagg.protocol.keys import PartitionKeys
from redisagg.protocol.policies import OwnLimits
from redisagg.protocol.registration import NamespaceMoved
from redisagg.protocol.scripts import Request, load
from redisagg.texts import logger
from redisagg.transport.failures import error_from_reply

_log = logger("producer")

# The limits of one round trip, over all partitions. A group commit is small, so that packing it
# overlaps with Redis' work on the one before. In a stream no caller waits for a single task, and
# large rounds cost less per task.
COMMIT_ROUND_TASKS = 500
STREAM_ROUND_TASKS = 4_000
MAX_ROUND_BYTES = 4 * 1024 * 1024

# The number of plain tasks that take Redis as much time, so that no call takes long:
_REPLACING = 15
"""The search for a task that is to be replaced."""
_OWN_LIMITS = 1
"""The limits that a task has of its own."""
_SECTION = 1
"""A further section of a group."""
_DISTINCTION = 5
"""A group in a call with limits: more than the four usual ones, or some that tasks set. The script
reads and writes what distinguishes the tasks of the group. This counts for all groups of the call,
since earlier tasks with limits may wait in any of them; and for all calls, where other producers
set limits."""

_OWN = b" 3"
"""Behind the number of tasks of a section: each of them has 3 arguments."""

_PLACE, _FIRST_SECTION = 3, 7  # in ARGV

_ADDED = {int, list}
"""The types of the statuses of sections that were not refused."""

W = TypeVar("W")
"""What stands for a task in the results of its round: a future (asyncio), or the task itself."""

AddResults: TypeAlias = Iterator[tuple[list[W], "Exception | None"]]
"""Waiters, with the error for which their tasks were not added; None if they were."""


class _Call(Generic[W]):
    """One call of the script `add`.

    A task adds as few objects as possible, and no reference cycles: with thousands of concurrent
    coroutines, Python's garbage collector would otherwise take longer than the adding itself.
    """

    __slots__ = (
        *("bytes", "group_keys", "group_surcharge", "open", "overrides", "partition", "places"),
        *("policed", "policies", "sections", "surcharge", "uncounted", "waiters"),
    )

    def __init__(self, partition: PartitionKeys, options: AddOptions) -> None:
        self.partition = partition
        self.policies = options.policies
        self.policed = options.policies.in_use
        self.sections: list[list[bytes]] = []
        """Each as in ARGV: group, limits, count (see `request`), and for each task id, body and,
        if the count ends with `_OWN`, the limits that are its own."""
        self.overrides: dict[int, OwnLimits] = {}
        """The limits of the group that the tasks of a section set themselves, by its index."""
        self.open: dict[bytes, int] = {}
        """By group, the index of the section that takes its next task."""
        self.group_keys: list[bytes] = []
        self.waiters: list[W] = []
        self.places: list[int] = []
        """For each waiter the index of the section with its task."""
        self.bytes = 0
        self.surcharge = 0
        """How many plain tasks take as much time as what is not plain about these."""
        self.uncounted = True
        """Whether no counter was told of a reply; a call that is repeated has several."""
        limited = options.limited or options.others.set_limits()
        self.group_surcharge = _DISTINCTION if limited else 0
        """That of each group."""

    def put(self, task: EncodedTask, waiter: W, tasks_key: bytes, ids_key: bytes) -> None:
        """Puts a task into the section of its group."""
        group, task_id, body, limits, own, override = task
        place = self.open.get(group, -1)
        sections = self.sections
        if (
            place < 0
            or (section := sections[place])[1] != limits
            or (own is not None and not section[2])
            or ((override is not None or self.overrides) and self.overrides.get(place) != override)
        ):
            self.surcharge += _SECTION if place >= 0 else self.group_surcharge
            place = self.open[group] = len(sections)
            section = [group, limits, b"" if own is None else _OWN]
            sections.append(section)
            if override is not None:
                self.overrides[place] = override
            if (
                own is not None or override is not None or self.policed
            ) and not self.group_surcharge:
                self._look_at_limits(place)
            self.group_keys += (tasks_key, ids_key)
        section.append(task_id)
        section.append(body)
        if section[2]:
            section.append(own or b"")
            if own is not None:
                self.surcharge += _REPLACING if b"replace" in own else _OWN_LIMITS
        self.waiters.append(waiter)
        self.places.append(place)
        self.bytes += len(body)

    def _look_at_limits(self, place: int) -> None:
        """Raises the surcharge of all groups if a section is the first one with limits."""
        group, limits, own = self.sections[place][:3]
        override = self.overrides.get(place)
        if self.policed:
            limits = self.policies.limits(group, override)
        if own == _OWN or override is not None or has_further_limits(limits):
            self.group_surcharge = _DISTINCTION
            self.surcharge += _DISTINCTION * len(self.open)

    def request(self, sequence: CallSequence, options: AddOptions, shares: Shares) -> Request:
        """Returns the request, as the next call of `sequence`."""
        p = self.partition
        keys = [p.state, p.groups, p.due, p.ready, p.call(sequence.id), p.seen, p.seen_before]
        keys += self.group_keys
        # All bytes, which are packed without a look at each.
        args: list[bytes] = [
            b"%d" % sequence.next_number(p.number),
            options.stored_ms,
            options.keyspace.wake_channel,
            p.label,
            *shares.arguments,
            options.dedupe,
        ]
        for section in self.sections:
            if section[2] and section[2].endswith(_OWN):
                section[2] = b"%d" % ((len(section) - 3) // 3) + _OWN
            else:
                section[2] = b"%d" % (len(section) // 2 - 1)
            args += section
        return Request(load("add"), keys, args, p.layout, self)

    def under_policies(self, request: Request) -> Request:
        """Returns the request with the limits that the policies give, as the same call."""
        args = [*request.args[:_FIRST_SECTION]]
        args[_PLACE] = self.partition.label_with_policies
        for place, section in enumerate(self.sections):
            group, _, *rest = section
            args += (group, self.policies.limits(group, self.overrides.get(place)), *rest)
        return request._replace(args=args)

    def tasks(self) -> Iterator[tuple[EncodedTask, W]]:
        """Returns the tasks, after `request`, each with what stands for it."""
        for place, section in enumerate(self.sections):
            group, limits, count, *rest = section
            override = self.overrides.get(place)
            step = 3 if count.endswith(_OWN) else 2
            waiters = (w for w, at in zip(self.waiters, self.places, strict=True) if at == place)
            for at, waiter in zip(range(0, len(rest), step), waiters, strict=True):
                own = (rest[at + 2] or None) if step == 3 else None
                yield EncodedTask(group, rest[at], rest[at + 1], limits, own, override), waiter

    def count(self, reply: Any, counter: AddCounter) -> None:
        """Tells a counter how many tasks were new, and of how many the id was known."""
        if isinstance(reply, Exception) or not self.uncounted:
            return
        self.uncounted = False
        new = known = 0
        for section, status in zip(self.sections, reply, strict=True):
            if isinstance(status, int | list):
                added, replaced = (status, 0) if isinstance(status, int) else status
                new += added
                known += int(section[2].split()[0]) - added - replaced
        counter.count_added(new, known)

    def results_one_by_one(self, reply: Sequence[Any]) -> AddResults[W]:
        """Reads a reply, a status or an error for each section, of which some are errors."""
        errors = list(map(_error, reply))
        for waiter, place in zip(self.waiters, self.places, strict=True):
            yield [waiter], errors[place]


def was_moved(replies: Sequence[Any]) -> bool:
    """Whether a reply says that the namespace was moved."""
    return NamespaceMoved in map(type, replies)


def _error(status: Any) -> Exception | None:
    if isinstance(status, int | list):  # how many were new, and how many were replaced
        return None
    return (
        status
        if isinstance(status, Exception)
        else error_from_reply(status.decode(errors="replace"))
    )


class Round(Generic[W]):
    """What one round trip carries: one call for each partition that has tasks.

    Args:
        options: what all calls have in common.
        max_tasks: after how many tasks the round is full.
    """

    __slots__ = (
        *("_bytes", "_call_bytes", "_call_tasks", "_calls", "_max_tasks", "_options", "_place"),
        *("_shares", "_tasks", "full"),
    )

    def __init__(self, options: AddOptions, max_tasks: int) -> None:
        self.full = False
        """Whether the round is to be sent before it takes more tasks."""
        self._options = options
        self._place = options.keyspace.place
        self._shares = shares = options.shares
        self._call_tasks, self._call_bytes = shares.call_tasks, shares.call_bytes
        self._max_tasks = max_tasks
        self._calls: dict[int, _Call[W]] = {}
        self._tasks = 0
        self._bytes = 0

    def put(self, task: EncodedTask, waiter: W) -> None:
        """Puts a task into the call for its partition; `waiter` comes back in the results."""
        partition, tasks_key, ids_key = self._place(task.group)
        partition_call = self._calls.get(partition.number)
        if partition_call is None:
            partition_call = self._calls[partition.number] = _Call(partition, self._options)
        partition_call.put(task, waiter, tasks_key, ids_key)
        self._tasks += 1
        self._bytes += len(task.body)
        if (
            self._tasks >= self._max_tasks
            or self._bytes >= MAX_ROUND_BYTES
            or len(partition_call.waiters) + partition_call.surcharge >= self._call_tasks
            or partition_call.bytes >= self._call_bytes
        ):
            self.full = True

    def __len__(self) -> int:
        return self._tasks

    def waiters(self) -> Iterator[W]:
        """Returns what stands for the tasks."""
        return chain.from_iterable(each.waiters for each in self._calls.values())

    def requests(self, sequence: CallSequence) -> list[Request]:
        """Returns the requests to send, as the next calls of `sequence`."""
        options, shares = self._options, self._shares
        return [each.request(sequence, options, shares) for each in self._calls.values()]

    def follow(self, replies: Sequence[Any]) -> list[Round[W]]:
        """Follows the namespace if it was moved, as some replies say.

        Returns:
            Rounds with the tasks of the calls that were refused for that, in order. Their results
            are to take the place of those of these calls.
        """
        calls = self._calls.values()
        refused = [
            each
            for each, reply in zip(calls, replies, strict=True)
            if type(reply) is NamespaceMoved
        ]
        for reply in replies:
            if isinstance(reply, NamespaceMoved):
                _log.warning("%s; this producer follows", reply)
                self._options.keyspace.become(reply.layout)
                break
        rounds: list[Round[W]] = []
        for call in refused:
            for task, waiter in call.tasks():
                if not rounds or rounds[-1].full:
                    rounds.append(Round(self._options, self._max_tasks))
                rounds[-1].put(task, waiter)
        return rounds

    def results(self, replies: Iterable[Any]) -> AddResults[W]:
        """Reads the replies to `requests`, but those of calls that `follow` puts into others."""
        counter = self._options.observers.counter
        for each, reply in zip(self._calls.values(), replies, strict=True):
            if type(reply) is NamespaceMoved:
                continue
            if counter is not None:
                each.count(reply, counter)
            if isinstance(reply, Exception):
                yield each.waiters, reply
                continue
            kinds = set(map(type, reply))
            if list in kinds:
                self._look_for_hint(reply)
            if kinds <= _ADDED:
                yield each.waiters, None
            else:
                yield from each.results_one_by_one(reply)

    def _look_for_hint(self, reply: Sequence[Any]) -> None:
        """Notes that other producers set limits, if the statuses of sections say so."""
        if any(type(status) is list and status[1] == 0 for status in reply):
            self._options.others.seen()

    def failed(self, error: Exception) -> AddResults[W]:
        """The results if the round trip failed."""
        return self.results([error] * len(self._calls))


def stream_round(options: AddOptions, tasks: Iterable[EncodedTask] = ()) -> Round[EncodedTask]:
    """Makes a round of a stream, with these tasks in it."""
    round_: Round[EncodedTask] = Round(options, STREAM_ROUND_TASKS)
    for task in tasks:
        round_.put(task, task)
    return round_
