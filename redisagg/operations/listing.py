"""The operation that searches and sorts groups, page by page.

Redis has an index of groups by the time at which they are due, and none by anything else: each add
would have to keep it up. So other orders, and searches, look at many groups for a page. A page
looks at a bounded number of them, in calls that are short, and its cursor tells where the next one
goes on.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from heapq import nsmallest
from typing import Any, Literal, NamedTuple, TypeAlias, cast, get_args

import msgpack

from redisagg.config import check_range
from redisagg.errors import InvalidConfig, KeyConflict
from redisagg.operations.inspecting import shown_groups
from redisagg.protocol.keys import Keyspace, PartitionKeys
from redisagg.protocol.operations import Operation
from redisagg.protocol.replies import scan_page
from redisagg.protocol.scripts import Request, call, command
from redisagg.task import MAX_GROUP_KEY_BYTES
from redisagg.texts import logger, shorten
from redisagg.views import GroupList, GroupState

_log = logger("operations")

GroupOrder = Literal["due", "size", "age", "any"]
"""The order of groups: due first, most waiting tasks first, oldest waiting task first, or none."""

MOST_GROUPS = 1_000
"""Largest number of groups of a page."""

_ORDERS = get_args(GroupOrder)

_EXAMINED = 30_000
"""Names of groups that a page looks at, about."""

_RANKED = 10_000
"""Records of groups that a page looks at, about: each has to be decoded."""

_CALL_GROUPS = 500
"""Names of groups that one call looks at."""

_CALL_RECORDS = 250
"""Records of groups that one call looks at."""

_CALL_BYTES = 1 << 18
"""Bytes of records that one call looks at, about."""

_FIRST_COUNT = 64
"""Records of the first call: their size is not known yet."""

_ROUND = 64
"""Partitions that one round trip asks."""

# The parts of a listing, one after the other.
_READY, _DUE, _UNINDEXED = 0, 1, 2
_SCAN = 3
_RANK_ALL, _RANK_WINDOW = 4, 5

_STAGES = {
    "due": (_READY, _DUE, _UNINDEXED),
    "any": (_SCAN,),
    "size": (_RANK_ALL, _RANK_WINDOW),
    "age": (_RANK_ALL, _RANK_WINDOW),
}


class _Place(NamedTuple):
    """Where a page begins."""

    stage: int
    partition: int = 0
    scan: int = 0
    """Cursor of HSCAN."""
    score: bytes = b""
    """Score or rank of the last group, as a number in digits; empty at the start."""
    name: bytes = b""
    """The last group."""


def find_groups(
    keyspace: Keyspace,
    *,
    prefix: str,
    order: str,
    limit: int,
    cursor: str | None,
    tasks: bool,
) -> Operation[GroupList]:
    """Reads a page of the groups whose keys begin with `prefix`.

    Raises:
        InvalidConfig: an argument is out of range or of the wrong type, or the cursor is none of
            this order.
    """
    check_range("limit", limit, 1, MOST_GROUPS)
    if order not in _ORDERS:
        raise InvalidConfig(
            f"order must be {', '.join(map(repr, _ORDERS[:-1]))} or {_ORDERS[-1]!r}, "
            f"not {shorten(order)}"
        )
    page = _Page(keyspace, _prefix_bytes(prefix), order, limit)
    place: _Place | None = _Place(_STAGES[order][0])
    if cursor is not None:
        place = _decode(cursor, order, len(keyspace.partitions))
    elif page.prefix:
        yield from page.read_named()
    assert place is not None
    if place.stage in (_READY, _DUE):
        place = yield from page.read_index(place)
    if place is not None and place.stage == _UNINDEXED:
        place = yield from page.read_unindexed(place)
    elif place is not None and place.stage == _SCAN:
        place = yield from page.scan(place)
    elif place is not None and place.stage in (_RANK_ALL, _RANK_WINDOW):
        place = yield from page.rank(place)
    states = yield from shown_groups(keyspace, (yield from page.records()), tasks=tasks)
    following = None if place is None else _encode(order, place)
    return GroupList(page.sorted(states), following, page.examined, page.exact)


class _Page:
    """The groups of one page, as they are found."""

    def __init__(self, keyspace: Keyspace, prefix: bytes, order: str, limit: int) -> None:
        self.prefix = prefix
        self.examined = 0
        self.exact = order != "any"
        self._keyspace = keyspace
        self._partitions = keyspace.partitions
        self._order = order
        self._limit = limit
        self._pattern = _escaped(prefix) + b"*"
        self._found: dict[bytes, bytes] = {}
        """The records of groups, in order; empty if it is not read yet."""
        self._skipped = False
        self._stages: dict[str, int] = {}
        """For text forms of their keys: the index that has them; only in the order ``"due"``."""

    @property
    def _is_full(self) -> bool:
        return len(self._found) >= self._limit

    def _add(self, name: bytes, record: bytes = b"") -> None:
        # The group that is named by the prefix itself is on the first page.
        if name != self.prefix:
            self._found.setdefault(name, record)

    def read_named(self) -> Operation[None]:
        """Reads the group whose key is the prefix; it comes first."""
        groups = self._keyspace.partition_of(self.prefix).groups
        if record := (yield from self._ask(command("HGET", groups, self.prefix))):
            self._found[self.prefix] = record

    def records(self) -> Operation[dict[bytes, bytes]]:
        """Reads the records that were not read yet; returns all that there are."""
        missing: dict[bytes, list[bytes]] = {}
        for name, record in self._found.items():
            if not record:
                key = self._keyspace.partition_of(name).groups
                missing.setdefault(key, []).append(name)
        asked = list(missing.items())
        for some in _parts(asked):
            replies = yield [command("HMGET", key, *names) for key, names in some]
            for (_, names), reply in zip(some, replies, strict=True):
                records = self._or_none(reply) or [None] * len(names)
                self._found.update(
                    {name: each or b"" for name, each in zip(names, records, strict=True)}
                )
        return {name: record for name, record in self._found.items() if record}

    def sorted(self, states: list[GroupState]) -> list[GroupState]:
        """The groups of this page in order: the index may name an earlier time than the record."""

        def place(state: GroupState) -> tuple[int, float]:
            stage = self._stages.get(state.group_key, _UNINDEXED)
            if state.group_key.encode(errors="replace") == self.prefix:
                stage = -1
            if stage != _DUE:
                return stage, 0.0
            return stage, math.inf if state.due_at is None else state.due_at

        return sorted(states, key=place) if self._order == "due" else states

    def _or_none(self, reply: Any) -> Any:
        """The reply; None if a key holds what redisagg did not write."""
        if isinstance(reply, KeyConflict):
            if not self._skipped:
                _log.warning("groups can't be read and are left out: %s", reply)
            self._skipped = True
            return None
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _ask(self, request: Request) -> Operation[Any]:
        [reply] = yield [request]
        return self._or_none(reply)

    # --- by the indexes ----------------------------------------------------------------------

    def read_index(self, place: _Place) -> Operation[_Place | None]:
        """Reads the groups that are due, and then those that will be; names the next place."""
        while place.stage != _UNINDEXED:
            key = yield from self._read_one_index(place)
            if key is not None:
                return _Place(place.stage, score=_number(key[0]), name=key[1])
            place = _Place(place.stage + 1)
        return place

    def _read_one_index(self, place: _Place) -> Operation[tuple[float, bytes] | None]:
        """Merges an index of all partitions; returns where it stops, or None at its end."""
        indexes = [p.ready if place.stage == _READY else p.due for p in self._partitions]
        streams = [_Stream(index, place) for index in indexes]
        want = 2 * math.ceil(self._limit / len(streams)) + 1
        looks = want
        if self.prefix:
            looks = max(want, min(_CALL_GROUPS, _EXAMINED // len(streams)))
        at: tuple[float, bytes] | None = None
        while not self._is_full:
            empty = [each for each in streams if each.is_empty]
            if empty and self.examined >= _EXAMINED:
                break
            for some in _parts(empty):
                replies = yield [each.request(self.prefix, want, looks) for each in some]
                for stream, reply in zip(some, replies, strict=True):
                    self.examined += stream.fill(self._or_none(reply))
            if any(each.is_empty for each in empty):
                continue
            stream = min((each for each in streams if each.groups), key=_Stream.first, default=None)
            if stream is None:
                return None
            at = stream.first()
            stream.groups.pop()
            self._take(at[1], place.stage)
        if self._is_full:
            return at if at is not None else self._start(place)
        # Up to the least of these places, all groups were looked at.
        bound = min(each.reached for each in streams if each.is_empty)
        for key in sorted(key for each in streams for key in each.groups):
            if key <= bound:
                self._take(key[1], place.stage)
        return bound

    def _take(self, name: bytes, stage: int) -> None:
        self._add(name)
        self._stages[name.decode("utf-8", "replace")] = stage

    @staticmethod
    def _start(place: _Place) -> tuple[float, bytes]:
        """The place itself, for a page that is full before it begins."""
        return (float(place.score), place.name) if place.score else (-math.inf, b"")

    def read_unindexed(self, place: _Place) -> Operation[_Place | None]:
        """Reads the groups that are in no index: held back, paused, or all in batches."""
        for number in (yield from self._with_unindexed(place)):
            cursor = place.scan if number == place.partition else 0
            if self._is_full or self.examined >= _RANKED:
                return _Place(_UNINDEXED, number, cursor)
            cursor = yield from self._unindexed_of(number, cursor)
            if cursor:
                return _Place(_UNINDEXED, number, cursor)
        return None

    def _with_unindexed(self, place: _Place) -> Operation[list[int]]:
        """The numbers of the partitions from a place on that may have groups in no index."""
        numbers: list[int] = []
        for some in _parts(self._partitions[place.partition :]):
            sizes = yield [
                each
                for p in some
                for each in (
                    command("HLEN", p.groups),
                    command("ZCARD", p.ready),
                    command("ZCARD", p.due),
                )
            ]
            counts = [self._or_none(each) or 0 for each in sizes]
            for p, groups, ready, due in zip(
                some, counts[::3], counts[1::3], counts[2::3], strict=True
            ):
                if groups > ready + due or (p.number == place.partition and place.scan):
                    numbers.append(p.number)
        return numbers

    # --- in no order ---------------------------------------------------------------------------

    def scan(self, place: _Place) -> Operation[_Place | None]:
        """Reads groups as they come."""
        cursor, number, count = place.scan, place.partition, _FIRST_COUNT
        while not self._is_full and self.examined < _EXAMINED:
            groups = self._partitions[number].groups
            left = self._limit - len(self._found)
            count = min(count, left) if not self.prefix else count
            request = command("HSCAN", groups, cursor, "MATCH", self._pattern, "COUNT", count)
            reply = yield from self._ask(request)
            cursor, page = scan_page(reply) if reply else (0, {})
            for name, record in page.items():
                self._add(name, record)
            self.examined += max(count, len(page))
            # As many as bring enough groups, if as many match as in this slice.
            wanted = max(1, self._limit - len(self._found))
            expected = wanted * count // len(page) if page else 4 * count
            count = max(16, min(_CALL_GROUPS, 4 * count, expected))
            if sum(map(len, page.values())) > _CALL_BYTES:
                count = max(1, count // 4)
            if not cursor:
                number += 1
                if number == len(self._partitions):
                    return None
        return _Place(_SCAN, number, cursor)

    # --- by what no index has ------------------------------------------------------------------

    def rank(self, place: _Place) -> Operation[_Place | None]:
        """Reads groups by their size or age: of all if they are few, else of a part of them."""
        if place.stage == _RANK_ALL:
            sizes: list[Any] = []
            for some in _parts(self._partitions):
                sizes += yield [command("HLEN", p.groups) for p in some]
            if place.name or sum(self._or_none(each) or 0 for each in sizes) <= _RANKED:
                return (yield from self._rank_all(place))
            place = _Place(_RANK_WINDOW)
        self.exact = False
        best: _Best = {}
        start = place.partition
        cursors = _unpacked_cursors(place.name, self._partitions[start : start + _ROUND])
        while True:
            yield from self._rank_block(start, cursors, (b"", b""), best, most=_RANKED)
            if not any(each is not None for each in cursors):
                start += _ROUND
                cursors = _unpacked_cursors(b"", self._partitions[start : start + _ROUND])
            if not cursors or self.examined >= _RANKED:
                break
        self._take_best(best)
        if not cursors:
            return None
        return _Place(_RANK_WINDOW, start, name=cast("bytes", msgpack.packb(cursors)))

    def _rank_all(self, place: _Place) -> Operation[_Place | None]:
        best: _Best = {}
        for start in range(0, len(self._partitions), _ROUND):
            cursors: _Cursors = [0 for _ in self._partitions[start : start + _ROUND]]
            behind = (place.score, place.name)
            yield from self._rank_block(start, cursors, behind, best, most=None)
        last = self._take_best(best)
        if last is None or len(best) < self._limit:
            return None
        return _Place(_RANK_ALL, score=_number(last[0]), name=last[1])

    def _take_best(self, best: _Best) -> tuple[float, bytes] | None:
        """Adds the first groups; returns the place of the last one."""
        key = None
        for name, (rank, record) in _first(best, self._limit):
            self._add(name, record)
            key = rank, name
        return key

    def _rank_block(
        self,
        start: int,
        cursors: _Cursors,
        behind: tuple[bytes, bytes],
        best: _Best,
        *,
        most: int | None,
    ) -> Operation[None]:
        """Looks at slices of some partitions, of all at the same time.

        Args:
            start: number of the first partition.
            cursors: of HSCAN, of each partition; None at its end. They are moved on.
            behind: only groups behind this place are wanted.
            best: takes the groups with their ranks and records, the best ones only.
            most: number of groups after which it ends, about; None for all groups.
        """
        sizes = [_FIRST_COUNT for _ in cursors]
        while active := [i for i, each in enumerate(cursors) if each is not None]:
            if most is not None and self.examined >= most:
                return
            worst = (b"", b"")
            if len(best) >= self._limit:
                kept = _first(best, self._limit)
                best.clear()
                best.update(kept)
                name, (rank, _) = kept[-1]
                worst = (_number(rank), name)
            share = _CALL_RECORDS
            if most is not None:
                share = max(1, math.ceil((most - self.examined) / len(active)))
            counts = [min(sizes[i], share) for i in active]
            replies = yield [
                self._slice(start + i, cursors[i], count, self._order, *behind, *worst)
                for i, count in zip(active, counts, strict=True)
            ]
            for i, count, reply in zip(active, counts, replies, strict=True):
                slice_ = self._or_none(reply)
                if slice_ is None:
                    cursors[i] = None
                    continue
                following, looked, length, flat = slice_
                cursors[i] = int(following) or None
                self.examined += max(count, looked)
                sizes[i] = _next_count(count, length)
                for name, rank, record in zip(flat[::3], flat[1::3], flat[2::3], strict=True):
                    best[name] = float(rank), record

    def _unindexed_of(self, number: int, cursor: int) -> Operation[int]:
        """Reads groups of a partition that are in no index; returns the next cursor or 0."""
        count = _FIRST_COUNT
        while True:
            request = self._slice(number, cursor, count, "unindexed", b"", b"", b"", b"")
            reply = yield from self._ask(request)
            if reply is None:
                return 0
            following, looked, length, flat = reply
            cursor = int(following)
            self.examined += max(count, looked)
            count = _next_count(count, length)
            for name, record in zip(flat[::3], flat[2::3], strict=True):
                self._add(name, record)
            if not cursor or self._is_full or self.examined >= _RANKED:
                return cursor

    def _slice(self, number: int, cursor: int | None, count: int, *between: Any) -> Request:
        keys = [self._partitions[number].groups]
        order, *places = between
        return call("rank_groups", keys, cursor, count, self._pattern, order, *places)


_Best: TypeAlias = "dict[bytes, tuple[float, bytes]]"
"""Groups with their rank and record."""

_Cursors: TypeAlias = "list[int | None]"


def _next_count(count: int, length: int) -> int:
    """The number of records for the next call, after `count` of them had `length` bytes."""
    if length > _CALL_BYTES:
        return max(1, count // 2)
    return min(_CALL_RECORDS, 4 * count) if length < _CALL_BYTES // 4 else count


def _unpacked_cursors(packed: bytes, partitions: Sequence[PartitionKeys]) -> _Cursors:
    """The cursors in a place; 0 for each partition if there are none.

    Raises:
        InvalidConfig: they are none of a page.
    """
    if not packed:
        return [0 for _ in partitions]
    cursors: Any = ()
    try:
        cursors = msgpack.unpackb(packed)
        sound = len(cursors) == len(partitions) and all(
            each is None or (type(each) is int and 0 <= each < 2**64) for each in cursors
        )
    except Exception:  # as in `_decode`
        sound = False
    if not sound:
        raise InvalidConfig("the cursor is none of a page; pass that of the page before")
    return list(cursors)


class _Stream:
    """The groups of one index of one partition, in order."""

    def __init__(self, index: bytes, place: _Place) -> None:
        self._index = index
        self._score, self._name = place.score, place.name
        self.groups: list[tuple[float, bytes]] = []
        """Those that were read, the first one last."""
        self.reached = _Page._start(place)
        """Up to where the index was looked at."""
        self._ended = False

    @property
    def is_empty(self) -> bool:
        """Whether more has to be read before the first group is known."""
        return not self.groups and not self._ended

    def first(self) -> tuple[float, bytes]:
        """Score and key of the first group."""
        return self.groups[-1]

    def request(self, prefix: bytes, want: int, looks: int) -> Request:
        """What reads on."""
        place = (self._score, self._name)
        return call("list_groups", [self._index], *place, prefix, want, looks)

    def fill(self, reply: Any) -> int:
        """Takes the reply; returns the number of groups that were looked at."""
        if reply is None:
            self._ended = True
            return 0
        looked, ended, self._score, self._name, flat = reply
        self._ended = bool(ended)
        found = zip(map(float, flat[1::2]), flat[::2], strict=True)
        self.groups = list(found)[::-1]
        if self._score:
            self.reached = float(self._score), self._name
        return int(looked)


def _number(value: float) -> bytes:
    """A number in digits, without any loss."""
    return b"%.17g" % value


def _first(best: _Best, count: int) -> list[tuple[bytes, tuple[float, bytes]]]:
    return nsmallest(count, best.items(), key=lambda item: (item[1][0], item[0]))


def _parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[start : start + _ROUND] for start in range(0, len(items), _ROUND))


def _prefix_bytes(prefix: object) -> bytes:
    if isinstance(prefix, str):
        try:
            raw = prefix.encode()
        except UnicodeEncodeError:
            raw = None
        if raw is not None and len(raw) <= MAX_GROUP_KEY_BYTES:
            return raw
    raise InvalidConfig(
        f"prefix must be a str of up to {MAX_GROUP_KEY_BYTES} bytes of UTF-8, not {shorten(prefix)}"
    )


def _escaped(prefix: bytes) -> bytes:
    """The prefix as a part of a pattern of Redis."""
    return b"".join(b"\\%c" % each if each in b"*?[]\\^-" else b"%c" % each for each in prefix)


# --- cursors -------------------------------------------------------------------------------------


def _encode(order: str, place: _Place) -> str:
    packed = cast("bytes", msgpack.packb([order, *place]))
    return base64.urlsafe_b64encode(packed).rstrip(b"=").decode()


def _decode(cursor: object, order: str, partitions: int) -> _Place:
    try:
        if not isinstance(cursor, str):
            raise TypeError(type(cursor).__name__)
        padded = cursor + "=" * (-len(cursor) % 4)
        of, *values = msgpack.unpackb(base64.b64decode(padded, b"-_", validate=True))
        place = _Place(*values)
        sound = (
            of == order
            and place.stage in _STAGES[order]
            and type(place.partition) is int
            and 0 <= place.partition < partitions
            and type(place.scan) is int
            and 0 <= place.scan < 2**64
            and type(place.name) is bytes
            and (place.score == b"" or not math.isnan(float(place.score)))
        )
    except Exception as error:  # of foreign text, base64 and msgpack raise many types
        raise _wrong_cursor(cursor, order) from error
    if not sound:
        raise _wrong_cursor(cursor, order)
    return place


def _wrong_cursor(cursor: object, order: str) -> InvalidConfig:
    return InvalidConfig(
        f"the cursor is none of a page in the order {order!r}: {shorten(cursor)}; pass that of the "
        "page before, with the same order and prefix"
    )
