"""How long a batch waits before its next attempt."""

from __future__ import annotations

import tenacity

from redisagg.config import AggregationConfig
from redisagg.durations import seconds


def retry_delay(config: AggregationConfig, attempt: int) -> float:
    """Seconds to wait after the attempt with this number (from 1) failed.

    tenacity's exponential backoff, with jitter so that batches that failed together come back
    apart: ``min(retry_delay * 2**(attempt - 1) + random(0, retry_delay), retry_max_delay)``.
    """
    initial, most = seconds(config.retry_delay), seconds(config.retry_max_delay)
    wait = tenacity.wait_exponential(multiplier=initial, max=most) + tenacity.wait_random(
        0, initial
    )
    state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    state.attempt_number = attempt
    return min(wait(state), most)
