"""What a page or an action knows of its request."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlencode

from jinja2 import Environment
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from redisagg.dashboard import queries
from redisagg.dashboard.audit import Audit
from redisagg.dashboard.dead_index import DeadIndex
from redisagg.dashboard.health import Health, health_of, problem_of
from redisagg.dashboard.jobs import Jobs
from redisagg.dashboard.live import Feed
from redisagg.dashboard.messages import Messages
from redisagg.dashboard.queries import Look, PartlyAway
from redisagg.dashboard.rendering import Redact, RedactText, ShownTask, visible
from redisagg.dashboard.security import User, csrf_token
from redisagg.dashboard.sources import Place, Shown, Sources
from redisagg.errors import RedisAggError, RedisUnavailable
from redisagg.operations.observing import one_line
from redisagg.protocol.entries import StoredTask
from redisagg.task import Task
from redisagg.texts import logger
from redisagg.views import Trouble

_log = logger("dashboard")

_MOST_FORM = 2 << 20
"""Bytes of a form at most: a selection of some 50,000 ids."""

_RIGHTS_FOR = 15.0
"""Seconds for which the rights of the user of Redis are remembered."""


class Stopped(Exception):
    """Ends a request with a response."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status_code)
        self.response = response


@dataclass
class Open:
    """What is kept of a namespace between requests."""

    shown: Shown
    feed: Feed
    dead: DeadIndex
    why_not: str = ""
    why_not_until: float = 0.0


@dataclass
class State:
    """What the requests of a dashboard share."""

    sources: Sources
    templates: Environment
    jobs: Jobs
    audit: Audit
    read_only: bool
    redact: Redact | None
    redact_text: RedactText | None
    messages: Messages = field(default_factory=Messages)
    opened: dict[Place, Open] = field(default_factory=dict)
    watchers: int = 0
    """Connections for server-sent events."""

    async def open(self, place: Place) -> Open | None:
        """Returns a namespace; None if it does not exist.

        Raises:
            RedisAggError: Redis can't be asked.
        """
        if (found := self.opened.get(place)) is not None:
            return found
        shown = await self.sources.open(place)
        if shown is None:
            return None
        return self.opened.setdefault(place, Open(shown, Feed(shown), DeadIndex(shown)))

    async def forget(self, place: Place) -> None:
        """Forgets a namespace, which is opened anew when it is asked for."""
        self.opened.pop(place, None)
        await self.sources.forget(place)

    async def close(self) -> None:
        """Stops all jobs and closes all connections."""
        await self.jobs.close()
        self.opened.clear()
        await self.sources.close()


