"""Redis and the model agree after each of many random calls.

The random runs are the same each time. `REDISAGG_MODEL_EXAMPLES` is a number of new runs to try
instead; a run that fails is then shrunk, which takes minutes.
"""

from __future__ import annotations

import os

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings

from tests.model.clock import Scripts
from tests.model.machine import assert_agreement

_WANTED = os.environ.get("REDISAGG_MODEL_EXAMPLES")

SETTINGS = settings(
    max_examples=int(_WANTED or 150),
    stateful_step_count=60,
    derandomize=_WANTED is None,
    database=None,
    deadline=None,
    phases=[Phase.generate, Phase.shrink] if _WANTED else [Phase.generate],
    report_multiple_bugs=False,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.timeout(0 if _WANTED else 120)
@pytest.mark.parametrize("runs", [int(_WANTED or 30), pytest.param(150, marks=pytest.mark.slow)])
def test_the_scripts_do_what_the_model_does(sync_redis: redis.Redis, runs: int) -> None:
    scripts = Scripts(sync_redis)
    assert_agreement(scripts, settings(SETTINGS, max_examples=runs))
