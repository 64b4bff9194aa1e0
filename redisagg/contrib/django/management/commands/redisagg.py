"""`manage.py redisagg`: all commands of the command line, with the settings of the project."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from redisagg.contrib.django.project import project_app
from redisagg.contrib.framework import command_line_of


class Command(BaseCommand):
    """Hands its arguments on to the command line of redisagg."""

    help = (
        "Runs a command of redisagg with the settings of the project, such as: manage.py redisagg "
        "worker. Without a TARGET, worker runs all aggregators of the project. Without arguments "
        "it lists the commands."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Takes all that follows the name of the command."""
        parser.add_argument(
            "arguments",
            nargs=argparse.REMAINDER,
            metavar="COMMAND ...",
            help="A command of redisagg with its arguments; each has --help.",
        )

    def handle(self, *positional: Any, **options: Any) -> None:
        """Runs the command.

        Raises:
            CommandError: it failed, or click is not installed.
        """
        try:
            import click

            from redisagg.cli.app import cli
            from redisagg.cli.worker import DefaultTargets
        except ImportError as error:
            raise CommandError(
                f"manage.py redisagg needs the package {error.name!r}; install it with: "
                "pip install 'redisagg[django]'"
            ) from error
        arguments = _without_django([*positional, *options["arguments"]])
        app = project_app()
        with command_line_of(app) as defaults:
            try:
                code = cli.main(
                    arguments or ["--help"],
                    prog_name="manage.py redisagg",
                    standalone_mode=False,
                    default_map=defaults,
                    obj=DefaultTargets((app,)),
                )
            except click.UsageError as error:
                usage = f"{error.ctx.get_usage()}\n" if error.ctx else ""
                raise CommandError(
                    f"{usage}{error.format_message()}", returncode=error.exit_code
                ) from error
            except click.ClickException as error:
                raise CommandError(error.format_message(), returncode=error.exit_code) from error
            except click.Abort as error:
                raise CommandError("aborted") from error
        if isinstance(code, int) and code:
            sys.exit(code)


def _without_django(arguments: list[str]) -> list[str]:
    """Removes the options that Django has read already, which may stand anywhere."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--settings")
    parser.add_argument("--pythonpath")
    return parser.parse_known_args(arguments)[1]
