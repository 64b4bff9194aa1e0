"""What an error reply, a closed connection or a timeout means: its class, and a `RedisAggError`.

`classify` is the one place that decides; everything else asks it. `_RULES` has a line for each
error code of Redis and of our scripts, docs/errors.md the same table for users.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from enum import Enum
from itertools import islice

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
from redisagg.protocol.scripts import Request, find
from redisagg.transport.causes import causes_of


class FailureClass(Enum):
    """What the same call can come to when it is repeated."""

    TRANSIENT = "transient"
    """It may succeed by itself: retried, by an add for `add_timeout`, by a flusher without end."""
    CALL = "permanent for the call"
    """It fails until something else changes. An add raises; a flusher logs it and asks again."""
    BATCH = "permanent for one batch"
    """Redis can't take these data. An add raises; a flusher fails the batch alone."""
    FATAL = "fatal for the flusher"
    """Nothing that this client sends can succeed: another leader, schema, user or password."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A classified error."""

    kind: FailureClass
    error: type[RedisAggError]
    """The exception to raise if the call is not repeated."""
    hint: str = ""
    """What its message says before the text of Redis."""
    reconnect: bool = False
    """Whether the connection is useless: it leads to the wrong server, or Redis closes it."""
    elsewhere: bool = False
    """Whether another server, behind the same address, may accept the call."""


_TRANSIENT, _CALL = FailureClass.TRANSIENT, FailureClass.CALL
_BATCH, _FATAL = FailureClass.BATCH, FailureClass.FATAL

_NO_RIGHT = Failure(_FATAL, AuthenticationFailed, "the user may not do this: ")
_FOREIGN = Failure(_CALL, KeyConflict, "a key of redisagg holds what redisagg did not write: ")
_CLUSTERED = Failure(
    _CALL,
    InvalidConfig,
    "the server is a node of a Redis Cluster, connect by redis+cluster:// or a RedisCluster: ",
)
_NO_REDIS = (
    "the server lacks libraries that all scripts have in Redis, as fakeredis does; use a Redis "
    "server, in tests that of redisagg.testing: "
)
_TOO_LARGE = "the data are larger than Redis accepts (proto-max-bulk-len): "

_RULES: dict[str, Failure] = {
    # Redis, for a while.
    "LOADING": Failure(_TRANSIENT, RedisUnavailable, "the server loads its data: ", elsewhere=True),
    "BUSY": Failure(_TRANSIENT, RedisUnavailable, "the server runs a long script: "),
    "MISCONF": Failure(_TRANSIENT, RedisUnavailable, "the server can't write to its disk: "),
    "CLUSTERDOWN": Failure(_TRANSIENT, RedisUnavailable, elsewhere=True),
    "TRYAGAIN": Failure(_TRANSIENT, RedisUnavailable, "the slot is moving to another node: "),
    "MASTERDOWN": Failure(
        _TRANSIENT,
        RedisUnavailable,
        "the server is a replica without its primary: ",
        reconnect=True,
        elsewhere=True,
    ),
    "READONLY": Failure(
        _TRANSIENT,
        RedisReadOnly,
        "the server is a read-only replica, connect to its primary: ",
        reconnect=True,
        elsewhere=True,
    ),
    "UNBLOCKED": Failure(
        _TRANSIENT,
        NotReplicated,
        "the server became a replica before it told whether the add is replicated: ",
        reconnect=True,
        elsewhere=True,
    ),
    "NOREPLICAS": Failure(
        _TRANSIENT,
        TooFewReplicas,
        "the server takes no writes: ",
        reconnect=True,  # Sentinels may have given its replicas another primary
        elsewhere=True,
    ),
    # Redis, until somebody acts.
    "OOM": Failure(_CALL, RedisOutOfMemory, "Redis has reached its maxmemory: "),
    "MOVED": _CLUSTERED,
    "ASK": _CLUSTERED,
    "WRONGTYPE": Failure(_CALL, KeyConflict, "a key of redisagg holds a value of another type: "),
    "NOPERM": _NO_RIGHT,
    "DENIED": Failure(_FATAL, AuthenticationFailed, "the server is in protected mode: "),
    "NOAUTH": Failure(_FATAL, AuthenticationFailed),
    "WRONGPASS": Failure(_FATAL, AuthenticationFailed),
    # Our scripts.
    "STALE": Failure(_FATAL, StaleLease),
    "SCHEMA": Failure(
        _FATAL, NamespaceMismatch, "use the version of redisagg that the other nodes use: "
    ),
    "UNREGISTERED": Failure(
        _FATAL, NamespaceMismatch, "the namespace was removed or made anew again and again: "
    ),
    "FROZEN": Failure(_TRANSIENT, RedisUnavailable, "the namespace is being moved: "),
    "POLICIES": Failure(
        _CALL, UnexpectedReply, "the add was sent without the policies of the namespace: "
    ),
    "FULL": Failure(_CALL, AggregatorFull, "max_pending_tasks or max_pending_bytes is reached: "),
}
"""By error code."""

