"""The settings that the aggregators of an app share, read from environment variables."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from redisagg.config import AggregationConfig
from redisagg.errors import InvalidConfig, RedisAggError
from redisagg.sinks import Sink, sink_from_url
from redisagg.sinks.routing import Route, check_sink
from redisagg.texts import shorten
from redisagg.transport.endpoint import endpoint_of

PREFIX = "REDISAGG_"
"""The start of the names of all environment variables."""

DEFAULT_URL = "redis://localhost:6379/0"

_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")

_LIKE_A_NAME = 0.87
"""How alike two names are, from 0 to 1, if one of them is probably a mistyped form of the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where the aggregators of an app are, and what they have in common.

    Args:
        url: URL of the Redis server, as for `Aggregator`.
        sink: destination of merged tasks, as for `Aggregator`. None (default): each aggregator has
            the stream ``NAME-batches``.
        config: settings of each aggregator that does not set its own.

    Raises:
        InvalidConfig: an argument is out of range or of the wrong type.
        SinkError: the sink's URL needs a package that is not installed.
    """

    url: str = field(default=DEFAULT_URL, repr=False)  # both may have a password
    sink: Sink | Route | str | None = field(default=None, repr=False)
    config: AggregationConfig = field(default_factory=AggregationConfig)

    def __post_init__(self) -> None:
        if not isinstance(self.url, str):
            raise InvalidConfig(f"url is the URL of a Redis server, not {type(self.url).__name__}")
        endpoint_of(self.url)
        if isinstance(self.sink, str):
            sink_from_url(self.sink)
        elif self.sink is not None:
            check_sink(self.sink)
        if not isinstance(self.config, AggregationConfig):
            raise InvalidConfig(
                f"config must be an AggregationConfig, not {type(self.config).__name__}"
            )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Reads the settings from environment variables.

        ``REDISAGG_URL`` and ``REDISAGG_SINK`` are URLs. For each setting of `AggregationConfig`
        that is no object of Python there is a variable such as ``REDISAGG_GROUP_MAX_SIZE``.
        Durations are seconds, and ``none`` is None. A variable that is empty counts as not set.

        Args:
            environ: the variables; `os.environ` if None.

        Raises:
            InvalidConfig: a variable has a wrong value, or its name is probably mistyped; the
                message names it.
            SinkError: the sink's URL needs a package that is not installed.
        """
        if environ is None:
            environ = os.environ
        given = {
            name.removeprefix(PREFIX).lower(): text.strip()
            for name, text in environ.items()
            if name.startswith(PREFIX) and text.strip()
        }
        _check_names(given)
        urls: dict[str, Any] = {name: given[name] for name in _URLS if name in given}
        for name, text in urls.items():
            named([name], partial(cls, **{name: text}))
        values = {name: _value(name, text) for name, text in given.items() if name in _READERS}
        config = named(list(values), partial(AggregationConfig, **values))
        return cls(**urls, config=config)


def variable(name: str) -> str:
    """Returns the name of the environment variable of a setting."""
    return PREFIX + name.upper()


def _seconds(text: str) -> float | None:
    return None if text.lower() == "none" else float(text)


def _whole_number(text: str) -> int | None:
    return None if text.lower() == "none" else int(text)


def _truth(text: str) -> bool:
    if text.lower() not in (*_TRUE, *_FALSE):
        raise ValueError
    return text.lower() in _TRUE


_BY_TYPE: dict[str, tuple[Callable[[str], Any], str]] = {
    "Duration": (_seconds, "a number of seconds"),
    "int": (_whole_number, "a whole number"),
    "bool": (_truth, "true or false"),
    "Literal": (str, "a word"),
}
"""For the type of a setting: what reads a text, and what the text is."""

_URLS = ("url", "sink")

_READERS = {
    each.name: _BY_TYPE[kind]
    for each in fields(AggregationConfig)
    if (kind := str(each.type).partition(" ")[0].partition("[")[0]) in _BY_TYPE
}
"""The settings that have a variable."""


def _check_names(given: Mapping[str, str]) -> None:
    """Raises `InvalidConfig` if a variable has no effect, although it looks like one of ours.

    Others are left alone: Kubernetes sets ``REDISAGG_PORT`` for a service ``redisagg``.
    """
    in_code = {each.name for each in fields(AggregationConfig)} - _READERS.keys()
    known = [*_URLS, *_READERS]
    for name in given:
        if name in in_code:
            raise InvalidConfig(
                f"{variable(name)} can't be set: {name} is an object of Python; pass it in code"
            )
        if name not in known and (like := difflib.get_close_matches(name, known, 1, _LIKE_A_NAME)):
            raise InvalidConfig(
                f"{variable(name)} is no setting; {variable(like[0])} is one: rename the variable"
            )


def _value(name: str, text: str) -> Any:
    read, what = _READERS[name]
    try:
        return read(text)
    except ValueError:
        raise InvalidConfig(f"{variable(name)} must be {what}, not {shorten(text)}") from None


def named(names: list[str], make: Callable[[], Any], label: Callable[[str], str] = variable) -> Any:
    """Makes something; puts before the message of an error which settings it is about.

    Args:
        names: the settings that are given.
        make: makes it of them.
        label: returns what a setting is called where it is given.

    Raises:
        RedisAggError: what `make` raised.
    """
    try:
        return make()
    except RedisAggError as error:
        about = [name for name in names if re.search(rf"\b{name}\b", str(error))] or names
        text = f"{' and '.join(map(label, about))}: {error}"
        raise type(error)(text) from error.__cause__
