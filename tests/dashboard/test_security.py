"""Nothing from outside runs in a page, and nobody acts who may not."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest

from redisagg import AsyncAggregator, DeadLetter, Policy, Task
from redisagg.dashboard import Action, User, asgi
from redisagg.dashboard.security import CSRF_COOKIE
from redisagg.testing.embedded import EmbeddedRedis
from tests.dashboard.site import CANARY, NAME, Open, check_clean, controls, serving
from tests.support.tasks import quick_config
from tests.system.test_acl import ROLES


def _fail(group: str, tasks: list[Task]) -> Task:
    raise ValueError(CANARY)


PAGES = ("", "groups", "batches", "dead", "flushers", "policies")


async def test_texts_from_outside_are_escaped_on_every_page(
    agg: AsyncAggregator, open_site: Open, redis_url: str
) -> None:
    config = quick_config(group_aggregator=_fail, max_attempts=1)
    failing = AsyncAggregator(NAME, redis_url, config=config)
    await failing.start()
    try:
        task = Task(CANARY, {CANARY: [CANARY]}, CANARY, id="dies", headers={CANARY: CANARY})
        await failing.add_task(task)
        await failing.flush(CANARY)
        for _ in range(200):
            if letters := await agg.dead_letters():
                break
            await failing.wait_until_idle(0.2)
    finally:
        await failing.close()
    await agg.set_policy(f"{CANARY}*", Policy(max_size=7))
    await agg.add_task(Task(CANARY, CANARY, CANARY, id=CANARY[:60], headers={"a": CANARY}))
    site = await open_site(authenticate=lambda request: CANARY)
    escaped = "&lt;script&gt;canary()"
    for page in PAGES:
        html = await site.text(page)
        assert escaped in html, page
    for page, query in (
        ("group", {"key": CANARY}),
        ("groups", {"prefix": CANARY, "sort": CANARY, "after": ""}),
        ("batch", {"id": CANARY}),
        ("dead", {"q": CANARY, "reason": CANARY}),
        ("dead-letter", {"id": letters[0].batch_id}),
        ("dead-letter", {"id": CANARY}),
        ("policies", {"test": CANARY}),
        ("", {"span": CANARY, "m": CANARY}),
    ):
        assert escaped in await site.text(page, **query), page
    for name in (CANARY, "other", "../../x"):
        response = await site.client.get(f"/n/redis/{name}/")
        assert response.status_code == 404
        assert "<script>" not in response.text


async def test_every_response_forbids_inline_scripts_and_other_hosts(
    agg: AsyncAggregator, open_site: Open
) -> None:
    await agg.add_task(Task("test", 1, "a"))
    site = await open_site()
    paths = ["/", f"{site.here}/", f"{site.here}/none", "/static/dashboard.css", "/nothing"]
    for path in paths:
        headers = (await site.client.get(path)).headers
        policy = dict(each.split(" ", 1) for each in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        assert headers["cache-control"] in ("no-store", "no-cache")


@pytest.mark.parametrize("token", [None, "", "wrong", "x" * 43], ids=str)
async def test_a_form_without_the_token_is_refused(
    agg: AsyncAggregator, open_site: Open, token: str | None
) -> None:
    await agg.add_task(Task("test", 1, "a"))
    seen: list[Action] = []
    site = await open_site(on_action=seen.append)
    await site.get("groups")
    fields: dict[str, Any] = {} if token is None else {"csrf": token}
    response = await site.post("cancel", group="a", **fields)
    assert response.status_code == 403
    assert (await agg.stats()).pending == 1
    assert [(each.action, each.outcome, each.target) for each in seen] == [
        ("cancel", "refused", "a")
    ]


async def test_a_form_without_the_cookie_or_from_another_site_is_refused(
    agg: AsyncAggregator, open_site: Open
) -> None:
    await agg.add_task(Task("test", 1, "a"))
    site = await open_site()
    await site.get("groups")
    token = site.client.cookies[CSRF_COOKIE]
    url = f"{site.here}/do/cancel"
    fields = {"group": "a", "csrf": token}
    for headers in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ):
        response = await site.client.post(url, data=fields, headers=headers)
        assert response.status_code == 403, headers
    site.client.cookies.clear()
    assert (await site.client.post(url, data=fields)).status_code == 403
    assert (await agg.stats()).pending == 1
    allowed = {"origin": "http://localhost", "sec-fetch-site": "same-origin"}
    site.client.cookies.set(CSRF_COOKIE, token)
    assert (await site.client.post(url, data=fields, headers=allowed)).status_code == 303
    assert (await agg.stats()).pending == 0


async def test_the_cookie_of_the_token_is_for_this_dashboard_alone(
    agg: AsyncAggregator, open_site: Open
) -> None:
    await agg.add_task(Task("test", 1, "a"))
    site = await open_site(root="/admin/batches")
    cookie = (await site.get("groups")).headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Path=/admin/batches" in cookie
    assert "set-cookie" not in (await site.get("groups")).headers, "the token stays"


async def test_only_forms_of_a_bounded_size_are_read(agg: AsyncAggregator, open_site: Open) -> None:
    await agg.add_task(Task("test", 1, "a"))
    site = await open_site()
    url = f"{site.here}/do/flush"
    assert (await site.client.post(url, json={"group": "a"})).status_code == 415
    assert (await site.client.post(url, data={"group": "a" * (3 << 20)})).status_code == 413
    assert (await site.client.get(url)).status_code == 405


async def test_a_read_only_dashboard_changes_nothing(agg: AsyncAggregator, open_site: Open) -> None:
    await agg.add_task(Task("test", 1, "a"))
    seen: list[Action] = []
    site = await open_site(read_only=True, on_action=seen.append)
    html = await site.text("group", key="a")
    found = controls(html)
    assert {"flush", "pause", "postpone", "cancel"} <= found.keys()
    for action, attributes in found.items():
        assert "disabled" in attributes, action
        assert attributes["title"] == "this dashboard is read-only"
    for action in ("flush", "flush-all", "pause", "cancel", "requeue", "set-policy", "try"):
        response = await site.act(action, group="a", id="x", pattern="a")
        assert response.status_code == 403
        assert "read-only" in response.text
    assert {each.outcome for each in seen} == {"refused"}
    stats = await agg.stats()
    assert (stats.pending, stats.paused) == (1, False)
    assert not await agg.get_groups(due=True)


async def test_actions_that_the_user_of_redis_may_not_do_are_greyed_out_with_the_reason(
    server_binary: Any, tmp_path: Any
) -> None:
    with EmbeddedRedis(server_binary) as server:
        from redis import Redis

        aggregator = AsyncAggregator(NAME, server.url, config=quick_config())
        await aggregator.add_task(Task("test", 1, "a"))
        with Redis.from_url(server.url) as admin:
            version = tuple(map(int, str(admin.info("server")["redis_version"]).split(".")))
            rules = [each.replace("emails", NAME) for each in ROLES["observer"]]
            rules = [each.replace(">PASSWORD", ">secret") for each in rules]
            if version < (7,):
                rules = [each.strip("()") for each in rules]
            admin.execute_command("ACL", "SETUSER", "watcher", *_joined(rules))
        url = server.url.replace("redis://", "redis://watcher:secret@")
        dashboard = asgi(url, namespaces=[NAME])
        async with serving(dashboard) as client:
            for page in (*PAGES, "group?key=a", "batch?id=x", "dead-letter?id=x"):
                response = await client.get(f"/n/redis/{NAME}/{page}")
                assert response.status_code == 200, (page, response.text)
                check_clean(response.text)
                if page in ("group?key=a", "policies"):
                    for action, attributes in controls(response.text).items():
                        assert "disabled" in attributes, action
                        assert "no right" in str(attributes["title"])
            token = client.cookies[CSRF_COOKIE]
            fields = {"csrf": token, "group": "a"}
            response = await client.post(f"/n/redis/{NAME}/do/cancel", data=fields)
            assert response.status_code == 403
            assert "no right" in response.text
        assert (await aggregator.stats()).pending == 1
        await dashboard.close()
        await aggregator.close()


def _joined(rules: list[str]) -> list[str]:
    """The rules with each pair of brackets in one argument."""
    found: list[str] = []
    inside = False
    for rule in rules:
        if inside:
            found[-1] += f" {rule}"
        else:
            found.append(rule)
        inside = (inside or rule.startswith("(")) and not rule.endswith(")")
    return found


# --- who comes in --------------------------------------------------------------------------------


async def test_basic_authentication(agg: AsyncAggregator, open_site: Open) -> None:
    await agg.add_task(Task("test", 1, "a"))
    seen: list[Action] = []
    site = await open_site(basic_auth={"ann": "s3cret:ü", "bob": "other"}, on_action=seen.append)
    for auth in (None, ("ann", "other"), ("eve", "s3cret:ü"), ("ann", ""), ("", "")):
        for path in (f"{site.here}/", "/static/dashboard.js", f"{site.here}/live"):
            response = await site.client.get(path, auth=auth)
            assert response.status_code == 401
            assert response.headers["www-authenticate"].startswith("Basic ")
            assert NAME not in response.text
    for bad in ("Basic", "Basic !!!", "Bearer x", "Basic \x80"):
        headers = {b"authorization": bad.encode("latin-1")}
        assert (await site.client.get(f"{site.here}/", headers=headers)).status_code == 401
    site.client.auth = httpx.BasicAuth("ann", "s3cret:ü")
    await site.text("groups")
    await site.act("flush", group="a")
    assert [(each.user, each.outcome) for each in seen] == [("ann", "done")]


async def test_a_function_decides_who_comes_in(agg: AsyncAggregator, open_site: Open) -> None:
    await agg.add_task(Task("test", 1, "a"))
    users: dict[str, Any] = {"boss": "the boss", "guest": User("guest", read_only=True), "no": None}

    async def authenticate(request: Any) -> Any:
        return users.get(request.headers.get("x-user", ""))

    site = await open_site(authenticate=authenticate)
    for name in ("no", "unknown", ""):
        site.client.headers["x-user"] = name
        assert (await site.get()).status_code == 401
    site.client.headers["x-user"] = "guest"
    assert all("disabled" in each for each in controls(await site.text("group", key="a")).values())
    assert (await site.act("flush", group="a")).status_code == 403
    site.client.headers["x-user"] = "boss"
    assert "disabled" not in controls(await site.text("group", key="a"))["flush"]
    assert "due now" in (await site.act("flush", group="a")).text


async def test_other_host_names_are_refused(agg: AsyncAggregator, open_site: Open) -> None:
    await agg.add_task(Task("test", 1, "a"))
    site = await open_site(allowed_hosts=["localhost", "[::1]"])
    for host in ("localhost", "localhost:8470", "LOCALHOST", "[::1]:8470"):
        response = await site.client.get(f"{site.here}/", headers={"host": host})
        assert response.status_code == 200, host
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1", ""):
        response = await site.client.get(f"{site.here}/", headers={"host": host})
        assert response.status_code == 421, host


# --- what is told --------------------------------------------------------------------------------


async def test_payloads_are_shown_as_the_hook_returns_them(
    agg: AsyncAggregator, open_site: Open, redis_url: str
) -> None:
    payload = {"card": "4111-secret", "name": "Ann"}
    await agg.add_task(Task("test", payload, "a", headers={"token": "secret-header"}))
    await agg.add_task(Task("test", "secret-crash", "a"))

    def redact(task: Task) -> Task:
        return replace_task(task, {**task.payload, "card": "…"})

    def replace_task(task: Task, shown: Any) -> Task:
        return Task(task.type, shown, task.group_key, id=task.id)

    site = await open_site(redact=redact)
    html = await site.text("group", key="a")
    assert "secret" not in html
    assert "Ann" in html
    assert "the redaction failed" in html, "a task that the hook can't take is not shown"
    assert "4111-secret" in await (await open_site()).text("group", key="a")


async def test_errors_are_shown_as_the_hook_returns_them(open_site: Open, redis_url: str) -> None:
    def fail(group: str, tasks: list[Task]) -> Task:
        raise ValueError("card 4111-secret is refused at redis://user:hunter2@host/0")

    config = quick_config(group_aggregator=fail, max_attempts=1, group_max_size=1)
    async with AsyncAggregator(NAME, redis_url, config=config) as failing:
        await failing.add_task(Task("test", 1, "a"))
        letters: list[DeadLetter] = []
        while not letters:
            letters = await failing.dead_letters()
    site = await open_site(redact_text=lambda text: text.replace("4111-secret", "[card]"))
    for page, query in (("dead", {}), ("dead-letter", {"id": letters[0].batch_id})):
        html = await site.text(page, **query)
        assert "[card]" in html
        assert "4111-secret" not in html
        assert "hunter2" not in html

    def broken(text: str) -> str:
        raise RuntimeError

    site = await open_site(redact_text=broken)
    assert "4111-secret" not in await site.text("dead-letter", id=letters[0].batch_id)


async def test_each_action_is_in_the_audit_log(
    agg: AsyncAggregator, open_site: Open, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="redisagg.audit")
    await agg.add_task(Task("test", 1, "a\nFORGED"))
    seen: list[Action] = []

    async def on_action(action: Action) -> None:
        seen.append(action)
        raise RuntimeError("the hook is broken")

    site = await open_site(authenticate=lambda request: "ann", on_action=on_action)
    await site.act("flush", group="a\nFORGED")
    await site.act("requeue", id="no-such-letter", task="x")
    done, failed = seen
    assert (done.action, done.user, done.outcome, done.target) == (
        *("flush", "ann", "done", "a\nFORGED"),
    )
    assert (done.redis, done.namespace, done.result) == ("redis", NAME, "1 task is due now.")
    assert (failed.action, failed.outcome, failed.target) == ("requeue", "failed", "no-such-letter")
    records = [each for each in caplog.records if each.name == "redisagg.audit"]
    lines = [each for each in records if each.levelname == "INFO"]
    assert [vars(each)["audit_outcome"] for each in lines] == ["done", "failed"]
    assert "\n" not in lines[0].getMessage()
    assert "done flush" in lines[0].getMessage()
    assert [each.levelname for each in records].count("ERROR") == 2, "the hook's own errors"
