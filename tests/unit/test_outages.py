"""An outage of Redis is two lines in the log, however many calls there are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import redis

from redisagg.transport.outages import Outage, outage_of
from tests.unit.test_breaker import Clock


class Setting:
    def __init__(self) -> None:
        self.clock = Clock()
        self.outage = Outage(self.clock)

    def fail(self, after: float = 0.0) -> None:
        self.clock.now += after
        outcome = SimpleNamespace(exception=lambda: OSError("gone"))
        state: Any = SimpleNamespace(outcome=outcome, seconds_since_start=0.5)
        self.outage.failed(state)


@pytest.fixture
def s(caplog: pytest.LogCaptureFixture) -> Setting:
    caplog.set_level("INFO", "redisagg")
    return Setting()


AWAY = "Redis does not acknowledge (gone); calls are repeated until it does"


def test_an_outage_is_two_lines(s: Setting, caplog: pytest.LogCaptureFixture) -> None:
    with s.outage.trying(), s.outage.trying():
        for _ in range(41):
            s.fail(after=1)
    assert caplog.messages == [AWAY, "Redis answers again after 40 s"]
    away, back = caplog.records
    assert {record.name for record in caplog.records} == {"redisagg.redis"}
    assert vars(away)["error"] == "gone"
    assert (vars(back)["event"], vars(back)["seconds"]) == ("RedisBack", 40.5)
    assert s.outage.since is None


def test_a_call_that_gives_up_does_not_end_it(s: Setting, caplog: pytest.LogCaptureFixture) -> None:
    def call() -> None:
        with s.outage.trying():
            s.fail()
            raise OSError("late")

    with pytest.raises(OSError, match="late"):
        call()
    assert caplog.messages == [AWAY]
    s.clock.now += 4
    s.outage.answered()  # a later call, at its first attempt
    assert caplog.messages[1:] == ["Redis answers again after 4.5 s"]


def test_it_goes_on_while_another_call_fails(s: Setting, caplog: pytest.LogCaptureFixture) -> None:
    """As with one master of a cluster, or with an add that waits for replicas."""
    with s.outage.trying():
        s.fail()
        for _ in range(5):
            s.outage.answered()
            s.fail(after=1)
    assert len(caplog.messages) == 2


def test_one_that_nobody_saw_end_is_over_after_a_minute(
    s: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    s.outage.trying().__enter__()  # an interrupted call may leave it so
    s.fail()
    s.fail(after=61)
    assert caplog.messages == [AWAY, AWAY]
    s.clock.now += 61
    s.outage.answered()
    assert caplog.messages[2:] == ["Redis answers again after 62 s"]


def test_short_ones_in_a_row_are_not_logged(s: Setting, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(20):
        with s.outage.trying():
            s.fail()
        s.clock.now += 0.01
    assert len(caplog.messages) == 2
    with s.outage.trying():
        s.fail()
        s.fail(after=1)  # this one is longer
    assert len(caplog.messages) == 4


def test_transports_to_one_server_share_their_outages() -> None:
    first, second = (redis.Redis(port=port) for port in (6379, 6379))
    kept = outage_of(first)
    assert outage_of(second) is kept
    assert outage_of(redis.Redis(port=6380)) is not kept
