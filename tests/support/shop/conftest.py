from collections.abc import Iterator

import pytest
from batching import api, app, sent

from redisagg.testing import Kit


@pytest.fixture(autouse=True)
def batching(redisagg_kit: Kit) -> Iterator[None]:
    redisagg_kit.clock.freeze()
    redisagg_kit.redirect(app, keep_sink=True)
    redisagg_kit.redirect(api)
    yield
    sent.clear()
