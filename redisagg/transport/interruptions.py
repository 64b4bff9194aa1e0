"""Exceptions that come from outside into a call: of signal handlers and of time limits.

A signal handler may raise between any two instructions of the main thread, and a time limit such as
that of Celery or rq is such a handler. The exception belongs to the caller, unchanged. It must be
neither translated nor retried, even if its class is that of a lost connection: many handlers raise
`TimeoutError`.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from types import CodeType, TracebackType
from typing import Any

from redis.exceptions import RedisClusterException, RedisError

from redisagg.errors import RedisAggError
from redisagg.transport.causes import causes_of

_OF_REDIS = (RedisError, RedisClusterException, RedisAggError, OSError)


def raise_interruption(error: Exception) -> None:
    """Raises the exception that came from outside, if this error is one or was caused by one.

    Args:
        error: an exception that a call of redis-py raised.
    """
    interruption = interruption_of(error)
    if interruption is error:
        raise error
    if interruption is not None:
        raise interruption from None  # redis-py's own error is not the cause


def interruption_of(error: BaseException) -> BaseException | None:
    """Finds the exception that came from outside; None if the error is one of Redis."""
    if not isinstance(error, _OF_REDIS) and not _is_fault_of_redis_py(error):
        return error
    # redis-py turns each OSError into an error of its own.
    handlers = _signal_handlers()
    for each in causes_of(error):
        if isinstance(each, OSError) and not each.args:  # the system always says what failed
            return each
        if handlers and any(code in handlers for code in _codes(each.__traceback__)):
            return each
    return None


def _is_fault_of_redis_py(error: BaseException) -> bool:
    """Whether redis-py itself raised a builtin exception, as it does in some races."""
    traceback = error.__traceback__
    if traceback is None or type(error).__module__ != "builtins":
        return False
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    module = str(traceback.tb_frame.f_globals.get("__name__"))
    return isinstance(error, Exception) and module.partition(".")[0] == "redis"


def _codes(traceback: TracebackType | None) -> Iterator[CodeType]:
    while traceback is not None:
        yield traceback.tb_frame.f_code
        traceback = traceback.tb_next


def _signal_handlers() -> set[CodeType]:
    """The code of all signal handlers; empty outside the main thread, where none runs."""
    if threading.current_thread() is not threading.main_thread():
        return set()
    found = set()
    for number in signal.valid_signals():
        handler: Any = signal.getsignal(number)
        handler = getattr(handler, "func", handler)  # functools.partial
        for function in (handler, type(handler).__dict__.get("__call__")):
            if isinstance(code := getattr(function, "__code__", None), CodeType):
                found.add(code)
    return found
