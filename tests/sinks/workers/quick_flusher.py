"""A flusher with few attempts, for ``redisagg worker tests.sinks.workers.quick_flusher:agg``."""

from __future__ import annotations

import os

from redisagg import Aggregator
from tests.support.tasks import quick_config

agg = Aggregator(
    "tests",
    os.environ["REDISAGG_TEST_REDIS"],
    config=quick_config(group_max_size=2, max_attempts=4),
    sink=os.environ["REDISAGG_TEST_SINK"],
)
