"""The rules of a round trip, without sockets: what is sent, repeated, and raised."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import redis
import redis.exceptions as rx
from redis.sentinel import Sentinel

from redisagg.config import AggregationConfig
from redisagg.errors import (
    AuthenticationFailed,
    InvalidConfig,
    KeyConflict,
    NotReplicated,
    RedisUnavailable,
    TooFewReplicas,
)
from redisagg.protocol.entries import LimitTexts
from redisagg.protocol.keys import Keyspace
from redisagg.protocol.policies import KnownPolicies
from redisagg.protocol.scripts import Request, call, command, load
from redisagg.transport import retrying
from redisagg.transport.durability import Durability
from redisagg.transport.endpoint import endpoint_of
from redisagg.transport.round_trip import Aside, Command, pack, round_trip
from redisagg.transport.threads import Transport

REQUESTS = [call("poll", [b"key"], 1), command("GET", b"key"), call("claim", [b"key"], 2)]


def carry_out(*replies: list[Any]) -> tuple[list[list[Any]], list[Any]]:
    """The commands of each step, by their first words, and the final replies."""
    steps, sent = round_trip(REQUESTS), []
    step = next(steps)
    try:
        for each in replies:
            sent.append([line[0] for line in step])
            step = steps.send(each)
    except StopIteration as stop:
        return sent, stop.value
    raise AssertionError("it asks for more")


def test_replies_are_returned_in_order() -> None:
    assert carry_out([1, 2, 3]) == ([[b"EVALSHA", "GET", b"EVALSHA"]], [1, 2, 3])


def test_only_unknown_scripts_are_sent_again_with_their_source() -> None:
    unknown = rx.NoScriptError("No matching script")
    sent, replies = carry_out([1, 2, unknown], [3])
    assert sent == [[b"EVALSHA", "GET", b"EVALSHA"], [b"EVAL"]]
    assert replies == [1, 2, 3]


def test_a_refusal_takes_the_place_of_its_reply() -> None:
    _, replies = carry_out([1, rx.ResponseError("WRONGTYPE no list"), 3])
    assert (replies[0], type(replies[1]), replies[2]) == (1, KeyConflict, 3)


def test_a_transient_error_fails_the_round_trip() -> None:
    with pytest.raises(rx.BusyLoadingError):
        carry_out([1, rx.BusyLoadingError("loading"), rx.ResponseError("WRONGTYPE no list")])


class _Policed:
    """What applies policies that have to be read, to requests that stay as they are."""

    def __init__(self, version: bytes = b"") -> None:
        self.policies = KnownPolicies(_SPACE, LimitTexts(AggregationConfig()).under_policies)
        if version:  # it was read a while ago
            steps = self.policies.read()
            next(steps)
            with pytest.raises(StopIteration):
                steps.send([[version]])
            known: Any = self.policies._known
            known.read_at = 0.0

    def under_policies(self, request: Request) -> Request:
        return request


_SPACE = Keyspace("tests", 1)
_STATE = _SPACE.partitions[0].state


def _add(policed: _Policed | None = None) -> Request:
    return Request(load("add"), [_STATE], [], _SPACE.layout, policed)


_POLICIES = rx.ResponseError("POLICIES the namespace has policies")
_UNREGISTERED = rx.ResponseError("UNREGISTERED the namespace is not registered")


@pytest.mark.parametrize(
    ("replies", "of_caller"),
    [
        ([[_POLICIES], [[b"1"]], [[1]]], [True, False, True]),
        (
            # The record, the partitions, the record again, the policies, and the partition's part.
            [[_UNREGISTERED], [[b"1", b"1"]], [[None]], [b"OK"], [[1]]],
            [True, False, False, False, True],
        ),
        ([[rx.NoScriptError("No matching script")], [[1]]], [True, True]),
    ],
    ids=["policies", "registration", "unknown script"],
)
def test_a_step_says_whether_it_carries_the_requests(
    replies: list[Any], of_caller: list[bool]
) -> None:
    """Replicas confirm these steps only: nothing was stored by the others."""
    steps, found = round_trip([_add(_Policed())]), []
    step = next(steps)
    for reply in replies[:-1]:
        found.append(_is_of_caller(step))
        step = steps.send(reply)
    assert [*found, _is_of_caller(step)] == of_caller
    with pytest.raises(StopIteration) as stop:
        steps.send(replies[-1])
    assert stop.value.value == [[1]]


def _is_of_caller(step: list[Command]) -> bool:
    return not isinstance(step, Aside)


@pytest.mark.parametrize("tried", [0.0, 2.0])
def test_policies_stay_in_use_for_ten_times_the_failed_attempt(
    monkeypatch: pytest.MonkeyPatch, tried: float
) -> None:
    policed, now = _Policed(b"1"), time.monotonic()
    assert policed.policies.is_due
    monkeypatch.setattr(time, "monotonic", lambda: now)
    steps = round_trip([_add(policed)])
    step = next(steps)
    assert not _is_of_caller(step)
    now += tried
    step = steps.send([rx.ConnectionError("lost")])  # as the reply of a node of a cluster
    assert _is_of_caller(step)
    start = now
    for seconds, is_due in ((0.4, False), (19.0, tried == 0), (21.0, True)):
        now = start + seconds
        assert policed.policies.is_due == is_due


@pytest.mark.parametrize("error", [TooFewReplicas("few"), rx.TimeoutError("slow")])
def test_an_error_that_may_pass_refuses_nothing(error: Exception) -> None:
    steps = round_trip([_add(_Policed(b"1"))])
    next(steps)
    assert _is_of_caller(steps.send([error]))
    with pytest.raises(StopIteration) as stop:
        steps.send([[1]])
    assert stop.value.value == [[1]]


@pytest.mark.parametrize(
    ("error", "timeout", "once", "raised"),
    [
        (rx.ConnectionError("lost"), 5, True, RedisUnavailable),
        (rx.ConnectionError("lost"), 0, False, RedisUnavailable),
        (rx.NoPermissionError("no right"), 5, False, AuthenticationFailed),
        (rx.ConnectionError("lost"), 5, False, None),
        (rx.ConnectionError("lost"), None, False, None),
    ],
    ids=["once", "timeout", "not transient", "retried", "no timeout"],
)
def test_when_a_first_attempt_is_repeated(
    error: Exception, timeout: float | None, once: bool, raised: type[Exception] | None
) -> None:
    since = time.monotonic()
    if raised is None:
        assert retrying.options_after(error, timeout, since, once=once)["reraise"]
        return
    with pytest.raises(raised) as found:
        retrying.options_after(error, timeout, since, once=once)
    assert found.value.__cause__ is error


LOST = rx.ConnectionError("lost")
REFUSED = rx.ResponseError("WRONGTYPE no list")


@pytest.mark.parametrize(
    ("durability", "confirmed", "raised"),
    [
        (Durability(2, False, 100), 2, None),
        (Durability(2, False, 100), 1, NotReplicated),
        (Durability(1, True, 100), [1, 1], None),
        (Durability(1, True, 100), [0, 1], NotReplicated),
        (Durability(1, True, 100), [1, 0], NotReplicated),
        (Durability(0, True, 100), rx.ResponseError("unknown command 'WAITAOF'"), InvalidConfig),
        (Durability(1, False, 100), rx.NoPermissionError("no right"), AuthenticationFailed),
        (Durability(1, False, 100), rx.ResponseError("UNBLOCKED"), NotReplicated),
        (Durability(1, False, 100), LOST, rx.ConnectionError),
    ],
)
def test_what_counts_as_acknowledged(
    durability: Durability, confirmed: Any, raised: type[Exception] | None
) -> None:
    if raised is None:
        assert durability.check_acknowledged([REFUSED, 1, confirmed]) == [REFUSED, 1]
    else:
        with pytest.raises(raised):
            durability.check_acknowledged([REFUSED, 1, confirmed])
    # Nothing was written, so nothing is to be acknowledged.
    for nothing in (REFUSED, [b"FULL too much is pending", b"ERR limits"]):
        assert durability.check_acknowledged([nothing, confirmed]) == [nothing]


def test_hiredis_is_handed_bytes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """It crashes if a signal handler raises while it formats a number."""
    handed: list[Any] = []

    def pack_command(arguments: tuple[Any, ...]) -> bytes:
        handed.extend(arguments)
        return b"".join(arguments)

    monkeypatch.setattr("redisagg.transport.round_trip.pack_command", pack_command)
    commands = [call("poll", [b"key"], 1, -2.5, "é").command(), ("WAIT", 2, True, bytearray(b"x"))]
    [packed] = pack(commands, None)
    assert packed.endswith("1key1-2.5éWAIT21x".encode())
    assert {type(each) for each in handed} == {bytes}


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arguments that hiredis is handed by redis-py."""
    hiredis = pytest.importorskip("hiredis")
    handed: list[Any] = []
    real = hiredis.pack_command

    def pack_command(args: tuple[Any, ...]) -> Any:
        handed.extend(args)
        return real(args)

    monkeypatch.setattr(hiredis, "pack_command", pack_command)
    return handed


