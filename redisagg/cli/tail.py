"""The command that reads the queue of merged tasks, as JSON lines."""

from __future__ import annotations

import time
from contextlib import closing

import click
from click.core import ParameterSource

from redisagg.aggregator import Aggregator
from redisagg.cli.options import name_option, open_existing, redis_option
from redisagg.cli.output import print_json
from redisagg.sinks.base import Cursor, SinkPage
from redisagg.transport.endpoint import endpoint_of

_POLL_INTERVAL = 0.2  # seconds


@click.command()
@click.argument("sink")
@redis_option
@name_option
@click.option("--follow/--no-follow", default=True, help="Wait for more batches at the end.")
@click.option("--new", is_flag=True, help="Skip the batches that are there already.")
@click.option("-c", "--count", type=click.IntRange(1), help="Number of batches to stop after.")
@click.pass_context
def tail(
    context: click.Context,
    sink: str,
    redis_url: str,
    name: str,
    follow: bool,
    new: bool,
    count: int | None,
) -> None:
    """Print the batches in SINK (stream://NAME or list://NAME) as JSON lines; remove nothing.

    On Redis Cluster a queue has one key for each partition of the namespace: give its --name.
    """
    named = context.get_parameter_source("name") is not ParameterSource.DEFAULT
    if named or endpoint_of(redis_url).cluster:
        opened = open_existing(name, redis_url, sink)
    else:  # a queue in a single Redis belongs to no namespace
        opened = Aggregator(name, redis_url, sink=sink)
    with closing(opened) as aggregator:
        _print(aggregator, follow=follow, new=new, count=count)


def _print(aggregator: Aggregator, *, follow: bool, new: bool, count: int | None) -> None:
    page = _read(aggregator, None)
    if new:
        while page.batches:
            page = _read(aggregator, page.cursor)
    left = count
    while True:
        for batch in page.batches:
            print_json(batch)
            if left is not None:
                left -= 1
                if left == 0:
                    return
        if not page.batches:
            if not follow:
                return
            time.sleep(_POLL_INTERVAL)
        page = _read(aggregator, page.cursor)


def _read(aggregator: Aggregator, cursor: Cursor | None) -> SinkPage:
    try:
        return aggregator.read_sink(cursor)
    except ValueError as error:
        raise click.ClickException(
            f"the queue holds an entry that redisagg did not write, or the wrong format is given "
            f"({error}); check the sink's URL, such as stream://NAME?format=json"
        ) from error
