"""How an add waits for room: tenacity, exponential backoff with full jitter."""

from __future__ import annotations

from typing import Any

import tenacity

from redisagg.errors import AggregatorFull

_WAIT = tenacity.wait_random_exponential(multiplier=0.02, max=1.0)


def room_retry_options(timeout: float) -> dict[str, Any]:
    """The arguments for tenacity's `Retrying` and `AsyncRetrying`: they retry `AggregatorFull`.

    Args:
        timeout: seconds after which they raise it.
    """
    return {
        "retry": tenacity.retry_if_exception_type(AggregatorFull),
        "wait": _WAIT,
        "stop": tenacity.stop_after_delay(timeout),
        "reraise": True,
    }