_CODE = re.compile(rf"(?:^|: -?)({'|'.join(_RULES)})(?= |$)")
"""The code of an error: at the start or, of one that a script raised before Redis 7, behind the
place in the script."""

_SIGNS: list[tuple[str, Failure]] = [
    # Redis refused a command of a script, without a code: the text up to 7.0, and since.
    ("The user executing the script", _NO_RIGHT),
    ("ACL failure in script", _NO_RIGHT),
    # "ERR max number of clients + cluster connections reached"; redis-py knows the other text.
    ("max number of clients", Failure(_TRANSIENT, RedisUnavailable, reconnect=True)),
    ("cluster support disabled", Failure(_CALL, InvalidConfig, "the server is no cluster: ")),
    # uvloop, of a connection that the server has closed.
    ("the handler is closed", Failure(_TRANSIENT, RedisUnavailable, reconnect=True)),
    # A value or a call is too large.
    ("string exceeds maximum allowed size", Failure(_BATCH, TaskTooLarge, _TOO_LARGE)),
    ("invalid bulk length", Failure(_BATCH, TaskTooLarge, _TOO_LARGE, reconnect=True)),
    ("invalid multibulk length", Failure(_BATCH, TaskTooLarge, _TOO_LARGE, reconnect=True)),
    # Without a password Redis refuses a call with many arguments before it says NOAUTH.
    (
        "Protocol error: unauthenticated",
        Failure(_FATAL, AuthenticationFailed, "the password is missing: ", reconnect=True),
    ),
    # Redis has the libraries struct, cmsgpack and bit in any script.
    ("attempt to index global", Failure(_CALL, InvalidConfig, _NO_REDIS)),
    # A script failed on a record or a number that none of our scripts wrote.
    ("attempt to ", _FOREIGN),
    ("is not an integer", _FOREIGN),
    ("bad argument #", _FOREIGN),
    ("Bad data format", _FOREIGN),
    ("Missing bytes", _FOREIGN),
]
"""By a part of the text, for errors without a code of their own."""

_UNKNOWN = Failure(_CALL, UnexpectedReply)

_CODES_OF_CLASSES: list[tuple[type[Exception], str]] = [
    (rx.ReadOnlyError, "READONLY"),
    (rx.OutOfMemoryError, "OOM"),
    (rx.BusyLoadingError, "LOADING"),
    (rx.ClusterDownError, "CLUSTERDOWN"),
    (rx.TryAgainError, "TRYAGAIN"),
    (rx.MasterDownError, "MASTERDOWN"),
    (rx.AskError, "MOVED"),
]
"""redis-py removes the code from the text of errors for which it has a class."""

_REFUSED = Failure(_FATAL, AuthenticationFailed, "Redis refused the connection or command: ")
_CERTIFICATE = Failure(_FATAL, AuthenticationFailed, "a certificate is not accepted: ")
_LOST = Failure(_TRANSIENT, RedisUnavailable, reconnect=True, elsewhere=True)

_BY_CLASS: list[tuple[tuple[type[BaseException], ...], Failure]] = [
    ((rx.AuthenticationError, rx.AuthorizationError, rx.NoPermissionError), _REFUSED),
    # Closed connections and timeouts. `RedisClusterException`: no node of the cluster answers.
    (
        (rx.ConnectionError, rx.TimeoutError, rx.ClusterError, rx.RedisClusterException, OSError),
        _LOST,
    ),
]
"""By the class of redis-py or Python, for errors that are no replies; the first that fits."""

_OWN: list[tuple[type[RedisAggError], FailureClass]] = [
    (RedisUnavailable, _TRANSIENT),
    (RedisReadOnly, _TRANSIENT),
    (TaskTooLarge, _BATCH),
    (StaleLease, _FATAL),
    (NamespaceMismatch, _FATAL),
    (AuthenticationFailed, _FATAL),
]
"""By our own class, for errors that were translated already."""

