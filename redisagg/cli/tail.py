"""Reading what was enqueued, as JSON lines."""

from __future__ import annotations

import time

import click

from redisagg.cli.options import namespace_options, open_aggregator
from redisagg.cli.output import print_json
from redisagg.sinks.base import Cursor, SinkPage

_BETWEEN_LOOKS = 0.2  # seconds


@click.command()
@click.argument("sink")
@namespace_options
@click.option("--follow/--no-follow", default=True, help="Wait for more at the end.")
@click.option("--new", is_flag=True, help="Only what is enqueued from now on.")
@click.option("-c", "--count", type=click.IntRange(1), help="Stop after so many batches.")
def tail(
    sink: str,
    name: str,
    redis_url: str,
    partitions: int | None,
    follow: bool,
    new: bool,
    count: int | None,
) -> None:
    """Print the batches in SINK (stream://NAME or list://NAME) as JSON lines; remove nothing.

    On Redis Cluster a queue has one key for each partition of the namespace: give its --name.
    """
    aggregator = open_aggregator(name, redis_url, partitions, sink=sink)

    def read(cursor: Cursor | None) -> SinkPage:
        try:
            return aggregator.read_sink(cursor)
        except ValueError as error:
            what = f"{sink} holds what redisagg did not write: {error}"
            raise click.ClickException(what) from error

    page = read(None)
    if new:
        while page.batches:
            page = read(page.cursor)
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
            time.sleep(_BETWEEN_LOOKS)
        page = read(page.cursor)
