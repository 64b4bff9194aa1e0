"""The delay before the next attempt of a batch or a sink."""

from __future__ import annotations

import tenacity

from redisagg.config import AggregationConfig
from redisagg.durations import seconds

# Seconds after which a sink that is down is tried again at the latest.
_LONGEST_BREAK = 30.0


def retry_delay(config: AggregationConfig, attempt: int) -> float:
    """Seconds until the next attempt, after the attempt with this number (from 1) failed."""
    return _backoff(seconds(config.retry_delay), seconds(config.retry_max_delay), attempt)


def break_delay(config: AggregationConfig, failures: int) -> float:
    """Seconds until the next attempt at a sink that failed `failures` times in a row."""
    most = min(seconds(config.retry_max_delay), _LONGEST_BREAK)
    return _backoff(seconds(config.retry_delay), most, failures)


def _backoff(initial: float, most: float, attempt: int) -> float:
    """The exponential backoff of tenacity, with jitter.

    ``min(initial * 2**(attempt - 1) + random(0, initial), most)``. The jitter spreads the retries
    of what failed at the same time.
    """
    wait = tenacity.wait_exponential(multiplier=initial, max=most) + tenacity.wait_random(
        0, initial
    )
    state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    state.attempt_number = attempt
    return min(wait(state), most)