_MAX_KEYS_NAMED = 12
"""How many keys of a refused script call its error names."""

_PLACE = re.compile(r"(?:f_|script: )([0-9a-f]{40})\b.*?@user_script: ?(\d+)", re.DOTALL)
"""The script and the line that Redis refused, in the error texts of 6.2 and of later versions."""


def classify(error: BaseException) -> Failure:
    """Classifies an error of redis-py, of a socket, or one of ours."""
    if isinstance(error, RedisAggError):
        for own, failure_class in _OWN:
            if isinstance(error, own):
                return Failure(failure_class, type(error))
        return Failure(_CALL, type(error))
    if _is_about_certificates(error):
        return _CERTIFICATE
    for kind, code in _CODES_OF_CLASSES:
        if isinstance(error, kind):
            return _RULES[code]
    for kinds, failure in _BY_CLASS:
        if isinstance(error, kinds):
            return failure
    return _classify_text(str(error))


def _classify_text(message: str) -> Failure:
    if found := _CODE.search(message):
        return _RULES[found[1]]
    return next((failure for sign, failure in _SIGNS if sign in message), _UNKNOWN)


def is_transient(error: BaseException) -> bool:
    """Whether the same command may succeed later, when a connection or a server is available."""
    return classify(error).kind is FailureClass.TRANSIENT


def _is_about_certificates(error: BaseException) -> bool:
    """Whether our certificate or the server's was not accepted; redis-py wraps such an error."""
    reasons = (each.reason for each in causes_of(error) if isinstance(each, ssl.SSLError))
    return any("CERTIFICATE" in reason or "UNKNOWN_CA" in reason for reason in reasons if reason)


def is_unknown_script(error: object) -> bool:
    """Whether the server does not know the script: never loaded, or lost by a restart or flush."""
    return isinstance(error, rx.NoScriptError)


def is_unregistered(error: object) -> bool:
    """Whether the state has no number of partitions, or another one than the caller's."""
    return isinstance(error, rx.ResponseError) and str(error).startswith("UNREGISTERED ")


def needs_policies(error: object) -> bool:
    """Whether the namespace has policies, and the call was made without them."""
    return isinstance(error, rx.ResponseError) and str(error).startswith("POLICIES ")


def check_connection(error: rx.ResponseError) -> None:
    """Checks whether the connection of an error reply can be used for other calls.

    Without this check a connection would stay with a replica that refuses all writes, behind a name
    that leads to another server by now.

    Raises:
        redis.exceptions.ResponseError: `error`; close the connection.
    """
    if classify(error).reconnect:
        raise error


def leads_elsewhere(error: BaseException) -> bool:
    """Whether the address may lead to another server than the one that replied with `error`.

    A primary has become a replica: other connections made to the same address are useless too.
    """
    failure = classify(error)
    return isinstance(error, rx.ResponseError) and failure.reconnect and failure.elsewhere


def translate_error(error: BaseException, request: Request | None = None) -> RedisAggError:
    """Translates an error to ours.

    Args:
        error: the error; a `RedisAggError` is returned as it is.
        request: the request that it is the reply to; named in the message if a right is missing.
    """
    if isinstance(error, RedisAggError):
        return error
    failure = classify(error)
    asked = f" ({_describe(request)})" if request and failure is _REFUSED else ""
    return failure.error(failure.hint + _with_script_line(str(error)) + asked)


def error_from_reply(message: str) -> RedisAggError:
    """Translates the text of an error reply."""
    failure = _classify_text(message)
    return failure.error(failure.hint + _with_script_line(message))


def _describe(request: Request) -> str:
    """Describes a request; the errors of Redis name neither the script nor the keys."""
    if request.script is None:
        words = (each if isinstance(each, bytes) else str(each).encode() for each in request.args)
        return b" ".join(islice(words, 2)).decode(errors="replace")
    keys = b", ".join(request.keys[:_MAX_KEYS_NAMED]).decode(errors="replace")
    return f"the script {request.script.name} with the keys {keys}"


def _with_script_line(message: str) -> str:
    """Adds the script and the line that Redis refused, which it gives only as SHA-1 and number."""
    place = _PLACE.search(message)
    script = find(place[1].encode()) if place else None
    if place is None or script is None:
        return message
    line = script.source.decode().splitlines()[int(place[2]) - 1].strip()
    return f"{message} (the script {script.name}: {line})"
