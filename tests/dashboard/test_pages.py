"""What the pages show."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from redisagg import Aggregator, AsyncAggregator, Task
from redisagg.dashboard import asgi, under
from redisagg.dashboard.charts import line_chart
from redisagg.errors import InvalidConfig
from tests.dashboard.site import NAME, Open, check_clean, elements, opened, serving
from tests.dashboard.test_actions import Failing, eventually
from tests.support.tasks import quick_config


async def test_no_flusher_and_a_pause_are_told_first(agg: AsyncAggregator, open_site: Open) -> None:
    await agg.add_task(Task("test", 1, "a"))
    site = await open_site()
    html = await site.text()
    assert '<section class="health bad"' in html
    assert "<h1>No flusher is alive</h1>" in html
    assert "No flusher is alive." in await site.text("groups"), "each page says so"
    async with agg:

        async def healthy() -> bool:
            return "<h1>Healthy</h1>" in await site.text()

        await eventually("the namespace is healthy", healthy)
        await agg.pause()

        async def paused() -> bool:
            return "<h1>Flushing is paused" in await site.text()

        await eventually("the pause is told", paused)


async def test_groups_are_listed_searched_and_sorted(agg: AsyncAggregator, open_site: Open) -> None:
    for number in range(60):
        tasks = [Task("test", n, f"user:{number:02}") for n in range(1 + number % 3)]
        await agg.add_tasks(tasks)
    await agg.add_tasks([Task("test", n, "order/x?y=1&z") for n in range(9)])
    await agg.flush("user:41")
    site = await open_site()

    def keys(html: str) -> list[str]:
        return [
            str(attributes["title"])
            for tag, attributes in elements(html)
            if tag == "a" and attributes.get("class") == "key"
        ]

    html = await site.text("groups")
    assert "61 groups with 129 waiting tasks" in html
    first = keys(html)
    assert first[0] == "user:41"
    assert len(first) == 50
    following = [
        str(attributes["href"])
        for tag, attributes in elements(html)
        if tag == "a" and attributes.get("rel") == "next"
    ]
    page = await site.client.get(following[0])
    assert len(set(first) | set(keys(page.text))) == 61
    found = keys(await site.text("groups", prefix="user:1"))
    assert sorted(found) == [f"user:{number}" for number in range(10, 20)]
    assert keys(await site.text("groups", sort="size"))[0] == "order/x?y=1&z"
    assert keys(await site.text("groups", sort="age"))[0] == "user:00"
    assert keys(await site.text("groups", due="1")) == ["user:41"]
    assert "No group matches" in await site.text("groups", prefix="none")
    links = [
        str(attributes["href"])
        for tag, attributes in elements(await site.text("groups", prefix="order"))
        if tag == "a" and attributes.get("class") == "key"
    ]
    group = (await site.client.get(links[0])).text
    assert "order/x?y=1&amp;z" in group
    assert "9 tasks" in group


async def test_a_group_shows_its_tasks_and_what_holds_it(
    agg: AsyncAggregator, open_site: Open
) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    await agg.add_tasks([Task("mail", {"n": n}, "a", headers=headers) for n in range(30)])
    site = await open_site()
    html = await site.text("group", key="a")
    assert html.count('<details class="task"') == 25
    assert trace in html
    assert "&#34;n&#34;: 0" in html
    html = await site.text("group", key="a", offset="25")
    assert html.count('<details class="task"') == 5
    await agg.pause("a")
    assert "paused" in await site.text("group", key="a")
    assert "No tasks wait here" in await site.text("group", key="none")
    assert (await site.get("group", key="x" * 600)).status_code == 400


async def test_batches_in_retry_are_shown_with_their_timeline(
    redis_url: str, open_site: Open
) -> None:
    def fail(group: str, tasks: list[Task]) -> Task:
        raise ValueError("the row is locked")

    config = quick_config(group_aggregator=fail, retry_delay=60, retry_max_delay=60)
    async with AsyncAggregator(NAME, redis_url, config=config) as failing:
        await failing.add_task(Task("test", {"n": 1}, "a", flush=True))
        site = await open_site()

        async def failed() -> bool:
            return "the row is locked" in await site.text("batches")

        await eventually("the batch waits for a retry", failed)
        [batch] = await failing.get_batches()
        html = await site.text("batches", state="retry")
        assert batch.batch_id in html
        assert batch.batch_id not in await site.text("batches", state="claimed")
        html = await site.text("batch", id=batch.batch_id)
        for text in (
            "Opened",
            "Due",
            "Claimed",
            "Last attempt failed",
            "Next attempt",
            "the row is locked",
        ):
            assert text in html
        assert "&#34;n&#34;: 1" in html
        assert batch.batch_id in await site.text("group", key="a")
        assert "This batch is not in flight" in await site.text("batch", id="none")


async def test_a_batch_that_has_died_is_found_among_the_dead_letters(
    redis_url: str, open_site: Open
) -> None:
    failing = Failing(redis_url)
    async with failing.aggregator:
        await failing.bury(1)
        [letter] = await failing.aggregator.dead_letters()
        site = await open_site()
        response = await site.get("batch", id=letter.batch_id)
        assert response.status_code == 303
        html = (await site.client.get(response.headers["location"])).text
        check_clean(html)
        for text in ("is locked", "Traceback", "Opened", "Dead", "t0", "t1"):
            assert text in html


async def test_flushers_partitions_and_leases_are_shown(
    agg: AsyncAggregator, open_site: Open
) -> None:
    site = await open_site()
    async with agg:
        await agg.add_task(Task("test", 1, "a"))

        async def led() -> bool:
            return (await site.text("flushers")).count('Lease ends"><time') == 2

        await eventually("all partitions are led", led)
        [flusher] = (await agg.stats()).flushers
        assert flusher in await site.text("flushers")


async def test_several_redises_and_namespaces(redis_url: str, agg: AsyncAggregator) -> None:
    other = AsyncAggregator("other", redis_url, config=quick_config(partitions=1))
    await agg.add_task(Task("test", 1, "a"))
    await other.add_tasks([Task("test", n, "b") for n in range(3)])
    dashboard = asgi({"one": redis_url, "two": redis_url})
    async with serving(dashboard) as client:

        async def found() -> bool:
            text = (await client.get("/")).text
            return all(f'href="/n/{each}/' in text for each in ("one/tests", "two/other"))

        await eventually("the namespaces are found", found)
        check_clean((await client.get("/")).text)
        assert "3 tasks" in (await client.get("/")).text
        assert (await client.get("/n/two/other/groups")).status_code == 200
        assert (await client.get("/n/three/other/groups")).status_code == 404
    await dashboard.close()
    async with opened(redis_url, namespaces=["other"]) as site:
        response = await site.client.get("/")
        assert response.headers["location"] == "/n/redis/other/"
        assert (await site.client.get("/n/redis/tests/")).status_code == 404, (
            "it is not to be shown"
        )
    await other.close()
    with pytest.raises(InvalidConfig):
        asgi({"a/b": redis_url})
    with pytest.raises(InvalidConfig):
        asgi(redis_url, namespaces="tests")


async def test_limits_of_a_given_aggregator_are_shown(redis_url: str, open_site: Open) -> None:
    config = quick_config(max_pending_tasks=10, partitions=1)
    with Aggregator(NAME, redis_url, config=config) as blocking:
        blocking.pause()
        blocking.add_tasks([Task("test", n, "a") for n in range(4)])
        blocking.add_tasks([Task("test", n, f"b{n}") for n in range(4)])
        site = await open_site({}, aggregators=[blocking])
        html = await site.text()
    assert '<meter min="0" max="10"' in html
    assert "80% of max_pending_tasks are used" in html


async def test_a_namespace_that_was_made_anew_is_opened_anew(
    redis_url: str, agg: AsyncAggregator, sync_redis: Any, open_site: Open
) -> None:
    await agg.add_task(Task("test", 1, "a"))
    site = await open_site()
    await site.text("groups")
    sync_redis.flushall()
    changed = AsyncAggregator(NAME, redis_url, config=quick_config(partitions=5))
    await changed.add_task(Task("test", 1, "b"))
    assert (await site.get("groups")).status_code == 409
    assert "b</a>" in await site.text("groups")
    await changed.close()


async def test_a_redis_that_is_away_is_named(open_site: Open, unused_tcp_port_url: str) -> None:
    site = await open_site(f"{unused_tcp_port_url}?socket_connect_timeout=1")
    response = await site.get("groups")
    assert response.status_code == 503
    assert "Redis can&#39;t be asked" in response.text
    assert "secret" not in response.text
    assert (await site.client.get("/")).status_code == 303


@pytest.fixture
def unused_tcp_port_url() -> str:
    """The URL of a server that is not there, with a password."""
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"redis://user:secret@127.0.0.1:{taken.getsockname()[1]}/0"


# --- mounted -------------------------------------------------------------------------------------


async def test_it_can_be_mounted_in_other_apps(redis_url: str, agg: AsyncAggregator) -> None:
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Mount

    await agg.add_task(Task("test", 1, "a"))

    async def django(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("the other app")(scope, receive, send)

    dashboard = asgi(redis_url, namespaces=[NAME])
    for app, root in (
        (Starlette(routes=[Mount("/ops/batches", app=dashboard)]), ""),
        (under("/ops/batches", dashboard, django), ""),
        (under("/ops/batches/", dashboard, django), "/outer"),
    ):
        base = f"{root}/ops/batches"
        async with serving(app, root) as client:
            if root:  # as servers do: the path has the root path in it
                client.base_url = "http://localhost"
            response = await client.get(f"{base}/", follow_redirects=True)
            assert response.status_code == 200, response.text
            check_clean(response.text)
            links = [
                str(attributes.get("href") or attributes.get("src"))
                for tag, attributes in elements(response.text)
                if tag in ("a", "link", "script")
            ]
            assert all(each.startswith(f"{base}/") or each == "#main" for each in links), links
            for link in {each for each in links if each.startswith("/")}:
                assert (await client.get(link)).status_code in (200, 303), link
            token = client.cookies["redisagg_csrf"]
            back = f"{base}/n/redis/{NAME}/groups"
            fields = {"csrf": token, "group": "a", "back": back}
            answer = await client.post(f"{base}/n/redis/{NAME}/do/flush", data=fields)
            assert answer.headers["location"].startswith(back), app
    async with serving(under("/ops", dashboard, django)) as client:
        for path in ("/", "/opsx", "/other/ops"):
            assert (await client.get(path)).text == "the other app"
        assert (await client.get("/ops")).status_code == 303
    with pytest.raises(InvalidConfig):
        under("/", dashboard, django)
    await dashboard.close()


async def test_lifespan_events_are_answered(redis_url: str) -> None:
    dashboard = asgi(redis_url)
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[str] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await dashboard({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


# --- live ----------------------------------------------------------------------------------------


async def test_events_tell_of_news(redis_url: str, agg: AsyncAggregator) -> None:
    await agg.add_task(Task("test", 1, "a"))
    dashboard = asgi(redis_url, namespaces=[NAME])
    events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    headers: dict[bytes, bytes] = {}
    gone = asyncio.Event()

    async def receive() -> Any:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            headers.update(message["headers"])
        for line in message.get("body", b"").decode().splitlines():
            if line.startswith("data: "):
                await events.put(json.loads(line.removeprefix("data: ")))

    scope = {
        "type": "http",
        "method": "GET",
        "path": f"/n/redis/{NAME}/live",
        "query_string": b"",
        "headers": [],
    }
    watching = asyncio.create_task(dashboard(scope, receive, send))
    first = await asyncio.wait_for(events.get(), 20)
    assert (first["level"], first["title"]) == ("bad", "No flusher is alive")
    assert headers[b"content-type"].startswith(b"text/event-stream")
    await agg.start()
    second = await asyncio.wait_for(events.get(), 20)
    assert second["title"] != first["title"]
    gone.set()
    await asyncio.wait_for(watching, 20)
    await agg.stop()
    await dashboard.close()


# --- charts --------------------------------------------------------------------------------------


def test_a_chart_has_its_values_and_gaps() -> None:
    times = [1_000_000.0 + 60 * n for n in range(10)]
    line = [None, 1, 2, 3, None, None, 5, None, 7, 8]
    svg = str(line_chart("Tasks <&>", times, (("in", "c1", line),), unit="/s"))
    assert "Tasks &lt;&amp;&gt;: in 8/s" in svg
    assert svg.count("<polyline") == 2
    assert svg.count("<circle") == 1
    assert svg.count("<title>") == 6
    assert "style=" not in svg
    for values in ([], [None, None], [0.0], [0.0, 0.0], [1e-9, 1e12]):
        times = [float(n) for n in range(len(values))]
        assert "<svg" in str(line_chart("x", times, (("a", "c1", values),)))
