"""The command that runs a flusher."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import sys

import click
from rich.logging import RichHandler

from redisagg.aggregator import Aggregator
from redisagg.aggregator.aio import AsyncAggregator
from redisagg.cli.options import limit_options, open_aggregator, partitions_option, redis_option
from redisagg.cli.output import printable, stderr


@click.command()
@click.argument("target")
@redis_option
@click.option("--sink", metavar="URL", help="URL of the sink, such as stream://email-batches.")
@partitions_option
@click.option("--concurrency", type=click.IntRange(1), help="Number of concurrent merges.")
@limit_options
def worker(
    target: str,
    redis_url: str,
    sink: str | None,
    partitions: int | None,
    concurrency: int | None,
    grace: float | None,
    max_delay: float | None,
    max_size: int | None,
) -> None:
    """Run a flusher until SIGTERM or SIGINT; a second signal ends it at once.

    TARGET is MODULE:AGGREGATOR, an aggregator in Python code with its own settings, or the name of
    a namespace, which is flushed with the default merge function into --sink.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_log_handler()])
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs URLs, which may hold secrets
    module, colon, attribute = target.partition(":")
    aggregator: Aggregator | AsyncAggregator
    if colon:
        aggregator = _load(module, attribute)
    else:
        aggregator = open_aggregator(
            target,
            redis_url,
            partitions,
            sink=sink,
            grace=grace,
            max_delay=max_delay,
            max_size=max_size,
        )
    click.echo(f"redisagg: flushing {printable(aggregator.name)!r}", err=True)
    running = aggregator.run(concurrency=concurrency)
    if running is not None:
        asyncio.run(running)


def _load(module: str, attribute: str) -> Aggregator | AsyncAggregator:
    """Imports an aggregator; modules in the working directory are found too."""
    sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise click.ClickException(
            f"{module}:{attribute} can't be loaded: {error}; give MODULE:ATTRIBUTE of an aggregator"
        ) from error
    if not isinstance(found, Aggregator | AsyncAggregator):
        raise click.ClickException(
            f"{module}:{attribute} is a {type(found).__name__}; give an Aggregator or "
            "AsyncAggregator"
        )
    return found


class _SafeFormatter(logging.Formatter):
    """Escapes control characters in log lines, since these name groups."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


def _log_handler() -> logging.Handler:
    console = stderr()
    if not console.is_terminal:
        handler: logging.Handler = logging.StreamHandler()
        handler.setFormatter(_SafeFormatter("%(asctime)s %(levelname)s %(message)s"))
        return handler
    handler = RichHandler(console=console, markup=False, show_path=False)
    handler.setFormatter(_SafeFormatter("%(message)s"))
    return handler