_HELLO = b"*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n"


def _hello(pool: Any) -> list[bytes]:
    [packed] = pool.make_connection().pack_command("HELLO", 3)
    return [packed]


@pytest.mark.parametrize(
    "url", ["redis://h", "redis+sentinel://h,i/service", "rediss+sentinel://h/service"]
)
def test_connections_hand_hiredis_bytes_only_when_they_are_made(
    handed: list[Any], url: str
) -> None:
    client: Any = endpoint_of(url).blocking()
    pools = [client.connection_pool, *_pools_of_sentinels(client)]
    assert [packed for pool in pools for packed in _hello(pool)] == [_HELLO] * len(pools)
    assert handed == [b"HELLO", b"3"] * len(pools)


def _pools_of_sentinels(client: Any) -> list[Any]:
    manager = getattr(client.connection_pool, "sentinel_manager", None)
    return [each.connection_pool for each in manager.sentinels] if manager else []


@pytest.mark.parametrize(
    "make",
    [
        lambda: redis.Redis(host="h", socket_timeout=1),
        lambda: redis.Redis(connection_pool=redis.BlockingConnectionPool(socket_timeout=1)),
        lambda: Sentinel([("h", 1), ("i", 2)]).master_for("service", socket_timeout=1),
    ],
    ids=["client", "pool that blocks", "Sentinel"],
)
def test_a_client_that_is_handed_in_hands_hiredis_bytes_only(
    handed: list[Any], make: Callable[[], Any]
) -> None:
    client = make()
    pools = [client.connection_pool, *_pools_of_sentinels(client)]
    before = [pool.make_connection() for pool in pools]  # it may be connected anew later
    for pool, connection in zip(pools, before, strict=True):
        if not isinstance(pool, redis.BlockingConnectionPool):
            pool._available_connections.append(connection)
    Transport(client, 1)
    packed = [each.pack_command("HELLO", 3) for each in before]
    assert packed == [[_HELLO]] * len(pools)
    assert [packed for pool in pools for packed in _hello(pool)] == [_HELLO] * len(pools)
    assert handed == [b"HELLO", b"3"] * len(pools) * 2
    with pytest.raises(rx.DataError):
        before[0].pack_command("SET", b"key", None)  # as before


def test_a_packer_of_the_caller_is_kept() -> None:
    class Packer:
        def pack(self, *args: Any) -> list[bytes]:
            return [b"own"]

    client = redis.Redis(
        connection_pool=redis.ConnectionPool(command_packer=Packer(), socket_timeout=1)
    )
    Transport(client, 1)
    assert _hello(client.connection_pool) == [b"own"]
