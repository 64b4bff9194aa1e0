"""Sinks by URL, for the command line and for settings: ``SCHEME://TARGET?OPTION=VALUE&...``.

Other packages add schemes through the entry-point group `redisagg.sinks`. The name of the entry
point is the scheme; the entry point is a function that takes a `SinkUrl` and returns a `Sink`, such
as the `from_url` of a class.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from redisagg.errors import InvalidConfig, SinkError
from redisagg.sinks.base import Sink
from redisagg.texts import redact_url

T = TypeVar("T")

_BUILT_IN = {
    "stream": "redisagg.sinks:StreamSink",
    "list": "redisagg.sinks:ListSink",
    "asynq": "redisagg.sinks:AsynqSink",
    "celery": "redisagg.sinks:CelerySink",
    "rq": "redisagg.sinks:RQSink",
    "arq": "redisagg.sinks:ArqSink",
    "dramatiq": "redisagg.sinks:DramatiqSink",
    "taskiq": "redisagg.sinks:TaskiqSink",
    "saq": "redisagg.sinks:SAQSink",
    "huey": "redisagg.sinks:HueySink",
    "streaq": "redisagg.sinks:StreaqSink",
    "bullmq": "redisagg.sinks:BullMQSink",
    "webhook+http": "redisagg.sinks:WebhookSink",
    "webhook+https": "redisagg.sinks:WebhookSink",
}
"""The class of each scheme, as MODULE:CLASS."""


class SinkUrl:
    """A URL of a sink, split into scheme, target and options.

    Args:
        url: the URL.

    Raises:
        InvalidConfig: `url` is not a valid URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            url.encode()  # a lone surrogate can't be part of a key
            parts = urlsplit(url)
        except ValueError:  # its text may quote a password
            raise InvalidConfig(f"{redact_url(url)} is not a valid URL") from None
        self.scheme = parts.scheme
        self.target = unquote(parts.netloc + parts.path)
        """The part between the scheme and the options."""
        self._options = dict(parse_qsl(parts.query, keep_blank_values=True))

    def option(self, name: str, convert: Callable[[str], T], default: Any = None) -> Any:
        """Removes an option from the URL and returns its value, or `default` if it is missing.

        Args:
            name: the name of the option.
            convert: converts the text of the option to its value.
            default: the value if the URL does not have the option.

        Raises:
            InvalidConfig: `convert` raised `ValueError`.
        """
        text = self._options.pop(name, None)
        if text is None:
            return default
        try:
            return convert(text)
        except ValueError:
            raise InvalidConfig(
                f"the value of {name} is not valid in {redact_url(self.url)}"
            ) from None

    def given(
        self, target: str | None = None, /, **converters: Callable[[str], Any]
    ) -> dict[str, Any]:
        """Removes options from the URL; returns those that it has as keyword arguments of a sink.

        Args:
            target: the argument that the target of the URL sets, unless the target is empty.
            **converters: for the name of each option, the function that converts its text.

        Raises:
            InvalidConfig: a function raised `ValueError`.
        """
        place = {target: self.target} if target and self.target else {}
        options = {
            name: self.option(name, convert)
            for name, convert in converters.items()
            if name in self._options
        }
        return {**place, **options}

    def required(self, name: str) -> str:
        """Removes an option from the URL and returns its text.

        Raises:
            InvalidConfig: the option is missing or empty.
        """
        text: str = self.option(name, str, "")
        if not text:
            raise InvalidConfig(f"a {self.scheme}:// URL needs the option {name}")
        return text

    def check_all_taken(self) -> None:
        """Raises `InvalidConfig` if options are left that no method has removed."""
        if self._options:
            unknown = ", ".join(sorted(self._options))
            if "@" in self.url:  # a password with & that is not escaped is cut into options
                unknown = "is an & in a password not percent-encoded?"
            raise InvalidConfig(f"{redact_url(self.url)} has an unknown option: {unknown}")


def sink_from_url(url: str) -> Sink:
    """The sink for a URL, such as ``stream://email-batches?format=json``.

    Args:
        url: ``SCHEME://TARGET?OPTION=VALUE&...``; docs/sinks lists the schemes.

    Raises:
        InvalidConfig: the scheme or an option is unknown, or a value is wrong.
        SinkError: the sink needs a package that is not installed.
    """
    parsed = SinkUrl(url)
    sink = _factory(parsed.scheme, url)(parsed)
    if not isinstance(sink, Sink):
        raise SinkError(
            f"the entry point for {parsed.scheme}:// returned {sink!r}; it has to return a Sink"
        )
    parsed.check_all_taken()
    return sink


def _factory(scheme: str, url: str) -> Callable[[SinkUrl], Any]:
    if scheme in _BUILT_IN:
        module, _, name = _BUILT_IN[scheme].partition(":")
        factory: Callable[[SinkUrl], Any] = getattr(import_module(module), name).from_url
        return factory
    for entry_point in entry_points(group="redisagg.sinks"):
        if entry_point.name == scheme:
            loaded: Callable[[SinkUrl], Any] = entry_point.load()
            return loaded
    known = ", ".join(f"{each}://" for each in sorted(_BUILT_IN))
    raise InvalidConfig(
        f"{redact_url(url)} names no sink; known are {known} and the schemes of plug-ins"
    )


def check_url(url: object, expected: str, *others: type) -> None:
    """Checks an argument that is the URL of a server, or an object in place of one.

    Args:
        url: the argument.
        expected: what the sink accepts, for the error, such as ``RQSink takes the URL of a Redis``.
        *others: the classes of the objects that it accepts instead.

    Raises:
        InvalidConfig: `url` is neither a `str` that is not empty nor of one of `others`.
    """
    if isinstance(url, str):
        if not url:
            raise InvalidConfig(f"{expected}, not an empty str")
    elif not isinstance(url, others):
        raise InvalidConfig(f"{expected}, not {type(url).__name__}")
