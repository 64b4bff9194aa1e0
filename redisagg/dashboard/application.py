"""The dashboard as an ASGI app."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, Router
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from redisagg.aggregator import Aggregator, AsyncAggregator
from redisagg.dashboard import actions, pages
from redisagg.dashboard.audit import Audit, OnAction
from redisagg.dashboard.context import Context, State, Stopped
from redisagg.dashboard.jobs import Jobs
from redisagg.dashboard.rendering import HERE, Redact, RedactText, environment
from redisagg.dashboard.security import HEADERS, Authenticate, Guard, User, set_csrf_cookie
from redisagg.dashboard.sources import DEFAULT_LABEL, Sources
from redisagg.errors import (
    AuthenticationFailed,
    InvalidConfig,
    InvalidTask,
    NamespaceMismatch,
    RedisAggError,
    RedisUnavailable,
)
from redisagg.transport.endpoint import AnyClient

_DEFAULT_URL = "redis://localhost:6379/0"


def asgi(
    redis: AnyClient | Mapping[str, AnyClient] | None = None,
    *,
    namespaces: Collection[str] | None = None,
    aggregators: Iterable[Aggregator | AsyncAggregator] = (),
    read_only: bool = False,
    authenticate: Authenticate | None = None,
    basic_auth: Mapping[str, str] | None = None,
    allowed_hosts: Collection[str] | None = None,
    redact: Redact | None = None,
    redact_text: RedactText | None = None,
    on_action: OnAction | None = None,
) -> Dashboard:
    """Makes the dashboard as an ASGI app, to be served or mounted in another app.

    Args:
        redis: a URL or client of redis-py, or several by label; ``redis://localhost:6379/0`` if
            neither this nor an aggregator is given.
        namespaces: names of those that are shown; None (default) for all that are found.
        aggregators: aggregators whose settings are then known: their limits are shown, and dead
            letters can be tried with their merge functions. Their Redis is shown too.
        read_only: whether nothing can be changed.
        authenticate: function of the request, plain or ``async``, that returns a `User`, the name
            of one, or None to refuse. None (default): everybody may come in, unless `basic_auth` is
            given; then the app in front has to decide.
        basic_auth: passwords by user name, for HTTP basic authentication.
        allowed_hosts: names in the header ``Host`` that are answered; None (default) for all.
        redact: function that returns a `Task` as it may be shown, for each task on a page. If it
            raises, the task is not shown.
        redact_text: the same for errors and tracebacks, which may quote payloads.
        on_action: function, plain or ``async``, that is called with each `Action`, which is
            logged too.

    Raises:
        InvalidConfig: an argument is out of range or of the wrong type.
    """
    return Dashboard(
        redis,
        namespaces=namespaces,
        aggregators=aggregators,
        read_only=read_only,
        authenticate=authenticate,
        basic_auth=basic_auth,
        allowed_hosts=allowed_hosts,
        redact=redact,
        redact_text=redact_text,
        on_action=on_action,
    )


class Dashboard:
    """An ASGI app; `asgi` makes it and documents the arguments.

    It connects when it is first asked. Where no lifespan events come, as in a mounted app, `close`
    closes the connections.
    """

    def __init__(
        self,
        redis: AnyClient | Mapping[str, AnyClient] | None,
        *,
        namespaces: Collection[str] | None,
        aggregators: Iterable[Aggregator | AsyncAggregator],
        read_only: bool,
        authenticate: Authenticate | None,
        basic_auth: Mapping[str, str] | None,
        allowed_hosts: Collection[str] | None,
        redact: Redact | None,
        redact_text: RedactText | None,
        on_action: OnAction | None,
    ) -> None:
        given = list(aggregators)
        if redis is None:
            redises: Mapping[str, AnyClient] = {} if given else {DEFAULT_LABEL: _DEFAULT_URL}
        elif isinstance(redis, Mapping):
            redises = redis
        else:
            redises = {DEFAULT_LABEL: redis}
        if isinstance(namespaces, str):
            raise InvalidConfig("namespaces is a list of names, not one text")
        names = None if namespaces is None else list(namespaces)
        self._guard = Guard(authenticate, basic_auth, allowed_hosts)
        self._state = State(
            sources=Sources(redises, names, given),
            templates=environment(),
            jobs=Jobs(),
            audit=Audit(on_action),
            read_only=read_only,
            redact=redact,
            redact_text=redact_text,
        )
        self._static = StaticFiles(directory=HERE / "static")
        routes = [Route(path, self._page(page)) for path, page in pages.PAGES.items()]
        routes.append(
            Route("/n/{source}/{name}/do/{action}", self._page(actions.perform), methods=["POST"])
        )
        self._router = Router(routes, default=_not_found)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        scope.setdefault("state", {})
        request = Request(scope, receive)
        found = await self._guard.user_of(request)
        response: ASGIApp
        if isinstance(found, Response):
            response = found
        else:
            request.state.user = found
            response = self._router
        cached: dict[str, str] = {}
        if isinstance(found, User) and get_route_path(scope).startswith("/static/"):
            scope = {**scope, "root_path": scope.get("root_path", "") + "/static"}
            response = self._static
            cached["Cache-Control"] = "no-cache"  # asked for again, and mostly unchanged

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                headers = [
                    (name.lower().encode(), value.encode())
                    for name, value in (HEADERS | cached).items()
                    if name.lower().encode() not in given
                ]
                message = {**message, "headers": [*message["headers"], *headers]}
            await send(message)

        await response(scope, receive, send_with_headers)

    def _page(
        self, page: Callable[[Context], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            began = time.perf_counter()
            context = Context(request, self._state)
            try:
                await context.open()
                response = await page(context)
            except Stopped as stopped:
                response = stopped.response
            except NamespaceMismatch as error:  # it has been made anew with other partitions
                if context.place is not None:
                    await self._state.forget(context.place)
                response = context.failure(409, "The namespace has changed", str(error))
            except AuthenticationFailed as error:
                response = context.failure(403, "Redis refuses", str(error))
            except (InvalidConfig, InvalidTask) as error:
                response = context.failure(400, "This does not work", str(error))
            except RedisUnavailable as error:
                troubles = await context.troubles(error)
                text = "" if troubles else str(error)
                response = context.failure(503, "Redis can't be asked", text, troubles)
            except RedisAggError as error:
                response = context.failure(503, "Redis can't be asked", str(error))
            set_csrf_cookie(request, response)
            took = 1000 * (time.perf_counter() - began)
            response.headers["Server-Timing"] = f"page;dur={took:.1f}"
            return response

        return endpoint

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def close(self) -> None:
        """Stops what runs in the background, and closes the connections."""
        await self._state.close()


def under(path: str, dashboard: ASGIApp, app: ASGIApp) -> ASGIApp:
    """Mounts a dashboard in an ASGI app that can't mount others, such as Django's.

    Args:
        path: where the dashboard is, such as ``"/redisagg"``.
        dashboard: what `asgi` returned.
        app: what answers all other paths, and lifespan events.

    Raises:
        InvalidConfig: the path does not begin with a slash, or is nothing but that.
    """
    prefix = path.rstrip("/")
    if not prefix.startswith("/"):
        raise InvalidConfig(f"the path of a dashboard begins with a slash, not {path!r:.80}")

    async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
        root = scope.get("root_path", "")
        inner = scope.get("path", "").removeprefix(root)
        if scope["type"] == "lifespan" or not (inner == prefix or inner.startswith(f"{prefix}/")):
            await app(scope, receive, send)
            return
        # As ASGI has it: the path has the root path in it.
        below = {**scope, "root_path": root + prefix, "path": root + inner}
        if inner == prefix:
            below["path"] += "/"
        await dashboard(below, receive, send)

    return mounted


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("there is no such page\n", 404)(scope, receive, send)


def get_route_path(scope: Scope) -> str:
    """The path behind the root path, which servers may leave out of the path."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    if root and (path == root or path.startswith(f"{root}/")):
        return path[len(root) :]
    return path
