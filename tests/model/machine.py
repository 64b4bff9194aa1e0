"""A hypothesis state machine that makes the same calls to Redis and to the model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from hashlib import sha1
from operator import itemgetter
from typing import Any, TypeAlias, cast

import redis
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from redisagg.protocol.failed_tasks import failed_batch, group_of
from redisagg.protocol.keys import Keyspace
from redisagg.protocol.records import BatchRecord, GroupRecord, batch_record, group_record
from tests.model import model as m
from tests.model.clock import Scripts
from tests.model.snapshots import STREAM, differences, in_model, in_redis, without_hints

_SPACE = Keyspace("model", 1)
_KEYS = _SPACE.partitions[0]
_INDEXES = [_KEYS.state, _KEYS.groups, _KEYS.batches]
_INDEXES += [_KEYS.claims, _KEYS.retry, _KEYS.suspects, _KEYS.due, _KEYS.ready]
_CHANNEL = _SPACE.wake_channel
_START = 1_700_000_000_000
_LEASE = 1_000
_QUARANTINE = 5_000
_REMEMBERED = 600_000
_WINDOW = 3_600_000  # by the clock of Redis: the test's own clock expires no keys

_groups = st.sampled_from([b"a", b"b", b"c"])
_ids = st.sampled_from([b"1", b"2", b"3", b"4", b"5", b"six", b"7" * 100])
_producers = st.sampled_from([b"p", b"q"])
_owners = st.sampled_from([b"x", b"y"])
_usual_limits = st.tuples(
    st.sampled_from([10, 100, 100, 0]),
    st.sampled_from([300, 300, 50, 0]),
    st.integers(1, 4),
    st.sampled_from([0, 0, 0, 5, -1000, 1000]),
).map(lambda drawn: m.Limits(*drawn))
_limits = (
    _usual_limits
    | _usual_limits
    | st.builds(
        m.Limits,
        grace=st.sampled_from([10, 100, m.NEVER]),
        delay=st.sampled_from([300, 50, m.NEVER]),
        size=st.integers(2, 5),
        priority=st.sampled_from([0, 0, 5]),
        max_bytes=st.sampled_from([0, 0, 1, 40, 200]),
        max_weight=st.sampled_from([0, 0, 1, 5]),
        min_interval=st.sampled_from([0, 0, 0, 70]),
        leading=st.sampled_from([0, 0, 1]),
        weight=st.sampled_from([1, 1, 0, 2, 7]),
        due_at=st.sampled_from([0, 0, _START + 50, _START + 700]),
        not_before=st.sampled_from([0, 0, 0, _START + 90, _START + 900]),
        flush=st.sampled_from([0, 0, 0, 1]),
        replace=st.sampled_from([0, 0, 1]),
        schedule=st.just(0),
    )
)
_limits |= _limits.map(lambda each: each._replace(due_at=0, schedule=each.due_at))
_sections = st.lists(
    st.tuples(_groups, _limits, st.lists(_ids, min_size=1, max_size=6)), min_size=1, max_size=3
)
_add_options = st.builds(
    m.AddOptions,
    tasks=st.sampled_from([0, 0, 0, 3, 8]),
    bytes=st.sampled_from([0, 0, 0, 60, 150]),
    dedupe=st.booleans(),
    reads_policies=st.sampled_from([True, True, True, False]),
)
_policies = st.fixed_dictionaries(
    {},
    optional={
        "grace": st.sampled_from([10, 100, 400]),
        "delay": st.sampled_from([50, 300, 900]),
        "size": st.integers(1, 5),
        "priority": st.sampled_from([0, 5, -1000]),
        "max_bytes": st.sampled_from([0, 0, 40, 200]),
        "max_weight": st.sampled_from([0, 0, 1, 5]),
        "min_interval": st.sampled_from([0, 0, 70]),
        "leading": st.sampled_from([0, 0, 1]),
    },
)
_described = st.sampled_from([True, True, True, False])
_OWN = ["grace", "delay", "size", "priority", "max_bytes"]
_first = itemgetter(0)
_texts = st.sampled_from([b"", b"ValueError: no", b"\xff\x00"])
_merged = st.sampled_from([b"", b"", b"\x92\x90\x00", b"m" * 50])
_rooms = st.builds(
    m.Room, st.integers(1, 4), st.sampled_from([1, 3, 99]), st.sampled_from([1, 40, 9999, 9999])
)
_lates = st.sampled_from([0, 0, 0, 5])
_spans = st.sampled_from([0, 1, 60, 400])


_BODY = re.compile(rb"<\d+>|\x95<\d+>%b" % re.escape(m.KEPT))


def _body(serial: int) -> bytes:
    """The body of a task; every third task is submitted."""
    return b"<%d>" % serial if serial % 3 else b"\x95<%d>%b" % (serial, m.KEPT)


Drawn: TypeAlias = list[tuple[bytes, m.Limits, list[bytes]]]


class Stored:
    """Reads the records in Redis."""

    def __init__(self, client: redis.Redis) -> None:
        self._client: Any = client

    def group(self, name: bytes) -> GroupRecord:
        return group_record(self._client.hget(_KEYS.groups, name))

    def batch(self, batch_id: bytes) -> BatchRecord:
        return batch_record(self._client.hget(_KEYS.batches, batch_id))


class Machine(RuleBasedStateMachine):
    """Redis and the model, in the same state after each rule."""

    def __init__(self, scripts: Scripts) -> None:
        super().__init__()
        self.scripts = scripts
        scripts.client.flushall()
        scripts.set_clock(_START)
        self.model = m.Partition(_START, Stored(scripts.client))
        self.numbers = Counter[bytes]()
        """The number of each producer's last call."""
        self.last_call: dict[bytes, tuple[int, list[m.Section], m.AddOptions]] = {}
        self.serial = 0
        self.acknowledged: set[bytes] = set()
        """Bodies of added tasks; no two tasks have the same body."""
        self.gone: set[bytes] = set()
        """Bodies of tasks that were cancelled, dropped or committed without an entry."""
        self.copied: dict[bytes, set[bytes]] = {}
        """Bodies that were set aside, by batch id: in two places until the batch is committed."""
        self.cut: list[bytes] = []
        """Ids of all batches that were ever cut."""
        self.buried: set[bytes] = set()
        self.put_off_until: dict[bytes, int] = {}
        """Until when groups wait for a permit."""
        self.left: dict[bytes, list[int]] = {}
        """The batches of a group that have left, as places in `cut`."""

    # --- calls ----------------------------------------------------------------------------------

    def run_on_both(
        self,
        expected: Callable[[], Any],
        name: str,
        keys: list[bytes],
        *args: Any,
        read: Callable[[Any], Any] = lambda reply: reply,
    ) -> Any:
        """Runs a script and asserts that its reply is the model's.

        Args:
            read: leaves out what a reply says beside that.
        """
        reply: Any = None
        error: str | None = None
        try:
            reply = read(self.scripts.call(name, keys, *args))
        except redis.ResponseError as refused:
            error = str(refused)
        wanted, refusal = None, None
        try:
            wanted = expected()
        except m.Refused as refused:
            refusal = str(refused)
        assert (reply, error) == (wanted, refusal), (
            f"{name}: {reply} {error}, not {wanted} {refusal}"
        )
        return reply

    def led(self) -> bool:
        return self.model.expires > self.model.now

    def in_flight(self) -> bool:
        return self.led() and bool(self.model.batches)

    def some_batches(self, data: st.DataObject, most: int = 4) -> list[bytes]:
        """Draws batch ids; those of claimed batches three times as often."""
        known = list(self.model.claims) * 3 + list(self.model.batches) + self.cut[-2:]
        return data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=most))

    def group_of(self, batch_id: bytes) -> bytes:
        batch = self.model.batches.get(batch_id)
        return batch.group if batch else b"a"

    # --- time and leases ----------------------------------------------------------------------

    @initialize(drawn=_sections, claimed=st.sampled_from([True, True, False]))
    def first_leader(self, drawn: Drawn, claimed: bool) -> None:
        """Has most runs start with batches, since Hypothesis leaves rules out of many runs."""
        self._acquire(b"x")  # refused: the namespace is new
        self.run_on_both(
            lambda: self.model.register_partition(b"1"), "register_partition", [_KEYS.state], b"1"
        )
        self._acquire(b"x")
        if claimed:
            self._add(b"none", None, self.sections(drawn))
            self.tick(100)
            self._claim_due(4, m.Room(4, 99, 9999))

    @rule(
        span=st.sampled_from([1, 9, 10, 60, 100, 300, 300, 1_000]),
        renewing=st.sampled_from([True, True, True, False]),
    )
    def pass_time(self, span: int, renewing: bool) -> None:
        if renewing and self.led():
            self._renew(self.model.token)
        self.tick(span)

    def tick(self, span: int) -> None:
        self.model.now += span
        self.scripts.set_clock(self.model.now)

    @rule(owner=_owners, how=st.sampled_from(["asks", "dies", "dies", "releases", "released"]))
    def change_leader(self, owner: bytes, how: str) -> None:
        """Another leader acquires after the lease has run out or was released."""
        if how == "dies" and self.led():
            self.tick(self.model.expires - self.model.now)
        if how.startswith("release"):
            self._release(self.model.token)
        if how != "released":
            self._acquire(owner)

    def _lead(self) -> None:
        """The leader renews its lease; if it has run out, a leader acquires it."""
        self._renew(self.model.token) if self.led() else self._acquire(b"y")

    @precondition(in_flight)
    @rule(deaths=st.integers(1, 4), limit=st.integers(1, 4), data=st.data())
    def leaders_die(self, deaths: int, limit: int, data: st.DataObject) -> None:
        """Several leaders vanish with what they hold; each claims what the one before left."""
        for _ in range(deaths):
            self.change_leader(b"y", "dies")
            self._claim_due(limit, m.Room(limit, 99, 9999))
        batch_id = data.draw(st.sampled_from([*self.model.claims, b"none"]))
        self._retry(self.model.token, [m.Retry(batch_id, 60, 1, b"", b"")])

    def _acquire(self, owner: bytes) -> None:
        keys = [_KEYS.state, _KEYS.claims, _KEYS.tasks(b"")]
        self.run_on_both(
            lambda: self.model.acquire(owner, _LEASE), "acquire", keys, owner, _LEASE, _KEYS.label
        )

    def _release(self, token: int) -> None:
        keys = [_KEYS.state, _KEYS.claims]
        self.run_on_both(lambda: self.model.release(token), "release", keys, token, _CHANNEL)

    def _renew(self, token: int) -> None:
        self.run_on_both(
            lambda: self.model.renew(token, _LEASE), "renew", [_KEYS.state], token, _LEASE
        )

    # --- producers ----------------------------------------------------------------------------

    @rule(producer=_producers, drawn=_sections, options=_add_options)
    def add(self, producer: bytes, drawn: Drawn, options: m.AddOptions) -> None:
        self.numbers[producer] += 1
        call = self.numbers[producer], self.sections(drawn), options
        self.last_call[producer] = call
        self._add(producer, *call)

    @rule(
        producer=_producers,
        drawn=_sections,
        how=st.sampled_from(["repeated", "late", "unnumbered"]),
    )
    def add_again(self, producer: bytes, drawn: Drawn, how: str) -> None:
        if how == "unnumbered":
            self._add(b"none", None, self.sections(drawn))
        elif how == "late":
            self._add(producer, self.numbers[producer] - 1, self.sections(drawn))
        elif producer in self.last_call:
            self._add(producer, *self.last_call[producer])

    def sections(self, drawn: Drawn) -> list[m.Section]:
        """Sections whose tasks have new bodies."""
        made = []
        for group, limits, ids in drawn:
            first = self.serial
            self.serial += len(ids)
            bodies = [_body(first + i) for i in range(len(ids))]
            tasks = list(zip(ids, bodies, strict=True))
            if group in self.model.groups and self.model.groups[group].unread_ids() & {*ids}:
                limits = limits._replace(replace=0)  # the id counts as new, once it is read too
            made.append(m.Section(group, limits, tasks, one_by_one=first % 2 == 0))
        return made

    def _add(
        self,
        producer: bytes,
        number: int | None,
        sections: list[m.Section],
        options: m.AddOptions = m.AddOptions(reads_policies=True),  # noqa: B008 - a tuple
    ) -> None:
        keys = [_KEYS.state, _KEYS.groups, _KEYS.due, _KEYS.ready, _KEYS.call(producer)]
        keys += [_KEYS.seen, _KEYS.seen_before]
        args: list[Any] = ["" if number is None else number, _REMEMBERED, _CHANNEL]
        args.append(_KEYS.label_with_policies if options.reads_policies else _KEYS.label)
        args += [options.tasks, options.bytes, "1" if options.dedupe else ""]
        for group, limits, tasks, one_by_one in sections:
            keys += (_KEYS.tasks(group), _KEYS.ids(group))
            text, own = limits.shared_text(), limits.own_text()
            args += (group, text if one_by_one or not own else text + b";" + own)
            args.append(b"%d 3" % len(tasks) if one_by_one else len(tasks))
            for pair in tasks:
                args += (*pair, own) if one_by_one else pair
        known = set(self.waiting())
        self.run_on_both(
            lambda: self.model.add(producer, number, sections, options),
            *("add", keys, *args),
            read=without_hints,
        )
        now_waiting = set(self.waiting())
        self.acknowledged |= now_waiting - known
        self.acknowledged -= known - now_waiting  # replaced

    def waiting(self) -> list[bytes]:
        groups = self.model.groups.values()
        return [entry.body for group in groups for entry in group.waiting]

    @rule(producers=st.lists(_producers, min_size=1, unique=True))
    def forget_calls(self, producers: list[bytes]) -> None:
        keys = [_KEYS.call(producer) for producer in producers]
        self.run_on_both(lambda: self.model.forget_calls(producers), "forget_calls", keys)
        for producer in producers:
            self.last_call.pop(producer, None)  # the producer ends and sends nothing more

    # --- claims -------------------------------------------------------------------------------

    @precondition(led)
    @rule(
        limit=st.integers(1, 4),
        skipped=st.lists(_groups, max_size=2, unique=True),
        room=_rooms,
        duration=st.sampled_from([50, 900, 900]),
        late=_lates,
    )
    def poll_and_claim(
        self, limit: int, skipped: list[bytes], room: m.Room, duration: int, late: int
    ) -> None:
        items = self._poll(self.model.token, limit, skipped)
        self.tick(late)
        if items:
            self._claim(self.model.token, duration, replace(room), items, polled=True)

    @precondition(led)
    @rule(
        limit=st.integers(1, 6),
        span=_spans,
        pick=st.sampled_from([1, 2, 3, 3]),
        data=st.data(),
        late=_lates,
    )
    def put_off(self, limit: int, span: int, pick: int, data: st.DataObject, late: int) -> None:
        """Some of what is due gets no permit; or what is named has been claimed meanwhile."""
        items = self._poll(self.model.token, limit)
        self.tick(late)
        if pick == 1 and self.model.batches:
            items += [(each, self.group_of(each)) for each in self.some_batches(data, 2)]
        chosen = [(*item, span) for place, item in enumerate(items) if (place + 1) & pick]
        if chosen:
            self._put_off(self.model.token, chosen)

    def _put_off(self, token: int, items: list[tuple[bytes, bytes, int]]) -> None:
        args = [part for item in items for part in item]
        self.run_on_both(
            lambda: self.model.put_off(token, items), "put_off", _INDEXES, token, *args
        )
        for batch_id, name, span in items:
            if not batch_id:
                self.put_off_until[name] = self.model.now + span

    @precondition(led)
    @rule(drawn=_sections, span=_spans, room=_rooms)
    def add_and_claim(self, drawn: Drawn, span: int, room: m.Room) -> None:
        """Has most runs have batches."""
        self._add(b"none", None, self.sections(drawn))
        self.tick(span)
        self._lead()
        self._claim_due(4, replace(room))

    @precondition(in_flight)
    @rule(drawn=_sections, limit=st.integers(1, 3), room=_rooms)
    def commit_and_claim(self, drawn: Drawn, limit: int, room: m.Room) -> None:
        """A commit, a poll and a claim of a leader, with an `add` before the claim."""
        self.commit_oldest()
        items = self._poll(self.model.token, limit)
        self._add(b"none", None, self.sections(drawn))
        if items:
            self._claim(self.model.token, 900, replace(room), items, polled=True)

    @precondition(led)
    @rule(data=st.data())
    def claim_anything(self, data: st.DataObject) -> None:
        """Claims items that no poll has named lately."""
        items = [(b"", group) for group in (b"a", b"b", b"c")]
        items += [(each, self.group_of(each)) for each in [*self.model.batches, *self.cut[-1:]]]
        drawn = data.draw(st.lists(st.sampled_from(items), min_size=1, unique=True, max_size=4))
        self._claim(self.model.token, 900, m.Room(4, 99, 9999), drawn)

    def _poll(
        self, token: int, limit: int, skipped: Collection[bytes] = ()
    ) -> list[tuple[bytes, bytes]]:
        """Returns what can be claimed; the suspect comes last, if there is one."""

        def expected() -> list[Any]:
            wait, items, suspect = self.model.poll(token, limit, _LEASE, skipped)
            return [wait, [each for item in items for each in item], suspect]

        reply = self.run_on_both(
            expected,
            "poll",
            [*_INDEXES, _KEYS.seen, _KEYS.seen_before],
            token,
            limit,
            _LEASE,
            *skipped,
        )
        flat = [*reply[1], *reply[2]] if reply else []
        return list(zip(flat[::2], flat[1::2], strict=True))

    def _claim_due(self, limit: int, room: m.Room) -> None:
        """Claims what a poll names."""
        items = self._poll(self.model.token, limit)
        if items:
            self._claim(self.model.token, 900, room, items, polled=True)

    def _claim(
        self,
        token: int,
        duration: int,
        room: m.Room,
        items: list[tuple[bytes, bytes]],
        *,
        polled: bool = False,
    ) -> None:
        """Claims items, in the order in which a poll has named them if `polled`."""
        keys = [*_INDEXES, _KEYS.seen, _KEYS.seen_before]
        dedupe = room.tasks != 3  # most flushers do
        args: list[Any] = [token, duration, 0, room.batches, room.tasks, room.bytes, _QUARANTINE]
        args.append(_WINDOW if dedupe else 0)
        for batch_id, group in items:
            keys += (_KEYS.tasks(group), _KEYS.ids(group))
            args += (batch_id, group)
        # The model takes the batch ids from Redis and checks only that they are new.
        before = set(self.model.batches)
        given: list[bytes] = []

        def expected() -> list[Any]:
            stored: Any = self.scripts.client.hkeys(_KEYS.batches)
            fresh: Iterator[bytes] = iter(sorted(set(stored) - before))

            def new_id() -> bytes:
                batch_id = next(fresh, b"")
                assert batch_id not in self.cut, f"the batch id {batch_id!r} was given before"
                given.append(batch_id)
                return batch_id

            return self.model.claim(token, duration, room, items, new_id, dedupe=dedupe)

        claimed = self.run_on_both(expected, "claim", keys, *args)
        if polled:
            for batch_id in map(_first, claimed or ()):
                overtaken = self.model.overtaken(batch_id)
                assert not overtaken, f"{batch_id!r} is claimed before {overtaken}"
        self.cut += given
        for batch_id in given:
            batch = self.model.batches[batch_id]
            asked = min(entry.limits.size for entry in batch.entries)
            assert len(batch.entries) <= asked, f"a batch of {len(batch.entries)}, not {asked}"
            self._is_within_its_caps(batch)

    def _is_within_its_caps(self, batch: m.Batch) -> None:
        """Asserts the max bytes and max weight of each of its tasks, unless it is alone."""
        weight = sum(entry.limits.weight for entry in batch.entries)
        for entry in batch.entries if len(batch.entries) > 1 else ():
            assert m.length(batch.entries) <= (entry.limits.max_bytes or m.NEVER)
            assert weight <= (entry.limits.max_weight or m.NEVER)
            assert batch.reason == b"flush" or entry.limits.not_before <= self.model.now

    @precondition(in_flight)
    @rule(data=st.data(), duration=_spans)
    def extend(self, data: st.DataObject, duration: int) -> None:
        self._extend(self.model.token, duration, self.some_batches(data))

    def _extend(self, token: int, duration: int, batch_ids: list[bytes]) -> None:
        keys = [_KEYS.state, _KEYS.claims]
        self.run_on_both(
            lambda: self.model.extend(token, duration, batch_ids),
            "extend", keys, token, duration, *batch_ids,
        )  # fmt: skip

    @precondition(in_flight)
    @rule(data=st.data())
    def recall(self, data: st.DataObject) -> None:
        known = data.draw(st.lists(st.sampled_from([*self.model.batches]), max_size=2))
        self._recall(self.model.token, known)

    def _recall(self, token: int, known: list[bytes]) -> None:
        self.run_on_both(
            lambda: self.model.recall(token, 900, known),
            "recall", [_KEYS.state, _KEYS.claims], token, 900, *known,
        )  # fmt: skip

    @precondition(in_flight)
    @rule(
        data=st.data(),
        start=st.integers(0, 4),
        most=st.sampled_from([1, 40, 9999]),
        dedupe=st.sampled_from([True, True, False]),
    )
    def read_tasks(self, data: st.DataObject, start: int, most: int, dedupe: bool) -> None:
        [batch_id] = self.some_batches(data, 1)
        self._read_tasks(self.model.token, batch_id, start, most, dedupe=dedupe)

    @precondition(in_flight)
    @rule(most=st.sampled_from([1, 40, 9999]), dedupe=st.sampled_from([True, True, False]))
    def read_all(self, most: int, dedupe: bool) -> None:
        """Reads the tasks of all large batches, as a leader does."""
        for batch in self.model.batches.values():
            if batch.is_large and batch.id in self.model.claims:
                self._read_batch(self.model.token, batch, most, dedupe=dedupe)

    @precondition(led)
    @rule(
        limits=_limits,
        ids=st.lists(_ids, min_size=4, unique=True),
        dedupe=st.booleans(),
        one_by_one=st.booleans(),
    )
    def cancel_before_reading(
        self, limits: m.Limits, ids: list[bytes], dedupe: bool, one_by_one: bool
    ) -> None:
        """Cuts a large batch, cancels the rest, and adds the same ids before it is read."""
        drawn = [(b"a", limits._replace(size=3), ids)]
        self._add(b"none", None, self.sections(drawn))
        self._claim(self.model.token, 900, m.Room(1, 99, 9999), [(b"", b"a")])
        if one_by_one:
            for entry in [*self.model.groups[b"a"].waiting] if b"a" in self.model.groups else []:
                self._cancel_task(b"a", entry.id)
        else:
            self.cancel_group(b"a")
        self._add(b"none", None, self.sections(drawn))
        self.read_all(9999, dedupe)

    def _read_batch(self, token: int, batch: m.Batch, most: int, *, dedupe: bool) -> None:
        read: list[bytes] = []
        while len(read) < len(batch.entries):
            read += self._read_tasks(token, batch.id, len(read), most, dedupe=dedupe)
        assert read == m.raws(batch.entries)

    def _read_tasks(
        self, token: int, batch_id: bytes, start: int, most: int, *, dedupe: bool
    ) -> list[bytes]:
        group = self.group_of(batch_id)
        keys = [_KEYS.state, _KEYS.groups, _KEYS.batches, _KEYS.claims]
        keys += [_KEYS.seen, _KEYS.seen_before, _KEYS.tasks(group), _KEYS.ids(group)]
        args = (token, batch_id, start, _WINDOW if dedupe else 0, most)
        read: list[bytes] | None = self.run_on_both(
            lambda: self.model.read_tasks(token, batch_id, start, most, dedupe=dedupe),
            "read_tasks", keys, *args,
        )  # fmt: skip
        return read or []

    # --- the end of batches -------------------------------------------------------------------

    @precondition(in_flight)
    @rule()
    def commit_oldest(self) -> None:
        """Commits all batches in order, as a leader does that has merged all of them."""
        groups = self.model.groups.values()
        batch_ids = [batch.id for group in groups for batch in group.in_flight]
        self._commit(self.model.token, [(each, 1) for each in batch_ids])

    @precondition(in_flight)
    @rule(data=st.data())
    def commit_stream(self, data: st.DataObject) -> None:
        batch_ids = self.some_batches(data)
        messages = data.draw(st.lists(st.sampled_from([1, 1, 1, 0, 2]), min_size=4, max_size=4))
        answered = data.draw(st.integers(0, 2))
        commits = list(zip(batch_ids, messages, strict=False))
        self._commit(self.model.token, commits, answered=answered)

    @precondition(in_flight)
    @rule(
        data=st.data(),
        count=st.integers(0, 2),
        before=st.sampled_from([None, None, None, 0, 1]),
        left=st.sampled_from([0, 0, 1, 2]),
        answered=st.integers(0, 2),
    )
    def commit_slice(
        self, data: st.DataObject, count: int, before: int | None, left: int, answered: int
    ) -> None:
        [batch_id] = self.some_batches(data, 1)
        self._commit_slice(self.model.token, batch_id, count, before, left, answered)

    @precondition(in_flight)
    @rule(data=st.data(), count=st.integers(1, 2))
    def answer(self, data: st.DataObject, count: int) -> None:
        self._answer(self.model.token, self.some_batches(data, 1)[0], count)

    def _answer(self, token: int, batch_id: bytes, count: int) -> None:
        """Stores the outcomes of the first tasks of a batch ahead of its end."""
        answers = self._answers_of(batch_id, count) or [
            m.Answer(self.group_of(batch_id), b"1", b"r")
        ]
        keys = [_KEYS.state, _KEYS.batches, _KEYS.claims]
        keys += [_KEYS.answer(each.group, each.task_id) for each in answers]
        args: list[Any] = [token, batch_id, _KEYS.answers_channel]
        for each in answers:
            args += (_WINDOW, each.record)
        self.run_on_both(lambda: self.model.answer(token, batch_id, answers), "answer", keys, *args)

    def _answers_of(self, batch_id: bytes, count: int) -> list[m.Answer]:
        """New outcomes of the first tasks of a batch, of at most so many."""
        batch = self.model.batches.get(batch_id)
        self.serial += 1
        if batch is None:
            return []
        group, record = group_of(batch.group), b"r%d" % self.serial
        return [m.Answer(group, entry.id, record) for entry in batch.entries[:count]]

    def oldest_batch(self, pick: int) -> m.Batch:
        """The oldest batch of a group; one that is claimed, if there is any."""
        oldest = [each.in_flight[0] for each in self.model.groups.values() if each.in_flight]
        found = [batch for batch in oldest if batch.id in self.model.claims] or oldest
        return found[pick % len(found)]

    @precondition(in_flight)
    @rule(
        pick=st.integers(0, 2),
        ends=st.sampled_from(["", "", "again", "commit", "bury", "requeue", "drop"]),
    )
    def begin_slices(self, pick: int, ends: str) -> None:
        """Stores the result of the oldest batch of a group, and enqueues the first slice."""
        batch = self.oldest_batch(pick)
        token = self.model.token
        self._store_result(token, batch.id, b"x", 0, 2, b"r")
        self._store_result(token, batch.id, b"x", 1, 2, b"s")
        self._commit_slice(token, batch.id, 2, None, 1)
        if ends == "again":  # the reply was lost
            self._commit_slice(token, batch.id, 2, 0, 1)
        elif ends == "commit":
            self._commit_slice(token, batch.id, 1, None, 0)
        elif ends:
            for _ in range(1 if ends == "bury" else 2):  # the batch may be buried in slices
                self._bury(token, batch.id, b"")
            if ends == "requeue":
                self._requeue(batch.id)
            elif ends == "drop":
                self._drop(batch.id)

    @precondition(in_flight)
    @rule(
        data=st.data(),
        count=st.integers(1, 2),
        moved=st.integers(1, 2),
        before=st.sampled_from([None, None, None, 0, 1]),
        left=st.sampled_from([0, 1, 1]),
        delay=st.one_of(st.none(), _spans),
    )
    def part(
        self,
        data: st.DataObject,
        count: int,
        moved: int,
        before: int | None,
        left: int,
        delay: int | None,
    ) -> None:
        """Commits the last slice of a batch with tasks that failed alone."""
        [batch_id] = self.some_batches(data, 1)
        self._part(batch_id, count, moved, before, left, delay)

    @precondition(in_flight)
    @rule(
        pick=st.integers(0, 2),
        ends=st.sampled_from(["", "again", "commit", "commit", "bury", "requeue"]),
        delay=st.one_of(st.none(), st.just(0), _spans),
    )
    def begin_parts(self, pick: int, ends: str, delay: int | None) -> None:
        """Stores the result of the oldest batch of a group, and parts it from its first task."""
        batch = self.oldest_batch(pick)
        self._store_result(self.model.token, batch.id, b"x", 0, 1, b"r")
        self._part(batch.id, 1, 1, None, 1, delay)
        if ends == "again":  # the reply was lost
            self._part(batch.id, 0, 1, 0, 1, delay)
        elif ends == "commit":
            self._part(batch.id, 0, 1, None, 0, delay)
        elif ends:
            for _ in range(1 if ends == "bury" else 2):
                self._bury(self.model.token, batch.id, b"")
            if ends == "requeue":
                self._requeue(batch.id)

    def _part(
        self,
        batch_id: bytes,
        count: int,
        moved: int,
        before: int | None,
        left: int,
        delay: int | None,
    ) -> None:
        """Commits the last slice with tasks that failed alone.

        Args:
            before: how many have left; None for what is right.
            delay: ms until a batch of them can be claimed; None for dead letters.
        """
        batch = self.model.batches.get(batch_id)
        if before is None:
            before = batch.parted if batch else 0
        places = [before + n for n in range(moved)]
        bodies = [entry.body for entry in batch.entries] if batch else []
        known = {*self.model.dead, *self.model.batches}
        new_batch = None
        if delay is not None:
            new_batch = failed_batch(batch_id, self.group_of(batch_id), places[0])
        parts = m.Parts(places, before, left, new_batch, delay or 0)
        # They are in two places until the batch is committed, and not part of its merged task.
        aside = {bodies[place] for place in places if place < len(bodies)}
        new = aside - self.copied.get(batch_id, set())
        self.copied.setdefault(batch_id, set()).update(new)
        enqueued = batch.enqueued if batch else 0
        self._commit(self.model.token, [(batch_id, count)], m.Slice(enqueued, 0), parts)
        if not {*self.model.dead, *self.model.batches} - known:
            self.copied[batch_id] -= new

    @precondition(in_flight)
    @rule(
        data=st.data(),
        delay=_spans,
        error=_texts,
        before=st.sampled_from(["", "", "stored", "tried"]),
    )
    def split(self, data: st.DataObject, delay: int, error: bytes, before: str) -> None:
        [batch_id] = self.some_batches(data, 1)
        token, item = self.model.token, (batch_id, self.group_of(batch_id))
        if before == "stored":
            self._store_result(token, batch_id, b"x", 0, 1, b"r")
        elif before == "tried":
            self._retry(token, [m.Retry(batch_id, 0, 1, b"", b"")])
            self._claim(token, 900, m.Room(1, 99, 9999), [item])
        self._split(token, batch_id, delay, error)

    def _split(self, token: int, batch_id: bytes, delay: int, error: bytes) -> None:
        keys = [*_INDEXES, _KEYS.result(batch_id)]
        self.run_on_both(
            lambda: self.model.split(token, batch_id, delay, error),
            "split", keys, token, batch_id, delay, error,
        )  # fmt: skip

    def _commit_slice(
        self,
        token: int,
        batch_id: bytes,
        count: int,
        before: int | None,
        left: int,
        answered: int = 0,
    ) -> None:
        """Commits a slice; `before`: None for the right number."""
        if before is None:
            batch = self.model.batches.get(batch_id)
            before = batch.enqueued if batch else 0
        self._commit(token, [(batch_id, count)], m.Slice(before, left), answered=answered)

    @precondition(in_flight)
    @rule(
        data=st.data(),
        label=st.sampled_from([b"x", b"y"]),
        place=st.integers(0, 1),
        parts=st.integers(1, 2),
    )
    def store_result(self, data: st.DataObject, label: bytes, place: int, parts: int) -> None:
        [batch_id] = self.some_batches(data, 1)
        part = b"%b%d" % (label, self.serial)
        self._store_result(self.model.token, batch_id, label, min(place, parts - 1), parts, part)

    def _store_result(
        self, token: int, batch_id: bytes, label: bytes, place: int, parts: int, part: bytes
    ) -> None:
        keys = [_KEYS.state, _KEYS.batches, _KEYS.claims, _KEYS.result(batch_id)]
        self.run_on_both(
            lambda: self.model.store_result(token, batch_id, label, place, parts, part),
            "store_result", keys, token, batch_id, label, place, parts, part,
        )  # fmt: skip

    def _commit(
        self,
        token: int,
        batches: list[tuple[bytes, int]],
        place: m.Slice | None = None,
        parts: m.Parts | None = None,
        answered: int = 0,
    ) -> None:
        """Commits batches, each with a number of messages.

        Args:
            answered: of how many tasks of each the outcome is kept, at most.
        """
        for batch in [self.model.batches.get(batch_id) for batch_id, _ in batches]:
            # A leader commits no batch that it has not read.
            unread = batch and batch.read < len(batch.entries) and batch.id in self.model.claims
            if batch and unread and self.model.leads(token):
                self._read_batch(token, batch, 9999, dedupe=True)
        keys = [_KEYS.state, _KEYS.groups, _KEYS.batches, _KEYS.claims, _KEYS.due, _KEYS.ready]
        keys.append(STREAM)
        args: list[Any] = [token, ""]
        commits = []
        for batch_id, count in batches:
            batch = self.model.batches.get(batch_id)
            bodies = [entry.body for entry in batch.entries] if batch else []
            # Entries that were set aside are not part of the merged task.
            aside = self.copied.get(batch_id, ())
            payload = b"".join(body for body in bodies if body not in aside)
            if place and (place.left or (parts and parts.left)):
                payload = b""  # the last slice has it
            messages = [self._message(batch_id, payload if not n else b"") for n in range(count)]
            answers = self._answers_of(batch_id, answered) if answered else []
            commits.append((batch_id, bodies, messages, answers))
            keys.append(_KEYS.tasks(self.group_of(batch_id)))
            extent = b"%d" % (14 * count)
            if place:
                keys.append(_KEYS.result(batch_id))
                extent += b" %d %d" % place
            if parts:
                extent += b" %d %d %d" % (len(parts.places), parts.before, parts.left)
            if answers:
                extent += b" a%d" % len(answers)
            args += (batch_id, extent)
            args += [part for message in messages for part in message]
            if parts and parts.retried:
                new = parts.retried
                args[args.index(extent, args.index(batch_id))] += b" %d %d" % (
                    *(parts.delay, new.attempts),
                )
                keys += (_KEYS.retry, _KEYS.tasks(new.group))
                args += (new.batch_id, new.group, b"no", *parts.places)
            elif parts:
                letters = [parts.letter(batch_id, each) for each in parts.places]
                keys += (_KEYS.dead, *map(_KEYS.dead_tasks, letters))
                for letter, each in zip(letters, parts.places, strict=True):
                    args += (letter, each, b"no")
            if answers:
                args.append(_KEYS.answers_channel)
                keys += [_KEYS.answer(each.group, each.task_id) for each in answers]
                args += [part for each in answers for part in (_WINDOW, each.record)]
        orders = {batch_id: self.group_of(batch_id) for batch_id, _ in batches}
        reply = self.run_on_both(
            lambda: self.model.commit_stream(
                token,
                [
                    m.Commit(each, texts, place, parts, answers)
                    for each, _, texts, answers in commits
                ],
            ),
            "commit_stream", keys, *args,
        )  # fmt: skip
        for status, (batch_id, bodies, messages, _) in zip(reply or [], commits, strict=False):
            if status == b"OK":
                self._left(batch_id, orders[batch_id])
                if not messages:
                    self.gone |= set(bodies) - self.copied.get(batch_id, set())

    def _message(self, batch_id: bytes, payload: bytes) -> tuple[bytes, ...]:
        fields = {b"batch_id": batch_id, b"type": b"t", b"group": b"g", b"count": b"1"}
        fields |= {b"payload": payload, b"headers": b"\xc0", b"reason": b"size"}
        return tuple(part for pair in fields.items() for part in pair)

    def _left(self, batch_id: bytes, group: bytes) -> None:
        """Asserts that batches leave in the order in which they were cut, unless requeued."""
        if batch_id in self.buried or batch_id not in self.cut:
            return
        left = self.left.setdefault(group, [])
        place = self.cut.index(batch_id)
        assert not left or left[-1] < place, f"{batch_id!r} has left after a later one"
        left.append(place)

    @precondition(in_flight)
    @rule(
        data=st.data(),
        delay=st.one_of(_spans, _spans, st.none()),
        counts=st.integers(0, 1),
        error=_texts,
        merged=_merged,
    )
    def retry(
        self, data: st.DataObject, delay: int | None, counts: int, error: bytes, merged: bytes
    ) -> None:
        batch_ids = self.some_batches(data, 3)
        retries = [m.Retry(each, delay, counts, error, merged) for each in batch_ids]
        self._retry(self.model.token, retries)

    @precondition(in_flight)
    @rule(data=st.data())
    def retry_again(self, data: st.DataObject) -> None:
        """Puts the batches of a group into retry, and the first of them once more."""
        groups = [each for each in self.model.groups.values() if len(each.in_flight) > 1]
        if not groups:
            return
        batches = data.draw(st.sampled_from(groups)).in_flight
        items = [(batch.id, batch.group) for batch in batches]
        self._retry(self.model.token, [m.Retry(each, 0, 1, b"", b"") for each, _ in items])
        self._claim(self.model.token, 900, m.Room(1, 99, 9999), items)
        self._retry(self.model.token, [m.Retry(items[0][0], 400, 1, b"", b"")])
        self._claim(self.model.token, 900, m.Room(9, 99, 9999), items)

    @precondition(in_flight)
    @rule(
        data=st.data(),
        delay=st.sampled_from([1, 1, 60]),
        spans=st.lists(st.sampled_from([1, 1, 10, 60]), min_size=2, max_size=4),
    )
    def leader_ends_behind_a_retry(self, data: st.DataObject, delay: int, spans: list[int]) -> None:
        """The first batch of a group is in retry when its leader gives the later ones back."""
        groups = [each for each in self.model.groups.values() if len(each.in_flight) > 1]
        if not groups:
            return
        first = data.draw(st.sampled_from(groups)).in_flight[0]
        self._retry(self.model.token, [m.Retry(first.id, delay, 1, b"", b"")])
        self.change_leader(b"y", "releases")
        for span in (0, *spans):
            self.tick(span)
            self._lead()
            self._claim_due(4, m.Room(2, 99, 9999))

    def _retry(self, token: int, batches: list[m.Retry]) -> None:
        args = [b"" if part is None else part for batch in batches for part in batch]
        self.run_on_both(lambda: self.model.retry(token, batches), "retry", _INDEXES, token, *args)

    @precondition(in_flight)
    @rule(data=st.data(), error=_texts)
    def bury(self, data: st.DataObject, error: bytes) -> None:
        self._bury(self.model.token, self.some_batches(data, 1)[0], error)

    @precondition(in_flight)
    @rule(pick=st.integers(0, 2))
    def bury_oldest(self, pick: int) -> None:
        """Buries the oldest batch of a group, be it read or not."""
        batch = self.oldest_batch(pick)
        self._bury(self.model.token, batch.id, b"")

    def _bury(self, token: int, batch_id: bytes, error: bytes) -> None:
        group = self.group_of(batch_id)
        keys = [_KEYS.state, _KEYS.groups, _KEYS.batches, _KEYS.claims, _KEYS.dead]
        keys += [_KEYS.tasks(group), _KEYS.dead_tasks(batch_id), _KEYS.ids(group)]
        keys.append(_KEYS.result(batch_id))
        reply = self.run_on_both(
            lambda: self.model.bury(token, batch_id, 7, error, b"Traceback"),
            "bury", keys, token, batch_id, 7, error, b"Traceback",
        )  # fmt: skip
        if reply == b"OK":
            self._left(batch_id, group)
            self.buried.add(batch_id)

    @precondition(in_flight)
    @rule(data=st.data())
    def set_aside(self, data: st.DataObject) -> None:
        batch_id = self.some_batches(data, 1)[0]
        batch = self.model.batches.get(batch_id)
        places = st.integers(0, len(batch.entries) - 1 if batch else 0)
        drawn = data.draw(st.lists(places, min_size=1, max_size=2, unique=True).map(sorted))
        self._set_aside(self.model.token, batch_id, drawn)

    def _set_aside(self, token: int, batch_id: bytes, places: list[int]) -> None:
        letter = batch_id + b"-undecodable"
        keys = [_KEYS.state, _KEYS.groups, _KEYS.batches, _KEYS.dead]
        keys += [_KEYS.tasks(self.group_of(batch_id)), _KEYS.dead_tasks(letter)]
        before = set(self.model.dead)
        self.run_on_both(
            lambda: self.model.set_aside(token, batch_id, letter, b"no", places),
            "set_aside", keys, token, batch_id, letter, b"no", *places,
        )  # fmt: skip
        for new in set(self.model.dead) - before:
            bodies = {entry.body for entry in self.model.dead[new].entries}
            self.copied.setdefault(batch_id, set()).update(bodies)

    # --- a leader whose lease is over ---------------------------------------------------------

    @rule(
        earlier=st.integers(0, 2),
        what=st.sampled_from(
            [
                *("poll", "claim", "commit", "retry", "recall", "read_tasks"),
                *("renew", "extend", "bury", "set_aside", "release", "store_result", "slice"),
                *("put_off", "split", "answer"),
            ]
        ),
    )
    def stale_leader(self, earlier: int, what: str) -> None:
        """All of its calls are refused. The comparison shows that they change nothing."""
        token = self.model.token - earlier
        if self.model.leads(token):  # the lease runs out unnoticed
            self.tick(self.model.expires - self.model.now)
        batch_ids = list(self.model.batches) or self.cut[-1:] or [b"none"]
        if what == "poll":
            self._poll(token, 4)
        elif what == "claim":
            items = [(b"", group) for group in (b"a", b"b", b"c")]
            items += [(each, self.group_of(each)) for each in batch_ids]
            self._claim(token, 900, m.Room(9, 99, 9999), items)
        elif what == "commit":
            self._commit(token, [(each, 1) for each in batch_ids])
        elif what == "store_result":
            self._store_result(token, batch_ids[0], b"x", 0, 1, b"r")
        elif what == "answer":
            self._answer(token, batch_ids[0], 1)
        elif what == "slice":
            self._commit_slice(token, batch_ids[0], 1, None, 1)
        elif what == "split":
            self._split(token, batch_ids[0], 0, b"e")
        elif what == "retry":
            self._retry(token, [m.Retry(each, 10, 1, b"e", b"m") for each in batch_ids])
        elif what == "release":
            if token != self.model.token:  # one whose lease ran out may release it
                self._release(token)
        elif what == "renew":
            self._renew(token)
        elif what == "extend":
            self._extend(token, 5, batch_ids)
        elif what == "bury":
            self._bury(token, batch_ids[0], b"")
        elif what == "recall":
            self._recall(token, [])
        elif what == "put_off":
            self._put_off(token, [(batch_ids[0], self.group_of(batch_ids[0]), 60), (b"", b"a", 60)])
        elif what == "read_tasks":
            self._read_tasks(token, batch_ids[0], 0, 9999, dedupe=True)
        else:
            self._set_aside(token, batch_ids[0], [0])

    # --- operators ----------------------------------------------------------------------------

    def has_dead(self) -> bool:
        return bool(self.model.letters())

    @precondition(has_dead)
    @rule(data=st.data(), kept=st.sampled_from([True, True, False]))
    def decide_on_a_dead_letter(self, data: st.DataObject, kept: bool) -> None:
        letter = data.draw(st.sampled_from([*self.model.letters(), *self.cut[-1:]]))
        self._requeue(letter) if kept else self._drop(letter)

    def half_buried(self) -> list[bytes]:
        """The batches in flight whose first tasks are in a dead letter."""
        return [each.id for each in self.model.batches.values() if each.letter]

    @precondition(lambda self: self.half_buried())
    @rule(data=st.data())
    def requeue_what_is_half_buried(self, data: st.DataObject) -> None:
        self._requeue(data.draw(st.sampled_from(self.half_buried())))

    @precondition(lambda self: self.model.dead)
    @rule(
        data=st.data(),
        marks=st.lists(st.booleans(), min_size=2, max_size=4),
        ends=st.sampled_from(["", "", "", "again", "requeue", "drop", "expire"]),
    )
    def requeue_some(self, data: st.DataObject, marks: list[bool], ends: str) -> None:
        """Requeues some tasks of a dead letter; something else may come in between."""
        letter = data.draw(st.sampled_from(sorted(self.model.dead)))
        count = len(self.model.dead[letter].entries)
        chosen = [marks[place % len(marks)] for place in range(count)]
        self.serial += 1
        new = b"%b-part-%d" % (letter, self.serial)
        lists = (new + b":selected", new + b":others")
        client: Any = self.scripts.client
        sha = sha1(client.hget(_KEYS.dead, letter)).hexdigest()
        for behind, size in ((0, 1), (1, count - 1)) if count > 1 else ((0, 1),):
            some = chosen[count - behind - size : count - behind]
            for _ in range(2 if ends == "again" else 1):
                self._select(letter, sha, behind, some, lists)
        if ends == "requeue":
            self._requeue(letter)
        elif ends == "drop":
            self._drop(letter)
        elif ends == "expire":
            client.delete(*map(_KEYS.dead_tasks, lists))
            self.model.copies.clear()
        for _ in range(2 if ends == "again" else 1):
            self._requeue_some(letter, sha, new, lists)
        client.delete(*map(_KEYS.dead_tasks, lists))  # they expire
        self.model.copies.clear()

    def _select(
        self, letter: bytes, sha: str, behind: int, marks: list[bool], lists: tuple[bytes, bytes]
    ) -> None:
        keys = [_KEYS.state, _KEYS.dead, *map(_KEYS.dead_tasks, (letter, *lists))]
        text = "".join("1" if mark else "0" for mark in marks)
        self.run_on_both(
            lambda: self.model.select_tasks(letter, behind, marks, *lists),
            "select_tasks", keys, letter, sha, behind, text,
        )  # fmt: skip

    def _requeue_some(
        self, letter: bytes, sha: str, new: bytes, lists: tuple[bytes, bytes]
    ) -> None:
        found = self.model.letters().get(letter)
        group = found.record.group if found else b"a"
        keys = [_KEYS.state, _KEYS.groups, _KEYS.batches, _KEYS.retry, _KEYS.due, _KEYS.ready]
        keys += [_KEYS.dead, _KEYS.tasks(group), _KEYS.dead_tasks(new), _KEYS.result(new)]
        keys += map(_KEYS.dead_tasks, (letter, *lists))
        sizes = [m.length(self.model.copies.get(each, [])) for each in lists]
        self.run_on_both(
            lambda: self.model.requeue_some(letter, new, *lists),
            "requeue", keys, new, _CHANNEL, 0, letter, sha, *sizes,
        )  # fmt: skip

    def _requeue(self, letter: bytes) -> None:
        found = self.model.letters().get(letter)
        group = found.record.group if found else b"a"
        keys = [_KEYS.state, _KEYS.groups, _KEYS.batches, _KEYS.retry, _KEYS.due, _KEYS.ready]
        keys += [_KEYS.dead, _KEYS.tasks(group), _KEYS.dead_tasks(letter), _KEYS.result(letter)]
        self.run_on_both(lambda: self.model.requeue(letter), "requeue", keys, letter, _CHANNEL, 0)

    def _drop(self, letter: bytes) -> None:
        found = self.model.dead.get(letter)
        if found:
            self.gone |= {entry.body for entry in found.entries}
        keys = [_KEYS.state, _KEYS.dead, _KEYS.dead_tasks(letter), _KEYS.result(letter)]
        self.run_on_both(lambda: self.model.drop(letter), "drop", keys, letter)

    @rule(groups=st.lists(_groups, max_size=2, unique=True))
    def flush(self, groups: list[bytes]) -> None:
        """Flushes these groups, or all groups if there are none."""
        keys = [_KEYS.state, _KEYS.groups, _KEYS.due, _KEYS.ready]
        if groups:
            self.run_on_both(lambda: self.model.flush(groups), "flush", keys, _CHANNEL, 0, *groups)
        else:
            self.run_on_both(self.model.flush_all, "flush_all", keys, _CHANNEL, 0, 0, 100)

    @rule(name=_groups, span=st.sampled_from([-60, 60, 400]))
    def postpone(self, name: bytes, span: int) -> None:
        keys = [_KEYS.state, _KEYS.groups, _KEYS.due, _KEYS.ready]
        until = self.model.now + span
        self.run_on_both(
            lambda: self.model.postpone(name, until), "postpone", keys, _CHANNEL, 0, name, until
        )

    @rule(
        drawn=st.lists(
            st.tuples(_groups, _policies, _described), min_size=1, max_size=2, unique_by=_first
        ),
        own=st.lists(st.sets(st.sampled_from(_OWN)), min_size=1, max_size=4),
    )
    def apply_limits(
        self, drawn: list[tuple[bytes, dict[str, int], bool]], own: list[set[str]]
    ) -> None:
        keys = [_KEYS.state, _KEYS.groups, _KEYS.due, _KEYS.ready]
        args: list[Any] = [_CHANNEL, 0]
        asked = []
        for name, policy, described in drawn:
            group = self.model.groups.get(name)
            waiting = group.waiting if group and described else []
            names = [own[i % len(own)] for i in range(len(waiting))]
            asked.append(m.Applied(name, policy, names if described else None))
            keys.append(_KEYS.tasks(name))
            args += (name, " ".join(f"{key}={value}" for key, value in policy.items()))
            args.append(len(waiting))
            for entry, set_by_task in zip(waiting, names, strict=True):
                args += (sha1(entry.raw).hexdigest(), " ".join(set_by_task))
        self.run_on_both(lambda: self.model.apply_limits(asked), "apply_limits", keys, *args)

    @rule(policies=st.sampled_from([False, False, True]))
    def register_again(self, policies: bool) -> None:
        number = b"1" + (m.POLICIES if policies else b"")
        self.run_on_both(
            lambda: self.model.register_partition(number),
            "register_partition",
            [_KEYS.state],
            number,
        )

    @rule(paused=st.sampled_from([True, False, False]))
    def pause(self, paused: bool) -> None:
        self._pause(paused)

    def is_paused(self) -> bool:
        return self.model.paused

    @precondition(is_paused)
    @rule()
    def resume(self) -> None:
        self._pause(False)

    def _pause(self, paused: bool) -> None:
        args = (int(paused), _CHANNEL, _KEYS.label)
        self.run_on_both(lambda: self.model.pause(paused), "pause", [_KEYS.state], *args)

    @rule(name=_groups, paused=st.sampled_from([True, False, False]))
    def pause_group(self, name: bytes, paused: bool) -> None:
        self._pause_group(name, paused)

    def paused_groups(self) -> list[bytes]:
        return [name for name, group in self.model.groups.items() if group.paused]

    @precondition(lambda self: bool(self.paused_groups()))
    @rule(data=st.data())
    def resume_group(self, data: st.DataObject) -> None:
        self._pause_group(data.draw(st.sampled_from(self.paused_groups())), False)

    def _pause_group(self, name: bytes, paused: bool) -> None:
        keys = [_KEYS.state, _KEYS.groups, _KEYS.due, _KEYS.ready]
        args = (int(paused), _CHANNEL, _KEYS.label, name)
        self.run_on_both(lambda: self.model.pause_group(name, paused), "pause_group", keys, *args)

    def some_wait(self) -> bool:
        return bool(self.waiting())

    @precondition(some_wait)
    @rule(data=st.data())
    def cancel_task(self, data: st.DataObject) -> None:
        groups = self.model.groups.items()
        waiting = [(name, entry.id) for name, group in groups for entry in group.waiting]
        waiting.append((b"a", b"none"))
        name, task_id = data.draw(st.sampled_from(waiting))
        self._cancel_task(name, task_id)

    def _cancel_task(self, name: bytes, task_id: bytes) -> None:
        def expected() -> int:
            return self.model.cancel_task(name, task_id)

        args = (name, task_id, _KEYS.answers_channel)
        self._cancel(expected, "cancel_task", name, *args, further=[_KEYS.answer(name, task_id)])

    @rule(name=_groups)
    def cancel_group(self, name: bytes) -> None:
        self._cancel(lambda: self.model.cancel_group(name), "cancel_group", name, name)

    def _cancel(
        self,
        expected: Callable[[], Any],
        name: str,
        group: bytes,
        *args: bytes,
        further: Iterable[bytes] = (),
    ) -> None:
        keys = [_KEYS.state, _KEYS.groups, _KEYS.due, _KEYS.ready]
        keys += [_KEYS.tasks(group), _KEYS.ids(group), *further]
        waited = set(self.waiting())
        self.run_on_both(expected, name, keys, *args)
        self.gone |= waited - set(self.waiting())

    # --- invariants -----------------------------------------------------------------------------

    @invariant()
    def same_state(self) -> None:
        self.snapshot = in_redis(self.scripts.client, _KEYS)
        found = differences(self.snapshot, in_model(self.model, _KEYS))
        assert not found, "\n".join(found)
        self._stats()
        self._each_task_is_in_one_place()
        self._each_waiting_group_is_indexed()

    def _stats(self) -> None:
        keys = [_KEYS.state, _KEYS.groups, _KEYS.batches, _KEYS.retry, _KEYS.dead]
        self.run_on_both(self.model.stats, "stats", keys)

    def _each_task_is_in_one_place(self) -> None:
        lists = [*self.snapshot["tasks"].values(), *self.snapshot["dead tasks"].values()]
        places = Counter(m.body_of(entry) for entries in lists for entry in entries)
        for message in self.snapshot["stream"][""]:
            payload = message[message.index(b"payload") + 1]
            places.update(_BODY.findall(payload))
        places.update(self.gone)
        lost = self.acknowledged - places.keys()
        assert not lost, f"nowhere: {lost}"
        more = {body for body, count in places.items() if count > 1}
        more -= {body for bodies in self.copied.values() for body in bodies}
        assert not more, f"in several places: {more}"

    def _each_waiting_group_is_indexed(self) -> None:
        """Asserts that each group that is neither held nor paused is in an index, and in time."""
        for name, group in self.model.groups.items():
            if group.waiting and not self.model.held(name) and not group.paused:
                assert name in self.model.due or name in self.model.ready
                latest = min(entry.latest for entry in group.waiting)
                assert group.due_at <= max(latest, group.held_back_until)
                looked_at = max(group.due_at, self.model.now, self.put_off_until.get(name, 0))
                assert self.model.due.get(name, 0) <= looked_at


def assert_agreement(scripts: Scripts, how: settings) -> None:
    """Run the machine on the scripts.

    Raises:
        AssertionError: Redis and the model disagree; has the steps up to there.
    """

    def machine() -> Machine:
        return Machine(scripts)

    # By its documentation it takes any factory, by its annotation only classes.
    run_state_machine_as_test(cast(Any, machine), settings=how)
