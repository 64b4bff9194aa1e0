"""pytest fastapi_app, in the folder of the applications."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal

import pytest
from httpx import ASGITransport, AsyncClient

from fastapi_app.batching import app
from fastapi_app.web import web
from redisagg.testing import Clock, EmbeddedRedis, Flushed, Kit

TEA = {"item": "tea", "price": "1.10"}


@pytest.fixture
async def client(redisagg_kit: Kit) -> AsyncIterator[AsyncClient]:
    """A client of the application, whose aggregators are of this test."""
    redisagg_kit.clock.freeze()
    redisagg_kit.redirect(app)
    async with (
        app.lifespan(),
        AsyncClient(transport=ASGITransport(web), base_url="http://shop") as client,
    ):
        yield client


async def test_orders_of_a_minute_are_one_mail(
    client: AsyncClient, clock: Clock, aflush_due: Callable[[], Awaitable[Flushed]]
) -> None:
    await client.post("/customers/7/orders", json=TEA)
    clock.advance(seconds=59)
    await client.post("/customers/7/orders", json={"item": "milk", "price": "2"})
    await client.post("/customers/8/orders", json=TEA)
    clock.advance(seconds=59)
    assert await aflush_due() == []
    clock.advance(seconds=1)
    mails = {each.task.payload["to"]: each.task.payload for each in await aflush_due()}
    assert mails["7"]["text"] == "tea: 1.10\nmilk: 2\n"
    assert mails["7"]["total"] == Decimal("3.10")
    assert mails["8"]["text"] == "tea: 1.10\n"


async def test_a_mail_waits_for_ten_minutes_at_most(
    client: AsyncClient, clock: Clock, aflush_due: Callable[[], Awaitable[Flushed]]
) -> None:
    for _ in range(20):
        await client.post("/customers/7/orders", json=TEA)
        clock.advance(seconds=30)
    assert [each.count for each in await aflush_due()] == [20]


async def test_a_request_with_a_key_is_taken_once(
    client: AsyncClient, adrain: Callable[[], Awaitable[Flushed]]
) -> None:
    for _ in range(2):
        answer = await client.post(
            "/customers/7/orders", json=TEA, headers={"Idempotency-Key": "K"}
        )
        assert answer.json() == {"id": "K"}
    assert [each.count for each in await adrain()] == [1]


async def test_a_wrong_order_is_refused(client: AsyncClient) -> None:
    assert (await client.post("/customers/7/orders", json={"item": "tea"})).status_code == 422


async def test_without_redis_a_client_is_to_try_again(
    client: AsyncClient, redisagg_server: EmbeddedRedis
) -> None:
    assert (await client.get("/health")).json()["reachable"]
    redisagg_server.stop()
    answer = await client.post("/customers/7/orders", json=TEA)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert (await client.get("/health")).status_code == 503
    redisagg_server.start()
    assert (await client.post("/customers/7/orders", json=TEA)).status_code == 202
