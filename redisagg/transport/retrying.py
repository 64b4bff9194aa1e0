"""How lost connections are ridden out: tenacity, exponential backoff with full jitter.

The first attempt is made without tenacity, which costs more than the call itself.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import tenacity

from redisagg.errors import RedisUnavailable
from redisagg.transport.failures import is_transient, translate_error

_log = logging.getLogger("redisagg")

_WAIT = tenacity.wait_random_exponential(multiplier=0.05, max=2.0)


def options(timeout: float | None, since: float) -> dict[str, Any]:
    """The arguments for tenacity's `Retrying` and `AsyncRetrying`.

    Args:
        timeout: seconds after which it gives up; None for never.
        since: when the first attempt began, which was made without tenacity; `time.monotonic()`.
    """
    wait: Callable[[tenacity.RetryCallState], float] = _WAIT
    stop: Any = tenacity.stop_never
    if timeout is not None:
        left = max(0.0, timeout - (time.monotonic() - since))
        stop = tenacity.stop_after_delay(left)

        def wait(state: tenacity.RetryCallState) -> float:
            """The last attempt is made when the time is over, not before."""
            return min(_WAIT(state), max(0.0, left - (state.seconds_since_start or 0.0)))

    return {
        "retry": tenacity.retry_if_exception(is_transient),
        "wait": wait,
        "stop": stop,
        "before_sleep": _log_wait,
        "reraise": True,
    }


def expired(timeout: float | None, since: float) -> bool:
    """Whether `timeout` seconds have passed since the monotonic time `since`."""
    return timeout is not None and time.monotonic() - since >= timeout


def give_up(error: BaseException, timeout: float | None) -> Exception:
    """What the caller gets for the last error."""
    known = translate_error(error)
    if is_transient(error) and not isinstance(known, RedisUnavailable):
        within = "" if timeout is None else f" within {timeout:g} seconds"
        return RedisUnavailable(f"Redis could not be reached{within}: {error}")
    return known


_last_logged = -math.inf


def _log_wait(state: tenacity.RetryCallState) -> None:
    """Logs at most a line per second, however many calls are waiting."""
    global _last_logged
    now = time.monotonic()
    if now - _last_logged >= 1:
        _last_logged = now
        error = state.outcome.exception() if state.outcome else None
        wait = state.next_action.sleep if state.next_action else 0
        _log.warning("Redis does not acknowledge (%s); next attempt in %.2f s", error, wait)
