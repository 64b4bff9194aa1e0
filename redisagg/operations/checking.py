"""Checks the keys of a namespace for what no index has and what belongs to nothing; mends it.

Everything is read in pages. What looks wrong is asked for again by a script, which sees it at one
moment and mends it in the same call. So producers and flushers may run meanwhile, and no call takes
long.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Any, Literal, NamedTuple

from redisagg.errors import KeyConflict
from redisagg.protocol.keys import Keyspace, PartitionKeys
from redisagg.protocol.operations import Operation, ask, ask_all
from redisagg.protocol.records import (
    BatchRecord,
    GroupRecord,
    batch_record,
    dead_record,
    group_record,
)
from redisagg.protocol.replies import scan_page
from redisagg.protocol.scripts import Request, call, command
from redisagg.texts import escape_control
from redisagg.views import FIRST_SCAN, Finding

_GROUPS_PER_CALL = 100
_BATCHES_PER_CALL = 300
_PAGE = 500
_PAGE_BYTES = 1 << 20
_ROUND_SIZE = 64
_MOST_NAMED = 5
_MOST_LOOKS = 4

_COUNTED = ("waiting", "claimed", "dead", "bytes", "sequence", "flushed_tasks")
"""The fields of a state that change with each change of a count that could go unnoticed."""

_KEY = re.compile(rb"(tasks|ids|result|dead):(.*)", re.DOTALL)
_COPIES = (b":selected", b":others")


class _Lost(NamedTuple):
    """What was found wrong with the batches of a group."""

    batches: int
    hold: bool


def check_partition(
    keyspace: Keyspace, p: PartitionKeys, *, mend: bool
) -> Operation[list[Finding]]:
    """Checks the groups and batches of a partition.

    Args:
        mend: whether to mend what is wrong.

    Raises:
        KeyConflict: a key holds what redisagg did not write.
    """
    sums = _Sums()
    before = yield from ask(command("HMGET", p.state, *_COUNTED))
    wrong: list[bytes] = []
    unreadable: list[bytes] = []
    holders: dict[bytes, GroupRecord] = {}
    cursor, count = 0, FIRST_SCAN
    while True:
        cursor, page, count = yield from _scan(p.groups, cursor, count)
        for name, packed in page.items():
            try:
                record = group_record(packed, name)
            except KeyConflict:
                unreadable.append(name)
                continue
            sums.add_group(record)
            if record.held or record.claimed:
                holders[name] = record
        wrong += yield from _mend_groups(keyspace, p, list(page), mend=mend)
        if cursor == 0:
            break
    for index in (p.due, p.ready):
        wrong += yield from _check_index(keyspace, p, index, mend=mend)
    findings = list(_group_findings(p, wrong, unreadable, mended=mend))
    lost, broken = yield from _check_batches(keyspace, p, holders, sums, mend=mend)
    findings += _batch_findings(p, lost, broken, mended=mend)
    yield from _add_dead(p, sums)
    after = yield from ask(command("HMGET", p.state, *_COUNTED))
    if before == after and not sums.fits(before):
        findings += yield from _check_counts(p, mend=mend)
    return findings


class _Sums:
    """What the records of a partition add up to."""

    def __init__(self) -> None:
        self.waiting = self.claimed = self.dead = self.bytes = 0
        self.in_motion = False
        """Whether a large batch is on its way to the dead letters, or back, and counts in part."""

    def add_group(self, record: GroupRecord) -> None:
        self.waiting += record.waiting
        self.claimed += record.claimed
        self.bytes += record.bytes

    def add_batch(self, record: BatchRecord) -> None:
        self.bytes += record.length
        self.in_motion = self.in_motion or bool(record.letter)

    def counts(self) -> tuple[int, ...]:
        return (self.waiting, self.claimed, self.dead, self.bytes)

    def fits(self, stored: Sequence[bytes | None]) -> bool:
        """Whether the counts of a state are these; also if that can't be said."""
        return self.in_motion or [each or b"0" for each in stored[:4]] == [
            b"%d" % each for each in self.counts()
        ]


def _add_dead(p: PartitionKeys, sums: _Sums) -> Operation[None]:
    cursor, count = 0, FIRST_SCAN
    while True:
        cursor, page, count = yield from _scan(p.dead, cursor, count)
        for name, packed in page.items():
            try:
                sums.dead += dead_record(packed, name).task_count
            except KeyConflict:
                sums.in_motion = True
        if cursor == 0:
            return


