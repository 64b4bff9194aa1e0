"""Showing something again and again, until Ctrl-C."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from redisagg.cli.output import printable
from redisagg.errors import RedisUnavailable

F = TypeVar("F", bound=Callable[..., Any])


def watch_options(command: F) -> F:
    """Adds ``--watch`` and ``--count``."""
    for option in (
        click.option(
            "--count", type=click.IntRange(1), help="With --watch: end after this many times."
        ),
        click.option(
            "--watch",
            type=click.FloatRange(0.1, 3600),
            is_flag=False,
            flag_value=2.0,
            metavar="[SECONDS]",
            help="Show it again every 2 seconds, or as many as are given, until Ctrl-C.",
        ),
    ):
        command = option(command)
    return command


def repeat(show: Callable[[], None], watch: float | None, count: int | None) -> None:
    """Shows something once, or again and again if `watch` has the seconds between.

    While it is watched, an outage of Redis is one line and does not end it.

    Raises:
        click.UsageError: `count` is given without `watch`.
        RedisAggError: what `show` raises.
    """
    if watch is None:
        if count is not None:
            raise click.UsageError("--count goes with --watch")
        show()
        return
    shown = 0
    try:
        while True:
            if sys.stdout.isatty():
                click.clear()
            try:
                show()
            except RedisUnavailable as error:
                click.echo(printable(str(error)), err=True)
            shown += 1
            if shown == count:
                return
            time.sleep(watch)
    except KeyboardInterrupt:
        return
