from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from redisagg import AsyncAggregator
from tests.dashboard.site import NAME, Open, Site, opened
from tests.support.tasks import quick_config


@pytest.fixture
async def agg(redis_url: str) -> AsyncIterator[AsyncAggregator]:
    """An aggregator of the namespace that the dashboard shows; it runs no flusher."""
    aggregator = AsyncAggregator(NAME, redis_url, config=quick_config())
    yield aggregator
    await aggregator.close()


@pytest.fixture
async def open_site(redis_url: str) -> AsyncIterator[Open]:
    """Makes dashboards of `redis_url`, with options of `asgi`."""
    async with AsyncExitStack() as stack:

        async def make(redis: Any = None, **options: Any) -> Site:
            return await stack.enter_async_context(opened(redis or redis_url, **options))

        yield make
