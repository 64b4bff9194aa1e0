"""A model of one partition in plain Python.

A batch holds its tasks, and a group its batches and its waiting tasks. So the model computes places
in lists, counters and marks from its contents, where the scripts keep them up to date.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, TypeAlias, cast

import msgpack

from redisagg.protocol.failed_tasks import FailedBatch, group_of
from redisagg.protocol.records import BatchRecord, DeadRecord, GroupRecord

POLICIES = b" policies"
PRIORITY_STEP = 2**42
BEHIND_MS = 50
PAUSED_MS = 2000
"""When a batch in retry is looked at again whose group is paused."""
TO_BURY = 2**31
"""The attempt of a batch that is half buried."""
DIED, FREED = 0, 1
"""Scores in `claims`: the leader vanished; the batch was given back."""
SUSPECT_DEATHS = 2
TURN = 2
"""Batches of a group in one turn of a claim (8 in the scripts)."""
SLICE_TASKS = 2
"""More tasks of a batch are read in slices (1,000 in the scripts)."""
KEPT = b"\xce\x00\x36\xee\x80"
"""The end of the body of a task that was submitted: its outcome is kept for an hour."""
CANCELLED = b"\x93\xa9cancelled\xa0\xa0"
"""The outcome of a task that was cancelled."""
PARTIAL = b"-"
"""The label while the first merge result is being stored apart."""
SLICE_BYTES = 1024 * 1024
STEP_BYTES = 64 * 1024
LONGEST_PAUSE_MS = 100
"""Between two slices of a requeue; then a leader buries the batch (10,000 in the script)."""


class Refused(Exception):
    """A script replied with an error; the message is the error's text."""


class Limits(NamedTuple):
    """The limits of a task; spans in ms, 0 for none where it stands for nothing else."""

    grace: int
    """`NEVER` for none, as the max delay."""
    delay: int
    size: int
    priority: int
    max_bytes: int = 0
    max_weight: int = 0
    min_interval: int = 0
    leading: int = 0
    weight: int = 1
    due_at: int = 0
    not_before: int = 0
    flush: int = 0
    replace: int = 0
    schedule: int = 0
    """As `due_at`; a task has one of both."""

    @property
    def compared(self) -> Limits:
        """Without what does not make tasks differ."""
        return self._replace(weight=1, min_interval=0, leading=0, flush=0, replace=0)

    @property
    def is_usual(self) -> bool:
        """Whether it has nothing but the first four."""
        return self == Limits(*self[:4])

    @property
    def due(self) -> int:
        """The earlier of `due_at` and `schedule`."""
        return min(filter(None, (self.due_at, self.schedule)), default=0)

    def shared_text(self) -> bytes:
        """What a section says of all its tasks."""
        spans = (b"-" if each == NEVER else b"%d" % each for each in self[:2])
        text = b" ".join((*spans, b"%d" % self.size, b"%d" % self.priority))
        names = ("max_bytes", "max_weight", "min_interval", "leading")
        return text + b"".join(b" " + each for each in self._named(names))

    def own_text(self) -> bytes:
        """What belongs to one task."""
        named = self._named(("due_at", "schedule", "not_before", "flush", "replace"))
        if self.weight != 1:
            named.append(b"weight=%d" % self.weight)
        return b" ".join(named)

    def _named(self, names: Iterable[str]) -> list[bytes]:
        values = {name: getattr(self, name) for name in names}
        return [b"%b=%d" % (name.encode(), value) for name, value in values.items() if value]

    def stored_text(self, common: Limits) -> bytes:
        """What an entry stores, in a group whose entries have `common` if they store nothing."""
        if self.compared == common:
            return b"" if self.weight == 1 else b"=;weight=%d" % self.weight
        stored = self._replace(min_interval=0, leading=0, flush=0, replace=0)
        own = stored.own_text()
        return stored.shared_text() + (b";" + own if own else b"")


NEVER = 2**52
Reason: TypeAlias = bytes
TaskId: TypeAlias = bytes
_NONE = Limits(0, 0, 1, 0)


class Entry(NamedTuple):
    """A stored task."""

    arrival: int
    id: bytes
    body: bytes
    limits: Limits
    text: bytes = b""
    """The limits as they are stored."""

    @property
    def raw(self) -> bytes:
        first = self.arrival + (1 << 47 if self.text else 0)
        text = bytes([len(self.text)]) + self.text if self.text else b""
        return first.to_bytes(6, "big") + bytes([len(self.id)]) + self.id + text + self.body

    @property
    def is_submitted(self) -> bool:
        """Whether its producer wants to know its outcome."""
        return self.body.endswith(KEPT)

    @property
    def deadline(self) -> int:
        """The end of its max delay."""
        return self.arrival + self.limits.delay

    @property
    def latest(self) -> int:
        """When its group is due at the latest."""
        return min(self.deadline, self.limits.due or 2 * NEVER)


class AddOptions(NamedTuple):
    """The options of an `add` call."""

    tasks: int = 0
    """Maximum number of pending tasks; 0 for no maximum."""
    bytes: int = 0
    """Maximum bytes of their entries; 0 for no maximum."""
    dedupe: bool = False
    reads_policies: bool = False
    """Whether the producer has read the policies of the namespace."""


class Section(NamedTuple):
    """A section of an `add` call: tasks of one group, as id and body."""

    group: bytes
    limits: Limits
    tasks: Sequence[tuple[bytes, bytes]]
    one_by_one: bool = False
    """Whether each task says what is its own."""


@dataclass
class Batch:
    """A batch in flight."""

    id: bytes
    group: bytes
    entries: list[Entry]
    created: int
    length: int
    """Bytes of its entries; of a large batch about."""
    attempts: int = 0
    error: bytes = b""
    merged: bytes = b""
    deaths: int = 0
    read: int = 0
    """Number of its first tasks whose ids are no longer known as waiting."""
    alone: int = 0
    enqueued: int = 0
    """Number of merged tasks that slices have enqueued."""
    result: bytes = b""
    """The label of the merge result that is stored apart."""
    reason: bytes = b""
    opened: int = 0
    due_at: int = 0
    weight: int = 0
    letter: DeadLetter | None = None
    """What it becomes, with the tasks that were moved there."""
    parted: int = 0
    """Number of its tasks that failed alone and are dead letters of their own."""
    leader: int = 0
    """The token of the leader that claimed it last, or that extended its claim."""

    @property
    def is_large(self) -> bool:
        """Whether its tasks are read in slices."""
        return is_large(len(self.entries), self.length)

    @property
    def has_result(self) -> bool:
        """Whether a whole merge result is stored apart."""
        return self.result not in (b"", PARTIAL)

    @property
    def is_read_later(self) -> bool:
        """Whether a claim hands it out without its tasks."""
        return bool(self.merged) or self.has_result or self.is_large


class Slice(NamedTuple):
    """The place of a slice among the entries of its batch."""

    before: int
    left: int


class Parts(NamedTuple):
    """Tasks that failed alone, of which a call makes dead letters, or a batch."""

    places: Sequence[int]
    """Their places in the batch."""
    before: int
    left: int
    retried: FailedBatch | None = None
    """The batch that is made of them."""
    delay: int = 0
    """ms until it can be claimed."""

    def letter(self, batch_id: bytes, place: int) -> bytes:
        """The id of a dead letter."""
        return b"%b-task-%d" % (batch_id, place)


