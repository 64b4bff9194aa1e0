"""The command that reads the queue of merged tasks, as JSON lines."""

from __future__ import annotations

import math
import time
from contextlib import closing

import click
from click.core import ParameterSource

from redisagg.aggregator import Aggregator
from redisagg.cli.options import name_option, open_existing, redis_option
from redisagg.cli.output import print_json, printable
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
    page = aggregator.read_sink()
    left_out = 0
    if new:
        while page.batches or page.unreadable:
            page = aggregator.read_sink(page.cursor)
    left = math.inf if count is None else count
    while True:
        for entry in page.unreadable:
            click.echo(f"left out: {printable(entry, 200)}", err=True)
        left_out += len(page.unreadable)
        for batch in page.batches:
            print_json(batch)
            left -= 1
            if left == 0:
                break
        at_end = not page.batches and not page.unreadable
        if left == 0 or (at_end and not follow):
            break
        if at_end:
            time.sleep(_POLL_INTERVAL)
        page = aggregator.read_sink(page.cursor)
    if left_out:
        raise click.ClickException(
            f"{left_out} entries were left out: redisagg did not write them, or the wrong format "
            "is given; check the sink's URL, such as stream://NAME?format=json"
        )