def _check_counts(p: PartitionKeys, *, mend: bool) -> Operation[list[Finding]]:
    """Counts again, twice; if nothing changes meanwhile, the counts are wrong."""
    before = None
    for _ in range(_MOST_LOOKS):
        stored = yield from ask(command("HMGET", p.state, *_COUNTED))
        sums = yield from _sums(p)
        if sums.fits(stored):
            return []
        if before == (stored, sums.counts()):
            break
        before = (stored, sums.counts())
    else:
        return []  # in motion
    if mend:
        read = [each or b"" for each in stored]
        if not (yield from ask(call("mend_counts", [p.state], *read, *sums.counts()))):
            return []
    names = ("waiting", "claimed", "dead", "bytes")
    wrong = [
        f"{name} is {(old or b'0').decode('ascii', 'replace')} in place of {new}"
        for name, old, new in zip(names, stored, sums.counts(), strict=False)
        if (old or b"0") != b"%d" % new
    ]
    return [
        Finding(
            "groups",
            "error",
            f"The counts of partition {p.number} are wrong: {', '.join(wrong)}.",
            "Mend it: redisagg doctor --repair.",
            mendable=True,
            mended=mend,
        )
    ]


def _sums(p: PartitionKeys) -> Operation[_Sums]:
    """Adds up all records, each once, although HSCAN may return one twice."""
    sums = _Sums()
    for key, decode, add in (
        (p.groups, group_record, sums.add_group),
        (p.batches, batch_record, sums.add_batch),
    ):
        records: dict[bytes, Any] = {}
        cursor, count = 0, FIRST_SCAN
        while True:
            cursor, page, count = yield from _scan(key, cursor, count)
            for name, packed in page.items():
                try:
                    records[name] = decode(packed, name)
                except KeyConflict:
                    sums.in_motion = True
            if cursor == 0:
                break
        for record in records.values():
            add(record)
    yield from _add_dead(p, sums)
    return sums