class Commit(NamedTuple):
    """A batch in a `commit_stream` call."""

    batch_id: bytes
    messages: Sequence[tuple[bytes, ...]]
    slice: Slice | None = None
    """None: all messages of the batch."""
    parts: Parts | None = None
    """With the last slice."""
    answers: Sequence[Answer] = ()
    """With the last slice, the outcomes of tasks of the batch that were submitted."""


class Answer(NamedTuple):
    """What became of a task that was submitted."""

    group: bytes
    task_id: bytes
    record: bytes


class Applied(NamedTuple):
    """A group in an `apply_limits` call."""

    group: bytes
    policy: dict[str, int]
    own: Sequence[Collection[str]] | None
    """The names of the limits that each waiting task has set; None if none is described."""


class Retry(NamedTuple):
    """A batch in a `retry` call."""

    batch_id: bytes
    delay: int | None
    """ms; None: the batch stays claimed and only its merge result is stored."""
    counts: int
    """1 if the attempt counts, else 0."""
    error: bytes
    merged: bytes


@dataclass
class DeadLetter:
    """A dead letter."""

    record: DeadRecord
    entries: list[Entry]


@dataclass
class Group:
    """A group."""

    base: int = 0
    in_flight: list[Batch] = field(default_factory=list)
    """Batches in the order in which they have to leave."""
    waiting: list[Entry] = field(default_factory=list)
    numbers: dict[bytes, int] = field(default_factory=dict)
    """The absolute number that each waiting task got when it came, by its id. The ids of a large
    batch stay here until they are read."""
    bytes: int = 0
    """Bytes of the waiting tasks; about, after a large batch was cut."""
    estimated: bool = False
    """Whether the bytes of a batch were estimated since a task waits."""
    common: Limits = _NONE
    """The limits of entries that store none."""
    segmented: bool = False
    """Whether waiting tasks differ in more than their bytes, or batches have a maximum of bytes."""
    last: int = 0
    """When the newest waiting task came, or one was replaced."""
    interval: int = 0
    leading: int = 0
    postponed: int = 0
    """Until when an operator has postponed the waiting tasks."""
    cool_until: int = 0
    """Until when no batch is cut, since one has been."""
    marked: int = 0
    """Number of waiting tasks that a flush made due."""
    held_from: int = 0
    """Absolute number of the first task of the batches in retry, or of one before it."""
    held_until: int = 0
    """When the last of those batches may be claimed again."""
    since: int = 0
    """When the group became full or was flushed, or when its last batch was cut."""
    ids_from: int = 0
    """Absolute number of the first task whose id may be in `numbers`."""
    cancelled: int = 0
    """Number of tasks that were cancelled since a task waits."""
    paused_at: int = 0
    """Since when it is paused; 0 if it is not."""

    @property
    def paused(self) -> bool:
        return self.paused_at > 0

    @property
    def stays(self) -> bool:
        """Whether it is kept without tasks."""
        return self.paused or self.cool_until > 0

    @property
    def claimed(self) -> int:
        """Number of tasks in batches."""
        return sum(len(batch.entries) for batch in self.in_flight)

    @property
    def deadline(self) -> int:
        """The end of the first max delay of a waiting task."""
        return min(entry.deadline for entry in self.waiting)

    def _least(self, name: str) -> int:
        """The smallest of the limits of the waiting tasks; 0 if none has one."""
        found = [getattr(entry.limits, name) for entry in self.waiting]
        return min(filter(None, found), default=0)

    @property
    def limits(self) -> Limits:
        """The limits of what waits."""
        found = [entry.limits for entry in self.waiting]
        return Limits(
            found[-1].grace,
            min(each.delay for each in found),
            min(each.size for each in found),
            max(each.priority for each in found),
            max_bytes=self._least("max_bytes"),
            max_weight=self._least("max_weight"),
            min_interval=self.interval,
            leading=self.leading,
            weight=sum(each.weight for each in found),
            due_at=self._least("due_at"),
            schedule=self._least("schedule"),
            not_before=max(each.not_before for each in found),
        )

    @property
    def held_back_until(self) -> int:
        """Until when no batch is cut, unless the group is flushed."""
        if self.marked:
            return 0
        latest = max((entry.limits.not_before for entry in self.waiting), default=0)
        return max(self.cool_until, self.postponed, latest)

    def maximum_reached(self) -> Reason:
        """The maximum of a batch that the waiting tasks reach, as a reason; else empty."""
        limits = self.limits
        if len(self.waiting) >= limits.size:
            return b"size"
        if 0 < limits.max_bytes <= self.bytes:
            return b"bytes"
        return b"weight" if 0 < limits.max_weight <= limits.weight else b""

    @property
    def due_at(self) -> int:
        """When the group is due; 0: at once."""
        if self.marked:
            return 0
        limits = self.limits
        at = min(self.last + limits.grace, self.deadline)
        if limits.due:
            at = min(at, limits.due)
        if self.leading or self.maximum_reached():
            at = 0
        return max(at, self.held_back_until)

    def reason(self, now: int) -> Reason:
        """Why it is due; if no time has come, by a grace period before later tasks came."""
        if self.marked:
            return b"flush"
        reached = self.maximum_reached()
        if reached or self.leading:
            return reached or b"leading"
        grace_end = self.last + self.limits.grace
        if 0 < self.limits.due <= min(grace_end, self.deadline, now):
            return b"due_at" if self.limits.due == self.limits.due_at else b"schedule"
        return b"max_delay" if self.deadline <= min(grace_end, now) else b"grace"

    @property
    def score(self) -> int:
        """The score in `ready`."""
        return max(self.due_at, self.since) - self.limits.priority * PRIORITY_STEP

    def became_due(self, due_before: int, now: int) -> None:
        """Notes when the group became due."""
        if due_before > 0:
            self.since = max(self.since, min(due_before, now))

    def unread_ids(self) -> set[TaskId]:
        """The ids of large batches that were not read yet."""
        return {entry.id for batch in self.in_flight for entry in batch.entries[batch.read :]}

    def next_batch(self) -> list[Entry]:
        """The longest run of waiting tasks within the limits, at least one."""
        limits = self.limits
        taken: list[Entry] = []
        for entry in self.waiting[: limits.size]:
            more = [*taken, entry]
            if taken and (
                0 < limits.max_bytes < length(more)
                or 0 < limits.max_weight < sum(each.limits.weight for each in more)
            ):
                break
            taken = more
        return taken

    def start(self, batch: Batch) -> int:
        """Absolute number of the first task of a batch."""
        before = self.in_flight[: self.in_flight.index(batch)]
        return self.base + sum(len(each.entries) for each in before)

    def refresh_head(self) -> None:
        """Updates the group after its waiting tasks have lost some."""
        self.marked = min(self.marked, len(self.waiting))
        if not self.waiting:
            self.no_task_waits()
        elif self.segmented:
            self.check_segments()

    def check_segments(self) -> None:
        """Ends the distinction of waiting tasks if they do not differ any more."""
        if self.segmented:
            kinds = {entry.limits.compared for entry in self.waiting}
            alike = len(kinds) == 1 and all(entry.limits.weight == 1 for entry in self.waiting)
            [first, *_] = kinds
            if alike and not first.max_bytes and not first.max_weight:
                self.common, self.segmented = first, False

    def no_task_waits(self) -> None:
        """Ends what holds for waiting tasks."""
        self.marked, self.cancelled, self.segmented, self.estimated = 0, 0, False, False
        self.postponed = 0
        if not self.stays:
            self.interval = self.leading = 0


