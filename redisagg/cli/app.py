"""The command `redisagg` and its subcommands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

import redisagg
from redisagg.cli.admin import cancel, flush, groups, pause, peek, resume, stats
from redisagg.cli.dead import dead
from redisagg.cli.demo import demo
from redisagg.cli.ingest import ingest
from redisagg.cli.output import printable
from redisagg.cli.tail import tail
from redisagg.cli.worker import worker
from redisagg.errors import RedisAggError


class _Cli(click.Group):
    """Turns our errors into one line and exit code 1, and shows none as it came from outside."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with _shown_safely():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with _shown_safely():
            return super().invoke(ctx)


@contextmanager
def _shown_safely() -> Iterator[None]:
    try:
        yield
    except RedisAggError as error:
        raise click.ClickException(printable(str(error))) from error
    except UnicodeEncodeError as error:  # the shell hands on bytes that are not UTF-8
        raise click.ClickException(f"an argument is not valid Unicode: {error.reason}") from error
    except click.ClickException as error:
        text = "\n".join(map(printable, error.format_message().split("\n")))
        # Each kind of them makes its text of other parts.
        vars(error)["format_message"] = lambda: text
        raise


@click.group(cls=_Cli, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(redisagg.__version__, prog_name="redisagg")
def cli() -> None:
    """Turns many small tasks into few large ones, on Redis."""


for command in (demo, ingest, worker, tail):
    cli.add_command(command)
for command in (groups, peek, stats, flush, cancel, pause, resume, dead):
    cli.add_command(command)
