"""The command that runs flushers."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import click
from click.core import ParameterSource

from redisagg.aggregator import Aggregator, AsyncAggregator
from redisagg.aggregator.together import AnyAggregator, run_together
from redisagg.app import App
from redisagg.app.running import aggregators_of
from redisagg.app.selection import select
from redisagg.app.targets import load
from redisagg.cli.exporter import metrics_options, serve_metrics_of
from redisagg.cli.logs import log_options, set_up_logs
from redisagg.cli.options import open_aggregator, partitions_option, redis_option
from redisagg.cli.output import printable


@dataclass(frozen=True)
class DefaultTargets:
    """As the `obj` of a click context: what `worker` runs without a TARGET."""

    targets: tuple[App, ...]


@click.command()
@click.argument("targets", metavar="TARGET...", nargs=-1)
@redis_option
@click.option("--sink", metavar="URL", help="URL of the sink, such as stream://email-batches.")
@partitions_option
@click.option("--only", multiple=True, metavar="NAME", help="Run this aggregator; repeatable.")
@click.option(
    "--concurrency", type=click.IntRange(1), help="Number of concurrent merges of each aggregator."
)
@click.option(
    "--reload",
    is_flag=True,
    help="Start anew when a Python file in the working directory changes; for development.",
)
@metrics_options
@click.option(
    "--otel",
    is_flag=True,
    help="Traces and metrics by OpenTelemetry; its SDK has to be set up.",
)
@log_options
@click.pass_context
def worker(
    context: click.Context,
    targets: tuple[str, ...],
    redis_url: str,
    sink: str | None,
    partitions: int | None,
    only: tuple[str, ...],
    concurrency: int | None,
    metrics_port: int | None,
    metrics_address: str,
    otel: bool,
    log_level: str,
    log_format: str,
    reload: bool,
) -> None:
    """Run flushers until SIGTERM or SIGINT; a second signal ends them at once.

    TARGET is MODULE:ATTRIBUTE, an app or an aggregator in Python code with its own settings, or the
    name of a namespace, which is flushed with the default merge function into --sink. All targets
    run in one process. --redis, --sink and --partitions belong to names only.
    """
    defaults = context.find_object(DefaultTargets)
    if not targets and defaults is None:
        raise click.UsageError("Missing argument 'TARGET...'.", context)
    if all(":" in target for target in targets):
        _refuse_settings(context)
    set_up_logs(log_level, log_format)
    if reload:
        _run_reloading()
        return

    def opened() -> Iterator[AnyAggregator]:
        if not targets and defaults is not None:
            yield from aggregators_of(defaults.targets)
        for target in targets:
            if ":" in target:
                yield from aggregators_of([target])
            else:
                yield open_aggregator(target, redis_url, partitions, sink=sink)

    find_modules_here()
    aggregators = select(opened(), only)
    names = ", ".join(repr(printable(each.name)) for each in aggregators)
    if metrics_port is not None:
        serve_metrics_of(aggregators, metrics_address, metrics_port)
    if otel:
        _watch_by_otel(aggregators)
    click.echo(f"redisagg: flushing {names}", err=True)
    run_together(aggregators, concurrency)


def _watch_by_otel(aggregators: Sequence[AnyAggregator]) -> None:
    """Traces aggregators, and counts what they do.

    Raises:
        click.ClickException: opentelemetry-api is not installed.
    """
    try:
        from redisagg.otel import Metrics, Tracing
    except ImportError as error:
        raise click.ClickException(str(error)) from error
    Tracing().watch(*aggregators)
    Metrics().watch(*aggregators)


def _run_reloading() -> None:
    """Runs this command without ``--reload``, and starts it anew after each change.

    Raises:
        click.ClickException: the extra is missing.
    """
    try:
        from watchfiles import PythonFilter, run_process
    except ImportError:
        raise click.ClickException(
            "--reload needs a package; install it with: pip install 'redisagg[reload]'"
        ) from None
    # All of it: the command may be one of another program, such as manage.py.
    arguments = [each for each in sys.orig_argv[1:] if each != "--reload"]
    command = [sys.executable, *arguments]
    # It turns SIGTERM into this exception, and catches that only while it waits for changes.
    with suppress(KeyboardInterrupt):
        run_process(
            ".", target=shlex.join(command), target_type="command", watch_filter=PythonFilter()
        )


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
            f"{' and '.join(given)} can't be given with MODULE:ATTRIBUTE, which has settings of "
            "its own; change them in the module"
        )


def load_aggregator(target: str) -> AnyAggregator:
    """Imports an aggregator; modules in the working directory are found too.

    Raises:
        InvalidConfig: it can't be imported, or is something else.
    """
    find_modules_here()
    found: object = load(target)
    if not isinstance(found, Aggregator | AsyncAggregator):
        raise click.ClickException(
            f"{target} is a {type(found).__name__}; give an Aggregator or AsyncAggregator"
        )
    return found


def find_modules_here() -> None:
    """Has imports find modules in the working directory."""
    sys.path.insert(0, os.getcwd())
