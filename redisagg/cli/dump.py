"""The commands that write and read the tasks of a namespace as JSON lines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import click

from redisagg.cli.lines import uncompressed
from redisagg.cli.options import (
    client_of,
    json_option,
    name_option,
    partitions_option,
    redis_option,
)
from redisagg.cli.output import print_json
from redisagg.config import AggregationConfig
from redisagg.operations.dumping import Exported, export_lines, import_lines
from redisagg.protocol.keys import Keyspace
from redisagg.protocol.operations import ask
from redisagg.protocol.registration import NamespaceMoved, record, register
from redisagg.transport.threads import Transport

_SOME_LEFT_OUT = 3
_TIMEOUT = 60.0
"""Seconds for which a call is repeated while Redis does not answer."""


@contextmanager
def _opened(
    redis_url: str, name: str, partitions: int | None, *, create: bool
) -> Iterator[tuple[Transport, Keyspace]]:
    """Opens a namespace, where it was moved to if it was moved."""
    with client_of(redis_url) as client:
        transport = Transport(client, _TIMEOUT)
        _, recorded = transport.run(ask(record(Keyspace(name, 1))))
        if recorded is None and not create:
            raise click.ClickException(f"there is no namespace {name!r}")
        number = partitions or AggregationConfig().partitions
        if partitions is None and recorded is not None and recorded.isdigit():
            number = int(recorded)
        keyspace = Keyspace(name, number)
        try:
            transport.run(register(keyspace))
        except NamespaceMoved as moved:
            keyspace.become(moved.layout)
        yield transport, keyspace


@click.command()
@redis_option
@name_option
@click.argument("file", type=click.File("w", encoding="ascii"), default="-")
def export(redis_url: str, name: str, file: IO[str]) -> None:
    """Write all tasks that wait or are in flight to FILE, or to standard output, as JSON lines.

    Nothing is removed. What redisagg did not write is left out, and the exit code is 3. Dead
    letters and policies are not exported.
    """
    counts = Exported()
    with _opened(redis_url, name, None, create=False) as (transport, keyspace):
        for line in export_lines(transport, keyspace, counts):
            file.write(f"{line}\n")
    left_out = f", {counts.unreadable} left out" if counts.unreadable else ""
    click.echo(f"{counts.tasks} tasks{left_out}", err=True)
    if counts.unreadable:
        click.get_current_context().exit(_SOME_LEFT_OUT)


@click.command("import")
@redis_option
@name_option
@partitions_option
@click.argument("file", type=click.File("rb"), default="-")
@json_option
def import_(
    redis_url: str, name: str, partitions: int | None, file: IO[bytes], as_json: bool
) -> None:
    """Add the tasks of an export in FILE, or in standard input; gzip is decompressed.

    Tasks whose id waits in their group already are left out, so it can be repeated. Grace periods
    and max delays begin anew.
    """
    with _opened(redis_url, name, partitions, create=True) as (transport, keyspace):
        done = import_lines(transport, keyspace, uncompressed(file))
    if as_json:
        print_json({"added": done.added, "known": done.known})
    else:
        click.echo(f"{done.added} tasks added, {done.known} known already")
