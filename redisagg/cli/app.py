"""The command `redisagg`, with all its subcommands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

import redisagg
from redisagg.cli.admin import cancel, flush, groups, locate, pause, peek, postpone, resume
from redisagg.cli.batches import batches
from redisagg.cli.dashboard import dashboard
from redisagg.cli.dead import dead
from redisagg.cli.demo import demo
from redisagg.cli.doctor import doctor
from redisagg.cli.dump import export, import_
from redisagg.cli.exporter import exporter
from redisagg.cli.ingest import ingest
from redisagg.cli.namespaces import move, namespaces, remove, repartition
from redisagg.cli.output import printable
from redisagg.cli.policy import policy
from redisagg.cli.stats import stats
from redisagg.cli.tail import tail
from redisagg.cli.top import top
from redisagg.cli.why import why
from redisagg.cli.worker import worker
from redisagg.errors import RedisAggError
from redisagg.texts import redact


class _Cli(click.Group):
    """Shows errors of redisagg in one line with exit code 1, and control characters as escapes."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with _errors_shown_safely():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with _errors_shown_safely():
            return super().invoke(ctx)


@contextmanager
def _errors_shown_safely() -> Iterator[None]:
    try:
        yield
    except RedisAggError as error:
        raise click.ClickException(printable(redact(str(error)))) from error
    except UnicodeEncodeError as error:  # raised by Python's open()
        raise click.ClickException(f"a file name is not valid Unicode: {error.reason}") from error
    except click.ClickException as error:
        text = "\n".join(map(printable, redact(error.format_message()).split("\n")))
        # Subclasses build their text in different ways, so the method is replaced.
        vars(error)["format_message"] = lambda: text
        raise


@click.group(cls=_Cli, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(redisagg.__version__, prog_name="redisagg")
def cli() -> None:
    """Turn many small tasks into few large ones, on Redis."""


for command in (
    *(demo, ingest, worker, exporter, dashboard, tail),
    *(groups, peek, locate, why, batches, stats, top, doctor),
    *(flush, postpone, cancel, pause, resume, policy, dead),
    *(namespaces, remove, move, repartition, export, import_),
):
    cli.add_command(command)
