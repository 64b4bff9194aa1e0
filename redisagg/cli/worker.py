"""The command that runs a flusher."""

from __future__ import annotations

import importlib
import os
import sys

import click
from click.core import ParameterSource

from redisagg.aggregator import Aggregator
from redisagg.aggregator.aio import AsyncAggregator
from redisagg.cli.exporter import metrics_options, serve_metrics_of
from redisagg.cli.logs import log_options, set_up_logs
from redisagg.cli.options import open_aggregator, partitions_option, redis_option
from redisagg.cli.output import printable
from redisagg.flusher.event_loop import run_in_new_loop


@click.command()
@click.argument("target")
@redis_option
@click.option("--sink", metavar="URL", help="URL of the sink, such as stream://email-batches.")
@partitions_option
@click.option("--concurrency", type=click.IntRange(1), help="Number of concurrent merges.")
@metrics_options
@log_options
@click.pass_context
def worker(
    context: click.Context,
    target: str,
    redis_url: str,
    sink: str | None,
    partitions: int | None,
    concurrency: int | None,
    metrics_port: int | None,
    metrics_address: str,
    log_level: str,
    log_format: str,
) -> None:
    """Run a flusher until SIGTERM or SIGINT; a second signal ends it at once.

    TARGET is MODULE:AGGREGATOR, an aggregator in Python code with its own settings, or the name of
    a namespace, which is flushed with the default merge function into --sink. --redis, --sink and
    --partitions belong to a name only.
    """
    module, colon, attribute = target.partition(":")
    if colon:
        _refuse_settings(context)
    set_up_logs(log_level, log_format)
    aggregator: Aggregator | AsyncAggregator
    if colon:
        aggregator = load_aggregator(module, attribute)
    else:
        aggregator = open_aggregator(target, redis_url, partitions, sink=sink)
    if metrics_port is not None:
        serve_metrics_of(aggregator, metrics_address, metrics_port)
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
