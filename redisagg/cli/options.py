"""Options that commands share, and the decorators that turn them into an aggregator."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, TypeVar

import click
from redis.exceptions import RedisError

from redisagg.aggregator import Aggregator
from redisagg.config import AggregationConfig
from redisagg.errors import RedisUnavailable
from redisagg.namespace import recorded_partitions
from redisagg.operations.removing import find_namespaces
from redisagg.sinks import Sink
from redisagg.transport.endpoint import close, endpoint_of
from redisagg.transport.threads import Transport

F = TypeVar("F", bound=Callable[..., Any])

_ANSWER_TIMEOUT = 5.0  # seconds to ask Redis for the number of partitions
_MOST_NAMES = 20  # namespaces that an error names

redis_option = click.option(
    "--redis",
    "redis_url",
    envvar="REDISAGG_URL",
    default="redis://localhost:6379/0",
    show_default=True,
    metavar="URL",
    help="Redis server; also redis+sentinel:// and redis+cluster://. [env: REDISAGG_URL]",
)
name_option = click.option(
    "-n",
    "--name",
    envvar="REDISAGG_NAME",
    default="default",
    show_default=True,
    help="Name of the namespace. [env: REDISAGG_NAME]",
)
partitions_option = click.option(
    "--partitions",
    type=click.IntRange(1, 4096),
    help="Number of partitions of a new namespace; by default the recorded number, else 16.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

_LIMITS = (
    click.option(
        "--grace",
        type=float,
        metavar="SECONDS",
        help="Seconds without a new task after which a group is due; 120 by default.",
    ),
    click.option(
        "--max-delay",
        type=float,
        metavar="SECONDS",
        help="Longest wait of a task until its group is due; 600 by default.",
    ),
    click.option(
        "--max-size",
        type=int,
        metavar="TASKS",
        help="Number of tasks at which a group is due at once; 20 by default.",
    ),
)


def limit_options(command: F) -> F:
    """Adds ``--grace``, ``--max-delay`` and ``--max-size``."""
    for option in reversed(_LIMITS):
        command = option(command)
    return command


def with_aggregator(command: Callable[..., None]) -> Callable[..., None]:
    """Adds ``--redis`` and ``--name``, and passes the aggregator that they describe.

    The command gets the aggregator as its first argument in place of these options. It fails if
    the namespace does not exist.
    """

    @redis_option
    @name_option
    @functools.wraps(command)
    def run(*, name: str, redis_url: str, **arguments: Any) -> None:
        with closing(open_existing(name, redis_url)) as aggregator:
            command(aggregator, **arguments)

    return run


def with_new_aggregator(command: Callable[..., None]) -> Callable[..., None]:
    """As `with_aggregator`, for a command that creates the namespace if it does not exist.

    Adds ``--partitions`` too. The aggregator also takes the options of `limit_options`, if the
    command has them.
    """

    @redis_option
    @name_option
    @partitions_option
    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        given = {name: arguments.pop(name) for name in _DESCRIBING if name in arguments}
        with closing(open_aggregator(**given)) as aggregator:
            command(aggregator, **arguments)

    return run


def argument_or_all(
    name: str, what: str, **attributes: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds an argument, and the option ``--all`` that may stand in its place.

    Args:
        name: name of the argument; the command gets None or () for it with ``--all``.
        what: noun for the argument, for messages.
        attributes: further attributes of the argument.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @click.argument(name, required=False, **attributes)
        @click.option("--all", "for_all", is_flag=True, help=f"Apply to all, in place of {what}.")
        @functools.wraps(command)
        def run(*, for_all: bool, **arguments: Any) -> None:
            if (arguments[name] in (None, ())) != for_all:
                raise click.UsageError(f"give either {what} or --all")
            command(**arguments)

        return run

    return decorate


def open_existing(name: str, redis_url: str, sink: str | None = None) -> Aggregator:
    """Makes an aggregator for a namespace that exists.

    Raises:
        click.ClickException: the namespace does not exist; the message lists those that do.
        RedisAggError: an option is wrong, or Redis can't be asked.
    """
    partitions = _recorded_partitions(name, redis_url)
    if partitions is None:
        raise click.ClickException(f"there is no namespace {name!r}; {_existing(redis_url)}")
    return open_aggregator(name, redis_url, partitions, sink=sink)


def _existing(redis_url: str) -> str:
    """Says which namespaces exist."""
    with client_of(redis_url) as client:
        try:
            names = find_namespaces(Transport(client, _ANSWER_TIMEOUT))
        except (RedisError, RedisUnavailable) as error:  # the user may have no right to SCAN
            return f"the names that there are can't be listed: {error}"
    shown = ", ".join(map(repr, names.found[:_MOST_NAMES]))
    if len(names.found) > _MOST_NAMES or (names.found and not names.complete):
        return f"some of those that exist: {shown}"
    if not names.complete:
        return "none was found in a part of the keys"
    return f"those that exist: {shown}" if shown else "none exists"


def open_aggregator(
    name: str,
    redis_url: str,
    partitions: int | None,
    *,
    sink: Sink | str | None = None,
    grace: float | None = None,
    max_delay: float | None = None,
    max_size: int | None = None,
) -> Aggregator:
    """Makes the aggregator that the options describe; an option that is None has its default.

    Raises:
        RedisAggError: an option is wrong, or Redis can't be asked for the number of partitions.
    """
    settings = {
        "group_grace_period": grace,
        "group_max_delay": max_delay,
        "group_max_size": max_size,
        "partitions": partitions or _recorded_partitions(name, redis_url),
    }
    given = {key: value for key, value in settings.items() if value is not None}
    return Aggregator(name, redis_url, config=AggregationConfig(**given), sink=sink)  # type: ignore[arg-type]


_DESCRIBING = frozenset(inspect.signature(open_aggregator).parameters)


def _recorded_partitions(name: str, redis_url: str) -> int | None:
    """Asks Redis for the number of partitions of a namespace; None if the namespace is new."""
    with client_of(redis_url) as client:
        return Transport(client, _ANSWER_TIMEOUT).once(recorded_partitions(name))


@contextmanager
def client_of(redis_url: str) -> Iterator[Any]:
    """A client of a Redis, for as long as the block runs."""
    client: Any = endpoint_of(redis_url).answering_within(_ANSWER_TIMEOUT).blocking()
    try:
        yield client
    finally:
        close(client)
