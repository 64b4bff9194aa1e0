"""The scripts `permits` and `put_off`: no limit is exceeded, whatever flushers do with permits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from redisagg.protocol.keys import Keyspace
from redisagg.testing.embedded import EmbeddedRedis
from tests.model.clock import CLOCK_KEY, Scripts

SPACE = Keyspace("tests", 1)
BEGIN, HOLD = 300, 500
START = 1_790_000_000_000


@dataclass
class Permit:
    id: str
    units: int
    granted: int
    called_at: int | None = None


@dataclass
class Limit:
    """A limit with flushers that use it as they may, and what they did."""

    scripts: Scripts
    concurrency: int = 0
    limit: int = 0
    per: int = 1
    burst: int = 1
    keys: list[bytes] = field(default_factory=lambda: [SPACE.permits])
    held: dict[str, Permit] = field(default_factory=dict)
    calls: list[Permit] = field(default_factory=list)
    number: int = 0

    def __post_init__(self) -> None:
        self.scripts.client.flushall()
        self.scripts.set_clock(START)

    @property
    def now(self) -> int:
        return self.scripts.now

    def send(self, caller: str, *steps: str, channel: str = "wake") -> list[list[int]]:
        reply: list[list[int]] = self.scripts.call(
            "permits",
            self.keys,
            *(caller, BEGIN, HOLD, self.concurrency, self.limit, self.per, self.burst, channel),
            *(" ".join(steps) for _ in self.keys),
        )
        return reply

    def take(self, caller: str, count: int = 1, units: int = 1) -> tuple[int, int, int]:
        """Returns how many were granted, the ms to wait, and whether it is for a place."""
        new = []
        for _ in range(count):
            self.number += 1
            new.append(Permit(f"{caller}.{self.number}", units, self.now))
        [[granted, wait, place]] = self.send(caller, *(f"+{each.id}:{units}" for each in new))
        self.held |= {each.id: each for each in new[:granted]}
        return granted, wait, place

    def note(self, kind: str, permit: Permit) -> None:
        self.send(permit.id.split(".")[0], f"{kind}{permit.id}")
        if kind != "=":
            del self.held[permit.id]

    def begin(self, permit: Permit) -> None:
        """Makes the call of a permit, if it may begin now and was not made."""
        if permit.called_at is None and self.now < permit.granted + BEGIN:
            permit.called_at = self.now
            self.calls.append(permit)

    def pass_time(self, ms: int) -> None:
        self.scripts.set_clock(self.now + ms)
        for permit in list(self.held.values()):
            if self.now >= permit.granted + HOLD:  # its call is over, and it was taken back
                del self.held[permit.id]

    def assert_kept(self) -> None:
        if self.concurrency:
            assert len(self.held) <= self.concurrency
        for first in self.calls if self.limit else []:
            start = first.called_at
            assert start is not None
            inside = [
                each for each in self.calls if start <= (each.called_at or 0) <= start + self.per
            ]
            assert sum(each.units for each in inside) <= self.limit
        recent = [each for each in self.calls if (each.called_at or 0) > self.now - self.per]
        if self.limit and recent:
            assert self.counted() >= sum(each.units for each in recent)

    def counted(self) -> int:
        """The units that the hash has: of calls that were made, or may be."""
        stored: Any = self.scripts.client.hgetall(self.keys[0])
        called = [int(value) for field, value in stored.items() if field.startswith(b"u:")]
        permits = [int(value.split()[3]) for field, value in stored.items() if field[:1] == b"p"]
        return sum(called) + sum(permits)


@pytest.fixture
def scripts(sync_redis: redis.Redis) -> Scripts:
    return Scripts(sync_redis)


@pytest.fixture
def make_limit(scripts: Scripts) -> Callable[..., Limit]:
    return lambda **rule: Limit(scripts, **rule)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.sampled_from("abc"), st.integers(1, 4), st.integers(1, 3)),
        st.tuples(st.just("use"), st.sampled_from("abc"), st.integers(1, 4), st.integers(1, 3)),
        st.tuples(st.sampled_from(["call", "=", "-"]), st.integers(0, 30)),
        st.tuples(st.just("die"), st.integers(0, 5)),
        st.tuples(st.just("time"), st.sampled_from([0, 1, 7, 40, 99, 100, 101, 150, 299, 301])),
    ),
    min_size=5,
    max_size=60,
)


def use(limit: Limit, *given_: Any) -> None:
    """Takes permits, makes their calls and gives them back."""
    before = list(limit.held.values())
    limit.take(*given_)
    for permit in [each for each in limit.held.values() if each not in before]:
        limit.begin(permit)
        limit.note("-", permit)


def perform(limit: Limit, steps: list[tuple[Any, ...]]) -> Iterator[None]:
    for kind, *given_ in steps:
        permits = list(limit.held.values())
        if kind == "take":
            limit.take(*given_)
        elif kind == "use":
            use(limit, *given_)
        elif kind == "die":  # a call that nobody notes, and another one when it is taken as made
            limit.take("d")
            for permit in [each for each in limit.held.values() if each not in permits]:
                limit.begin(permit)
            limit.pass_time(BEGIN - given_[0])
            use(limit, "a")
            limit.pass_time(given_[0])
            use(limit, "b")
        elif kind == "time":
            limit.pass_time(*given_)
        elif permits:
            permit = permits[given_[0] % len(permits)]
            if kind == "call":
                limit.begin(permit)
            elif permit.called_at is not None:
                limit.note(kind, permit)
            elif kind == "-":
                limit.note("~", permit)
        yield


@given(
    steps=STEPS,
    concurrency=st.integers(0, 3),
    rate=st.integers(0, 5),
    per=st.sampled_from([1, 20, 100, 350, 1500, 5000]),
    burst=st.integers(1, 5),
)
@settings(max_examples=250, deadline=None)
def test_no_limit_is_exceeded(
    scripts_of_module: Scripts,
    steps: list[tuple[Any, ...]],
    concurrency: int,
    rate: int,
    per: int,
    burst: int,
) -> None:
    limit = Limit(scripts_of_module, concurrency, rate, per, min(burst, max(rate, 1)))
    for _ in perform(limit, steps):
        limit.assert_kept()


@given(steps=STEPS, concurrency=st.integers(1, 3), rate=st.integers(3, 5), burst=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_every_caller_gets_its_turn(
    scripts_of_module: Scripts,
    steps: list[tuple[Any, ...]],
    concurrency: int,
    rate: int,
    burst: int,
) -> None:
    limit = Limit(scripts_of_module, concurrency, rate, 100, burst)
    for _ in perform(limit, steps):
        pass
    for permit in list(limit.held.values()):
        limit.note("-" if permit.called_at is not None else "~", permit)
    waiting = dict.fromkeys("abc", 3)  # units of the next call of each
    at = dict.fromkeys(waiting, limit.now)
    for _ in range(200):
        if not waiting:
            break
        caller = min(waiting, key=lambda each: at[each])
        limit.pass_time(max(0, at[caller] - limit.now))
        granted, wait, _ = limit.take(caller, 1, waiting[caller])
        if granted:
            del waiting[caller]
            permit = next(each for each in limit.held.values() if each.id.startswith(caller))
            limit.begin(permit)
            limit.note("-", permit)
        else:
            assert wait > 0
            at[caller] = limit.now + wait
    assert not waiting


@pytest.fixture(scope="module")
def scripts_of_module(redis_server: EmbeddedRedis) -> Iterator[Scripts]:
    """For many runs in one test."""
    redis_server.resume()
    redis_server.start()
    with redis.Redis.from_url(redis_server.url) as client:
        yield Scripts(client)


def test_a_wait_ends_when_units_leave(make_limit: Callable[..., Limit]) -> None:
    limit = make_limit(limit=3, per=1000, burst=3)
    assert limit.take("a", 5) == (3, 1010, 0)  # if they are called at once
    for permit in list(limit.held.values()):
        limit.begin(permit)
        limit.note("-", permit)
    granted, wait, place = limit.take("a")
    assert (granted, place) == (0, 0)
    assert 1000 < wait <= 1010
    limit.pass_time(wait - 1)
    assert limit.take("a")[0] == 0
    limit.pass_time(1)
    assert limit.take("a", 4)[0] == 3


def test_what_is_not_used_comes_back(make_limit: Callable[..., Limit]) -> None:
    limit = make_limit(limit=3, per=1000, burst=3)
    limit.take("a", 3)
    first, *_ = limit.held.values()
    limit.note("~", first)
    assert limit.take("a", 2)[0] == 1
    limit = make_limit(limit=10, per=1000, burst=10)
    assert limit.take("a", 1, 8)[0] == 1
    [permit] = limit.held.values()
    limit.send("a", f"-{permit.id}:3")  # fewer than were granted
    assert limit.take("a", 7)[0] == 7


def test_a_permit_that_may_have_been_used_does_not_come_back(
    make_limit: Callable[..., Limit],
) -> None:
    limit = make_limit(limit=1, per=1000, burst=1)
    limit.take("a")
    [permit] = limit.held.values()
    limit.pass_time(BEGIN)
    limit.send("a", f"~{permit.id}")
    granted, wait, _ = limit.take("b")
    assert (granted, wait) == (0, 1010)


def test_permits_of_a_dead_flusher_come_back(make_limit: Callable[..., Limit]) -> None:
    limit = make_limit(concurrency=2)
    assert limit.take("dead", 3) == (2, 100, 1)
    assert limit.take("b")[0] == 0
    limit.pass_time(HOLD - 1)
    assert limit.take("b") == (0, 1, 1)
    limit.pass_time(1)
    assert limit.take("b", 2)[0] == 2


def test_calls_that_leave_the_window_together_all_count(make_limit: Callable[..., Limit]) -> None:
    """One of them was not noted, since its flusher died."""
    limit = make_limit(limit=2, per=1000, burst=2)
    limit.pass_time(5)
    limit.take("dead")
    limit.take("b")
    limit.pass_time(BEGIN - 3)
    [_, permit] = limit.held.values()
    limit.begin(permit)
    limit.note("-", permit)
    limit.pass_time(5)
    for _ in range(2):
        assert limit.take("c")[0] == 0
    limit.pass_time(995)
    assert limit.take("c")[0] == 0
    limit.pass_time(20)
    assert limit.take("c", 3)[0] == 2


def test_burst_spreads_what_follows(make_limit: Callable[..., Limit]) -> None:
    limit = make_limit(limit=10, per=1000, burst=2)
    assert limit.take("a", 5) == (2, 100, 0)
    for permit in list(limit.held.values()):
        limit.begin(permit)
        limit.note("-", permit)
    limit.pass_time(99)
    assert limit.take("a", 2) == (0, 1, 0)
    limit.pass_time(1)
    assert limit.take("a", 2) == (1, 100, 0)


def test_a_repeated_call_does_nothing_twice(make_limit: Callable[..., Limit]) -> None:
    limit = make_limit(concurrency=2, limit=4, per=1000, burst=4)
    for _ in range(2):
        assert limit.send("a", "+a.1:2", "+a.2:2")[0][0] == 2
    for _ in range(2):
        limit.send("a", "-a.1:2", "~a.2")
    assert limit.send("b", "+b.1:2", "+b.2:1")[0][0] == 1
    limit.send("a", "-a.1:2")
    assert limit.send("b", "+b.3:9", "+b.4:1")[0][0] == 0


def test_a_flusher_that_waits_is_told(make_limit: Callable[..., Limit]) -> None:
    limit = make_limit(concurrency=1)
    pubsub = limit.scripts.client.pubsub()
    pubsub.subscribe("wake")
    assert pubsub.get_message(timeout=5)
    limit.take("a")
    [permit] = limit.held.values()
    limit.send("a", f"={permit.id}")
    limit.take("b")
    limit.pass_time(1)
    limit.note("-", permit)
    message = pubsub.get_message(timeout=5)
    assert message is not None
    assert message["data"] == b"permits"
    assert limit.take("a")[0] == 0  # its turn is after that of b
    assert limit.take("b")[0] == 1
    pubsub.close()


def test_groups_have_limits_of_their_own(make_limit: Callable[..., Limit]) -> None:
    p = SPACE.partitions[0]
    limit = make_limit(concurrency=1, keys=[p.permits(b"g"), p.permits(b"h")])
    assert limit.send("a", "+a.1:1", channel="") == [[1, 0, 0]] * 2
    assert limit.send("b", "+b.1:1", channel="") == [[0, 100, 1]] * 2


def test_the_clock_is_set_back(make_limit: Callable[..., Limit]) -> None:
    limit = make_limit(concurrency=2, limit=2, per=1000, burst=2)
    limit.take("a")
    [permit] = limit.held.values()
    limit.begin(permit)
    limit.note("-", permit)
    limit.pass_time(200)
    limit.take("a", 2)
    limit.scripts.set_clock(START - 3_600_000)
    assert limit.take("b") == (0, 1010, 0)
    limit.pass_time(1320)
    assert limit.take("b", 3)[0] == 2


def test_who_is_gone_is_not_waited_for(make_limit: Callable[..., Limit]) -> None:
    limit = make_limit(limit=4, per=60_000, burst=4)
    limit.take("a", 3)
    for permit in list(limit.held.values()):
        limit.begin(permit)
        limit.note("-", permit)
    assert limit.take("gone", 1, 2)[0] == 0
    limit.pass_time(1)
    assert limit.take("b")[0] == 0  # the unit is for the other one
    limit.pass_time(BEGIN + BEGIN // 3)
    assert limit.take("b")[0] == 1


def test_a_caller_ends_its_wait(make_limit: Callable[..., Limit]) -> None:
    limit = make_limit(limit=4, per=60_000, burst=4)
    limit.take("a", 3)
    assert limit.take("gone", 1, 2)[0] == 0
    assert limit.take("b")[0] == 0
    pubsub = limit.scripts.client.pubsub()
    pubsub.subscribe("wake")
    assert pubsub.get_message(timeout=5)
    assert limit.send("gone", "!") == [[0, 0, 0]]
    message = pubsub.get_message(timeout=5)
    assert message is not None
    assert message["data"] == b"permits"
    pubsub.close()
    assert limit.take("b")[0] == 1


def test_a_limit_has_a_bounded_number_of_permits(make_limit: Callable[..., Limit]) -> None:
    limit = make_limit(limit=10_000, per=1000, burst=10_000)
    for _ in range(5):
        granted, wait, by_place = limit.take("a", 500)
    assert (len(limit.held), granted, by_place) == (1500, 0, 1)
    assert wait == BEGIN // 3


def test_nothing_is_left(make_limit: Callable[..., Limit]) -> None:
    limit = make_limit(concurrency=2)
    limit.take("a", 2)
    client: Any = limit.scripts.client
    assert HOLD < client.pttl(SPACE.permits) <= HOLD + BEGIN + 60_000
    for permit in list(limit.held.values()):
        limit.note("-", permit)
    assert client.keys() == [CLOCK_KEY]


def test_foreign_bytes_are_removed(make_limit: Callable[..., Limit]) -> None:
    limit = make_limit(concurrency=2, limit=2, per=1000, burst=2)
    client: Any = limit.scripts.client
    foreign = {
        "x": 1,
        "p:a": "1",
        "u:x": 4,
        "u:9": "-1",
        "tat": "nan",
        "w:b": "1 2",
        "p:c": "x y z w",
    }
    client.hset(SPACE.permits, mapping=foreign)
    assert limit.take("a", 2)[0] == 2
    kept = client.hkeys(SPACE.permits)
    assert not set(kept) & {key.encode() for key in foreign if key != "tat"}
    client.delete(SPACE.permits)
    client.set(SPACE.permits, "foreign")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        limit.take("a")


# --- put_off --------------------------------------------------------------------------------------

P = SPACE.partitions[0]
INDEXES = [P.state, P.groups, P.batches, P.claims, P.retry, P.suspects, P.due, P.ready]
LEASE = 600_000


class Leader:
    """Calls the scripts of a leader, after one that has vanished."""

    def __init__(self, scripts: Scripts) -> None:
        self.scripts = scripts
        scripts.client.flushall()
        scripts.set_clock(START)
        scripts.call("register_partition", [P.state], 1)
        self.token = self.number = 0

    def lead(self) -> None:
        keys = [P.state, P.claims, P.tasks(b"")]
        self.scripts.set_clock(self.scripts.now + LEASE)
        [self.token, _] = self.scripts.call("acquire", keys, "me", LEASE, P.label)

    def add(self, group: bytes, count: int) -> None:
        """Adds tasks that are batches of their own."""
        keys = [P.state, P.groups, P.due, P.ready, P.call(b"p"), P.seen, P.seen_before]
        keys += [P.tasks(group), P.ids(group)]
        self.number += 1
        tasks = [part for n in range(count) for part in (f"{self.number}-{n}", b"\x92\xa1t\x01")]
        args = [self.number, 1000, "wake", P.label, 10**6, 10**6, "1", group, "0 0 1 0", count]
        self.scripts.call("add", keys, *args, *tasks)

    def poll(self) -> tuple[int, list[tuple[bytes, bytes]], list[bytes]]:
        keys = [*INDEXES, P.seen, P.seen_before]
        wait, flat, suspect = self.scripts.call("poll", keys, self.token, 10, 5000)
        return wait, list(zip(flat[::2], flat[1::2], strict=True)), suspect

    def claim(self, *items: tuple[bytes, bytes]) -> list[Any]:
        keys = [*INDEXES, P.seen, P.seen_before]
        keys += [key for _, group in items for key in (P.tasks(group), P.ids(group))]
        args = [self.token, LEASE, 0, 64, 1000, 1 << 20, 1000, 0, *(x for i in items for x in i)]
        reply: list[Any] = self.scripts.call("claim", keys, *args)
        return reply

    def put_off(self, *items: tuple[bytes, bytes, int]) -> None:
        args = [part for item in items for part in item]
        assert self.scripts.call("put_off", INDEXES, self.token, *args) == 1


def test_batches_that_were_freed_wait(scripts: Scripts) -> None:
    leader = Leader(scripts)
    leader.lead()
    leader.add(b"g", 2)
    ids = [reply[0] for reply in leader.claim((b"", b"g"))]
    leader.lead()
    assert len(ids) == 2
    leader.poll()  # counts the death
    assert leader.poll()[1] == [(each, b"g") for each in ids]
    leader.put_off(*((each, b"g", 700) for each in ids))
    leader.add(b"g", 1)  # not before the batches
    assert leader.poll() == (700, [], [])
    scripts.set_clock(scripts.now + 700)
    assert leader.poll()[1] == [(each, b"g") for each in ids]
    claimed = leader.claim((ids[0], b"g"))
    assert [(reply[0], reply[2]) for reply in claimed] == [(ids[0], 1)]  # nothing failed
    leader.put_off((ids[0], b"g", 900))  # it is in flight
    assert leader.claim((ids[1], b"g"))
    assert leader.poll()[1] == [(b"", b"g")]


def test_a_suspect_that_waits_is_behind_the_others(scripts: Scripts) -> None:
    leader = Leader(scripts)
    leader.lead()
    for group in (b"g", b"h"):
        leader.add(group, 1)
    claimed = leader.claim((b"", b"g"), (b"", b"h"))
    for _ in range(2):
        leader.lead()
        while (due := leader.poll())[0] == 0 and not due[1]:
            pass
        leader.claim(*due[1])
    first, second = (reply[0] for reply in claimed)
    assert due[2] == [first, b"g"]
    leader.put_off((first, b"g", 700))
    assert leader.poll()[2] == [second, b"h"]
    leader.put_off((second, b"h", 700))
    assert leader.poll()[2] == [first, b"g"]
