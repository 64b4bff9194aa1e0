"""The class of each error reply, closed connection and timeout."""

from __future__ import annotations

import re
import ssl
from pathlib import Path

import pytest
import redis.exceptions as rx

from redisagg.errors import (
    AggregatorFull,
    AuthenticationFailed,
    InvalidConfig,
    KeyConflict,
    NamespaceMismatch,
    NotReplicated,
    RedisAggError,
    RedisOutOfMemory,
    RedisReadOnly,
    RedisUnavailable,
    StaleLease,
    TaskTooLarge,
    TooFewReplicas,
    UnexpectedReply,
)
from redisagg.transport import failures
from redisagg.transport.failures import (
    FailureClass,
    check_connection,
    classify,
    error_from_reply,
    leads_elsewhere,
    translate_error,
)
from redisagg.transport.retrying import final_error

TRANSIENT, CALL = FailureClass.TRANSIENT, FailureClass.CALL
BATCH, FATAL = FailureClass.BATCH, FailureClass.FATAL

SHA = "63513ef721c1dcd34dc697552e11c6fa5356c64c"
IN_SCRIPT = f"Error running script (call to f_{SHA}): @user_script:1: @user_script: 1: "
"""What Redis 6.2 writes before the code of an error that a script raised."""


def by_authority() -> rx.ConnectionError:
    """An error about a certificate, as redis-py raises it."""
    cause = ssl.SSLCertVerificationError("unknown")
    cause.reason = "CERTIFICATE_VERIFY_FAILED"
    error = rx.ConnectionError("ssl")
    error.__cause__ = cause
    return error


CLOSED: list[tuple[Exception, FailureClass, type[RedisAggError]]] = [
    (rx.ConnectionError("Connection closed by server."), TRANSIENT, RedisUnavailable),
    (rx.TimeoutError("Timeout reading from socket"), TRANSIENT, RedisUnavailable),
    (ConnectionResetError("reset"), TRANSIENT, RedisUnavailable),
    (TimeoutError(), TRANSIENT, RedisUnavailable),
    (rx.MaxConnectionsError("too many"), TRANSIENT, RedisUnavailable),
    (rx.RedisClusterException("no node answers"), TRANSIENT, RedisUnavailable),
    (rx.SlotNotCoveredError("slot"), TRANSIENT, RedisUnavailable),
    (by_authority(), FATAL, AuthenticationFailed),
]

WITH_CLASSES: list[tuple[Exception, FailureClass, type[RedisAggError]]] = [
    (rx.BusyLoadingError("loading"), TRANSIENT, RedisUnavailable),
    (rx.ClusterDownError("The cluster is down"), TRANSIENT, RedisUnavailable),
    (rx.TryAgainError("Multiple keys"), TRANSIENT, RedisUnavailable),
    (rx.MasterDownError("Link with MASTER is down"), TRANSIENT, RedisUnavailable),
    (rx.ReadOnlyError("You can't write"), TRANSIENT, RedisReadOnly),
    (rx.OutOfMemoryError("command not allowed"), CALL, RedisOutOfMemory),
    (rx.NoPermissionError("no right"), FATAL, AuthenticationFailed),
    (rx.AuthenticationError("invalid password"), FATAL, AuthenticationFailed),
]

REPLIES: list[tuple[str, FailureClass, type[RedisAggError]]] = [
    ("BUSY Redis is busy running a script.", TRANSIENT, RedisUnavailable),
    ("MISCONF Redis is configured to save RDB snapshots", TRANSIENT, RedisUnavailable),
    ("LOADING Redis is loading", TRANSIENT, RedisUnavailable),
    ("CLUSTERDOWN Hash slot not served", TRANSIENT, RedisUnavailable),
    ("TRYAGAIN Multiple keys request", TRANSIENT, RedisUnavailable),
    ("MASTERDOWN Link with MASTER is down", TRANSIENT, RedisUnavailable),
    ("READONLY You can't write against a read only replica.", TRANSIENT, RedisReadOnly),
    ("UNBLOCKED force unblock", TRANSIENT, NotReplicated),
    ("NOREPLICAS Not enough good replicas to write.", TRANSIENT, TooFewReplicas),
    ("OOM command not allowed", CALL, RedisOutOfMemory),
    ("FULL 10 tasks", CALL, AggregatorFull),
    ("MOVED 3999 127.0.0.1:6381", CALL, InvalidConfig),
    ("ASK 3999 127.0.0.1:6381", CALL, InvalidConfig),
    ("DENIED Redis is running in protected mode", FATAL, AuthenticationFailed),
    ("WRONGTYPE Operation against a key", CALL, KeyConflict),
    ("NOPERM this user", FATAL, AuthenticationFailed),
    ("NOAUTH Authentication required.", FATAL, AuthenticationFailed),
    ("WRONGPASS invalid username-password pair", FATAL, AuthenticationFailed),
    ("STALE the lease has expired", FATAL, StaleLease),
    ("SCHEMA the partition has key schema 2, not 1", FATAL, NamespaceMismatch),
    ("UNREGISTERED the state is of 3 partitions, not 16", FATAL, NamespaceMismatch),
]

