"""The model finds scripts from which a check was removed."""

from __future__ import annotations

import pytest
import redis
from hypothesis import Phase, settings

from tests.model.clock import Scripts
from tests.model.machine import assert_agreement
from tests.scripts.test_model import SETTINGS

_FAILING = settings(SETTINGS, phases=[Phase.generate], print_blob=False)

_BROKEN = {
    "the token of a lease": ("includes/fence", "newest_token ~= token", "false"),
    "the end of a lease": ("includes/fence", "(tonumber(expires) or 0) <= now", "false"),
    "the order of batches": ("includes/commit", "not is_head(g, batch)", "false"),
    "ids that already wait": ("add", "if new == 1 then", "if new == 1 or new == 0 then"),
    "repeated calls": ("add", "if last_number == call_number then", "if false then"),
    "late calls": ("add", "if last_number > call_number then", "if false then"),
    "the max size": ("claim", "math.min(g[WAITING], g[SIZE])", "g[WAITING]"),
    "the max delay": ("add", "math.min(g[DEADLINE], now + delay)", "now + delay"),
    "backpressure": ("add", "if full then return full end", ""),
    "ids that were flushed": ("claim", "  store_seen()\n", ""),
    "bytes of a batch": ("includes/commit", "+ batch[LENGTH]", "+ 0"),
    "batches behind one in retry": ("claim", "if is_behind_held(g, batch) then", "if false then"),
    "the merge result": ("retry", "batch[MERGED] = merged", ""),
    "attempts of the sink": ("retry", "batch[ATTEMPTS] = 1", "batch[ATTEMPTS] = 2"),
    "claims of an earlier leader": ("acquire", "'WEIGHTS', 0", "'WEIGHTS', 1"),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("missing", _BROKEN)
def test_the_model_notices_what_is_missing(sync_redis: redis.Redis, missing: str) -> None:
    name, text, instead = _BROKEN[missing]
    scripts = Scripts(sync_redis, {name: (text, instead)})
    with pytest.raises(AssertionError):
        assert_agreement(scripts, _FAILING)