class Context:
    """A request, and what is known for its response.

    Args:
        request: the request.
        state: what requests share.
    """

    def __init__(self, request: Request, state: State) -> None:
        self.request = request
        self.state = state
        self.user: User = request.state.user
        self.root: str = request.scope.get("root_path", "").rstrip("/")
        self.place: Place | None = None
        parameters = request.path_params
        if "name" in parameters:
            self.place = Place(parameters["source"], parameters["name"])
        self._open: Open | None = None

    async def open(self) -> None:
        """Opens the namespace that the path names.

        Raises:
            Stopped: there is none.
            RedisAggError: Redis can't be asked.
        """
        if self.place is None:
            return
        self._open = await self.state.open(self.place)
        if self._open is None:
            raise Stopped(
                self.failure(
                    404,
                    "There is no such namespace",
                    f"{self.place.name} is no namespace of {self.place.source}, or this dashboard "
                    "does not show it.",
                )
            )

    # --- the namespace ---------------------------------------------------------------------------

    @property
    def opened(self) -> Open:
        """The namespace of the path, and what is kept of it."""
        assert self._open is not None
        return self._open

    @property
    def shown(self) -> Shown:
        """The namespace of the path."""
        return self.opened.shown

    @property
    def here(self) -> str:
        """The path of the namespace."""
        assert self.place is not None
        return f"{self.root}/n/{self.place.source}/{self.place.name}"

    async def look(self, max_age: float = 0.5) -> Look:
        """The numbers of the namespace, at most so many seconds old."""
        return await self.opened.feed.look(max_age)

    def health(self, look: Look) -> Health:
        """The health of the namespace."""
        return health_of(look, fullness(self.shown, look))

    async def troubles(self, error: RedisUnavailable) -> Sequence[Trouble]:
        """What is wrong, if an error means that a part of a cluster is away; else nothing."""
        if self._open is None and self.place and self.state.sources.is_cluster(self.place.source):
            # The record of the namespace can't be read: it has not been opened before.
            text = f"A master of the cluster does not answer: {one_line(error)}."
            advice = "Bring it back, or fail over to its replica."
            return [Trouble("partition_away", text, advice)]
        if self._open is not None and not isinstance(error, PartlyAway):
            try:
                await self.look()
            except RedisAggError as other:
                return other.troubles if isinstance(other, PartlyAway) else ()
        return error.troubles if isinstance(error, PartlyAway) else ()

    async def why_not(self) -> str:
        """Says why this user can't change anything here; empty if it can."""
        if self.state.read_only:
            return "this dashboard is read-only"
        if self.user.read_only:
            return "you may look, but change nothing"
        opened = self.opened
        if time.monotonic() > opened.why_not_until:
            opened.why_not = await queries.why_not(opened.shown)
            opened.why_not_until = time.monotonic() + _RIGHTS_FOR
        return opened.why_not

    # --- the request -----------------------------------------------------------------------------

    def given(self, name: str, default: str = "") -> str:
        """A parameter of the query."""
        return self.request.query_params.get(name, default)

    def number(self, name: str, default: int = 0, most: int = 10**12) -> int:
        """A parameter of the query that is a whole number."""
        text = self.given(name)
        return min(int(text), most) if text.isascii() and text.isdecimal() else default

    async def form(self) -> Mapping[str, list[str]]:
        """The fields of the form that was sent.

        Raises:
            Stopped: it is too large, or no form.
        """
        parts: list[bytes] = []
        length = 0
        async for part in self.request.stream():
            parts.append(part)
            length += len(part)
            if length > _MOST_FORM:
                raise Stopped(self.failure(413, "This form is too large", "Select fewer."))
        kind = self.request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/x-www-form-urlencoded":
            raise Stopped(self.failure(415, "This is no form", "Send it as a browser does."))
        try:
            return parse_qs(
                b"".join(parts).decode(), keep_blank_values=True, max_num_fields=100_000
            )
        except ValueError:
            raise Stopped(self.failure(400, "This is no form", "It can't be read.")) from None

    @property
    def client(self) -> str:
        """The address from which the request came."""
        return self.request.client.host if self.request.client else "?"

    def url(self, page: str = "", **query: Any) -> str:
        """The path of a page of the namespace, with a query of what is not empty."""
        given = {name: value for name, value in query.items() if value not in ("", None, False)}
        path = f"{self.here}/{page}"
        return f"{path}?{urlencode(given)}" if given else path

    # --- the response ----------------------------------------------------------------------------

    def task(self, stored: StoredTask) -> ShownTask:
        """A task as it may be shown."""
        return ShownTask(stored, self.state.redact)

    def merged(self, task: Task) -> ShownTask:
        """A merged task as it may be shown."""
        return ShownTask(StoredTask(task, 0.0, b""), self.state.redact)

    def text(self, text: str) -> str:
        """An error or traceback as it may be shown."""
        if self.state.redact_text is None:
            return text
        try:
            return str(self.state.redact_text(text))
        except Exception:
            _log.exception("redact_text failed; the text is not shown")
            return "(not shown: the redaction failed; see the log)"

    async def page(self, template: str, title: str, nav: str, **values: Any) -> Response:
        """Renders a page of the namespace."""
        look = await self.look()
        why_not = await self.why_not()
        health = self.health(look)
        given = {
            "look": look,
            "stats": look.stats,
            "health": health,
            "why_not": why_not,
            "now": look.now,
            "nav": nav,
            "here": self.here,
            "place": self.place,
            "ns_url": self.url,
            **values,
        }
        return await self.render(template, title, **given)

    async def render(self, template: str, title: str, status: int = 200, **values: Any) -> Response:
        """Renders a template."""
        places = await self.state.sources.places()
        text = self.state.templates.get_template(template).render(
            title=title,
            root=self.root,
            user=self.user,
            places=places,
            many_sources=len(self.state.sources.labels) > 1,
            csrf=csrf_token(self.request),
            message=self.state.messages.take(self.given("m")),
            back=self._back(),
            show=self.text,
            **{"nav": "", "place": None, "here": "", "why_not": "", **values},
        )
        return HTMLResponse(text, status)

    def _back(self) -> str:
        """The path of this page, to which an action returns."""
        query = [
            (name, value) for name, value in self.request.query_params.multi_items() if name != "m"
        ]
        path = self.request.scope["path"]
        if not path.startswith(self.root):
            path = self.root + path
        return f"{path}?{urlencode(query)}" if query else str(path)

    def failure(
        self, status: int, title: str, text: str, troubles: Sequence[Trouble] = ()
    ) -> Response:
        """A page that says what went wrong."""
        shown = self.state.templates.get_template("failure.html").render(
            title=title,
            text=visible(self.text(text)),
            problems=[problem_of(each) for each in troubles],
            root=self.root,
            status=status,
            home=f"{self.root}/",
        )
        return HTMLResponse(shown, status)

    def answer(self, back: str, text: str, level: str = "ok") -> Response:
        """Returns to a page, which shows what an action did.

        Args:
            back: the path of the page; another site's is not followed.
            text: what was done.
            level: ``ok``, ``warn`` or ``bad``.
        """
        base = f"{self.root}/"
        path = back if back.startswith(base) and not back.startswith(("//", "/\\")) else base
        if any(ord(char) < 32 for char in path):
            path = base
        mark = self.state.messages.put(text, level)
        return RedirectResponse(f"{path}{'&' if '?' in path else '?'}m={mark}", 303)


def fullness(shown: Shown, look: Look) -> str:
    """Says which limit on pending tasks is nearly reached; empty if none is, or none is known."""
    if shown.known is None:
        return ""
    tasks = look.stats.pending + look.stats.in_flight
    for name, used in (
        ("max_pending_tasks", tasks),
        ("max_pending_bytes", look.stats.stored_bytes),
    ):
        most = getattr(shown.known, name)
        if most is not None and used >= 0.8 * most:
            return f"{100 * used / most:.0f}% of {name} are used; further tasks are refused then."
    return ""
