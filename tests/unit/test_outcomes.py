"""The exceptions by which a merge function says what is to become of its batch."""

from __future__ import annotations

import pickle
from datetime import timedelta
from email.utils import formatdate
from time import time
from typing import Any

import pytest

from redisagg import RetryAfter, Unavailable, Unrecoverable
from redisagg.errors import InvalidConfig
from redisagg.flusher.batch import Blame, Failure
from redisagg.sinks.webhook import _retry_after


def test_failures_of_these_errors() -> None:
    assert Failure.of(Unrecoverable("no")).permanent
    after = Failure.of(RetryAfter(timedelta(minutes=1)))
    assert (after.pause, after.blames, after.counts) == (60, Blame.BATCH, False)
    assert Failure.of(RetryAfter(0)).pause == 0.01
    assert Failure.of(RetryAfter(5, "aggregator")).blames is Blame.BUSY
    away = Failure.of(Unavailable("refused"))
    assert (away.blames, away.counts) == (Blame.AWAY, False)
    assert Failure.of(ValueError()).counts


def test_a_retry_after_survives_pickle() -> None:
    again = pickle.loads(pickle.dumps(RetryAfter(5, "group", "busy")))
    assert (again.seconds, again.scope, str(again)) == (5, "group", "busy")


@pytest.mark.parametrize("arguments", [(-1,), (float("nan"),), ("1",), (1e9,), (1, "all")])
def test_wrong_arguments_are_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidConfig):
        RetryAfter(*arguments)


@pytest.mark.parametrize(
    ("given", "wait"), [("7", 7), ("", None), ("soon", None), ("-1", None), ("99999999", 3600)]
)
def test_retry_after_in_seconds(given: str, wait: float | None) -> None:
    assert _retry_after({"retry-after": given}) == wait


def test_retry_after_as_a_date() -> None:
    wait = _retry_after({"retry-after": formatdate(time() + 60, usegmt=True)})
    assert wait is not None
    assert 57 <= wait <= 60
    assert _retry_after({"retry-after": formatdate(time() - 60, usegmt=True)}) == 0