TEXTS: list[tuple[str, FailureClass, type[RedisAggError]]] = [
    ("The user executing the script can't run this command", FATAL, AuthenticationFailed),
    ("max number of clients + cluster connections reached", TRANSIENT, RedisUnavailable),
    ("This instance has cluster support disabled", CALL, InvalidConfig),
    ("unable to perform operation on <T>; the handler is closed", TRANSIENT, RedisUnavailable),
    ("ACL failure in script: no rights", FATAL, AuthenticationFailed),
    ("Protocol error: unauthenticated multibulk length", FATAL, AuthenticationFailed),
    ("Protocol error: invalid bulk length", BATCH, TaskTooLarge),
    ("Protocol error: invalid multibulk length", BATCH, TaskTooLarge),
    ("string exceeds maximum allowed size (proto-max-bulk-len)", BATCH, TaskTooLarge),
    ("user_script:12: attempt to index a nil value", CALL, KeyConflict),
    ("attempt to index global 'struct' (a nil value)", CALL, InvalidConfig),
    ("value is not an integer or out of range", CALL, KeyConflict),
    ("bad argument #1 to 'unpack'", CALL, KeyConflict),
    ("Bad data format in input.", CALL, KeyConflict),
    ("Missing bytes in input.", CALL, KeyConflict),
    ("BUSYGROUP Consumer Group name already exists", CALL, UnexpectedReply),
    ("unknown command 'NONSENSE'", CALL, UnexpectedReply),
    ("no such key 'OOM' or 'a: READONLYish'", CALL, UnexpectedReply),
]


@pytest.mark.parametrize(
    ("error", "kind", "raised"),
    [*CLOSED, *WITH_CLASSES, *((rx.ResponseError(text), k, e) for text, k, e in REPLIES + TEXTS)],
    ids=str,
)
def test_the_class_of_an_error(
    error: Exception, kind: FailureClass, raised: type[RedisAggError]
) -> None:
    assert (classify(error).kind, classify(error).error) == (kind, raised)
    assert type(translate_error(error)) is raised
    assert type(final_error(error, 1)) is raised


@pytest.mark.parametrize(("reply", "kind", "raised"), REPLIES)
@pytest.mark.parametrize("prefix", [IN_SCRIPT + "-", IN_SCRIPT, "@user_script: 1: -"])
def test_an_error_that_a_script_raised_has_the_same_class_before_redis_7(
    prefix: str, reply: str, kind: FailureClass, raised: type[RedisAggError]
) -> None:
    failure = classify(rx.ResponseError(prefix + reply))
    assert (failure.kind, failure.error) == (kind, raised)
    assert type(error_from_reply(prefix + reply)) is raised


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RedisUnavailable("x"), TRANSIENT),
        (NotReplicated("x"), TRANSIENT),
        (TooFewReplicas("x"), TRANSIENT),
        (RedisReadOnly("x"), TRANSIENT),
        (RedisOutOfMemory("x"), CALL),
        (TaskTooLarge("x"), BATCH),
        (StaleLease("x"), FATAL),
        (NamespaceMismatch("x"), FATAL),
        (AuthenticationFailed("x"), FATAL),
    ],
)
def test_an_error_of_ours_keeps_its_class(error: RedisAggError, kind: FailureClass) -> None:
    assert classify(error).kind is kind
    assert translate_error(error) is error
    assert final_error(error, 1) is error


def test_a_connection_is_given_up_if_it_leads_to_a_replica_or_will_be_closed() -> None:
    for text, elsewhere in [
        ("READONLY no", True),
        (IN_SCRIPT + "-READONLY no", True),
        ("UNBLOCKED x", True),
        ("NOREPLICAS x", True),
        ("Protocol error: invalid bulk length", False),
    ]:
        error = rx.ResponseError(text)
        assert leads_elsewhere(error) is elsewhere
        with pytest.raises(rx.ResponseError):
            check_connection(error)
    for text in ["BUSY x", "MISCONF x", "OOM x", "ERR x"]:
        check_connection(rx.ResponseError(text))
        assert not leads_elsewhere(rx.ResponseError(text))
    assert not leads_elsewhere(rx.ConnectionError("lost"))


def test_the_documented_classes_are_those_of_the_table() -> None:
    text = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()
    section = text[text.index("## Replies of Redis") :]
    documented = dict(re.findall(r"^\| `([A-Z]+)` \| ([^|]+?) \|", section, re.MULTILINE))
    assert documented == {code: rule.kind.value for code, rule in failures._RULES.items()}
