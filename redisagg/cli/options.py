"""Options that commands share, and the decorators that turn them into an aggregator."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import closing
from typing import Any, TypeVar

import click

from redisagg.aggregator import Aggregator
from redisagg.config import AggregationConfig
from redisagg.namespace import recorded_partitions
from redisagg.sinks import Sink
from redisagg.transport.endpoint import close, endpoint_of
from redisagg.transport.threads import Transport

F = TypeVar("F", bound=Callable[..., Any])

_ANSWER_TIMEOUT = 5.0  # seconds to ask Redis for the number of partitions

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
    """Adds ``--redis``, ``--name`` and ``--partitions``, and passes the aggregator they describe.

    The command gets the aggregator as its first argument in place of these options, and in place
    of those of `limit_options` and of ``sink`` if it has them.
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
    client: Any = endpoint_of(redis_url).answering_within(_ANSWER_TIMEOUT).blocking()
    try:
        return Transport(client, _ANSWER_TIMEOUT).once(recorded_partitions(name))
    finally:
        close(client)
