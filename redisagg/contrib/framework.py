"""What the extensions of web frameworks have in common: settings by name, and the command line."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from typing import Any

from redisagg.app import App
from redisagg.config import AggregationConfig
from redisagg.errors import InvalidConfig
from redisagg.settings import Settings, named, variable
from redisagg.texts import shorten

NAMES = (
    *("url", "sink"),
    *(each.name for each in fields(AggregationConfig) if each.name != "group_aggregator"),
)
"""The settings that a framework may set, as `Settings` and `AggregationConfig` call them."""


def settings_of(given: Mapping[str, Any]) -> Settings:
    """Makes settings from those of a framework; environment variables set what it does not.

    Args:
        given: values by the names of `NAMES` in capitals.

    Raises:
        InvalidConfig: a name or a value is wrong; the message names it.
        SinkError: the sink's URL needs a package that is not installed.
    """
    values: dict[str, Any] = {}
    for name, value in given.items():
        known = str(name).lower()
        if known not in NAMES or name != known.upper():
            like = difflib.get_close_matches(known, NAMES, 1)
            hint = f"; do you mean {like[0].upper()}?" if like else ""
            raise InvalidConfig(f"{shorten(name)} is no setting{hint}")
        values[known] = value
    settings = Settings.from_env()
    places = {name: values.pop(name) for name in ("url", "sink") if name in values}
    for name, value in places.items():
        settings = named([name], partial(replace, settings, **{name: value}), str.upper)
    config = named(list(values), partial(replace, settings.config, **values), str.upper)
    return replace(settings, config=config)


@contextmanager
def command_line_of(app: App) -> Iterator[Mapping[str, Any]]:
    """Has the commands of `redisagg` work on an app unless their options say otherwise.

    Returns:
        The `default_map` for the click context.
    """
    names = list(app.aggregators)
    defaults = {variable("url"): app.settings.url}
    if len(names) == 1:
        defaults[variable("name")] = names[0]
    before = {name: os.environ.get(name) for name in defaults}
    os.environ.update(defaults)
    try:
        yield {"exporter": {"names": names or ["default"]}}
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