def body_of(raw: bytes) -> bytes:
    """The body in a stored entry."""
    end = 7 + raw[6]
    return raw[end + 1 + raw[end] :] if raw[0] & 0x80 else raw[end:]


def length(entries: Iterable[Entry]) -> int:
    """Bytes of entries."""
    return sum(len(entry.raw) for entry in entries)


def is_large(count: int, size: int) -> bool:
    """Whether so many tasks with so many bytes are read in slices."""
    return count > SLICE_TASKS or size > SLICE_BYTES


def divided(record: DeadRecord, entries: list[Entry], weight: int, taken: bytes) -> DeadRecord:
    """The record of a dead letter that has some tasks of another one."""
    return record._replace(
        task_count=len(entries), length=length(entries), batch_weight=weight, taken=taken
    )


def seen_member(group: bytes, task_id: bytes) -> bytes:
    """The member of the set `seen` for an id."""
    return len(group).to_bytes(2, "big") + group + task_id


def in_order(index: dict[bytes, int]) -> list[bytes]:
    """The members of a sorted set, in its order."""
    return sorted(index, key=lambda member: (index[member], member))


class Stored(Protocol):
    """Reads records of Redis, for what the model leaves open."""

    def group(self, name: bytes) -> GroupRecord:
        """The record of a group."""
        ...

    def batch(self, batch_id: bytes) -> BatchRecord:
        """The record of a batch."""
        ...


