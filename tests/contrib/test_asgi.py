"""`lifespan` in the frameworks that take it: FastAPI, Starlette, Litestar."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import redis
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from litestar import Litestar, post
from litestar.testing import TestClient as LitestarClient
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from redisagg import App, AsyncAggregator, Settings, Task
from redisagg.testing.embedded import EmbeddedRedis
from tests.support.servers import wait_until
from tests.support.tasks import await_batches, quick_config

Lifespan = Callable[[Any], Any]


def make(url: str) -> tuple[App, Any]:
    """An app with an aggregator."""
    app = App(url, settings=Settings(config=quick_config()))

    @app.aggregator("mails", group_max_size=2)
    def digest(group: str, tasks: list[Task]) -> Task:
        return Task("mail", len(tasks))

    return app, digest


def fastapi_client(digest: Any, lifespan: Lifespan) -> Any:
    def mails() -> AsyncAggregator:
        found: AsyncAggregator = digest.asyncio
        return found

    web = FastAPI(lifespan=lifespan)

    @web.post("/{user}")
    async def order(user: int, mails: Any = Depends(mails)) -> str:  # noqa: B008
        added: str = await mails.add_task(Task("mail", user, ("user", user)))
        return added

    return TestClient(web)


def starlette_client(digest: Any, lifespan: Lifespan) -> Any:
    async def order(request: Request) -> PlainTextResponse:
        user = request.path_params["user"]
        return PlainTextResponse(await digest.aadd(user, group_key=("user", user)))

    return TestClient(
        Starlette(routes=[Route("/{user:int}", order, methods=["POST"])], lifespan=lifespan)
    )


def litestar_client(digest: Any, lifespan: Lifespan) -> Any:
    async def order(user: int) -> str:
        added: str = await digest.aadd(user, group_key=("user", user))
        return added

    return LitestarClient(Litestar([post("/{user:int}")(order)], lifespan=[lifespan]))


each_framework = pytest.mark.parametrize(
    "client", [fastapi_client, starlette_client, litestar_client]
)


@each_framework
def test_connections_are_closed_with_the_application(
    redis_url: str, sync_redis: redis.Redis, client: Any
) -> None:
    def mine() -> int:
        return sum(each["name"] == name for each in sync_redis.client_list())

    name = client.__name__
    app, digest = make(f"{redis_url}?client_name={name}")
    with client(digest, app.lifespan) as http:
        assert mine() == 0
        assert http.post("/42").status_code in (200, 201)
        assert mine() == 1
    wait_until(lambda: mine() == 0, what="the connection is closed")
    with client(digest, digest.asyncio.lifespan) as http:
        assert http.post("/42").status_code in (200, 201)
    group = digest.get_group(("user", 42))
    assert group.size == 2
    app.close()


@each_framework
def test_flushers_run_as_long_as_the_application(redis_url: str, client: Any) -> None:
    app, digest = make(redis_url)
    with client(digest, partial(app.lifespan, flushers=True)) as http:
        for _ in range(2):
            http.post("/42")
        await_batches(digest, 1)
        assert digest.stats().flushers
    wait_until(lambda: not digest.stats().flushers, what="the flusher has left")
    app.close()


@each_framework
def test_an_application_starts_without_redis(server_binary: Any, client: Any) -> None:
    with EmbeddedRedis(server_binary) as server:
        url = server.url
    app, digest = make(url)
    with client(digest, app.lifespan):
        assert not app.health(0.2).reachable
