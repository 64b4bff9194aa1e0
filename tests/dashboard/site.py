"""A dashboard that tests ask without a server, and what each of its pages has to keep to."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from html.parser import HTMLParser
from typing import Any, TypeAlias

import httpx

from redisagg.dashboard import asgi
from redisagg.dashboard.security import CSRF_COOKIE

NAME = "tests"

CANARY = "\"><script>canary()</script><img src=x onerror=canary()>'{{7*7}}<!--"
"""A text that is seen in a page if it is not escaped."""


class Site:
    """A dashboard with one namespace, and a browser with cookies."""

    def __init__(self, client: httpx.AsyncClient, root: str = "", source: str = "redis") -> None:
        self.client = client
        self.here = f"{root}/n/{source}/{NAME}"

    async def get(self, page: str = "", **query: str) -> httpx.Response:
        """Asks for a page of the namespace."""
        return await self.client.get(f"{self.here}/{page}", params=query)

    async def text(self, page: str = "", **query: str) -> str:
        """The HTML of a page; checks that it is there and that nothing in it can run."""
        response = await self.get(page, **query)
        assert response.status_code == 200, response.text
        check_clean(response.text)
        return response.text

    async def act(self, action: str, *, follow: bool = True, **fields: Any) -> httpx.Response:
        """Sends a form with a valid token; returns the page that follows."""
        if CSRF_COOKIE not in self.client.cookies:
            await self.get("policies")
        return await self.post(
            action, follow=follow, csrf=self.client.cookies[CSRF_COOKIE], **fields
        )

    async def post(self, action: str, *, follow: bool = False, **fields: Any) -> httpx.Response:
        """Sends a form with these fields alone."""
        url = f"{self.here}/do/{action}"
        return await self.client.post(url, data=fields, follow_redirects=follow)


Open: TypeAlias = Callable[..., Awaitable[Site]]


@asynccontextmanager
async def opened(redis: Any, *, root: str = "", **options: Any) -> AsyncIterator[Site]:
    """Makes a dashboard; closes it in the end."""
    dashboard = asgi(redis, **{"namespaces": [NAME], **options})
    async with serving(dashboard, root) as client:
        yield Site(client, root)
    await dashboard.close()


@asynccontextmanager
async def serving(app: Any, root: str = "") -> AsyncIterator[httpx.AsyncClient]:
    """A client of an ASGI app."""
    transport = httpx.ASGITransport(app=app, root_path=root)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


# --- what a page may hold ------------------------------------------------------------------------


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    handle_startendtag = handle_starttag


def elements(html: str) -> list[tuple[str, dict[str, str | None]]]:
    """The elements of a page with their attributes."""
    parser = _Elements()
    parser.feed(html)
    return parser.found


_ADDRESSES = ("href", "src", "action", "formaction", "hx-get", "hx-post")


def check_clean(html: str) -> None:
    """Checks that a page has no script and no style of its own, and no other host."""
    assert "<!doctype html>" in html
    assert "<script>canary" not in html
    assert "49" not in re.findall(r"'(\d+)&lt;!--", html), "a template was made of a text"
    for tag, attributes in elements(html):
        assert tag not in ("style", "iframe", "object", "embed", "base", "img"), tag
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert not name.startswith("hx-on"), (tag, name)
            assert name not in ("style", "srcdoc"), (tag, name)
            if name in _ADDRESSES:
                assert (value or "").startswith(("/", "#")), (tag, name, value)
                assert not (value or "").startswith("//"), (tag, name, value)
        if tag == "script":
            assert re.fullmatch(r".*/static/(htmx\.min|dashboard)\.js", attributes["src"] or "")


def controls(html: str, tags: Sequence[str] = ("button",)) -> dict[str, dict[str, str | None]]:
    """The buttons that send a form, by their action."""
    found: dict[str, dict[str, str | None]] = {}
    action = ""
    for tag, attributes in elements(html):
        if tag == "form":
            action = (attributes.get("action") or "").rpartition("/do/")[2]
        if tag in tags and attributes.get("type") == "submit":
            own = (attributes.get("formaction") or "").rpartition("/do/")[2]
            found[own or action] = attributes
    return found