class Partition:
    """The state of a partition, with a method for each script that returns the script's reply."""

    def __init__(self, now: int, stored: Stored) -> None:
        self.now = now
        self.stored = stored
        self.partitions = b""
        self.owner: bytes | None = None
        self.token = 0
        self.expires = 0
        self.lease = 0
        self.clock = 0
        self.wake = 0
        self.paused_at = 0
        """Since when the partition is paused; 0 if it is not."""
        self.sequence = 0
        self.flushed = 0
        self.flushed_tasks = 0
        self.failed = 0
        self.removed = 0
        self.groups: dict[bytes, Group] = {}
        self.batches: dict[bytes, Batch] = {}
        self.claims: dict[bytes, int] = {}
        self.retries: dict[bytes, int] = {}
        self.suspects: dict[bytes, int] = {}
        self.due: dict[bytes, int] = {}
        self.ready: dict[bytes, int] = {}
        self.dead: dict[bytes, DeadLetter] = {}
        self.calls: dict[bytes, tuple[int, list[int | list[int] | bytes]]] = {}
        self.seen: set[bytes] = set()
        """The group and id of each flushed task; the dedupe window is longer than a test."""
        self.results: dict[bytes, dict[bytes, bytes]] = {}
        """The parts of merge results that are stored apart, by batch id."""
        self.copies: dict[bytes, list[Entry]] = {}
        """Copies of the tasks of dead letters, by the name of their list."""
        self.stream: list[tuple[bytes, ...]] = []
        self.answers: dict[tuple[bytes, bytes], bytes] = {}
        """The outcomes of tasks, by group and id."""

    # --- shared by the scripts ---------------------------------------------------------------

    def leads(self, token: int) -> bool:
        """Whether the lease of this token runs."""
        return token == self.token and self.expires > self.now

    def register_partition(self, partitions: bytes) -> int:
        if self.partitions != partitions + POLICIES:
            self.partitions = partitions
        return 1

    def _refuse_unregistered(self) -> None:
        if not self.partitions:
            raise Refused("UNREGISTERED the state is of unknown partitions, not 1")

    def _fence(self, token: int) -> None:
        if token != self.token:
            raise Refused("STALE the partition has another leader")
        if self.expires <= self.now:
            raise Refused("STALE the lease has expired")

    def held(self, name: bytes) -> int:
        """Number of batches of a group in `retry` and `suspects`; they hold the group."""
        batches = self.groups[name].in_flight
        return sum(each.id in self.retries or each.id in self.suspects for each in batches)

    def _schedule(self, name: bytes) -> None:
        """Puts a group into the index of its state, and removes it if it is empty."""
        group = self.groups[name]
        self.due.pop(name, None)
        self.ready.pop(name, None)
        if group.waiting and not self.held(name) and not group.paused:
            if group.due_at <= self.now:
                self.ready[name] = group.score
            else:
                self.due[name] = group.due_at
        elif not group.waiting and group.cool_until:
            self.due[name] = group.cool_until
        self._remove_if_empty(name)

    def _remove_if_empty(self, name: bytes) -> None:
        group = self.groups[name]
        if not group.waiting:
            group.no_task_waits()
        if not group.waiting and not group.in_flight and not group.stays:
            del self.groups[name]

    def _wake(self, at: float) -> None:
        if at < self.wake:
            self.wake = 0

    # --- producers ---------------------------------------------------------------------------

    def add(
        self, producer: bytes, number: int | None, sections: Iterable[Section], options: AddOptions
    ) -> list[int | list[int] | bytes]:
        if number is not None and producer in self.calls:
            last, answered = self.calls[producer]
            if number == last:
                return answered
            if number < last:
                raise Refused("LATE a later call was made")
        self._refuse_unregistered()
        if self.partitions.endswith(POLICIES) and not options.reads_policies:
            raise Refused("POLICIES the namespace has policies, which the caller has not read")
        reply: list[int | list[int] | bytes] = []
        earliest = math.inf
        full: set[bytes] = set()
        for section in sections:
            if section.group in full or self._too_full(section, options):
                full.add(section.group)
                reply.append(b"FULL too much is pending")
                continue
            added, due = self._add_section(section, dedupe=options.dedupe)
            reply.append(added)
            earliest = min(earliest, due)
        for section in sections:
            replaced_in = self.groups.get(section.group)
            if replaced_in and replaced_in.estimated and section.limits.replace:
                replaced_in.bytes = self.stored.group(section.group).bytes
        if any((isinstance(each, int) and each) or isinstance(each, list) for each in reply):
            self._wake(earliest)
        if number is not None:
            self.calls[producer] = (number, reply)
        return reply

    def _too_full(self, section: Section, options: AddOptions) -> bool:
        group = self.groups.get(section.group, Group())
        new = [
            Entry(0, task_id, body, section.limits)
            for task_id, body in section.tasks
            if task_id not in group.numbers
            and not (options.dedupe and seen_member(section.group, task_id) in self.seen)
        ]
        counts = self.counters()
        tasks = counts["waiting"] + counts["claimed"] + len(new)
        size = counts["bytes"] + length(new)
        return bool(new) and (0 < options.tasks < tasks or 0 < options.bytes < size)

    def _add_section(self, section: Section, *, dedupe: bool) -> tuple[int | list[int], float]:
        name, limits = section.group, section.limits
        group = self.groups.setdefault(name, Group())
        new: list[Entry] = []
        first = group.base + group.claimed + len(group.waiting) + group.cancelled
        replaced: list[tuple[bytes, bytes]] = []
        for task_id, body in section.tasks:
            known = dedupe and seen_member(name, task_id) in self.seen
            waits = task_id in self.waiting_ids(name) or task_id in [entry.id for entry in new]
            if waits and limits.replace:
                replaced.append((task_id, body))
            elif (task_id not in group.numbers or limits.replace) and not known:
                group.numbers[task_id] = first + len(new)
                new.append(Entry(self.now, task_id, body, limits))
        if new and not group.waiting:
            group.common = limits.compared
        common = group.common
        new = [entry._replace(text=limits.stored_text(common)) for entry in new]
        if not new and not replaced:
            self._remove_if_empty(name)
            return 0, math.inf
        was_due = group.due_at if group.waiting else None
        was_full = was_due == 0 and bool(group.maximum_reached())
        if was_due is None:
            group.since = 0
        segmented = group.segmented
        if limits.weight != 1 or limits.max_bytes or limits.max_weight:
            group.segmented = True
        group.segmented = group.segmented or limits.compared != group.common
        if not new:
            group.segmented = segmented
        group.last = self.now
        group.interval, group.leading = limits.min_interval, limits.leading
        group.waiting += new
        group.bytes += length(new)
        for task_id, body in replaced:
            self._replace(group, task_id, body, limits)
        if limits.flush:
            group.marked = len(group.waiting)
        result: int | list[int] = [len(new), len(replaced)] if replaced else len(new)
        if group.due_at == 0:
            group.became_due(self.now if was_due is None else was_due, self.now)
        if self.held(name) or group.paused:
            return result, math.inf
        if group.due_at > 0:
            # A group in `ready` stays there: once due, it stays due.
            if was_due is not None and was_due <= group.due_at:
                return result, math.inf  # the index may be early; `poll` corrects it
            self.due[name] = group.due_at
            return result, group.due_at
        self.ready[name] = min(self.ready.get(name, group.score), group.score)
        if was_full:
            return result, math.inf
        self.due.pop(name, None)
        return result, self.now

    def _replace(self, group: Group, task_id: bytes, body: bytes, limits: Limits) -> None:
        """Puts a task in the place of the waiting one with the same id."""
        [at] = [i for i, entry in enumerate(group.waiting) if entry.id == task_id]
        old = group.waiting[at]
        new = Entry(old.arrival, task_id, body, limits, limits.stored_text(group.common))
        group.waiting[at] = new
        group.bytes = max(0, group.bytes + len(new.raw) - len(old.raw))
        if group.segmented or limits.compared != group.common or limits.weight != 1:
            group.segmented = True
            group.check_segments()

    def forget_calls(self, producers: Sequence[bytes]) -> int:
        return sum(self.calls.pop(producer, None) is not None for producer in producers)

    # --- leases ------------------------------------------------------------------------------

    def acquire(self, owner: bytes, lease: int) -> list[int]:
        self._refuse_unregistered()
        if self.expires > self.now and self.owner != owner:
            return [0, self.expires - self.now]
        self._end_claims(DIED)
        self.token = max(self.token + 1, self.now)
        self.owner, self.wake = owner, 0
        self.expires, self.lease = self.now + lease, lease
        return [self.token, 0]

    def renew(self, token: int, lease: int) -> int:
        self._fence(token)
        self.expires, self.lease = self.now + lease, lease
        return 1

    def release(self, token: int) -> int:
        if token != self.token:
            return 0
        self.expires = 0
        self._end_claims(FREED)
        return 1

    def _end_claims(self, score: int) -> None:
        for batch_id, until in self.claims.items():
            if until > FREED:
                self.claims[batch_id] = score

    def recall(self, token: int, duration: int, known: Iterable[bytes]) -> int:
        self._fence(token)
        self._end_claims(FREED)
        return self.extend(token, duration, known)

    # --- claims ------------------------------------------------------------------------------

    def poll(self, token: int, limit: int, sleep: int, skipped: Collection[bytes]) -> list[Any]:
        self._fence(token)
        self.clock = self.now
        self._count_deaths()
        if self.paused:
            self.wake = self.now + sleep
            return [-1, [], []]
        items: list[tuple[bytes, bytes]] = []
        next_at = math.inf
        for index in (self.claims, self.retries):
            members = in_order(index)
            back = [member for member in members if index[member] <= self.now]
            back = back[: limit - len(items)]
            items += [(batch_id, self.batches[batch_id].group) for batch_id in back]
            for member in members[len(back) : len(back) + 1]:
                next_at = min(next_at, index[member])
        for name in [name for name, at in self.due.items() if at <= self.now]:
            if not self.groups[name].waiting:
                if self.groups[name].cool_until <= self.now:
                    self.groups[name].cool_until = 0
                    del self.due[name]
                    self._remove_if_empty(name)
                else:
                    self.due[name] = self.groups[name].cool_until
                continue
            if self.held(name) or self.groups[name].paused:  # it was there since it cooled down
                del self.due[name]
                continue
            if self.groups[name].due_at > self.now:
                self.due[name] = self.groups[name].due_at
                continue
            score = self.groups[name].score
            self.ready[name] = min(self.ready.get(name, score), score)
            del self.due[name]
        next_at = min(next_at, *self.due.values(), math.inf)
        wanted = [name for name in in_order(self.ready) if name not in skipped]
        items += [(b"", name) for name in wanted[: limit - len(items)]]
        if items or next_at <= self.now:
            self.wake = 0
            return [0, items, self._suspect()]
        self.wake = int(min(next_at, self.now + sleep))
        return [self.wake - self.now, items, self._suspect()]

    def _count_deaths(self) -> None:
        for batch_id in in_order(self.claims):
            if self.claims[batch_id] != DIED:
                continue
            batch = self.batches[batch_id]
            batch.deaths += 1
            batch.attempts += batch.alone
            batch.alone = 0
            if batch.deaths < SUSPECT_DEATHS:
                self.claims[batch_id] = FREED
            else:
                del self.claims[batch_id]
                self._mark_held(batch, self.now)
                self.suspects[batch_id] = self.now + batch.deaths * PRIORITY_STEP
                self._schedule(batch.group)

    def _suspect(self) -> list[bytes]:
        """The first suspect that may be claimed; the first of all if there is none."""
        found = [self.batches[batch_id] for batch_id in in_order(self.suspects)]
        found = [batch for batch in found if not self.groups[batch.group].paused]
        free = [batch for batch in found if not self._is_behind_held(batch)]
        return next(([batch.id, batch.group] for batch in [*free, *found]), [])

    def claim(
        self,
        token: int,
        duration: int,
        room: Room,
        items: Iterable[tuple[bytes, bytes]],
        new_id: Callable[[], bytes],
        *,
        dedupe: bool,
    ) -> list[list[Any]]:
        self._fence(token)
        until = self.now + duration
        claimed: list[Batch] = []
        sources: list[bytes] = []

        def claim_batch(batch: Batch) -> None:
            claimed.append(batch)
            room.take(batch)

        def cut_turn(name: bytes) -> None:
            """Cuts the batches of a turn; the group is a source if another one can be cut."""
            for _ in range(TURN):
                claim_batch(self._cut(name, new_id, dedupe=dedupe))
                group = self.groups[name]
                if not (group.waiting and group.due_at <= self.now and room.left):
                    return
            sources.append(name)

        for batch_id, name in sorted(items, key=lambda item: not item[0]):  # batches come first
            if not room.left:
                break
            if batch_id:
                if self._take_over(batch_id):
                    claim_batch(self.batches[batch_id])
            elif not self.paused and name in self.ready and name not in sources:
                if self.groups[name].held_back_until > self.now:
                    self._schedule(name)
                else:
                    cut_turn(name)
        while sources and room.left:
            cut_turn(sources.pop(0))
        for batch in claimed:
            self.claims[batch.id] = until
            batch.leader = token
        return [
            [
                *(each.id, each.group, self._attempt(each)),
                *(each.error, each.merged),
                [] if each.is_read_later else raws(each.entries),
                *(len(each.entries), each.length, each.alone, each.reason),
                *([each.result, each.enqueued] if each.result else []),
            ]
            for each in claimed
        ]

    @staticmethod
    def _attempt(batch: Batch) -> int:
        if batch.letter:
            return TO_BURY
        return 1 if batch.parted else batch.attempts + 1

    def _is_behind_held(self, batch: Batch) -> bool:
        """Whether an earlier batch of the group is in `retry` or `suspects`."""
        group = self.groups[batch.group]
        later = group.start(batch) > group.held_from and group.in_flight[0] is not batch
        return bool(self.held(batch.group)) and later

    def _take_over(self, batch_id: bytes) -> bool:
        if batch_id not in self.batches:
            return False
        batch = self.batches[batch_id]
        group = self.groups[batch.group]
        if batch_id in self.claims:
            index, at = self.claims, self.claims[batch_id]
        elif batch_id in self.retries:
            index, at = self.retries, self.retries[batch_id]
        else:
            index, at = self.suspects, 0
        held = index is not self.claims
        if at > self.now or (self.paused and held):
            return False
        named = self.groups.get(group_of(batch.group), group)
        waits = held and (group.paused or named.paused)
        if waits or self._is_behind_held(batch):
            until = max(group.held_until, self.now + BEHIND_MS)
            until = self.now + PAUSED_MS if waits else until
            last = max(self.suspects.values(), default=0)
            if index is self.claims:  # it holds its group from now on
                del self.claims[batch_id]
                self._hold(batch, until)
                self._schedule(batch.group)
                return False
            index[batch_id] = last + 1 if index is self.suspects else until
            return False
        batch.alone = int(index is self.suspects)
        if held:
            start = group.start(batch)
            del index[batch_id]
            group.held_from = start + len(batch.entries)
            self._schedule(batch.group)
        return True

    def _cut(self, name: bytes, new_id: Callable[[], bytes], *, dedupe: bool) -> Batch:
        group = self.groups[name]
        batch_id = new_id()
        entries = group.next_batch()
        # The summaries count on with the bytes that were estimated, each segment with its own.
        stored = self.stored.batch(batch_id) if group.segmented and group.estimated else None
        if stored:
            entries = group.waiting[: stored.task_count]
        whole = len(entries) == len(group.waiting)
        estimate = math.floor(group.bytes / len(group.waiting) * len(entries))
        if group.segmented:
            estimate = stored.length if stored else length(entries)
        large = is_large(len(entries), group.bytes if whole else estimate)
        group.estimated = group.estimated or (large and not whole and not group.segmented)
        size = group.bytes if whole else estimate if large else min(length(entries), group.bytes)
        if stored:
            size = stored.length
        due = min(group.due_at, self.now)
        batch = Batch(
            *(batch_id, name, entries, self.now, size),
            reason=group.reason(self.now),
            opened=entries[0].arrival,
            due_at=due or group.since,
            weight=sum(entry.limits.weight for entry in entries),
        )
        group.postponed = 0
        if group.interval:
            group.cool_until = self.now + group.interval
        del group.waiting[: len(entries)]
        if not large or (whole and not dedupe and not group.in_flight):
            self._take_ids_off(batch, len(entries), dedupe=dedupe)
        group.bytes -= size
        group.marked = max(0, group.marked - len(entries))
        group.since = self.now
        group.refresh_head()
        group.in_flight.append(batch)
        self.batches[batch.id] = batch
        self.sequence += 1
        self._schedule(name)
        return batch

    def _take_ids_off(self, batch: Batch, upto: int, *, dedupe: bool) -> None:
        """The ids of the first tasks of a batch no longer wait."""
        group = self.groups[batch.group]
        later = (
            group.in_flight[group.in_flight.index(batch) + 1 :] if batch in group.in_flight else []
        )
        # After a cancellation the same ids may wait again, or be those of a later batch.
        again = self.waiting_ids(batch.group)
        again |= {entry.id for each in later for entry in each.entries[each.read :]}
        for entry in batch.entries[batch.read : upto]:
            if entry.id not in again:
                group.numbers.pop(entry.id, None)
            if dedupe:
                self.seen.add(seen_member(batch.group, entry.id))
        batch.read = max(batch.read, upto)

    def overtaken(self, batch_id: bytes) -> list[bytes]:
        """The ids of older batches of the same group that the leader does not hold.

        It holds what it claimed, even if the claim has run out: it notices that and extends it.
        """
        batch = self.batches[batch_id]
        in_flight = self.groups[batch.group].in_flight
        return [
            older.id
            for older in in_flight[: in_flight.index(batch)]
            if self.claims.get(older.id, FREED) <= FREED or older.leader != self.token
        ]

    def waiting_ids(self, name: bytes) -> set[bytes]:
        return {entry.id for entry in self.groups[name].waiting}

    def read_tasks(
        self, token: int, batch_id: bytes, start: int, most: int, *, dedupe: bool
    ) -> list[bytes] | None:
        self._fence(token)
        if batch_id not in self.claims:
            return None
        batch = self.batches[batch_id]
        end = min(start + SLICE_TASKS, len(batch.entries))
        per_task = max(1, batch.length) / len(batch.entries)
        step = max(1, math.floor(min(STEP_BYTES, most) / per_task))
        read: list[Entry] = []
        while start + len(read) < end and length(read) < most:
            at = start + len(read)
            read += batch.entries[at : min(at + step, end)]
        if start <= batch.read < start + len(read):
            self._take_ids_off(batch, start + len(read), dedupe=dedupe)
        return raws(read)

    def extend(self, token: int, duration: int, batch_ids: Iterable[bytes]) -> int:
        self._fence(token)
        for batch_id in batch_ids:
            if batch_id in self.claims:
                self.claims[batch_id] = self.now + duration
                self.batches[batch_id].leader = token
        return 1

    # --- the end of batches ------------------------------------------------------------------

    def _may_leave(self, batch_id: bytes) -> bytes:
        if batch_id not in self.claims:
            return b"GONE"
        batch = self.batches[batch_id]
        return b"OK" if self.groups[batch.group].in_flight[0] is batch else b"ORDER"

    def _close(self, batch_id: bytes) -> Batch:
        batch = self.batches.pop(batch_id)
        del self.claims[batch_id]
        group = self.groups[batch.group]
        del group.in_flight[0]
        group.base += len(batch.entries)
        self._remove_if_empty(batch.group)
        return batch

    def commit_stream(self, token: int, commits: Iterable[Commit]) -> list[bytes | int]:
        self._fence(token)
        return [self._commit(commit) for commit in commits]

    def _commit(self, commit: Commit) -> bytes | int:
        status = self._may_leave(commit.batch_id)
        if status != b"OK":
            return status
        batch, place, parts = self.batches[commit.batch_id], commit.slice, commit.parts
        if batch.letter:
            return b"ORDER"
        if batch.enqueued != (place.before if place else 0):
            return batch.enqueued
        goes_on = place is not None and bool(place.left or (parts and parts.left))
        if batch.result if place is None else goes_on and not batch.has_result:
            return b"ORDER"
        if place and batch.parted != (parts.before if parts else 0):
            return b"PARTED %d" % batch.parted
        self.stream += commit.messages
        if parts and parts.retried:
            self._retry_parts(batch, parts, parts.retried)
        elif parts:
            self._part(batch, parts)
        if place and goes_on:
            batch.enqueued += len(commit.messages)
            return batch.enqueued if place.left else b"PARTED %d" % batch.parted
        self.results.pop(batch.id, None)
        self.flushed += 1
        self.flushed_tasks += len(self._close(batch.id).entries) - batch.parted
        self._keep(commit.answers)
        return b"OK"

    def _keep(self, answers: Iterable[Answer]) -> None:
        self.answers.update({(each.group, each.task_id): each.record for each in answers})

    def answer(self, token: int, batch_id: bytes, answers: Iterable[Answer]) -> int:
        self._fence(token)
        batch = self.batches.get(batch_id)
        if batch is None or batch_id not in self.claims:
            return 0
        if not batch.has_result and batch.letter is None:
            return 0  # its outcome is not fixed
        self._keep(answers)
        return 1

    def _part(self, batch: Batch, parts: Parts) -> None:
        """Makes dead letters of tasks that failed alone, unless they exist."""
        for place in parts.places:
            letter_id = parts.letter(batch.id, place)
            if place < len(batch.entries) and letter_id not in {*self.dead, *self.batches}:
                [entry] = batch.entries[place : place + 1]
                letter = self._dead_letter(batch, [entry], length([entry]), b"no", b"")
                weight = batch.weight // max(1, len(batch.entries))
                record = letter.record._replace(attempts=batch.attempts + 1, batch_weight=weight)
                self.dead[letter_id] = DeadLetter(record, letter.entries)
        batch.parted = parts.before + len(parts.places)

    def _retry_parts(self, batch: Batch, parts: Parts, new: FailedBatch) -> None:
        """Makes a batch of tasks that failed alone, in a group of its own."""
        entries = [batch.entries[place] for place in parts.places if place < len(batch.entries)]
        batch.parted = parts.before + len(parts.places)
        if not entries or new.batch_id in self.batches:
            return
        made = Batch(new.batch_id, new.group, entries, self.now, length(entries))
        made.attempts, made.error, made.read = new.attempts, b"no", len(entries)
        made.reason, made.opened, made.due_at = batch.reason, entries[0].arrival, batch.due_at
        made.weight = batch.weight * len(entries) // max(1, len(batch.entries))
        self.groups[new.group] = Group(in_flight=[made])
        self.batches[new.batch_id] = made
        self._hold(made, self.now + parts.delay)

    def split(self, token: int, batch_id: bytes, delay: int, error: bytes) -> int:
        self._fence(token)
        batch = self.batches.get(batch_id)
        if batch is None or batch_id not in self.claims:
            return 0
        if len(batch.entries) < 2 or batch.letter or batch.merged or batch.has_result:
            return 0
        del self.batches[batch_id], self.claims[batch_id]
        self.results.pop(batch_id, None)
        group = self.groups[batch.group]
        count = math.ceil(len(batch.entries) / 2)
        share = count / len(batch.entries)
        size, weight = math.floor(batch.length * share), math.floor(batch.weight * share)
        changed = {"error": error, "attempts": 0, "deaths": 0, "alone": 0, "result": b""}
        first = replace(batch, **changed, id=batch_id + b".0", entries=batch.entries[:count])  # type: ignore[arg-type]
        first.length, first.weight, first.read = size, weight, min(batch.read, count)
        second = replace(batch, **changed, id=batch_id + b".1", entries=batch.entries[count:])  # type: ignore[arg-type]
        second.length, second.weight = batch.length - size, batch.weight - weight
        second.read = max(0, batch.read - count)
        at = group.in_flight.index(batch)
        group.in_flight[at : at + 1] = [first, second]
        for half in (first, second):
            self.batches[half.id] = half
            self._hold(half, self.now + delay)
        self._schedule(batch.group)
        self.failed += 1
        return 1

    def store_result(
        self, token: int, batch_id: bytes, label: bytes, place: int, parts: int, part: bytes
    ) -> int:
        self._fence(token)
        if batch_id not in self.claims or self.batches[batch_id].letter:
            return 0
        batch, stored = self.batches[batch_id], self.results.setdefault(batch_id, {})
        stored[b"%b:%d" % (label, place)] = part
        batch.result = batch.result or PARTIAL
        if place + 1 < parts:
            return 1
        whole = {b"%b:%d" % (label, at) for at in range(parts)}
        if not whole <= stored.keys():
            return 0
        self.results[batch_id] = {
            name: each for name, each in stored.items() if name.startswith(label + b":")
        }
        if not batch.merged and not batch.has_result:
            batch.attempts = 0
        batch.merged, batch.result = b"", label
        return 1

    def bury(
        self, token: int, batch_id: bytes, attempts: int, error: bytes, traceback: bytes
    ) -> bytes:
        self._fence(token)
        reply = self._may_leave(batch_id)
        if reply != b"OK":
            return reply
        batch = self.batches[batch_id]
        group = self.groups[batch.group]
        count = len(batch.entries)
        whole = not batch.letter and count == group.claimed + len(group.waiting)
        if batch.letter is None:
            batch.attempts, batch.error, batch.merged = attempts, error, b""
            if not batch.enqueued and not batch.parted:
                self.results.pop(batch_id, None)
                batch.result = b""
            batch.letter = self._dead_letter(batch, batch.entries, batch.length, error, traceback)
            parted = b"%d" % batch.parted if batch.parted else b""
            kept = batch.letter.record._replace(
                enqueued=batch.enqueued, result=batch.result, parted=parted
            )
            batch.letter = DeadLetter(kept, [])
        moved = batch.entries if whole else batch.entries[:SLICE_TASKS]
        self._take_ids_off(batch, len(moved), dedupe=False)
        batch.letter.entries += moved
        if len(moved) == count:
            self._close(batch_id)
            self.dead[batch_id] = batch.letter
            self.failed += 1
            return b"OK"
        batch.entries = batch.entries[len(moved) :]
        batch.length -= min(batch.length, length(moved))
        batch.read = max(0, batch.read - len(moved))
        group.base += len(moved)
        return b"MORE"

    def _dead_letter(
        self, batch: Batch, entries: list[Entry], size: int, error: bytes, traceback: bytes
    ) -> DeadLetter:
        record = DeadRecord(
            *(batch.group, len(entries), batch.attempts, batch.created, self.now),
            *(error, traceback, size, 0, b""),
            reason=batch.reason,
            opened=batch.opened,
            due_at=batch.due_at,
            batch_weight=batch.weight,
            parted=b"",
            taken=b"",
            spare=b"",
        )
        return DeadLetter(record, entries)

    def set_aside(
        self, token: int, batch_id: bytes, letter_id: bytes, error: bytes, places: Sequence[int]
    ) -> bytes:
        self._fence(token)
        if batch_id not in self.batches:
            return b"GONE"
        if letter_id not in self.dead and letter_id not in self.batches:
            batch = self.batches[batch_id]
            entries = [batch.entries[place] for place in places]
            self.dead[letter_id] = self._dead_letter(batch, entries, length(entries), error, b"")
        return b"OK"

    def retry(self, token: int, batches: Iterable[Retry]) -> list[int]:
        self._fence(token)
        reply = []
        for batch_id, delay, counts, error, merged in batches:
            reply.append(int(batch_id in self.claims))
            if batch_id in self.claims:
                batch = self.batches[batch_id]
                if merged and not batch.result:
                    if not batch.merged:
                        batch.attempts = 0
                    batch.merged = merged
                if delay is not None:
                    self._put_into_retry(batch, delay, counts, error)
        return reply

    def put_off(self, token: int, items: Iterable[tuple[bytes, bytes, int]]) -> int:
        self._fence(token)
        for batch_id, name, wait in items:
            until = self.now + wait
            if batch_id in self.retries:
                self.retries[batch_id] = until
            elif batch_id in self.suspects:
                self.suspects[batch_id] = max(self.suspects.values()) + 1
            elif self.claims.get(batch_id, math.inf) <= self.now:
                del self.claims[batch_id]
                self._hold(self.batches[batch_id], until)
                self._schedule(self.batches[batch_id].group)
            elif not batch_id and name in self.ready:
                del self.ready[name]
                self.due[name] = until
        return 1

    def _put_into_retry(self, batch: Batch, delay: int, counts: int, error: bytes) -> None:
        del self.claims[batch.id]
        self._hold(batch, self.now + delay)
        batch.attempts += counts
        self.failed += counts
        batch.deaths = batch.alone = 0
        batch.error = error or batch.error
        self._schedule(batch.group)

    def _hold(self, batch: Batch, until: int) -> None:
        self._mark_held(batch, until)
        self.retries[batch.id] = until

    def _mark_held(self, batch: Batch, until: int) -> None:
        group = self.groups[batch.group]
        start = group.start(batch)
        group.held_from = min(group.held_from, start) if self.held(batch.group) else start
        group.held_until = max(group.held_until, until)

    # --- operators ---------------------------------------------------------------------------

    def requeue(self, letter_id: bytes) -> int | bytes:
        batch = self.batches.get(letter_id)
        if batch and batch.letter is None:
            return len(batch.entries)
        if batch and batch.letter:
            if self.groups[batch.group].in_flight[0] is not batch or letter_id not in self.retries:
                return b"ORDER"
            batch.letter.entries, moved = self._split_last(batch.letter.entries)
            size = min(length(moved), max(0, batch.letter.record.length - batch.length))
        elif letter_id in self.dead:
            letter = self.dead.pop(letter_id)
            record = letter.record
            batch = Batch(letter_id, record.group, [], record.created, 0)
            batch.error = record.error
            batch.enqueued, batch.result = record.enqueued, record.result
            batch.parted = int(record.parted or 0)
            batch.reason, batch.opened = record.reason, record.opened
            batch.due_at, batch.weight = record.due_at, record.batch_weight
            group = self.groups.setdefault(record.group, Group())
            empty = group.claimed + len(group.waiting) == 0
            letter.entries, moved = (
                ([], letter.entries) if empty else self._split_last(letter.entries)
            )
            batch.letter = letter
            size = min(length(moved), record.length)
            group.in_flight.insert(0, batch)
            self.batches[letter_id] = batch
            self._hold(batch, self.now)
        else:
            return 0
        return self._requeue_slice(batch, batch.letter, moved, size)

    def select_tasks(
        self, letter_id: bytes, behind: int, marks: Sequence[bool], selected: bytes, others: bytes
    ) -> int | bytes:
        if letter_id not in self.dead:
            return b"CHANGED"
        entries = self.dead[letter_id].entries
        copied = sum(len(self.copies.get(name, ())) for name in (selected, others))
        if copied == behind + len(marks):
            return copied
        first = len(entries) - behind - len(marks)
        if copied != behind or first < 0:
            return b"CHANGED"
        for name, wanted in ((selected, True), (others, False)):
            some = [
                each for each, mark in zip(entries[first:], marks, strict=False) if mark is wanted
            ]
            self.copies[name] = some + self.copies.get(name, [])
        return copied + len(marks)

    def requeue_some(
        self, letter_id: bytes, new_id: bytes, selected: bytes, others: bytes
    ) -> int | bytes:
        letter = self.dead.get(letter_id)
        if new_id not in self.dead and new_id not in self.batches:
            if letter is None or letter.record.result:
                return b"CHANGED"
            if letter.record.taken == new_id:
                return 0
            chosen, left = self.copies.get(selected, []), self.copies.get(others, [])
            if not chosen or not left or len(chosen) + len(left) != len(letter.entries):
                return b"CHANGED"
            record = letter.record
            weight = record.batch_weight * len(chosen) // len(letter.entries)
            self.dead[new_id] = DeadLetter(divided(record, chosen, weight, b""), chosen)
            rest = divided(record, left, record.batch_weight - weight, new_id)
            self.dead[letter_id] = DeadLetter(rest, left)
            del self.copies[selected], self.copies[others]
        return self.requeue(new_id)

    @staticmethod
    def _split_last(entries: list[Entry]) -> tuple[list[Entry], list[Entry]]:
        return entries[:-SLICE_TASKS], entries[-SLICE_TASKS:]

    def _requeue_slice(
        self, batch: Batch, letter: DeadLetter, moved: list[Entry], size: int
    ) -> int | bytes:
        group = self.groups[batch.group]
        done = not letter.entries
        batch.entries = moved + batch.entries
        batch.read = len(batch.entries)
        batch.length = letter.record.length if done else batch.length + size
        group.base -= len(moved)
        group.held_from = min(group.held_from, group.base)
        self.retries[batch.id] = self.now if done else self.now + LONGEST_PAUSE_MS
        self._schedule(batch.group)
        if not done:
            return b"MORE"
        batch.letter = None
        self._wake(self.now)
        return len(batch.entries)

    def drop(self, letter_id: bytes) -> int:
        letter = self.dead.pop(letter_id, None)
        if letter:
            self.results.pop(letter_id, None)
            self.removed += len(letter.entries)
        return len(letter.entries) if letter else 0

    def flush(self, names: Iterable[bytes]) -> int:
        marked = 0
        for name in names:
            group = self.groups.get(name)
            if group and group.marked < len(group.waiting):
                marked += len(group.waiting) - group.marked
                group.became_due(group.due_at, self.now)
                group.marked = len(group.waiting)
                self._schedule(name)
        if marked:
            self._wake(self.now)
        return marked

    def postpone(self, name: bytes, until: int) -> int:
        group = self.groups.get(name)
        if group is None or not group.waiting:
            return 0
        group.postponed = until
        self._schedule(name)
        if not self.held(name):
            self._wake(group.due_at)
        return len(group.waiting)

    def apply_limits(self, asked: Sequence[Applied]) -> list[int]:
        reply = []
        earliest = math.inf
        for each in asked:
            group = self.groups.get(each.group)
            if group is None or not group.waiting:
                reply.append(0)
            elif each.own is None:
                reply.append(2)
            elif not self._apply(group, each.policy, each.own):
                reply.append(0)
            else:
                reply.append(1)
                self._schedule(each.group)
                if not self.held(each.group) and not group.paused:
                    earliest = min(earliest, group.due_at)
        self._wake(earliest)
        return reply

    def _apply(self, group: Group, policy: dict[str, int], own: Sequence[Collection[str]]) -> bool:
        """Returns whether the limits of a task, or the min interval, have changed."""
        new = []
        for entry, names in zip(group.waiting, own, strict=True):
            set_by_policy = {
                name: value
                for name, value in policy.items()
                if name not in names and name not in ("min_interval", "leading")
            }
            new.append(entry._replace(limits=entry.limits._replace(**set_by_policy)))
        cut = (group.interval, group.leading)
        if "min_interval" in policy:
            cut = (policy["min_interval"], policy.get("leading", 0))
        if new == group.waiting and cut == (group.interval, group.leading):
            return False
        due_before, before = group.due_at, length(group.waiting)
        common = new[0].limits.compared
        group.waiting = [each._replace(text=each.limits.stored_text(common)) for each in new]
        group.bytes = max(0, group.bytes + length(group.waiting) - before)
        group.common, group.segmented = common, True
        group.check_segments()
        group.interval, group.leading = cut
        if group.due_at == 0:
            group.became_due(due_before, self.now)
        return True

    def flush_all(self) -> list[Any]:
        return [b"0", self.flush(list(self.groups))]

    def pause(self, paused: bool) -> int:
        self._refuse_unregistered()
        changed = self.paused != paused
        if changed:
            self.paused_at = self.now if paused else 0
        if not paused:
            self.wake = 0
        return int(changed)

    @property
    def paused(self) -> bool:
        return self.paused_at > 0

    def pause_group(self, name: bytes, paused: bool) -> int:
        self._refuse_unregistered()
        known = self.groups.get(name)
        if paused == bool(known and known.paused):
            return 0
        group = self.groups.setdefault(name, Group())
        group.paused_at = self.now if paused else 0
        self._schedule(name)
        if group.waiting and not self.held(name) and not paused:
            self._wake(group.due_at)
        return 1

    def cancel_task(self, name: bytes, task_id: bytes) -> int:
        group = self.groups.get(name)
        if group is None or task_id not in self.waiting_ids(name):
            return 0
        del group.numbers[task_id]
        [cancelled] = [entry for entry in group.waiting if entry.id == task_id]
        if cancelled.is_submitted:
            self._keep([Answer(name, task_id, CANCELLED)])
        if cancelled is group.waiting[-1] and len(group.waiting) > 1:
            group.last = group.waiting[-2].arrival
        group.waiting.remove(cancelled)
        group.bytes = max(0, group.bytes - length([cancelled])) if group.waiting else 0
        if group.segmented and group.estimated and group.waiting:
            group.bytes = self.stored.group(name).bytes
        group.cancelled += 1
        self.removed += 1
        group.refresh_head()
        self._schedule(name)
        return 1

    def cancel_group(self, name: bytes) -> int:
        group = self.groups.get(name)
        if group is None or not group.waiting:
            return 0
        cancelled = len(group.waiting)
        self.removed += cancelled
        group.waiting, group.numbers, group.bytes = [], {}, 0
        group.no_task_waits()
        group.ids_from = group.base + group.claimed
        self._schedule(name)
        return cancelled

    # --- reading -----------------------------------------------------------------------------

    def stats(self) -> list[Any]:
        left = max(0, self.expires - self.now)
        state = self.counters()
        return [
            *(state[name] for name in ("waiting", "claimed", "bytes")),
            *(state[name] for name in ("flushed", "flushed_tasks", "dead")),
            len(self.groups),
            len(self.batches),
            len(self.retries),
            len(self.dead),
            int(self.paused),
            self.owner if left else b"",
            self.token,
            left,
        ]

    def counters(self) -> dict[str, int]:
        """The counters in the state."""
        return {
            "waiting": sum(len(group.waiting) for group in self.groups.values()),
            "claimed": sum(group.claimed for group in self.groups.values()),
            "bytes": sum(
                group.bytes + sum(batch.length for batch in group.in_flight)
                for group in self.groups.values()
            ),
            "dead": sum(len(letter.entries) for letter in self.letters().values()),
            "flushed": self.flushed,
            "flushed_tasks": self.flushed_tasks,
            "failed": self.failed,
            "removed": self.removed,
        }

    def letters(self) -> dict[bytes, DeadLetter]:
        """The dead letters, and those that batches are becoming, by batch id."""
        batches = self.batches.values()
        return {**self.dead, **{each.id: each.letter for each in batches if each.letter}}

    def batch_records(self) -> dict[bytes, BatchRecord]:
        """The records of all batches, by batch id."""
        return {
            each.id: BatchRecord(
                each.group,
                self.groups[each.group].start(each),
                len(each.entries),
                each.attempts,
                each.created,
                each.error,
                each.length,
                each.merged,
                each.deaths,
                each.read,
                each.alone,
                each.enqueued,
                packed_letter(each.letter.record) if each.letter else b"",
                each.result,
                *(each.reason, each.opened, each.due_at, each.weight),
                b"%d" % each.parted if each.parted else b"",
            )
            for each in self.batches.values()
        }


@dataclass
class Room:
    """The remaining limits of a `claim` call."""

    batches: int
    tasks: int
    bytes: int

    @property
    def left(self) -> bool:
        return self.batches > 0 and self.tasks > 0 and self.bytes > 0

    def take(self, batch: Batch) -> None:
        self.batches -= 1
        self.bytes -= len(batch.merged)
        if not batch.is_read_later:
            self.tasks -= len(batch.entries)
            self.bytes -= batch.length


def packed_letter(record: DeadRecord) -> bytes:
    """The record of a dead letter, packed in one way; not as Lua packs it."""
    return cast(bytes, msgpack.packb(record))


def raws(entries: Iterable[Entry]) -> list[bytes]:
    """The stored bytes of entries."""
    return [entry.raw for entry in entries]
