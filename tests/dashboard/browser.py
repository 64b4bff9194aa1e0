"""A dashboard on a living system, served to a real browser, and what a page has to keep to there.

Needs Debian's chromium and playwright. Playwright's calls run an event loop in the thread of the
tests, so nothing else here may.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from redisagg import AggregationConfig, Aggregator, Policy, Task, Unrecoverable
from redisagg.dashboard import asgi
from redisagg.flusher import recorder
from tests.support.servers import wait_until

NAME = "shop"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
GRACE = 900.0
"""Seconds: nothing is flushed by itself while the tests run."""

XSS: Sequence[str] = (
    "<script>canary(1)</script>",
    "</script><script>canary(2)</script>",
    '"><script>canary(3)</script>',
    "'><img src=x onerror=canary(4)>",
    '<img src=x onerror="canary(5)">',
    "<svg onload=canary(6)>",
    "<svg><script>canary(7)</script></svg>",
    "<body onload=canary(8)>",
    "<iframe srcdoc='<script>parent.canary(9)</script>'></iframe>",
    '<a href="javascript:canary(10)">x</a>',
    "javascript:canary(11)",
    '" onmouseover="canary(12)" autofocus onfocus="canary(12)" x="',
    "' onfocus='canary(13)' autofocus x='",
    "<details open ontoggle=canary(14)>",
    "<input autofocus onfocus=canary(15)>",
    "<math><mtext></mtext><mglyph><style><img src=x onerror=canary(16)></style></mglyph></math>",
    "--><script>canary(17)</script><!--",
    "]]><script>canary(18)</script>",
    "</textarea></title></style><script>canary(19)</script>",
    "{{constructor.constructor('canary(20)')()}}",
    "{{7*7}}${7*7}#{7*7}<%= 7*7 %>{% print 7*7 %}",
    "<div hx-get='/' hx-trigger='load' hx-on:htmx:load='canary(22)'>x</div>",
    "<form action='https://evil.example'><button>x</button></form>",
    "<base href='https://evil.example/'>",
    "<meta http-equiv=refresh content='0;url=https://evil.example'>",
    "<style>body{display:none}</style>",
    "\u202ecod.exe <b>bold</b> \x07\x1b[31m",
    "&lt;script&gt;canary(27)&lt;/script&gt;&#60;b&#62;",
    "%3Cscript%3Ecanary(28)%3C/script%3E",
    "\ufeff<script\n>canary(29)</script\n>",
    "a" * 300,
)
"""Texts that do something in a page if they are not escaped there."""

_WATCH = """
window.ran = [];
window.canary = (...values) => { window.ran.push(values); };
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`);
});
"""


CONTEXTS: Sequence[str] = tuple(XSS[place] for place in (0, 2, 3, 10, 12, 16, 18, 20, 25, 26))
"""One of each kind: where each of them is looked at in a page of its own."""


class Failing(Exception):
    """What the merge function raises for groups that are tried again."""


def merge(group: str, tasks: list[Task]) -> Task:
    """Fails for groups that begin with ``fail`` or ``dead``, with a text of the first task."""
    if group.startswith("fail"):
        raise Failing(str(tasks[0].payload))
    if group.startswith("dead"):
        raise Unrecoverable(str(tasks[0].payload))
    return Task("digest", [task.payload for task in tasks])


class Stage:
    """What the dashboard shows: groups, batches in retry, dead letters, policies, a flusher.

    Args:
        url: of an empty Redis.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        config = AggregationConfig(
            group_grace_period=GRACE,
            group_max_delay=10 * GRACE,
            group_max_size=50,
            group_aggregator=merge,
            partitions=4,
            lease_time=3,
            shutdown_timeout=1,
            retry_delay=900,
            retry_max_delay=900,
        )
        self.agg = Aggregator(NAME, url, config=config)

    def fill(self, texts: Sequence[str] = XSS) -> None:
        """Makes something for each page, with these texts wherever a text can be."""
        agg = self.agg
        agg.start()
        errors = ["the row is locked"] * 5 + list(texts)
        agg.add_tasks(
            Task("kind", text, f"dead:{n}:{text}"[:200], max_size=1)
            for n, text in enumerate(errors)
        )
        agg.add_task(Task("kind", "the mail server is down", "fail:again", max_size=1))
        agg.add_task(Task("kind", texts[0], f"fail:{texts[0]}", max_size=1))
        agg.add_tasks(
            Task("kind", {"note": text, text: [text]}, text, headers={"x-note": text[:200]})
            for text in texts
        )
        agg.add_tasks(
            Task("mail", {"n": n, "to": f"someone-{n}@example.org"}, f"customer:{n % 60}")
            for n in range(300)
        )
        agg.pause("customer:1")
        agg.set_policy("customer:*", Policy(max_size=100, priority=2))
        agg.set_policy("<b>*", Policy(grace_period=5))
        wait_until(lambda: agg.stats().batches_dead == len(errors), what="all are dead")
        wait_until(lambda: agg.stats().batches_in_retry == 2, what="both are tried again")
        wait_until(lambda: bool(agg.history().points), what="a step is recorded")

    def dead_letter(self, text: str = "once more") -> str:
        """Makes a dead letter with two tasks; returns its id."""
        known = {letter.batch_id for letter in self.agg.dead_letters()}
        group = f"dead:{len(known)}:{text}"
        self.agg.add_tasks(Task("kind", f"{text} {n}", group, max_size=2) for n in range(2))
        wait_until(lambda: len(self.agg.dead_letters()) > len(known), what="it is dead")
        [new] = {letter.batch_id for letter in self.agg.dead_letters()} - known
        return new

    def close(self) -> None:
        """Ends the flusher."""
        self.agg.close()


@contextmanager
def served(redis_url: str, **options: Any) -> Iterator[str]:
    """Serves a dashboard in a thread; yields its address."""
    import uvicorn

    app = asgi(redis_url, namespaces=[NAME], **options)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, lifespan="on", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(
        target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True
    )
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


class Browser:
    """A page of a browser, with what went wrong in it.

    Args:
        page: of Playwright.
        site: the address of the dashboard.
    """

    def __init__(self, page: Any, site: str) -> None:
        self.page = page
        self.site = site
        self.here = f"{site}/n/redis/{NAME}"
        self.wrong: list[str] = []
        self.elsewhere: list[str] = []
        page.add_init_script(_WATCH)
        page.on("pageerror", lambda error: self.wrong.append(f"an error: {error}"))
        page.on("dialog", self._dialog)
        page.on("console", self._console)
        page.on("request", self._request)

    def _dialog(self, dialog: Any) -> None:
        self.wrong.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def _console(self, message: Any) -> None:
        if message.type == "error" and "status of 4" not in message.text:
            self.wrong.append(f"on the console: {message.text}")

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.site, "data:", "blob:")):
            self.elsewhere.append(request.url)

    def open(self, page: str = "", **query: str) -> Any:
        """Opens a page of the namespace."""
        address = f"{self.here}/{page}" + (f"?{urlencode(query)}" if query else "")
        response = self.page.goto(address, wait_until="load")
        assert response is not None
        assert response.status == 200, (address, response.status)
        return response

    def check(self) -> None:
        """Checks that no text has become a script, and that nothing else went wrong.

        Moves the pointer over everything that an event handler could have been put on.
        """
        found: Any = self.page.evaluate(
            """() => {
              for (const each of document.querySelectorAll("*")) {
                for (const name of ["mouseover", "focus", "toggle"])
                  each.dispatchEvent(new Event(name));
              }
              return {
                ran: window.ran, violations: window.violations,
                frames: document.querySelectorAll("iframe, object, embed, base").length,
                links: [...document.querySelectorAll("a[href]")].map((a) => a.protocol)
                  .filter((protocol) => !protocol.startsWith("http")),
                handlers: [...document.querySelectorAll("*")].filter((each) =>
                  each.getAttributeNames().some((name) => name.startsWith("on"))).length,
              };
            }"""
        )
        clean = {"ran": [], "violations": [], "frames": 0, "links": [], "handlers": 0}
        assert found == clean, self.page.url
        assert (self.wrong, self.elsewhere) == ([], []), self.page.url

    def press(self, *keys: str) -> None:
        """Presses keys one after the other."""
        for key in keys:
            self.page.keyboard.press(key)

    def submit(self, action: str, within: str = "main") -> str:
        """Presses the button of a form, and agrees if asked; returns what the next page says."""
        button = self.page.locator(
            f':is({within}) form[action$="/do/{action}"] button[type=submit]:not([formaction]), '
            f'form[action$="/do/{action}"]:is({within}) button[type=submit], '
            f':is({within}) button[formaction$="/do/{action}"]'
        ).first
        asks = button.evaluate(
            "(each) => Boolean(each.dataset.confirm || each.form?.dataset.confirm)"
        )
        with self.page.expect_navigation(wait_until="load"):
            button.click()
            if asks:
                self.page.locator("#confirm-yes").click()
        self.check()
        told = self.page.locator(".message, .job, .head h1").first
        return str(told.inner_text())


def overflow(page: Any) -> list[str]:
    """What makes a page wider than the window: none of it may."""
    found: list[str] = page.evaluate(
        """() => {
          const wide = document.documentElement.clientWidth;
          if (document.documentElement.scrollWidth <= wide) return [];
          return [...document.querySelectorAll("body *")]
            .filter((each) => each.getBoundingClientRect().right > wide + 0.5)
            .slice(0, 8)
            .map((each) => `${each.tagName} ${each.className} ${each.textContent.slice(0, 40)}`);
        }"""
    )
    return found


CONTRAST = (Path(__file__).parent / "contrast.js").read_text("utf-8")


def low_contrast(page: Any) -> list[str]:
    """The texts with less contrast to what is behind them than WCAG AA asks for."""
    found: list[str] = page.evaluate(CONTRAST)
    return found


@contextmanager
def quick_history() -> Iterator[None]:
    """Flushers record their first step at once."""
    before = recorder._FIRST_WAIT
    recorder._FIRST_WAIT = 0.05
    try:
        yield
    finally:
        recorder._FIRST_WAIT = before
