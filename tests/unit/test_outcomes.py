"""The exceptions by which a merge function says what is to become of its batch."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import timedelta
from email.utils import formatdate
from time import time
from typing import Any

import pytest

from redisagg import RetryAfter, Unavailable, Unrecoverable
from redisagg.errors import InvalidConfig
from redisagg.flusher.batch import Blame, Failure
from redisagg.flusher.breaker import Breaker, BreakerState
from redisagg.flusher.leader.sink_health import failure_at
from redisagg.sinks.webhook import _retry_after


def test_failures_of_these_errors() -> None:
    assert Failure.of(Unrecoverable("no")).permanent
    after = Failure.of(RetryAfter(timedelta(minutes=1)))
    assert (after.pause, after.blames, after.counts) == (60, Blame.BATCH, False)
    assert Failure.of(RetryAfter(0)).pause == 0.1
    assert Failure.of(RetryAfter(5, "aggregator")).blames is Blame.BUSY
    away = Failure.of(Unavailable("refused"))
    assert (away.blames, away.counts) == (Blame.AWAY, False)
    assert Failure.of(ValueError()).counts


def test_a_retry_after_survives_pickle() -> None:
    again = pickle.loads(pickle.dumps(RetryAfter(5, "group", "busy")))
    assert (again.seconds, again.scope, str(again)) == (5, "group", "busy")


class Throttled(RetryAfter):
    """As users write one: its constructor does not call that of `RetryAfter`."""

    def __init__(self, status: int, **attributes: Any) -> None:
        self.status = status
        self.__dict__.update(attributes)


@pytest.mark.parametrize(
    ("attributes", "pause", "blames"),
    [
        ({}, 1, Blame.BATCH),
        ({"seconds": 5}, 5, Blame.BATCH),
        ({"seconds": timedelta(minutes=1), "scope": "aggregator"}, 60, Blame.BUSY),
        ({"seconds": 0}, 0.1, Blame.BATCH),
        ({"seconds": "soon", "scope": "everywhere"}, 1, Blame.BATCH),
        ({"seconds": None}, 1, Blame.BATCH),
        ({"seconds": float("nan")}, 1, Blame.BATCH),
        ({"seconds": 1e300}, 1, Blame.BATCH),
    ],
)
def test_a_subclass_may_set_what_it_likes(
    attributes: dict[str, Any], pause: float, blames: Blame
) -> None:
    error = Throttled(429, **attributes)
    failure = Failure.of(error)
    assert (failure.pause, failure.blames, failure.counts) == (pause, blames, False)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.status, again.args) == (Throttled, 429, error.args)
    breaker = Breaker("Sink", lambda times: 1.0)
    assert failure_at(breaker, b"1", 0, error) == failure
    assert (breaker.state is BreakerState.OPEN) is (blames is Blame.BUSY)


class Hostile(RetryAfter):
    """Can't be read."""

    def __init__(self) -> None:
        pass

    def __getattribute__(self, name: str) -> Any:
        raise SystemExit(name)

    def __str__(self) -> str:
        raise SystemExit("no text")


def odd_syntax_error() -> SyntaxError:
    """One whose traceback Python can't format."""
    error = SyntaxError("odd")
    error.lineno, error.text = 1, 5  # type: ignore[assignment]
    return error


@pytest.mark.parametrize("make", [Hostile, odd_syntax_error])
def test_a_failure_can_be_made_of_any_exception(make: Callable[[], Exception]) -> None:
    error = make()
    failure = Failure.of(error)
    assert failure.error.startswith(type(error).__name__)
    assert failure_at(Breaker("Sink", lambda times: 1.0), b"1", 0, error) == failure


def test_only_what_may_become_a_dead_letter_has_a_traceback() -> None:
    assert "ValueError" in Failure.of(ValueError("no")).traceback
    assert not Failure.of(Unavailable("away")).traceback
    assert not Failure.of(RetryAfter(1)).traceback


@pytest.mark.parametrize("arguments", [(-1,), (float("nan"),), ("1",), (1e9,), (1, "all")])
def test_wrong_arguments_are_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidConfig):
        RetryAfter(*arguments)


@pytest.mark.parametrize(
    ("given", "wait"),
    [
        *(("7", 7), ("1", 1), ("99999999", 3600), ("9" * 400, 3600)),
        *((given, None) for given in ("", "soon", "-1", "0", "00", "0.5", "\u0667")),
    ],
)
def test_retry_after_in_seconds(given: str, wait: float | None) -> None:
    assert _retry_after({"retry-after": given}) == wait


def test_retry_after_as_a_date() -> None:
    wait = _retry_after({"retry-after": formatdate(time() + 60, usegmt=True)})
    assert wait is not None
    assert 57 <= wait <= 60
    for past in (0, 60, 1e8):
        assert _retry_after({"retry-after": formatdate(time() - past, usegmt=True)}) is None
