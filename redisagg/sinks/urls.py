"""Sinks by URL, for the command line and settings: ``SCHEME://TARGET?OPTION=VALUE&...``.

Third parties add schemes through the entry-point group `redisagg.sinks`: the name of the entry
point is the scheme, and it is a function of a `SinkUrl` that returns a `Sink`, such as a class's
`from_url`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from redisagg.errors import InvalidConfig, SinkError
from redisagg.sinks.base import Sink

T = TypeVar("T")

_BUILT_IN = {
    "stream": "redisagg.sinks.redis.stream:StreamSink",
    "list": "redisagg.sinks.redis.list:ListSink",
    "asynq": "redisagg.sinks.asynq:AsynqSink",
    "celery": "redisagg.sinks.queues.celery:CelerySink",
    "rq": "redisagg.sinks.queues.rq:RQSink",
    "arq": "redisagg.sinks.queues.arq:ArqSink",
    "dramatiq": "redisagg.sinks.queues.dramatiq:DramatiqSink",
    "taskiq": "redisagg.sinks.queues.taskiq:TaskiqSink",
    "saq": "redisagg.sinks.queues.saq:SAQSink",
    "huey": "redisagg.sinks.queues.huey:HueySink",
    "streaq": "redisagg.sinks.queues.streaq:StreaqSink",
    "bullmq": "redisagg.sinks.queues.bullmq:BullMQSink",
    "webhook+http": "redisagg.sinks.webhook:WebhookSink",
    "webhook+https": "redisagg.sinks.webhook:WebhookSink",
}


class SinkUrl:
    """A URL of a sink, taken apart.

    Args:
        url: the URL.

    Raises:
        InvalidConfig: it is no URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            url.encode()  # a lone surrogate can't be part of a key
            parts = urlsplit(url)
        except ValueError as error:
            raise InvalidConfig(f"{url!r} is no URL: {error}") from None
        self.scheme = parts.scheme
        self.target = unquote(parts.netloc + parts.path)
        """What stands between the scheme and the options."""
        self._options = dict(parse_qsl(parts.query, keep_blank_values=True))

    def option(self, name: str, convert: Callable[[str], T], default: Any = None) -> Any:
        """Takes an option out; `default` if it is not there.

        Raises:
            InvalidConfig: `convert` raised ValueError for it.
        """
        text = self._options.pop(name, None)
        if text is None:
            return default
        try:
            return convert(text)
        except ValueError:
            raise InvalidConfig(f"{text!r} is no value for {name} in {self.url!r}") from None

    def required(self, name: str) -> str:
        """Takes an option out that has to be there.

        Raises:
            InvalidConfig: it is missing or empty.
        """
        text: str = self.option(name, str, "")
        if not text:
            raise InvalidConfig(f"a {self.scheme}:// URL needs the option {name}")
        return text

    def check_all_taken(self) -> None:
        """Raises `InvalidConfig` if an option is left: nobody knows it."""
        if self._options:
            unknown = ", ".join(sorted(self._options))
            raise InvalidConfig(f"{self.url!r} has an unknown option: {unknown}")


def sink_from_url(url: str) -> Sink:
    """The sink that a URL names, such as ``stream://email-batches?format=json``.

    Raises:
        InvalidConfig: the scheme or an option is unknown, or a value is wrong.
        SinkError: the sink needs a package that is not installed.
    """
    parsed = SinkUrl(url)
    sink = _factory(parsed.scheme, url)(parsed)
    if not isinstance(sink, Sink):
        raise SinkError(f"the entry point for {parsed.scheme}:// made no Sink but {sink!r}")
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
    raise InvalidConfig(f"{url!r} names no sink; known are {known} and what plug-ins add")


def require(module: str, extra: str) -> Any:
    """Imports a module that an extra brings.

    Raises:
        SinkError: it is not installed; says which extra to install.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise SinkError(
            f"this sink needs the package {module.partition('.')[0]!r}: "
            f"pip install 'redisagg[{extra}]'"
        ) from error
