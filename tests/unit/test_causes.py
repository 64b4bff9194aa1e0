"""Errors of redis-py while the caller is handling another one, such as in an ``except`` block."""

from __future__ import annotations

import signal
import time

import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as LostConnection
from redis.retry import Retry

from redisagg.errors import RedisUnavailable
from redisagg.protocol.scripts import command
from redisagg.testing.embedded import _free_port
from redisagg.transport.causes import causes_of, keep_cause
from redisagg.transport.threads import Transport


class TimeLimit(Exception):
    """As that of Celery or rq."""


def unreachable() -> redis.Redis:
    return redis.Redis(port=_free_port(), retry=Retry(NoBackoff(), 0))


@pytest.mark.parametrize("handled", [TimeoutError(), TimeLimit("time is up"), OSError()])
def test_what_the_caller_is_handling_is_no_interruption(handled: Exception) -> None:
    transport = Transport(unreachable(), timeout=0.2)

    def handle(*_: object) -> None:
        raise handled

    before = signal.signal(signal.SIGALRM, handle)
    began = time.monotonic()
    try:
        signal.raise_signal(signal.SIGALRM)
    except type(handled):
        with pytest.raises(RedisUnavailable):
            transport.exchange([command("PING")])
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began >= 0.2  # it was retried


def test_an_error_that_is_raised_again_keeps_its_cause() -> None:
    handled = ValueError()
    try:
        raise handled
    except ValueError:
        with pytest.raises(LostConnection) as found:
            unreachable().ping()
        keep_cause(found.value)
        with pytest.raises(LostConnection) as again:
            raise found.value  # noqa: B904 - as tenacity does
    lost, refused = causes_of(again.value)
    assert isinstance(refused, ConnectionRefusedError)
    assert lost.__context__ is handled