def _scan(key: bytes, cursor: int, count: int) -> Operation[tuple[int, dict[bytes, bytes], int]]:
    reply = yield from ask(command("HSCAN", key, cursor, "COUNT", count))
    cursor, page = scan_page(reply)
    large = sum(map(len, page.values())) > _PAGE_BYTES // 4
    return cursor, page, max(1, count // 2) if large else min(_PAGE, count * 4)


def _mend_groups(
    keyspace: Keyspace, p: PartitionKeys, names: Sequence[bytes], *, mend: bool
) -> Operation[list[bytes]]:
    wrong: list[bytes] = []
    keys = [p.state, p.groups, p.due, p.ready]
    for start in range(0, len(names), _GROUPS_PER_CALL):
        some = names[start : start + _GROUPS_PER_CALL]
        flag = b"1" if mend else b""
        request = call("mend_groups", keys, keyspace.wake_channel, p.digits, flag, *some)
        wrong += yield from ask(request)
    return wrong


def _check_index(
    keyspace: Keyspace, p: PartitionKeys, index: bytes, *, mend: bool
) -> Operation[list[bytes]]:
    """Finds groups in an index that have no record."""
    wrong: list[bytes] = []
    start = 0
    while True:
        names = yield from ask(command("ZRANGE", index, start, start + _PAGE - 1))
        if not names:
            return wrong
        packed = yield from ask(command("HMGET", p.groups, *names))
        missing = [name for name, each in zip(names, packed, strict=True) if each is None]
        gone = yield from _mend_groups(keyspace, p, missing, mend=mend)
        wrong += gone
        start += len(names) - (len(gone) if mend else 0)


def _group_findings(
    p: PartitionKeys, wrong: Sequence[bytes], unreadable: Sequence[bytes], *, mended: bool
) -> Iterator[Finding]:
    if wrong:
        yield Finding(
            "groups",
            "error",
            f"{_number(len(set(wrong)), 'group')} of partition {p.number} {_are(set(wrong))} in no "
            f"index, or in one without a record: {_names(wrong)}; nothing looks at them.",
            "Mend it: redisagg doctor --repair.",
            mendable=True,
            mended=mended,
        )
    if unreadable:
        yield Finding(
            "groups",
            "error",
            f"The records of {_number(len(unreadable), 'group')} of partition {p.number} can't be "
            f"read: {_names(unreadable)}.",
            "Find out who writes to redisagg's keys, and remove the fields.",
        )


def _check_batches(
    keyspace: Keyspace,
    p: PartitionKeys,
    holders: dict[bytes, GroupRecord],
    sums: _Sums,
    *,
    mend: bool,
) -> Operation[tuple[dict[bytes, _Lost], list[bytes]]]:
    """Finds batches that no index has, and groups that no batch holds though they say so.

    Returns:
        What is wrong, by group; and the groups whose batches do not have all of its tasks.
    """
    by_group: dict[bytes, list[bytes]] = {name: [] for name in holders}
    suspicious: set[bytes] = set()
    cursor, count = 0, FIRST_SCAN
    while True:
        cursor, page, count = yield from _scan(p.batches, cursor, count)
        records: dict[bytes, BatchRecord] = {}
        for name, packed in page.items():
            try:
                records[name] = batch_record(packed, name)
            except KeyConflict:
                continue
            sums.add_batch(records[name])
        names = list(records)
        for start in range(0, len(names), _ROUND_SIZE):
            some = names[start : start + _ROUND_SIZE]
            indexes = (p.claims, p.retry, p.suspects)
            scores = yield from ask_all(
                [command("ZSCORE", index, name) for name in some for index in indexes]
            )
            for place, name in enumerate(some):
                group = records[name].group
                by_group.setdefault(group, [])
                if name not in by_group[group]:
                    by_group[group].append(name)
                if all(each is None for each in scores[3 * place : 3 * place + 3]):
                    suspicious.add(group)
        if cursor == 0:
            break
    suspicious |= {name for name, record in holders.items() if record.held}
    lost: dict[bytes, _Lost] = {}
    unclear: list[bytes] = []
    for group in sorted(suspicious | holders.keys()):
        ids = by_group.get(group, [])
        if len(ids) > _BATCHES_PER_CALL:
            continue
        found = yield from ask(_mend_batches(keyspace, p, group, ids, mend=mend))
        if not found:
            unclear.append(group)
            continue
        held, counted, *without = found
        if without or held != counted:
            lost[group] = _Lost(len(without), held != counted)
    broken = yield from _torn(keyspace, p, unclear)
    return lost, broken


def _mend_batches(
    keyspace: Keyspace, p: PartitionKeys, group: bytes, ids: Sequence[bytes], *, mend: bool
) -> Request:
    keys = [p.state, p.groups, p.batches, p.claims, p.retry, p.suspects, p.due, p.ready]
    flag = b"1" if mend else b""
    return call("mend_batches", keys, keyspace.wake_channel, p.digits, flag, group, *ids)


def _torn(keyspace: Keyspace, p: PartitionKeys, groups: Iterable[bytes]) -> Operation[list[bytes]]:
    """The groups whose batches do not have all of their tasks, also when they do not change.

    The others were in motion while they were read.
    """
    left, torn = list(groups), list[bytes]()
    before: dict[bytes, object] = {}
    for _ in range(_MOST_LOOKS):
        if not left:
            break
        records = yield from ask(command("HMGET", p.groups, *left))
        ids: dict[bytes, dict[bytes, None]] = {name: {} for name in left}
        cursor, count = 0, FIRST_SCAN
        while True:
            cursor, page, count = yield from _scan(p.batches, cursor, count)
            for name, each in page.items():
                try:
                    group = batch_record(each, name).group
                except KeyConflict:
                    continue
                if group in ids:
                    ids[group][name] = None
            if cursor == 0:
                break
        still: list[bytes] = []
        for group, packed in zip(left, records, strict=True):
            found = sorted(ids[group])
            if packed is None or len(found) > _BATCHES_PER_CALL:
                continue
            if (yield from ask(_mend_batches(keyspace, p, group, found, mend=False))):
                continue
            if before.get(group) == (packed, found):
                torn.append(group)
            else:
                before[group] = (packed, found)
                still.append(group)
        left = still
    return torn


def _batch_findings(
    p: PartitionKeys, lost: dict[bytes, _Lost], broken: Sequence[bytes], *, mended: bool
) -> Iterator[Finding]:
    batches = sum(each.batches for each in lost.values())
    if batches:
        groups = [name for name, each in lost.items() if each.batches]
        yield Finding(
            "batches",
            "error",
            f"{_number(batches, 'batch')} of partition {p.number} {_are(range(batches))} in no "
            f"index, of {_number(len(groups), 'group')}: {_names(groups)}; no flusher claims them.",
            "Mend it: redisagg doctor --repair.",
            mendable=True,
            mended=mended,
        )
    holds = [name for name, each in lost.items() if each.hold and not each.batches]
    if holds:
        yield Finding(
            "batches",
            "error",
            f"{_number(len(holds), 'group')} of partition {p.number} {_are(holds)} held back by a "
            f"batch that is in no retry: {_names(holds)}.",
            "Mend it: redisagg doctor --repair.",
            mendable=True,
            mended=mended,
        )
    if broken:
        yield Finding(
            "batches",
            "error",
            f"The batches of {_number(len(broken), 'group')} of partition {p.number} do not have "
            f"all of its tasks in flight: {_names(broken)}; a record of a batch was lost.",
            "Stop the flushers, read the list of the group's tasks, and add them anew under "
            "another key; then remove the group's keys.",
        )


# --- keys --------------------------------------------------------------------------------------


def check_keys(
    keyspace: Keyspace, names: Sequence[bytes], *, mend: bool, without: Set[int] = frozenset()
) -> Operation[list[tuple[Kind, bytes]]]:
    """Finds keys that belong to no record.

    Args:
        names: keys of the namespace, such as a page of SCAN.
        mend: whether to mend what is wrong.
        without: numbers of partitions that are left out.

    Returns:
        What each of them is, with its group key or batch id.
    """
    wanted = []
    for key in names:
        found = _place(keyspace, key)
        if found is not None and found[0].number not in without:
            wanted.append((key, *found))
    orphans: list[tuple[Kind, bytes]] = []
    for start in range(0, len(wanted), _ROUND_SIZE):
        some = wanted[start : start + _ROUND_SIZE]
        asked = [each for _, p, kind, name in some for each in _owners(p, kind, name)]
        owned = yield from ask_all(asked)
        for place, (key, p, kind, name) in enumerate(some):
            if any(owned[2 * place : 2 * place + 2]):
                continue
            if (yield from ask(_mend_key(p, key, kind, name, mend=mend))):
                orphans.append((kind, name))
    return orphans


Kind = Literal["tasks", "ids", "result", "dead"]


def _place(keyspace: Keyspace, key: bytes) -> tuple[PartitionKeys, Kind, bytes] | None:
    """The partition of a key, what it is, and its group key or batch id."""
    head, brace, rest = key.partition(b"}:")
    number = head.rpartition(b":")[2]
    match = _KEY.fullmatch(rest)
    if not brace or match is None or not number.isdigit():
        return None
    if int(number) >= len(keyspace.partitions) or not match[2] or match[2].endswith(_COPIES):
        return None
    kind: Any = match[1].decode()
    return keyspace.partitions[int(number)], kind, match[2]


def _owners(p: PartitionKeys, kind: Kind, name: bytes) -> tuple[Request, Request]:
    if kind in ("tasks", "ids"):
        return command("HEXISTS", p.groups, name), command("HEXISTS", p.groups, name)
    return command("HEXISTS", p.batches, name), command("HEXISTS", p.dead, name)


def _mend_key(p: PartitionKeys, key: bytes, kind: Kind, name: bytes, *, mend: bool) -> Request:
    letter = b"%012x-%d-orphan-%b" % (0, p.number, os.urandom(4).hex().encode())
    keys = [p.state, p.groups, p.batches, p.dead, key, p.dead_tasks(letter)]
    text = "redisagg doctor: these tasks were in a list of a group that has no record"
    return call("mend_key", keys, kind, name, b"1" if mend else b"", letter, text)


_CONSEQUENCES: dict[Kind, tuple[str, str]] = {
    "tasks": (
        "lists of tasks of groups without a record",
        "a task that is added to such a group is read in its place",
    ),
    "ids": (
        "sets of ids of groups without a record",
        "a task with such an id counts as waiting, and is not added",
    ),
    "result": ("merge results of batches that are gone", "they take memory"),
    "dead": ("lists of tasks of dead letters without a record", "nothing shows them"),
}


def key_findings(orphans: Sequence[tuple[Kind, bytes]], *, mended: bool) -> Iterator[Finding]:
    """The findings of all calls of `check_keys`."""
    for kind, (what, consequence) in _CONSEQUENCES.items():
        names = [name for each, name in orphans if each == kind]
        if not names:
            continue
        mendable = kind != "dead"
        becomes = "; the tasks become dead letters" if kind == "tasks" else ""
        yield Finding(
            "keys",
            "warning" if kind == "result" else "error",
            f"There are {len(names)} {what}: {_names(names)}; {consequence}.",
            f"Mend it: redisagg doctor --repair{becomes}."
            if mendable
            else "Read them by LRANGE, add them anew, and remove the lists.",
            mendable=mendable,
            mended=mendable and mended,
        )


# --- texts -------------------------------------------------------------------------------------


def _number(count: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("ch") else f"{noun}s"
    return f"1 {noun}" if count == 1 else f"{count:,} {plural}"


def _are(things: Any) -> str:
    return "is" if len(things) == 1 else "are"


def _names(names: Sequence[bytes]) -> str:
    shown = [escape_control(name.decode("utf-8", "replace"))[:60] for name in dict.fromkeys(names)]
    more = ", …" if len(shown) > _MOST_NAMED else ""
    return ", ".join(shown[:_MOST_NAMED]) + more
