"""Options that commands share, and the aggregator that they describe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from redisagg.aggregator import Aggregator
from redisagg.config import AggregationConfig
from redisagg.sinks import Sink
from redisagg.transport.endpoint import close, endpoint_of
from redisagg.transport.failures import is_transient, translate_error

F = TypeVar("F", bound=Callable[..., Any])

redis_option = click.option(
    "--redis",
    "redis_url",
    envvar="REDISAGG_URL",
    default="redis://localhost:6379/0",
    show_default=True,
    metavar="URL",
    help="Where Redis is; also redis+sentinel:// and redis+cluster://. [env: REDISAGG_URL]",
)
name_option = click.option(
    "-n",
    "--name",
    envvar="REDISAGG_NAME",
    default="default",
    show_default=True,
    help="The namespace. [env: REDISAGG_NAME]",
)
partitions_option = click.option(
    "--partitions",
    type=click.IntRange(1, 4096),
    help="Number of partitions of a new namespace; by default what Redis has recorded, else 16.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

_LIMITS = (
    click.option("--grace", type=float, metavar="SECONDS", help="Grace period; 120 by default."),
    click.option("--max-delay", type=float, metavar="SECONDS", help="Max delay; 600 by default."),
    click.option("--max-size", type=int, metavar="TASKS", help="Max size; 20 by default."),
)


def namespace_options(command: F) -> F:
    """``--redis``, ``--name`` and ``--partitions``."""
    return redis_option(name_option(partitions_option(command)))


def limit_options(command: F) -> F:
    """``--grace``, ``--max-delay`` and ``--max-size``."""
    for option in reversed(_LIMITS):
        command = option(command)
    return command


def open_aggregator(
    name: str,
    redis_url: str,
    partitions: int | None,
    *,
    sink: Sink | str | None = None,
    grace: float | None = None,
    max_delay: float | None = None,
    max_size: int | None = None,
    concurrency: int | None = None,
) -> Aggregator:
    """The aggregator that the options describe; what is None has its default.

    Raises:
        RedisAggError: an option is wrong, or Redis can't be asked for the number of partitions.
    """
    settings = {
        "group_grace_period": grace,
        "group_max_delay": max_delay,
        "group_max_size": max_size,
        "concurrency": concurrency,
        "partitions": partitions or recorded_partitions(name, redis_url),
    }
    given = {key: value for key, value in settings.items() if value is not None}
    return Aggregator(name, redis_url, config=AggregationConfig(**given), sink=sink)  # type: ignore[arg-type]


def recorded_partitions(name: str, redis_url: str) -> int | None:
    """The number of partitions that a namespace was created with, or None if it is new."""
    client: Any = endpoint_of(redis_url).answering_within(5.0).blocking()
    try:
        recorded = client.hget(f"redisagg:{{{name}}}:meta", "partitions")
    except Exception as error:
        if is_transient(error):
            raise click.ClickException(f"Redis can't be reached: {error}") from error
        raise translate_error(error) from error
    finally:
        close(client)
    return int(recorded) if recorded else None
