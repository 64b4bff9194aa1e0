"""The command that serves the dashboard."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from redisagg.app.running import aggregators_of
from redisagg.cli.logs import log_options, set_up_logs
from redisagg.cli.output import printable
from redisagg.cli.worker import find_modules_here

if TYPE_CHECKING:
    from redisagg.dashboard import Dashboard

F = TypeVar("F", bound=Callable[..., Any])

_HOST = "127.0.0.1"
_PORT = 8470
_LABELLED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})=((?:rediss?|unix)\b.*)")


def address_options(command: F) -> F:
    """Adds ``--host`` and ``--port``."""
    for option in (
        click.option(
            "--port",
            type=click.IntRange(0, 65535),
            default=_PORT,
            show_default=True,
            help="Port of the dashboard; 0 for any.",
        ),
        click.option(
            "--host",
            default=_HOST,
            show_default=True,
            help="Address of the dashboard; 0.0.0.0 for all of this machine.",
        ),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("targets", metavar="[TARGET]...", nargs=-1)
@click.option(
    "--redis",
    "redis_urls",
    multiple=True,
    envvar="REDISAGG_URL",
    metavar="[LABEL=]URL",
    help="Redis server, as for the other commands; repeat it for several. [env: REDISAGG_URL]",
)
@click.option(
    "-n", "--name", "names", multiple=True, help="Show this namespace; repeatable. Default: all."
)
@address_options
@click.option("--read-only", is_flag=True, help="Show everything, change nothing.")
@click.option(
    "--basic-auth",
    multiple=True,
    envvar="REDISAGG_DASHBOARD_AUTH",
    metavar="USER:PASSWORD",
    help="Ask for this user and password; repeatable. [env: REDISAGG_DASHBOARD_AUTH]",
)
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="Host name by which browsers ask, such as that of a proxy; repeatable.",
)
@click.option("--root-path", default="", metavar="PATH", help="Path below which a proxy has it.")
@log_options
def dashboard(
    targets: tuple[str, ...],
    redis_urls: tuple[str, ...],
    names: tuple[str, ...],
    host: str,
    port: int,
    read_only: bool,
    basic_auth: tuple[str, ...],
    hosts: tuple[str, ...],
    root_path: str,
    log_level: str,
    log_format: str,
) -> None:
    """Serve pages that show namespaces and steer them, until SIGTERM or SIGINT.

    TARGET is MODULE:ATTRIBUTE, an aggregator or app in Python code: its limits are shown too, and
    dead letters can be tried with its merge function. Who did what is logged.
    """
    set_up_logs(log_level, log_format)
    check_ui()
    from redisagg.dashboard import asgi
    from redisagg.dashboard.serving import LOCAL_HOSTS, is_local

    local = is_local(host)
    users = _users(basic_auth)
    if targets:
        find_modules_here()
    app = asgi(
        _redises(redis_urls) or None,
        namespaces=names or None,
        aggregators=aggregators_of(targets) if targets else (),
        read_only=read_only,
        basic_auth=users or None,
        allowed_hosts=(*LOCAL_HOSTS, host, *hosts) if local or hosts else None,
    )
    if not local:
        who = "who has a password" if users else "who reaches this address"
        what = "see" if read_only else "see and change"
        click.echo(
            f"redisagg: warning: everybody {who} can {what} all namespaces, and payloads are sent "
            "without encryption; put a proxy with TLS in front"
            + ("" if users else ", or give --basic-auth"),
            err=True,
        )
    serve_until_signalled(app, host, port, _path(root_path))


def check_ui() -> None:
    """Raises `click.ClickException` if the extra ``ui`` is not installed."""
    try:
        import uvicorn  # noqa: F401

        import redisagg.dashboard  # noqa: F401
    except ImportError as error:
        raise click.ClickException(
            f"the dashboard needs the package {error.name!r}; install it with: "
            "pip install 'redisagg[ui]'"
        ) from error


def serve_until_signalled(app: Dashboard, host: str, port: int, root_path: str = "") -> None:
    """Serves a dashboard, and says where.

    Raises:
        click.ClickException: the address can't be used.
    """
    from redisagg.dashboard.serving import serve

    try:
        asyncio.run(serve(app, host, port, root_path=root_path, on_ready=say_where))
    except OSError as error:
        raise click.ClickException(f"{host}:{port} can't be used: {error}") from error
    except KeyboardInterrupt:  # uvicorn raises SIGINT again when it has ended
        return


def say_where(url: str) -> None:
    """Says where the dashboard is."""
    click.echo(f"redisagg: the dashboard is at {printable(url)}", err=True)


def _redises(given: tuple[str, ...]) -> dict[str, Any]:
    """The Redises by label."""
    from redisagg.dashboard.sources import DEFAULT_LABEL

    found: dict[str, Any] = {}
    for each in given:
        match = _LABELLED.fullmatch(each)
        label = match[1] if match else DEFAULT_LABEL
        if not match and given.index(each):
            label = f"{DEFAULT_LABEL}-{given.index(each) + 1}"
        if label in found:
            raise click.UsageError(f"two Redises have the label {label!r}")
        found[label] = match[2] if match else each
    return found


def _users(given: tuple[str, ...]) -> dict[str, str]:
    users: dict[str, str] = {}
    for each in given:
        user, colon, password = each.partition(":")
        if not user or not colon or not password:
            raise click.UsageError("--basic-auth takes USER:PASSWORD, neither of them empty")
        users[user] = password
    return users


def _path(given: str) -> str:
    stripped = given.strip("/")
    return f"/{stripped}" if stripped else ""
