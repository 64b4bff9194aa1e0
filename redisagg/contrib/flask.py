"""redisagg in Flask: an extension with `init_app`, and `flask redisagg`; docs/flask.md."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

try:
    import click
    from flask import Flask
except ImportError as error:
    raise ImportError(
        "redisagg.contrib.flask needs Flask; install it with: pip install 'redisagg[flask]'"
    ) from error

from redisagg.app import App
from redisagg.config import GroupAggregator
from redisagg.contrib.framework import command_line_of, settings_of
from redisagg.errors import RedisAggError
from redisagg.merge_function import is_async
from redisagg.settings import PREFIX, Settings


class RedisAgg(App):
    """An `App` that takes its settings from the configuration of a Flask application.

    Aggregators may be defined before the application exists. Merge functions run in an application
    context. Settings of the configuration are named as environment variables, such as
    ``REDISAGG_URL``; those variables set what the configuration does not.

    Args:
        flask_app: the application; None if `init_app` gets it later.
        include: names of modules that define aggregators, as for `App`.

    Raises:
        InvalidConfig: a setting or an environment variable is wrong; the message names it.
        SinkError: the sink's URL needs a package that is not installed.
    """

    def __init__(self, flask_app: Flask | None = None, *, include: Sequence[str] = ()) -> None:
        super().__init__(settings=Settings.from_env(), include=include)
        self._flask_app: Flask | None = None
        if flask_app is not None:
            self.init_app(flask_app)

    def init_app(self, flask_app: Flask) -> None:
        """Takes the settings of an application, and adds the command ``flask redisagg`` to it.

        Of several applications, the last one counts.

        Args:
            flask_app: the application.

        Raises:
            InvalidConfig: a setting is wrong, or a flusher runs in this process.
            SinkError: the sink's URL needs a package that is not installed.
        """
        given = {
            name.removeprefix(PREFIX): value
            for name, value in flask_app.config.items()
            if name.startswith(PREFIX)
        }
        try:
            self.configure(settings_of(given))
        except RedisAggError as error:
            raise type(error)(f"the configuration of Flask, {PREFIX}…: {error}") from error
        self._flask_app = flask_app
        flask_app.extensions["redisagg"] = self
        flask_app.cli.add_command(_command(self))

    def _prepared(self, merge: GroupAggregator) -> GroupAggregator:
        function: Any = merge
        if is_async(merge):

            @functools.wraps(function)
            async def awaited(*arguments: Any) -> Any:
                with self._context():
                    return await function(*arguments)

            return awaited

        @functools.wraps(function)
        def called(*arguments: Any) -> Any:
            with self._context():
                return function(*arguments)

        return called

    def _context(self) -> AbstractContextManager[object]:
        return nullcontext() if self._flask_app is None else self._flask_app.app_context()


def _command(app: RedisAgg) -> click.Command:
    """Makes the command that hands its arguments on to the command line of redisagg."""

    @click.command(
        "redisagg",
        context_settings={"ignore_unknown_options": True},
        add_help_option=False,
        short_help="Run a command of redisagg, such as worker.",
    )
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def run(arguments: tuple[str, ...]) -> None:
        from redisagg.cli.app import cli
        from redisagg.cli.worker import DefaultTargets

        with command_line_of(app) as defaults:
            cli.main(
                arguments or ("--help",),
                prog_name="flask redisagg",
                default_map=defaults,
                obj=DefaultTargets((app,)),
            )

    return run
