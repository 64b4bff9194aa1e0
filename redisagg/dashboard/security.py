"""Who may see and do what: authentication, CSRF tokens, host names, response headers."""

from __future__ import annotations

import base64
import binascii
import inspect
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from hmac import compare_digest
from typing import Any, TypeAlias

from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response

ANONYMOUS = "anonymous"

CSRF_COOKIE = "redisagg_csrf"
CSRF_FIELD = "csrf"

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Headers of every page. The policy allows no inline script or style, and no other host."""


@dataclass(frozen=True, slots=True)
class User:
    """Who looks at the dashboard."""

    name: str
    """For the audit log."""
    read_only: bool = False
    """Whether the user may look but change nothing."""


Authenticate: TypeAlias = Callable[
    [HTTPConnection], "User | str | Awaitable[User | str | None] | None"
]
"""A function of the request that returns the user, the name of one, or None to refuse."""


class Guard:
    """Decides who may come in.

    Args:
        authenticate: function of the request; None for no such function.
        basic_auth: passwords by user name, for HTTP basic authentication; None for none.
        hosts: names in the header ``Host`` that are answered; None for all. A site of another
            name that was made to point to this machine is refused.
    """

    def __init__(
        self,
        authenticate: Authenticate | None,
        basic_auth: Mapping[str, str] | None,
        hosts: Collection[str] | None,
    ) -> None:
        self._authenticate = authenticate
        self._passwords = {
            name.encode(): password.encode() for name, password in (basic_auth or {}).items()
        }
        self._basic = basic_auth is not None
        self._hosts = None if hosts is None else frozenset(each.lower() for each in hosts)

    @property
    def is_open(self) -> bool:
        """Whether everybody may come in."""
        return self._authenticate is None and not self._basic

    async def user_of(self, request: HTTPConnection) -> User | Response:
        """Returns the user, or the response that refuses the request."""
        if self._hosts is not None and _host_of(request) not in self._hosts:
            return PlainTextResponse("this host name is not served here\n", 421)
        if self._basic and (name := self._basic_user(request)) is not None:
            return User(name)
        if self._authenticate is not None:
            found: Any = self._authenticate(request)
            if inspect.isawaitable(found):
                found = await found
            if isinstance(found, str) and found:
                return User(found)
            if isinstance(found, User):
                return found
        if self.is_open:
            return User(ANONYMOUS)
        headers = {"WWW-Authenticate": 'Basic realm="redisagg", charset="UTF-8"'}
        return PlainTextResponse(
            "you are not signed in\n", 401, headers=headers if self._basic else None
        )

    def _basic_user(self, request: HTTPConnection) -> str | None:
        scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            given = base64.b64decode(encoded.strip(), validate=True)
        except (binascii.Error, ValueError):
            return None
        name, _, password = given.partition(b":")
        # As many comparisons whether the name is known or not.
        expected = self._passwords.get(name)
        fits = compare_digest(password, secrets.token_bytes(16) if expected is None else expected)
        return name.decode() if fits and expected is not None else None


def _host_of(request: HTTPConnection) -> str:
    host = request.headers.get("host", "").lower()
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


def csrf_token(request: HTTPConnection) -> str:
    """The token for forms: that of the cookie, or a new one that the response sets as a cookie."""
    token = request.cookies.get(CSRF_COOKIE, "")
    if len(token) < 32:
        known: str | None = getattr(request.state, "csrf", None)
        token = known or secrets.token_urlsafe(32)
    request.state.csrf = token
    return token


def set_csrf_cookie(request: HTTPConnection, response: Response) -> None:
    """Sets the cookie with the token that forms of this response have."""
    token: str | None = getattr(request.state, "csrf", None)
    if token is None or request.cookies.get(CSRF_COOKIE) == token:
        return
    response.set_cookie(
        CSRF_COOKIE,
        token,
        path=request.scope.get("root_path") or "/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )


def is_forged(request: Request, form: Mapping[str, list[str]]) -> bool:
    """Whether a form may come from another site.

    Its token has to be that of the cookie, which another site can neither read nor, with
    ``SameSite=Strict``, have sent. What the browser says of the origin has to agree.
    """
    cookie = request.cookies.get(CSRF_COOKIE, "")
    [token] = form.get(CSRF_FIELD, [""])[:1] or [""]
    if len(cookie) < 32 or not compare_digest(cookie.encode(), token.encode()):
        return True
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return True
    origin = request.headers.get("origin", "")
    if not origin:
        return False
    return origin.partition("://")[2].lower() != request.headers.get("host", "").lower()
