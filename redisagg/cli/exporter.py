"""Metrics for Prometheus: the command that exports what is in Redis, and those of a worker."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from redisagg.aggregator import Aggregator
from redisagg.aggregator.together import AnyAggregator
from redisagg.app.probe import Probe
from redisagg.cli.logs import log_options, set_up_logs
from redisagg.cli.options import open_existing, redis_option
from redisagg.cli.output import printable
from redisagg.flusher.run import Endings, Signals
from redisagg.views import Health

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

F = TypeVar("F", bound=Callable[..., Any])

_ANSWER_TIMEOUT = 5.0
"""Seconds that Redis has to answer. Prometheus waits for 10 by default."""

_ADDRESS = "127.0.0.1"


def metrics_options(command: F) -> F:
    """Adds ``--metrics-port`` and ``--metrics-address``."""
    for option in (
        click.option(
            "--metrics-address",
            default=_ADDRESS,
            show_default=True,
            help="Address of the metrics; 0.0.0.0 for all of this machine.",
        ),
        click.option(
            "--metrics-port",
            type=click.IntRange(0, 65535),
            help="Port at which Prometheus finds metrics of this worker; 0 for any.",
        ),
    ):
        command = option(command)
    return command


def serve_metrics_of(aggregators: Iterable[AnyAggregator], address: str, port: int) -> None:
    """Serves the metrics of aggregators until the process ends.

    Raises:
        click.ClickException: prometheus-client is not installed, or the address can't be used.
    """
    _check_extra()
    from redisagg.metrics import Metrics

    metrics = Metrics()
    aggregators = list(aggregators)
    for each in aggregators:
        metrics.watch(each)
    _serve(metrics, address, port, Probe(aggregators))


@click.command()
@redis_option
@click.option(
    "-n",
    "--name",
    "names",
    multiple=True,
    envvar="REDISAGG_NAME",
    default=("default",),
    show_default=True,
    help="Name of the namespace; repeat it for several. [env: REDISAGG_NAME]",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=9101,
    show_default=True,
    help="Port at which Prometheus finds the metrics; 0 for any.",
)
@click.option(
    "--address",
    default=_ADDRESS,
    show_default=True,
    help="Address of the metrics; 0.0.0.0 for all of this machine.",
)
@log_options
def exporter(
    redis_url: str, names: tuple[str, ...], port: int, address: str, log_level: str, log_format: str
) -> None:
    """Serve metrics of what is in Redis, for Prometheus, until SIGTERM or SIGINT.

    One exporter is enough for all workers and producers of a namespace. Workers have metrics of
    their own: see the option --metrics-port of the command worker.
    """
    set_up_logs(log_level, log_format)
    _check_extra()
    from redisagg.metrics import NamespaceCollector

    endings = Endings()
    with Signals(endings.report), ExitStack() as stack:
        aggregators = []
        for name in dict.fromkeys(names):
            with ExitStack() as opening:
                found = open_existing(name, redis_url)
                opening.callback(found.close)
                config = replace(found.config, add_timeout=_ANSWER_TIMEOUT)
            aggregators.append(Aggregator(name, redis_url, config=config))
            stack.callback(aggregators[-1].close)
        _serve(NamespaceCollector(*aggregators), address, port)
        endings.wait()


def _check_extra() -> None:
    try:
        import redisagg.metrics  # noqa: F401
    except ImportError as error:
        raise click.ClickException(str(error)) from error


def _serve(
    collector: Collector, address: str, port: int, health: Callable[[], Health] | None = None
) -> None:
    from prometheus_client import CollectorRegistry, ProcessCollector

    from redisagg.metrics.server import MetricsServer

    registry = CollectorRegistry()
    registry.register(collector)
    ProcessCollector(registry=registry)
    try:
        server = MetricsServer(registry, address, port, health)
    except OSError as error:
        raise click.ClickException(
            f"{address}:{port} can't be used for metrics: {error}"
        ) from error
    server.start()
    host, bound = server.server_address[:2]
    click.echo(f"redisagg: metrics at http://{printable(str(host))}:{bound}/metrics", err=True)
