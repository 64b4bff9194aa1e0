"""The command that runs a flusher."""

from __future__ import annotations

import importlib
import logging
import os
import sys

import click
from click.core import ParameterSource
from rich.logging import RichHandler

from redisagg.aggregator import Aggregator
from redisagg.aggregator.aio import AsyncAggregator
from redisagg.cli.options import open_aggregator, partitions_option, redis_option
from redisagg.cli.output import printable, stderr
from redisagg.flusher.event_loop import run_in_new_loop


@click.command()
@click.argument("target")
@redis_option
@click.option("--sink", metavar="URL", help="URL of the sink, such as stream://email-batches.")
@partitions_option
@click.option("--concurrency", type=click.IntRange(1), help="Number of concurrent merges.")
@click.pass_context
def worker(
    context: click.Context,
    target: str,
    redis_url: str,
    sink: str | None,
    partitions: int | None,
    concurrency: int | None,
) -> None:
    """Run a flusher until SIGTERM or SIGINT; a second signal ends it at once.

    TARGET is MODULE:AGGREGATOR, an aggregator in Python code with its own settings, or the name of
    a namespace, which is flushed with the default merge function into --sink. --redis, --sink and
    --partitions belong to a name only.
    """
    module, colon, attribute = target.partition(":")
    if colon:
        _refuse_settings(context)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_log_handler()])
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs URLs, which may hold secrets
    aggregator: Aggregator | AsyncAggregator
    if colon:
        aggregator = load_aggregator(module, attribute)
    else:
        aggregator = open_aggregator(target, redis_url, partitions, sink=sink)
    click.echo(f"redisagg: flushing {printable(aggregator.name)!r}", err=True)
    running = aggregator.run(concurrency=concurrency)
    if running is not None:
        run_in_new_loop(running)  # waits for no thread that hangs


def _refuse_settings(context: click.Context) -> None:
    """Refuses the options that an aggregator in code has settings for."""
    given = [
        option.opts[0]
        for option in context.command.params
        if option.name in ("redis_url", "sink", "partitions")
        and context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(
            f"{' and '.join(given)} can't be given with MODULE:AGGREGATOR, which has settings of "
            "its own; change them in the module"
        )


def load_aggregator(module: str, attribute: str) -> Aggregator | AsyncAggregator:
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
