"""What a failed command means: try again, or which of our errors it is."""

from __future__ import annotations

import re
import ssl
from itertools import islice
from typing import Any

import redis.exceptions as rx

from redisagg.errors import (
    AggregatorFull,
    AuthenticationFailed,
    KeyConflict,
    NamespaceMismatch,
    RedisAggError,
    RedisOutOfMemory,
    RedisReadOnly,
    StaleLease,
    TooFewReplicas,
    UnexpectedReply,
)
from redisagg.protocol.scripts import Request, find

_REFUSED = (rx.AuthenticationError, rx.AuthorizationError, rx.NoPermissionError)

_TRANSIENT = (
    rx.ConnectionError,
    rx.TimeoutError,
    rx.BusyLoadingError,
    rx.ClusterDownError,
    rx.ClusterError,
    rx.RedisClusterException,  # no node of the cluster answers
    rx.TryAgainError,
    rx.MasterDownError,
    OSError,  # TimeoutError is one, and so is our own NotReplicated
)

_FOREIGN = "a key of redisagg holds what redisagg did not write: "
_STUMBLED = (
    "attempt to ",
    "is not an integer",
    "bad argument #",
    "Bad data format",
    "Missing bytes",
)

# An error raised inside a script carries its code at the start or, before Redis 7, further on.
_BY_CODE: list[tuple[str, type[RedisAggError], str]] = [
    ("STALE ", StaleLease, ""),
    ("SCHEMA ", NamespaceMismatch, "use the version of redisagg that the other nodes use: "),
    ("WRONGTYPE", KeyConflict, "a key of redisagg holds a value of another type: "),
    ("FULL ", AggregatorFull, "max_pending_tasks or max_pending_bytes is reached: "),
    ("NOREPLICAS", TooFewReplicas, "the server takes no writes: "),
    ("OOM ", RedisOutOfMemory, "Redis has reached its maxmemory: "),
    ("READONLY", RedisReadOnly, "the server is a read-only replica, connect to its primary: "),
    ("NOPERM", AuthenticationFailed, "the user may not do this: "),
    ("NOAUTH", AuthenticationFailed, ""),
    ("WRONGPASS", AuthenticationFailed, ""),
    # What a script was refused has no code: up to Redis 7.0, and since.
    ("The user executing the script", AuthenticationFailed, "the user may not do this: "),
    ("ACL failure in script", AuthenticationFailed, "the user may not do this: "),
    # A script stumbled over a record or a number that no script of ours has written.
    *((sign, KeyConflict, _FOREIGN) for sign in _STUMBLED),
]

_KEYS_NAMED = 12

_PLACE = re.compile(r"(?:f_|script: )([0-9a-f]{40})\b.*?@user_script: ?(\d+)", re.DOTALL)
"""Where a script was when it was refused something, as Redis 6.2 and as later ones say it."""

_BY_CLASS: list[tuple[type[Exception], str]] = [
    (rx.ReadOnlyError, "READONLY"),
    (rx.OutOfMemoryError, "OOM"),
]


def is_transient(error: BaseException) -> bool:
    """Whether the same command may succeed later, when a connection or a server is back."""
    if isinstance(error, _REFUSED) or _is_about_certificates(error):
        return False
    return isinstance(error, _TRANSIENT) or _lacks_replicas(error)


def _lacks_replicas(error: BaseException) -> bool:
    """Whether the server takes no writes until more replicas follow it."""
    return isinstance(error, rx.ResponseError) and "NOREPLICAS" in str(error)


def _is_about_certificates(error: BaseException | None) -> bool:
    """Whether a certificate is not accepted, ours or the server's; redis-py wraps such an error."""
    while error is not None:
        reason = isinstance(error, ssl.SSLError) and error.reason
        if reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_unknown_script(error: object) -> bool:
    """Whether the server does not know the script (yet, or since SCRIPT FLUSH or a restart)."""
    return isinstance(error, rx.NoScriptError)


def check_role(error: rx.ResponseError, connection: Any) -> None:
    """Raises ConnectionError if Sentinels gave this connection and its primary is one no more.

    redis-py does the same, but does not see it in errors that scripts raise before Redis 7; the
    connection would stay with a replica that refuses everything.
    """
    by_sentinel = getattr(getattr(connection, "connection_pool", None), "is_master", False)
    if by_sentinel and isinstance(error_from_reply(str(error)), RedisReadOnly):
        raise rx.ConnectionError(f"the primary has become a replica: {error}") from error


def translate_error(error: BaseException, request: Request | None = None) -> RedisAggError:
    """The error of ours for one of redis-py that is not transient, in reply to `request`."""
    if isinstance(error, RedisAggError):
        return error
    if _is_about_certificates(error):
        return AuthenticationFailed(f"a certificate is not accepted: {error}")
    if isinstance(error, _REFUSED):
        asked = f" ({_asked(request)})" if request else ""
        return AuthenticationFailed(f"Redis refused the connection or command: {error}{asked}")
    # redis-py takes the code off an error for which it has a class.
    for kind, code in _BY_CLASS:
        if isinstance(error, kind):
            return error_from_reply(f"{code} {error}")
    return error_from_reply(str(error))


def error_from_reply(message: str) -> RedisAggError:
    """The error of ours for the text of an error reply."""
    for code, kind, hint in _BY_CODE:
        if code in message:
            return kind(hint + _named(message))
    return UnexpectedReply(message)


def _asked(request: Request) -> str:
    """What was asked for: Redis says neither which script nor which keys."""
    if request.script is None:
        words = (each if isinstance(each, bytes) else str(each).encode() for each in request.args)
        return b" ".join(islice(words, 2)).decode(errors="replace")
    keys = b", ".join(request.keys[:_KEYS_NAMED]).decode(errors="replace")
    return f"the script {request.script.name} with the keys {keys}"


def _named(message: str) -> str:
    """The message with the command of ours that a script ran, which Redis does not name itself."""
    place = _PLACE.search(message)
    script = find(place[1].encode()) if place else None
    if place is None or script is None:
        return message
    line = script.source.decode().splitlines()[int(place[2]) - 1].strip()
    return f"{message} (the script {script.name}: {line})"
