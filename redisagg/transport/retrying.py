"""Retries after a lost connection: tenacity, exponential backoff with full jitter.

Transports make the first attempt without tenacity, which costs more than the call itself.
"""

from __future__ import annotations

import time
from typing import Any

import tenacity
from redis.exceptions import ResponseError

from redisagg.errors import RedisUnavailable
from redisagg.transport.causes import keep_cause
from redisagg.transport.failures import is_transient, translate_error
from redisagg.transport.outages import Outage

_WAIT = tenacity.wait_random_exponential(multiplier=0.05, max=2.0)


def options(timeout: float | None, since: float, outage: Outage | None = None) -> dict[str, Any]:
    """The arguments for tenacity's `Retrying` and `AsyncRetrying`.

    Args:
        timeout: seconds from `since` after which no attempt is made; None for no limit.
        since: when the first attempt began, by `time.monotonic()`.
        outage: is told of each attempt that fails.
    """
    wait: Any = _WAIT
    stop: Any = tenacity.stop_never
    if timeout is not None:
        left = max(0.0, timeout - (time.monotonic() - since))
        stop = tenacity.stop_after_delay(left)

        def wait_until_timeout(state: tenacity.RetryCallState) -> float:
            """Shortens the last wait, so that the last attempt is made at the timeout."""
            return min(_WAIT(state), max(0.0, left - (state.seconds_since_start or 0.0)))

        wait = wait_until_timeout

    return {
        "retry": tenacity.retry_if_exception(may_succeed_later),
        "wait": wait,
        "stop": stop,
        "before_sleep": None if outage is None else outage.failed,
        "reraise": True,
    }


def may_succeed_later(error: BaseException) -> bool:
    """Whether the error of an attempt is transient; tenacity raises it again if not."""
    keep_cause(error)
    return is_transient(error)


def limited(timeout: float | None, since: float, repeat_until: float | None) -> float | None:
    """Returns the timeout for calls that may be repeated until then only.

    Args:
        timeout: seconds from `since` after which no attempt is made; None for no limit.
        since: when the first attempt began, by `time.monotonic()`.
        repeat_until: the time by `time.monotonic()` after which no attempt is made; None for no
            limit.
    """
    if repeat_until is None:
        return timeout
    left = max(0.0, repeat_until - since)
    return left if timeout is None else min(timeout, left)


def options_after(
    error: Exception,
    timeout: float | None,
    since: float,
    *,
    once: bool,
    outage: Outage | None = None,
) -> dict[str, Any]:
    """As `options`, after the first attempt failed.

    Args:
        error: the error of the first attempt.
        timeout: seconds from `since` after which no attempt is made; None for no limit.
        since: when the first attempt began, by `time.monotonic()`.
        once: whether the first attempt is the only one.
        outage: is told of each attempt that fails.

    Raises:
        RedisAggError: there is to be no other attempt.
    """
    expired = timeout is not None and time.monotonic() - since >= timeout
    if once or expired or not is_transient(error):
        raise final_error(error, timeout) from error
    return options(timeout, since, outage)


def final_error(error: BaseException, timeout: float | None) -> Exception:
    """The error to raise for that of the last attempt.

    Args:
        error: the error of the last attempt.
        timeout: the seconds that all attempts had, for the message.
    """
    known = translate_error(error)
    if type(known) is RedisUnavailable and known is not error:
        within = "" if timeout is None else f" within {timeout:g} seconds"
        answered = isinstance(error, ResponseError)
        what = "did not carry out the call" if answered else "could not be reached"
        return RedisUnavailable(f"Redis {what}{within}: {known}")
    return known
