"""What an error of redis-py or an error reply means: retry, or a `RedisAggError`."""

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
_PARSE_ERRORS = (
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
    # Redis refused a command of a script, without a code: the text up to 7.0, and since.
    ("The user executing the script", AuthenticationFailed, "the user may not do this: "),
    ("ACL failure in script", AuthenticationFailed, "the user may not do this: "),
    # A script failed on a record or a number that none of our scripts wrote.
    *((sign, KeyConflict, _FOREIGN) for sign in _PARSE_ERRORS),
]

_MAX_KEYS_NAMED = 12
"""How many keys of a refused script call its error names."""

_PLACE = re.compile(r"(?:f_|script: )([0-9a-f]{40})\b.*?@user_script: ?(\d+)", re.DOTALL)
"""The script and the line that Redis refused, in the error texts of 6.2 and of later versions."""

_BY_CLASS: list[tuple[type[Exception], str]] = [
    (rx.ReadOnlyError, "READONLY"),
    (rx.OutOfMemoryError, "OOM"),
]


def is_transient(error: BaseException) -> bool:
    """Whether the same command may succeed later, when a connection or a server is available."""
    if isinstance(error, _REFUSED) or _is_about_certificates(error):
        return False
    return isinstance(error, _TRANSIENT) or _lacks_replicas(error)


def _lacks_replicas(error: BaseException) -> bool:
    """Whether the server accepts no writes until more replicas follow it."""
    return isinstance(error, rx.ResponseError) and "NOREPLICAS" in str(error)


def _is_about_certificates(error: BaseException | None) -> bool:
    """Whether our certificate or the server's was not accepted; redis-py wraps such an error."""
    while error is not None:
        reason = isinstance(error, ssl.SSLError) and error.reason
        if reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_unknown_script(error: object) -> bool:
    """Whether the server does not know the script: never loaded, or lost by a restart or flush."""
    return isinstance(error, rx.NoScriptError)


def check_role(error: rx.ResponseError, connection: Any) -> None:
    """Checks that a connection made through Sentinels still leads to a primary.

    redis-py does the same, but does not recognise the errors that scripts raise before Redis 7.
    Without this check the connection would stay with a replica that refuses all writes.

    Raises:
        redis.exceptions.ConnectionError: the primary has become a replica.
    """
    by_sentinel = getattr(getattr(connection, "connection_pool", None), "is_master", False)
    if by_sentinel and isinstance(error_from_reply(str(error)), RedisReadOnly):
        raise rx.ConnectionError(f"the primary has become a replica: {error}") from error


def translate_error(error: BaseException, request: Request | None = None) -> RedisAggError:
    """Translates an error of redis-py that is not transient.

    Args:
        error: the error; a `RedisAggError` is returned as it is.
        request: the request that it is the reply to; named in the message if a right is missing.
    """
    if isinstance(error, RedisAggError):
        return error
    if _is_about_certificates(error):
        return AuthenticationFailed(f"a certificate is not accepted: {error}")
    if isinstance(error, _REFUSED):
        asked = f" ({_describe(request)})" if request else ""
        return AuthenticationFailed(f"Redis refused the connection or command: {error}{asked}")
    # redis-py removes the code from the text of errors for which it has a class.
    for kind, code in _BY_CLASS:
        if isinstance(error, kind):
            return error_from_reply(f"{code} {error}")
    return error_from_reply(str(error))


def error_from_reply(message: str) -> RedisAggError:
    """Translates the text of an error reply."""
    for code, kind, hint in _BY_CODE:
        if code in message:
            return kind(hint + _with_script_line(message))
    return UnexpectedReply(message)


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
