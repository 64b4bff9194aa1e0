"""The system checks: what is wrong with the setting `REDISAGG` and the aggregators."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.core.checks import CheckMessage, Error, Warning

from redisagg.contrib.django.project import SETTING, project_app, read_settings
from redisagg.durations import seconds
from redisagg.errors import RedisAggError

_LONGEST = 5.0
"""Seconds that a request may reasonably wait for Redis."""


def check_settings(**options: Any) -> Iterable[CheckMessage]:
    """Reports a name or a value that is wrong, as E001."""
    try:
        read_settings()
    except RedisAggError as error:
        yield Error(f"The setting {SETTING}: {error}", id="redisagg.E001")


def check_aggregators(**options: Any) -> Iterable[CheckMessage]:
    """Reports aggregators whose merge functions would run where Django is not set up, as W001."""
    if any(check_settings()):
        return
    for each in project_app().aggregators.values():
        if each.config.executor == "process":
            yield Warning(
                f"The aggregator {each.name!r} has executor='process': its merge function runs in "
                "processes in which Django is not set up.",
                hint="Use executor='thread', or call django.setup() before its module imports "
                "models.",
                id="redisagg.W001",
            )


def check_timeout(**options: Any) -> Iterable[CheckMessage]:
    """Reports adds for which a request would wait long while Redis is away, as W002."""
    if any(check_settings()):
        return
    timeout = seconds(read_settings().config.add_timeout)
    if timeout > _LONGEST:
        yield Warning(
            f"A request that adds a task waits up to {timeout:g} seconds while Redis is away.",
            hint=f'Set {SETTING} = {{"ADD_TIMEOUT": 1, ...}}, and handle RedisUnavailable.',
            id="redisagg.W002",
        )
