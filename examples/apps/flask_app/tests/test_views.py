"""pytest flask_app, in the folder of the applications."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from flask_app.batching import agg
from flask_app.web import create_app
from redisagg.testing import Clock, EmbeddedRedis, Flushed, Kit


@pytest.fixture
def client(redisagg_kit: Kit, tmp_path: Path) -> FlaskClient:
    """A client of an application, whose aggregators are of this test."""
    web = create_app(str(tmp_path))
    redisagg_kit.clock.freeze()
    redisagg_kit.redirect(agg)
    return web.test_client()


def views(client: FlaskClient, page: str) -> int:
    """How often a page was seen."""
    answer = client.get(f"/views/{page}").get_json()
    return int(answer["views"])


def test_views_are_counted_after_seconds(
    client: FlaskClient, clock: Clock, flush_due: Callable[[], Flushed]
) -> None:
    for page in ("home", "home", "about"):
        assert client.get(f"/pages/{page}").text == f"This is {page}."
    clock.advance(seconds=4)
    flush_due()
    assert views(client, "home") == 0
    clock.advance(seconds=1)
    flush_due()
    assert [views(client, page) for page in ("home", "about", "none")] == [2, 1, 0]
    client.get("/pages/home")
    clock.advance(seconds=5)
    flush_due()
    assert views(client, "home") == 3


def test_a_page_is_shown_while_redis_is_away(
    client: FlaskClient, redisagg_server: EmbeddedRedis
) -> None:
    redisagg_server.stop()
    assert client.get("/pages/home").text == "This is home, not counted."
    assert client.get("/health").status_code == 503
