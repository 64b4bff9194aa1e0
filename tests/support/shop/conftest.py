"""Has the aggregators of the shop use the server and the clock of each test."""

from collections.abc import Iterator

import pytest

from redisagg import AggregationConfig
from redisagg.testing import Kit
from tests.support.shop.batching import api, app, sent


@pytest.fixture(autouse=True)
def batching(redisagg_kit: Kit) -> Iterator[None]:
    redisagg_kit.clock.freeze()
    redisagg_kit.redirect(app, keep_sink=True)
    redisagg_kit.redirect(api)
    yield
    sent.clear()


@pytest.fixture
def redisagg_config() -> AggregationConfig:
    return AggregationConfig(group_grace_period=7200, group_max_delay=None)
