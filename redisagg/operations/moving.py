"""Moves a namespace to another name, or to another number of partitions, while it is in use.

A group belongs to a partition by a hash of its key, and partitions may be on different masters of a
cluster. So a group is moved by several scripts, each of which touches one slot:

1. The mover enters itself among the flushers. They finish what is in flight and give up their
   leases.
2. `freeze` stops all changes of the partitions, the old ones and the new ones. Adds are refused
   with ``FROZEN``, and producers repeat them.
3. Each group that belongs elsewhere is copied: long lists by `receive`, then its record by `adopt`.
   Then `disown` removes it from its old place. Dead letters likewise.
4. The record of the namespace gets the new layout.
5. `thaw` opens the new partitions. `retire` leaves a mark in the old ones, so that who comes late
   asks for the record, and follows.

All scripts can be repeated, and the plan is in the record. So a mover that died is replaced by
another one with the same arguments, which begins where the first one ended.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from redisagg.errors import InvalidConfig, NamespaceInUse, RedisAggError
from redisagg.operations.inspecting import stats
from redisagg.policies import MAX_POLICIES
from redisagg.protocol.failed_tasks import group_of
from redisagg.protocol.keys import MOVER, SCHEMA, WITH_POLICIES, Keyspace, Layout, PartitionKeys
from redisagg.protocol.operations import ask_all
from redisagg.protocol.records import batch_record, dead_record, group_record
from redisagg.protocol.registration import MOVED, recorded_number
from redisagg.protocol.replies import as_dict, scan_page
from redisagg.protocol.scripts import Request, call, command
from redisagg.texts import logger
from redisagg.transport.durability import Durability
from redisagg.transport.threads import Transport

_log = logger("moving")

_POLL = 0.05
"""Seconds between two looks at the leases."""

_PAGE = 200
"""Groups or dead letters that are read at a time, about."""

_CALL_TASKS = 300
"""Tasks that one call stores, so that it takes Redis about a millisecond."""

_CALL_BYTES = 256 * 1024
"""Their bytes; one task always fits."""

_CALL_GROUPS = 30

_STATE = (
    *(b"paused", b"flushed", b"flushed_tasks", b"sequence", b"seen_until", b"seen_before_until"),
    b"paused_by",
)


@dataclass(frozen=True, slots=True)
class Moved:
    """What a move has done."""

    layout: Layout
    """The name and number of partitions that the namespace has now."""
    groups: int = 0
    """Number of groups that were moved to another place."""
    dead_letters: int = 0
    """Number of dead letters that were moved."""
    paused: float = 0.0
    """Seconds for which adds were kept waiting."""


class _Plan(NamedTuple):
    old: Layout
    new: Layout
    switched: bool = False
    """Whether the record of the namespace has the new layout."""

    @property
    def renames(self) -> bool:
        return self.old.name != self.new.name

    def stored(self) -> bytes:
        phase = "switched" if self.switched else "copying"
        text = f"{self.new.name} {self.old.partitions} {self.new.partitions} {phase}"
        return text.encode()

    @classmethod
    def read(cls, name: str, stored: bytes) -> _Plan:
        new, before, partitions, phase = stored.decode().split(" ")
        layouts = Layout(name, int(before)), Layout(new, int(partitions))
        return cls(*layouts, phase == "switched")


class _Batch(NamedTuple):
    id: bytes
    packed: bytes
    place: bytes
    """The index that it is in."""
    score: bytes
    parts: bool
    """Whether a part of its merge result is stored apart."""
    letter: bool
    """Whether some of its tasks are in a dead letter that is being made."""


@dataclass
class _Group:
    key: bytes
    packed: bytes
    tasks: int
    size: int
    """Bytes of its tasks."""
    batches: list[_Batch]
    entries: list[bytes] = field(default_factory=list)
    numbers: list[bytes] = field(default_factory=list)
    stored: bool = False
    """Whether its tasks and ids are stored at the target."""


class Mover:
    """Moves a namespace.

    Args:
        transport: sends the requests.
        old: the name of the namespace.
        new: the name that it gets; `old` if only the number of partitions changes.
        partitions: its new number of partitions; None for the present one.
        drain: seconds for which flushers may finish what is in flight; what is left then is
            merged once more at the new place.
        lifetime: seconds after which the mover counts as dead if it does not say that it lives.
        min_replicas: how many replicas have to have each step before the next one, so that a
            failover to one of them loses none.
        on_step: is called with the name of each step before it is taken.

    Raises:
        InvalidConfig: a name or the number of partitions is out of range.
    """

    def __init__(
        self,
        transport: Transport,
        old: str,
        new: str,
        partitions: int | None = None,
        *,
        drain: float = 60.0,
        lifetime: float = 15.0,
        min_replicas: int = 0,
        on_step: Callable[[str], object] = lambda _: None,
    ) -> None:
        if partitions is not None and not 1 <= partitions <= 4096:
            raise InvalidConfig(f"partitions must be from 1 to 4096, not {partitions}")
        self._transport = transport
        self._old = Keyspace(old, 1)
        self._new = Keyspace(new, 1)
        self._partitions = partitions
        self._drain_timeout = drain
        self._lifetime = lifetime
        self._durability = Durability(min_replicas, False, 1000) if min_replicas else None
        self._on_step = on_step
        place = f"{socket.gethostname()[:64]}:{os.getpid()}:{os.urandom(4).hex()}"
        self._id = MOVER + place.encode()
        self._joined_at = 0.0
        self._frozen_at = 0.0
        self._moved = Moved(self._new.layout)

    def run(self) -> Moved:
        """Moves the namespace, or ends the move that an earlier mover has begun.

        Raises:
            InvalidConfig: there is no such namespace, or nothing is to be moved.
            NamespaceInUse: another mover is at work, another move was begun and has to be ended
                first, or the new name is in use.
            RedisUnavailable: Redis can't be reached. Run it again.
        """
        self._on_step("join")
        self._join(alone=True)
        try:
            plan = self._plan()
            if plan is None:
                record = self._record(self._new)
                return Moved(Layout(self._new.name, recorded_number(self._new.meta, record[1])))
            if plan.switched:
                self._freeze(plan, again=True)
            else:
                self._drain(plan)
                self._freeze(plan)
                self._copy_seen(plan)
                while self._move_groups(plan):
                    pass
                plan = self._switch(plan)
            self._thaw(plan)
            paused = time.monotonic() - self._frozen_at if self._frozen_at else 0.0
            self._move_answers(plan)
            self._retire(plan)
            self._end(plan)
            return replace(self._moved, layout=plan.new, paused=paused)
        finally:
            self._leave()

    # --- among the flushers --------------------------------------------------------------------

    def _names(self) -> list[Keyspace]:
        return [self._old] if self._old.name == self._new.name else [self._old, self._new]

    def _join(self, *, alone: bool = False) -> None:
        """Enters the mover among the flushers, or keeps it there."""
        if time.monotonic() < self._joined_at + self._lifetime / 3:
            return
        lifetime = int(1000 * self._lifetime)
        replies = self._ask(
            [
                call("join", [space.flushers], self._id, lifetime, space.wake_channel)
                for space in self._names()
            ]
        )
        self._joined_at = time.monotonic()
        others = {each for live in replies for each in live[::2] if each.startswith(MOVER)}
        if alone and others - {self._id}:
            self._leave()
            raise NamespaceInUse(
                f"another mover is at work: {min(others - {self._id}).decode()}; if it has died, "
                f"try again in {self._lifetime:g} seconds"
            )

    def _leave(self) -> None:
        """Has the flushers go on."""
        with suppress(RedisAggError):  # it then counts as dead after a while
            self._ask(
                [
                    call("leave", [space.flushers], self._id, space.wake_channel)
                    for space in self._names()
                ]
            )

    def _drain(self, plan: _Plan) -> None:
        """Waits until the flushers have given up their leases."""
        self._on_step("drain")
        end = time.monotonic() + self._drain_timeout
        keyspace = Keyspace(*plan.old)
        while True:
            found = self._transport.run(stats(keyspace))
            if not any(each.leader for each in found.partitions):
                return
            if time.monotonic() > end:
                _log.warning("flushers still have batches in flight; these are merged once more")
                return
            time.sleep(_POLL)
            self._join()

    # --- the plan ------------------------------------------------------------------------------

    def _plan(self) -> _Plan | None:
        """Reads or makes the plan; None if the namespace was moved already."""
        old, new = self._old, self._new
        schema, partitions, stored = self._record(old)
        if stored:
            plan = _Plan.read(old.name, stored)
            if plan.new != (new.name, self._partitions or plan.new.partitions):
                raise NamespaceInUse(
                    f"a move of {old.name!r} to {plan.new.name!r} with {plan.new.partitions} "
                    "partitions was begun; end it first, by the same command"
                )
        elif schema is None or partitions is None:
            raise InvalidConfig(f"there is no namespace {old.name!r}")
        elif schema == MOVED + new.name.encode() and new.name != old.name:
            return None
        elif schema != b"%d" % SCHEMA:
            raise InvalidConfig(f"the namespace {old.name!r} was moved or is of another release")
        else:
            before = recorded_number(old.meta, partitions)
            layout = Layout(new.name, self._partitions or before)
            plan = _Plan(Layout(old.name, before), layout)
            if plan.old == plan.new:
                plan = self._repairing(plan)
            self._check_target(plan)
            self._on_step("plan")
            self._change(old, schema, b"", plan.stored())
        return plan

    def _repairing(self, plan: _Plan) -> _Plan:
        """Returns the plan for a namespace that is where it should be but for some partitions.

        A failover can lose the last steps of a mover: then a partition stays frozen, or has the
        layout of before.

        Raises:
            InvalidConfig: all partitions are as they should be.
        """
        name, partitions = plan.new
        states = self._ask(
            [command("HMGET", p.state, b"schema", b"partitions") for p in _partitions(plan.new)]
        )
        wanted = {None, b"%d" % partitions, b"%d" % partitions + WITH_POLICIES}
        if all(schema is None and number in wanted for schema, number in states):
            raise InvalidConfig(f"the namespace {name!r} has {partitions} partitions already")
        former = self._former(self._old, partitions).split()
        most = max([partitions, *(recorded_number(self._old.meta, each) for each in former)])
        return plan._replace(old=Layout(name, most))

    def _check_target(self, plan: _Plan) -> bytes | None:
        """Returns the schema of the new name; raises `NamespaceInUse` if it is in use."""
        if not plan.renames:
            return None
        schema: bytes | None
        schema, _, stored = self._record(self._new)
        ours = b"from " + plan.old.name.encode()
        if schema is not None and not schema.startswith(MOVED) and stored != ours:
            raise NamespaceInUse(f"there is a namespace {plan.new.name!r} already; remove it first")
        return schema

    def _create(self, plan: _Plan) -> None:
        """Records the new name, if it is not recorded yet."""
        self._on_step("create")
        schema = self._check_target(plan)
        if schema == b"%d" % SCHEMA:
            return
        # The name may have been used before, by clients that still look for it.
        former = self._former(self._new, plan.new.partitions)
        fields = (b"schema", SCHEMA, b"partitions", plan.new.partitions, b"former", former)
        origin = b"from " + plan.old.name.encode()
        self._change(self._new, schema or b"", b"", origin, *fields)

    def _switch(self, plan: _Plan) -> _Plan:
        """Gives the record of the namespace the new layout."""
        old = self._old
        if plan.renames:
            self._copy_policies()
        switched = plan._replace(switched=True)
        schema = b"%d" % SCHEMA
        self._on_step("switch")
        if plan.renames:
            fields: tuple[Any, ...] = (b"schema", MOVED + plan.new.name.encode())
        else:
            former = self._former(old, plan.new.partitions)
            fields = (b"partitions", plan.new.partitions, b"former", former)
        self._change(old, schema, plan.stored(), switched.stored(), *fields)
        return switched

    def _former(self, space: Keyspace, partitions: int) -> bytes:
        """The numbers of partitions that a name has had, once it has another one."""
        present, before = self._one(command("HMGET", space.meta, b"partitions", b"former"))
        former = {*(before or b"").split(), present or b""} - {b"", b"%d" % partitions}
        return b" ".join(sorted(former))

    def _end(self, plan: _Plan) -> None:
        """Removes the plan."""
        self._on_step("end")
        schema = b"%d" % SCHEMA
        if plan.renames:
            found, _, stored = self._record(self._new)
            if stored:
                self._change(self._new, found, stored, b"")
            schema = MOVED + plan.new.name.encode()
        self._change(self._old, schema, plan.stored(), b"")

    def _record(self, space: Keyspace) -> list[Any]:
        record: list[Any] = self._one(
            command("HMGET", space.meta, b"schema", b"partitions", b"move")
        )
        return record

    def _change(self, space: Keyspace, schema: bytes, plan: bytes, *new: Any) -> None:
        reply = self._one(call("plan_move", [space.meta], schema, plan, *new))
        if not reply:
            schema_now, partitions, plan_now = self._record(space)
            if (plan_now or b"") == new[0]:  # the reply to an earlier call was lost
                return
            raise NamespaceInUse(
                f"the record of the namespace {space.name!r} has changed meanwhile: schema "
                f"{schema_now!r}, {partitions!r} partitions, plan {plan_now!r}"
            )

    # --- partitions ----------------------------------------------------------------------------

    def _freeze(self, plan: _Plan, *, again: bool = False) -> None:
        """Freezes the partitions; with `again` only those that an earlier mover left frozen."""
        self._on_step("freeze")
        if not again:
            self._frozen_at = time.monotonic()
        # The new ones first: with a record, and not frozen, they would refuse who came late.
        self._freeze_partitions(plan.new, again=again)
        if plan.renames and not plan.switched:
            self._create(plan)
        self._freeze_partitions(plan.old, again=again)

    def _freeze_partitions(self, layout: Layout, *, again: bool) -> None:
        flag = b"1" if again else b""
        for some in _chunks(_partitions(layout), _CALL_GROUPS):
            self._ask([call("freeze", [p.state, p.claims], self._id, flag) for p in some])
            self._on_step("frozen")

    def _thaw(self, plan: _Plan) -> None:
        self._on_step("thaw")
        states = self._ask([command("HMGET", p.state, *_STATE) for p in _partitions(plan.old)])
        numbers = [[_number(each) for each in state[:-1]] for state in states]
        paused_by = max((state[-1] or b"" for state in states), default=b"")
        paused, _, _, sequence, seen, seen_before = map(max, zip(*numbers, strict=True))
        new = self._new
        policies, former = self._one(command("HMGET", new.meta, b"policies", b"former"))
        label = b"%d" % plan.new.partitions + (b"" if policies is None else WITH_POLICIES)
        flushed = [[0, 0] for _ in range(plan.new.partitions)]
        for number, (_, batches, tasks, *_) in enumerate(numbers):
            if plan.renames or number >= plan.new.partitions:
                flushed[number % plan.new.partitions][0] += batches
                flushed[number % plan.new.partitions][1] += tasks
        if not plan.renames:  # the history would go on counting what partitions had before
            self._one(call("unlink", [new.samples]))
        common = (label, former or b"", b"1" + paused_by if paused else b"")
        for p in _partitions(plan.new):
            counts = (*flushed[p.number], sequence, seen, seen_before)
            self._one(call("thaw", [p.state], self._id, *common, *counts))
            self._on_step("thawed")

    def _retire(self, plan: _Plan) -> None:
        self._on_step("retire")
        kept = {p.state for p in _partitions(plan.new)}
        for p in _partitions(plan.old):
            if p.state in kept:
                continue
            keys = [*_indexes(p), p.seen, p.seen_before]
            if not self._one(call("retire", keys, self._id)):
                raise NamespaceInUse(
                    f"partition {p.number} of {plan.old.name!r} still has groups or dead letters "
                    "that can't be moved; run `redisagg doctor`, and then the move again"
                )
            self._on_step("retired")

    # --- what is moved -------------------------------------------------------------------------

    def _copy_policies(self) -> None:
        self._on_step("policies")
        old, new = self._old, self._new
        stored = as_dict(self._one(command("HGETALL", old.policies)))
        if stored or self._one(command("HGET", old.meta, b"policies")) is not None:
            flat = [each for pair in stored.items() for each in pair]
            self._one(call("set_policies", [new.meta, new.policies], MAX_POLICIES))
            if flat:
                self._one(call("set_policies", [new.meta, new.policies], MAX_POLICIES, *flat))

    def _copy_seen(self, plan: _Plan) -> None:
        """Copies the ids of tasks that were flushed lately to the partitions of their groups."""
        target_of = Keyspace(*plan.new).partition_of
        for p in _partitions(plan.old):
            for name in ("seen", "seen_before"):
                cursor: Any = b"0"
                while True:
                    cursor, members = self._one(
                        command("SSCAN", getattr(p, name), cursor, "COUNT", _CALL_TASKS)
                    )
                    by_target: dict[bytes, tuple[bytes, list[bytes]]] = {}
                    for member in members:
                        group = member[2 : 2 + int.from_bytes(member[:2], "big")]
                        target = target_of(group_of(group))
                        if target.state != p.state:
                            key = getattr(target, name)
                            by_target.setdefault(key, (target.state, []))[1].append(member)
                    self._ask(
                        [
                            call("receive", [state, key], self._id, b"set", 0, *found)
                            for key, (state, found) in by_target.items()
                        ]
                    )
                    self._join()
                    if int(cursor) == 0:
                        break

    def _move_answers(self, plan: _Plan) -> None:
        """Moves the outcomes of submitted tasks.

        Nothing waits for that. The new place is in use, so an outcome that is there is the newer
        one, as of a dead letter that was requeued. For the same reason none is left at the old
        place, to which a later move may bring its group back.
        """
        self._on_step("answers")
        new = Keyspace(*plan.new)
        wanted = re.compile(
            rb"redisagg:\{%b:\d{1,4}\}:answer:(\d{1,3}):(.*)" % re.escape(plan.old.name.encode()),
            re.DOTALL,
        )
        for client in self._transport.masters():
            cursor: Any = 0
            while True:
                pattern = f"redisagg:{{{plan.old.name}:*}}:answer:*"
                reply: Any = client.scan(cursor, match=pattern, count=1000)
                cursor, keys = reply
                targets: dict[bytes, bytes] = {}
                for key in keys:
                    if (found := wanted.fullmatch(key)) is not None:
                        group, task_id = found[2][: int(found[1])], found[2][int(found[1]) + 1 :]
                        target = new.partition_of(group).answer(group, task_id)
                        if target != key:
                            targets[key] = target
                self._move_some_answers(targets)
                self._join()
                if not cursor:
                    break

    def _move_some_answers(self, targets: dict[bytes, bytes]) -> None:
        requests: list[Request] = []
        for key in targets:
            requests += (command("GET", key), command("PTTL", key))
        replies = self._ask(requests)
        found = [
            (key, target, record, left)
            for (key, target), record, left in zip(
                targets.items(), replies[::2], replies[1::2], strict=True
            )
            if record is not None and left > 0
        ]
        self._ask(
            [call("keep_answer", [target], record, left) for _, target, record, left in found]
        )
        self._on_step("answers kept")
        self._ask([call("forget_answer", [key], record) for key, _, record, _ in found])

    def _move_groups(self, plan: _Plan) -> int:
        """Moves what is not where it belongs; returns the number of groups and dead letters."""
        new = Keyspace(*plan.new)
        moved = 0
        for p in _partitions(plan.old):
            batches: dict[bytes, list[tuple[bytes, bytes]]] = {}
            for page in self._pages(p.batches):
                for batch_id, packed in page.items():
                    group = batch_record(packed, batch_id).group
                    batches.setdefault(group, []).append((batch_id, packed))
            for page in self._pages(p.groups):
                moved += self._move_page(p, new, page, batches)
            for page in self._pages(p.dead):
                moved += self._move_letters(p, new, page)
        return moved

    def _pages(self, key: bytes) -> Iterator[dict[bytes, bytes]]:
        """Reads a hash of which fields are removed meanwhile."""
        cursor = 0
        while True:
            self._join()
            cursor, found = scan_page(self._one(command("HSCAN", key, cursor, "COUNT", _PAGE)))
            yield from ({f: found[f] for f in some} for some in _chunks(list(found), _PAGE))
            if not cursor:
                return

    def _move_page(
        self,
        p: PartitionKeys,
        new: Keyspace,
        page: dict[bytes, bytes],
        batches: dict[bytes, list[tuple[bytes, bytes]]],
    ) -> int:
        by_target: dict[int, list[_Group]] = {}
        for key, packed in page.items():
            target = new.partition_of(group_of(key))
            if target.state != p.state:
                group = self._group(p, key, packed, batches.get(key, ()))
                by_target.setdefault(target.number, []).append(group)
        for number, groups in by_target.items():
            target = new.partitions[number]
            self._copy_tasks(p, target, groups)
            for some in _calls(groups):
                self._on_step("adopt")
                self._one(_adopt(self._id, target, some))
                self._on_step("disown")
                self._one(_disown(self._id, p, some))
                self._moved = replace(self._moved, groups=self._moved.groups + len(some))
        return sum(map(len, by_target.values()))

    def _group(
        self, p: PartitionKeys, key: bytes, packed: bytes, stored: Sequence[tuple[bytes, bytes]]
    ) -> _Group:
        record = group_record(packed, key)
        group = _Group(key, packed, record.waiting + record.claimed, record.bytes, [])
        for batch_id, packed_batch in stored:
            batch = batch_record(packed_batch, batch_id)
            group.size += batch.length
            scores = self._ask(
                [command("ZSCORE", index, batch_id) for index in (p.claims, p.retry, p.suspects)]
            )
            found = zip((b"claims", b"retry", b"suspects"), scores, strict=True)
            # One that is nowhere would never be claimed.
            index, score = next(((i, s) for i, s in found if s is not None), (b"claims", 1))
            text = repr(float(score)).encode()
            parts, letter = bool(batch.result), bool(batch.letter)
            group.batches.append(_Batch(batch_id, packed_batch, index, text, parts, letter))
        return group

    def _copy_tasks(self, p: PartitionKeys, target: PartitionKeys, groups: list[_Group]) -> None:
        """Reads the tasks of small groups, and copies those of large ones."""
        small = [g for g in groups if g.tasks <= _CALL_TASKS and g.size <= _CALL_BYTES]
        for some in _calls(small):
            requests: list[Request] = []
            for g in some:
                requests.append(command("LRANGE", p.tasks(g.key), 0, -1))
                requests.append(command("HGETALL", p.ids(g.key)))
            replies = self._ask(requests)
            for group, entries, numbers in zip(some, replies[::2], replies[1::2], strict=True):
                group.entries = entries
                group.numbers = [each for pair in as_dict(numbers).items() for each in pair]
        for group in groups:
            for batch in group.batches:
                if batch.parts:
                    self._copy_parts(target, p.result(batch.id), target.result(batch.id))
                if batch.letter:
                    source = p.dead_tasks(batch.id)
                    self._copy_list(target, source, target.dead_tasks(batch.id), 1)
            if group.tasks > _CALL_TASKS or group.size > _CALL_BYTES:
                step = max(1, min(_CALL_TASKS, group.tasks * _CALL_BYTES // max(1, group.size)))
                self._copy_list(target, p.tasks(group.key), target.tasks(group.key), step)
                self._copy_ids(target, p.ids(group.key), target.ids(group.key))
                group.stored = True

    def _copy_list(self, target: PartitionKeys, source: bytes, key: bytes, step: int) -> None:
        offset = 0
        while True:
            entries = self._one(command("LRANGE", source, offset, offset + step - 1))
            if entries or not offset:
                self._on_step("receive")
                self._one(call("receive", [target.state, key], self._id, b"list", offset, *entries))
            offset += len(entries)
            self._join()
            if len(entries) < step:
                return

    def _copy_ids(self, target: PartitionKeys, source: bytes, key: bytes) -> None:
        offset = 0
        for page in self._pages(source):
            flat = [each for pair in page.items() for each in pair]
            keys = [target.state, key]
            self._one(call("receive", keys, self._id, b"hash", offset, *flat))
            offset += len(page)

    def _copy_parts(self, target: PartitionKeys, source: bytes, key: bytes) -> None:
        """Copies a merge result, whose parts are large."""
        for offset, part in enumerate(self._one(command("HKEYS", source))):
            value = self._one(command("HGET", source, part))
            keys = [target.state, key]
            self._one(call("receive", keys, self._id, b"hash", offset, part, value))
            self._join()

    def _move_letters(self, p: PartitionKeys, new: Keyspace, page: dict[bytes, bytes]) -> int:
        moved = 0
        for letter_id, packed in page.items():
            letter = dead_record(packed, letter_id)
            target = new.partition_of(group_of(letter.group))
            if target.state == p.state:
                continue
            step = letter.task_count * _CALL_BYTES // max(1, letter.length)
            step = max(1, min(_CALL_TASKS, step))
            self._copy_list(target, p.dead_tasks(letter_id), target.dead_tasks(letter_id), step)
            if letter.result:
                self._copy_parts(target, p.result(letter_id), target.result(letter_id))
            self._on_step("adopt")
            self._one(
                call("adopt", _indexes(target), self._id, b"letter", letter_id, packed),
            )
            self._on_step("disown")
            keys = [*_indexes(p), p.dead_tasks(letter_id), p.result(letter_id)]
            self._one(call("disown", keys, self._id, b"letter", letter_id))
            moved += 1
        self._moved = replace(self._moved, dead_letters=self._moved.dead_letters + moved)
        return moved

    # --- round trips ---------------------------------------------------------------------------

    def _ask(self, requests: Sequence[Request]) -> list[Any]:
        if not requests or self._durability is None or requests[0].script is None:
            return self._transport.run(ask_all(requests))
        replies = self._transport.exchange(requests, durability=self._durability)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    def _one(self, request: Request) -> Any:
        [reply] = self._ask([request])
        return reply


def _partitions(layout: Layout) -> list[PartitionKeys]:
    return Keyspace(*layout).partitions


def _indexes(p: PartitionKeys) -> list[bytes]:
    return [p.state, p.groups, p.batches, p.claims, p.retry, p.suspects, p.due, p.ready, p.dead]


def _number(stored: bytes | None) -> int:
    return int(stored) if stored and stored.isdigit() else 0


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    for at in range(0, len(items), size):
        yield items[at : at + size]


def _calls(groups: list[_Group]) -> Iterator[list[_Group]]:
    """Divides groups into those of one call."""
    some: list[_Group] = []
    tasks = size = 0
    for group in groups:
        own = (0, 0) if group.stored else (group.tasks, group.size)
        full = len(some) == _CALL_GROUPS or tasks + own[0] > _CALL_TASKS
        if some and (full or size + own[1] > _CALL_BYTES):
            yield some
            some, tasks, size = [], 0, 0
        some.append(group)
        tasks, size = tasks + own[0], size + own[1]
    if some:
        yield some


def _adopt(mover: bytes, target: PartitionKeys, groups: list[_Group]) -> Request:
    keys, args = _indexes(target), [mover]
    for group in groups:
        keys += (target.tasks(group.key), target.ids(group.key))
        args += (b"group", group.key, group.packed)
        args += (b"-",) if group.stored else (b"%d" % len(group.entries), *group.entries)
        args += (b"%d" % (len(group.numbers) // 2), *group.numbers)
        args.append(b"%d" % len(group.batches))
        for batch in group.batches:
            args += (batch.id, batch.packed, batch.place, batch.score)
    return call("adopt", keys, *args)


def _disown(mover: bytes, p: PartitionKeys, groups: list[_Group]) -> Request:
    keys, args = _indexes(p), [mover]
    for group in groups:
        keys += (p.tasks(group.key), p.ids(group.key))
        args += (b"group", group.key, b"%d" % len(group.batches))
        for batch in group.batches:
            args.append(batch.id)
            if batch.parts:
                keys.append(p.result(batch.id))
            if batch.letter:
                keys.append(p.dead_tasks(batch.id))
    return call("disown", keys, *args)
