"""The dashboard is served by uvicorn: by the command, and by the demo."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from redisagg import AsyncAggregator, Task
from redisagg.cli import dashboard as command
from redisagg.cli.living import LATE_GROUP, live
from redisagg.dashboard import Dashboard, asgi
from redisagg.dashboard.serving import is_local, serve
from tests.dashboard.site import NAME, check_clean
from tests.dashboard.test_actions import eventually
from tests.support.cli import Run

MODULE = """
from redisagg import Aggregator
aggregator = Aggregator("{name}", "{url}")
"""


@asynccontextmanager
async def running(serving: Awaitable[None], urls: asyncio.Queue[str]) -> AsyncIterator[str]:
    """Serves until the block ends; yields the URL."""
    task = asyncio.ensure_future(serving)
    try:
        yield await asyncio.wait_for(urls.get(), 30)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_it_answers_over_http(redis_url: str, agg: AsyncAggregator) -> None:
    await agg.add_task(Task("test", 1, "a"))
    urls: asyncio.Queue[str] = asyncio.Queue()
    app = asgi(redis_url, namespaces=[NAME])
    serving = serve(app, "127.0.0.1", 0, root_path="/ops", on_ready=urls.put_nowait)
    async with running(serving, urls) as url, httpx.AsyncClient() as client:
        assert url.endswith("/ops/")
        # A proxy that has it below /ops leaves that out of the path.
        base = url.removesuffix("/ops/")
        answer = await client.get(f"{base}/n/redis/{NAME}/groups")
        check_clean(answer.text)
        assert f'href="/ops/n/redis/{NAME}/group?key=a"' in answer.text
        assert "server" not in answer.headers
        taken = int(base.rpartition(":")[2])
        with pytest.raises(OSError, match=r"."):
            await serve(app, "127.0.0.1", taken)
    await app.close()


def test_local_addresses() -> None:
    assert all(map(is_local, ("127.0.0.1", "::1", "localhost", "127.3.2.1")))
    assert not any(map(is_local, ("0.0.0.0", "::", "10.0.0.1", "example.com", "")))


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the command serves; it ends at once."""
    found: list[tuple[Any, ...]] = []
    monkeypatch.setattr(command, "serve_until_signalled", lambda *given: found.append(given))
    return found


def test_the_command_listens_at_this_machine_by_default(
    run: Run, served: list[tuple[Any, ...]]
) -> None:
    result = run("dashboard")
    assert result.exit_code == 0, result.output
    [(app, host, port, path)] = served
    assert isinstance(app, Dashboard)
    assert (host, port, path) == ("127.0.0.1", 8470, "")
    assert "warning" not in result.stderr
    assert asyncio.run(_status(app, "localhost:8470")) == 200
    assert asyncio.run(_status(app, "evil.example")) == 421


def test_the_command_warns_where_others_reach_it(
    run: Run, served: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run("dashboard", "--host", "0.0.0.0")
    assert "everybody who reaches this address can see and change all namespaces" in result.stderr
    assert "--basic-auth" in result.stderr
    assert asyncio.run(_status(served[-1][0], "any.example")) == 200
    monkeypatch.setenv("REDISAGG_DASHBOARD_AUTH", "ann:secret")
    result = run("dashboard", "--host", "0.0.0.0", "--read-only", "--root-path", "/ops/")
    assert "everybody who has a password can see all namespaces" in result.stderr
    assert asyncio.run(_status(served[-1][0], "any.example")) == 401
    assert served[-1][3] == "/ops"


def test_the_command_takes_several_redises_and_aggregators(
    run: Run,
    served: list[tuple[Any, ...]],
    redis_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dashboard_target.py").write_text(MODULE.format(name=NAME, url=redis_url))
    arguments = ("--redis", f"eu={redis_url}", "--redis", "us=redis://localhost:1/0?a=b")
    result = run("dashboard", "dashboard_target:aggregator", *arguments)
    assert result.exit_code == 0, result.output
    sources = served[-1][0]._state.sources
    assert sources.labels == ["eu", "us"]
    assert [*sources._given] == [("eu", NAME)], "the Redis of the aggregator is known already"
    for wrong in (
        ("--basic-auth", "ann"),
        ("--basic-auth", ":x"),
        ("--redis", "a=redis://x", "--redis", "a=redis://y"),
        ("--redis", "http://x"),
        ("none:none",),
    ):
        assert run("dashboard", *wrong).exit_code != 0, wrong


async def _status(app: Dashboard, host: str) -> int:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answer = await client.get("/", headers={"host": host})
    await app.close()
    return 200 if answer.status_code == 303 else answer.status_code


async def test_the_demo_has_a_late_group_and_a_failing_sink_to_find(
    redis_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: asyncio.Queue[str] = asyncio.Queue()
    monkeypatch.setattr("webbrowser.open", opened.put_nowait)
    async with (
        running(live(redis_url, "127.0.0.1", 0, browse=True), opened) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):

        def has(page: str, *texts: str) -> Callable[[], Awaitable[bool]]:
            async def found() -> bool:
                answer = (await client.get(page)).text
                return all(text in answer for text in texts)

            return found

        late = "customer 7 has no address"
        await eventually("the group is late", has(f"/n/redis/orders/group?key={LATE_GROUP}", late))
        refused = "sms.example.com refuses connections"
        await eventually("the sink fails", has("/n/redis/messages/dead", refused))
        await eventually("all is well", has("/n/redis/reports/", "<h1>Healthy</h1>"))
        home = (await client.get("/")).text
        assert all(f"/n/redis/{name}/" in home for name in ("orders", "messages", "reports"))
    assert "customer:7" in capsys.readouterr().err
