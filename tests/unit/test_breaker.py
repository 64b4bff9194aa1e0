"""When a breaker opens, what it lets through, and when it closes."""

from __future__ import annotations

from typing import Any

import pytest

from redisagg import AggregationConfig
from redisagg.flusher.backoff import break_delay
from redisagg.flusher.breaker import Breaker, Breakers, BreakerState
from redisagg.flusher.leader.sink_health import SinkHealth, failure_at
from redisagg.sinks.base import RedisQueue


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Setting:
    """A breaker that waits 10 s, 20 s, 30 s and so on, and notes how often it changed."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.changes = 0
        self.breaker = Breaker("Sink", lambda times: 10.0 * times, self._changed, self.clock)

    def _changed(self) -> None:
        self.changes += 1

    def fail(self, *batches: str) -> list[bool]:
        counted = []
        for batch in batches:
            admitted = self.breaker.admit()
            assert admitted is not None
            counted.append(self.breaker.failed(batch.encode(), admitted))
        return counted


@pytest.fixture
def s() -> Setting:
    return Setting()


def test_five_different_batches_in_a_row_open_it(s: Setting) -> None:
    assert s.fail("a", "b", "c", "d") == [True] * 4
    assert s.breaker.state is BreakerState.CLOSED
    assert s.fail("e") == [False]
    assert s.breaker.state is BreakerState.OPEN
    assert s.breaker.admit() is None
    assert s.breaker.reserve(1) == 0
    assert s.changes == 1


def test_one_batch_alone_never_opens_it(s: Setting) -> None:
    assert s.fail(*"a" * 100) == [True] * 100
    assert s.fail(*"abcd" * 20) == [True] * 80
    assert s.breaker.state is BreakerState.CLOSED


def test_a_success_between_starts_the_count_anew(s: Setting) -> None:
    for _ in range(10):
        assert all(s.fail(*"abcd"))
        s.breaker.succeeded()
    assert s.breaker.state is BreakerState.CLOSED
    assert s.changes == 0


def test_when_the_wait_is_over_a_few_are_let_through(s: Setting) -> None:
    s.fail(*"abcde")
    s.clock.now += 9.9
    assert s.breaker.state is BreakerState.OPEN
    s.clock.now += 0.1
    assert s.breaker.state is BreakerState.HALF_OPEN
    assert [s.breaker.reserve(3) for _ in range(4)] == [3, 3, 2, 0]
    s.breaker.unreserve(2)
    assert s.breaker.reserve(3) == 2
    assert [s.breaker.admit() is not None for _ in range(10)] == [True] * 8 + [False] * 2


def test_a_success_closes_it_and_the_next_wait_is_the_first_again(s: Setting) -> None:
    s.fail(*"abcde")
    s.clock.now += 10
    assert s.breaker.admit() is not None
    s.breaker.succeeded()
    assert s.breaker.state is BreakerState.CLOSED
    assert s.changes == 2
    s.fail(*"abcde")
    s.clock.now += 10
    assert s.breaker.state is BreakerState.HALF_OPEN


def test_a_failure_opens_it_again_for_longer(s: Setting) -> None:
    s.fail(*"abcde")
    s.clock.now += 10
    assert s.fail("a") == [False]
    assert s.breaker.state is BreakerState.OPEN
    s.clock.now += 19.9
    assert s.breaker.state is BreakerState.OPEN
    s.clock.now += 0.1
    assert s.breaker.state is BreakerState.HALF_OPEN


def test_a_result_from_before_it_opened_does_not_open_it_for_longer(s: Setting) -> None:
    late = [s.breaker.admit() for _ in range(3)]
    s.fail(*"abcde")
    for admitted in late:
        assert admitted is not None
        assert not s.breaker.failed(b"late", admitted)
    s.clock.now += 10
    assert s.breaker.state is BreakerState.HALF_OPEN
    assert late[0] is not None
    assert not s.breaker.failed(b"late", late[0])
    assert s.breaker.state is BreakerState.HALF_OPEN
    s.breaker.succeeded()
    assert s.breaker.failed(b"late", late[0])
    assert s.breaker.state is BreakerState.CLOSED


def test_probes_whose_result_never_comes_are_replaced(s: Setting) -> None:
    s.fail(*"abcde")
    s.clock.now += 10
    assert [s.breaker.admit() is not None for _ in range(9)] == [True] * 8 + [False]
    assert s.breaker.reserve(99) == 8
    s.clock.now += 10
    assert s.breaker.admit() is not None
    assert s.breaker.reserve(99) == 8


def test_what_was_claimed_as_a_probe_is_let_through_whatever_other_probes_found(s: Setting) -> None:
    s.fail(*"abcde")
    s.clock.now += 10
    assert s.fail("a") == [False]
    assert s.breaker.admit() is None
    admitted = s.breaker.admit(reserved=True)
    assert admitted is not None
    assert not s.breaker.failed(b"b", admitted)
    assert s.breaker.times_opened == 2
    s.clock.now += 20
    assert s.breaker.state is BreakerState.HALF_OPEN


def test_the_pause_lasts_until_others_are_let_through(s: Setting) -> None:
    s.fail(*"abcde")
    s.clock.now += 4
    assert all(6 < s.breaker.pause() <= 8.5 for _ in range(100))
    s.clock.now += 6
    for _ in range(8):
        s.breaker.admit()
    assert all(10 < s.breaker.pause() <= 12.5 for _ in range(100))


def test_it_says_when_it_changes(s: Setting, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "redisagg")
    s.fail(*"abcde")
    assert [s.breaker.admit() for _ in range(5)] == [None] * 5
    s.clock.now += 10
    assert [s.breaker.state for _ in range(3)] == [BreakerState.HALF_OPEN] * 3
    s.breaker.succeeded()
    s.breaker.succeeded()
    assert caplog.messages == [
        "Sink fails for all batches; nothing is sent to it for 10.0 s",
        "Sink is tried again",
        "Sink works again",
    ]


def test_a_wait_of_nothing_is_no_busy_loop() -> None:
    clock = Clock()
    breaker = Breaker("Sink", lambda times: 0.0, clock=clock)
    for batch in b"a", b"b", b"c", b"d", b"e":
        breaker.failed(batch, breaker.admit() or 0)
    assert breaker.state is BreakerState.OPEN
    assert breaker.pause() > 0


def test_each_sink_has_its_own() -> None:
    breakers = Breakers(lambda times: 1.0, lambda: None)
    assert breakers.of("a", "Sink") is breakers.of("a", "Sink")
    assert breakers.of("a", "Sink") is not breakers.of("b", "Sink")


def test_closed_ones_are_forgotten_and_open_ones_are_kept() -> None:
    breakers = Breakers(lambda times: 1000.0, lambda: None)
    broken = breakers.of("broken", "Sink")
    for batch in b"a", b"b", b"c", b"d", b"e":
        broken.failed(batch, broken.admit() or 0)
    for n in range(5_000):
        breakers.of(n, "Sink")
    assert len(breakers) == 1_000
    assert breakers.of("broken", "Sink") is broken
    assert breakers.of(4_999, "Sink") is breakers.of(4_999, "Sink")


def test_the_states_of_thousands_of_sinks_are_not_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked = 0
    state: Any = vars(Breaker)["state"].fget

    def counted(self: Breaker) -> BreakerState:
        nonlocal looked
        looked += 1
        result: BreakerState = state(self)
        return result

    sinks = SinkHealth(Breakers(lambda times: 1000.0, lambda: None), None, None)
    for n in range(900):
        sinks.breaker_for(RedisQueue("StreamSink", "commit_stream", [b"%d" % n], ()))
    monkeypatch.setattr(Breaker, "state", property(counted))
    for _ in range(100):
        assert sinks.states() == {BreakerState.CLOSED}
    assert looked < 200


def test_the_states_show_when_no_sink_works() -> None:
    sinks = SinkHealth(Breakers(lambda times: 1000.0, lambda: None), None, None)
    assert sinks.states() == set()
    known = [
        sinks.breaker_for(RedisQueue("StreamSink", "commit_stream", [key], ()))
        for key in (b"1", b"2")
    ]
    for number, breaker in enumerate(known):
        assert sinks.states() == {BreakerState.CLOSED}
        for batch in range(5):
            breaker.failed(b"%d %d" % (number, batch), breaker.admit() or 0)
    assert sinks.states() == {BreakerState.OPEN}
    known[0].succeeded()
    assert sinks.states() == {BreakerState.CLOSED}


def test_waits_grow_with_jitter_up_to_half_a_minute() -> None:
    config = AggregationConfig(retry_delay=1, retry_max_delay=300)
    for times, least, most in ((1, 1, 2), (2, 2, 3), (4, 8, 9), (6, 30, 30), (60, 30, 30)):
        assert all(least <= break_delay(config, times) <= most for _ in range(50))
    quick = AggregationConfig(retry_delay=1, retry_max_delay=3)
    assert break_delay(quick, 9) == 3


def test_a_sink_that_asks_for_time_gets_it_whatever_succeeds_meanwhile(s: Setting) -> None:
    s.breaker.hold(100)
    assert s.breaker.state is BreakerState.OPEN
    s.breaker.succeeded()  # it was under way
    s.clock.now += 99
    assert s.breaker.state is BreakerState.OPEN
    assert s.breaker.admit() is None
    s.clock.now += 1
    assert s.breaker.reserve(2) == 2
    s.breaker.succeeded()
    assert s.breaker.state is BreakerState.CLOSED
    assert s.changes == 2


def test_the_longest_time_that_a_sink_asks_for_counts(s: Setting) -> None:
    s.breaker.hold(100)
    s.breaker.hold(10)
    s.clock.now += 50
    assert s.breaker.state is BreakerState.OPEN
    s.breaker.hold(100)
    s.clock.now += 99
    assert s.breaker.state is BreakerState.OPEN


def test_the_delays_of_one_that_is_away_grow_until_a_success(s: Setting) -> None:
    assert [s.breaker.away(b"a", s.breaker.admit()) for _ in range(3)] == [10, 20, 30]
    assert s.breaker.troubled
    s.breaker.succeeded()
    assert not s.breaker.troubled
    assert s.breaker.away(b"a", s.breaker.admit()) == 10
    for batch in (b"b", b"c", b"d", b"e"):
        s.breaker.away(batch, s.breaker.admit())
    assert s.breaker.state is BreakerState.OPEN
    assert s.breaker.away(b"f", None) >= 10


def test_one_that_asks_for_no_time_is_no_busy_loop(s: Setting) -> None:
    s.breaker.hold(0)
    s.clock.now += 9.9
    assert s.breaker.state is BreakerState.OPEN
    s.clock.now += 0.1
    assert s.breaker.state is BreakerState.HALF_OPEN
    s.breaker.hold(0)  # again and again
    assert s.breaker.state is BreakerState.OPEN
    without_delay = Breaker("Sink", lambda times: 0.0, clock=s.clock)
    without_delay.hold(0)
    s.clock.now += 0.09
    assert without_delay.state is BreakerState.OPEN


def test_a_batch_that_is_kept_out_waits_for_half_a_minute_at_most(s: Setting) -> None:
    under_way = [s.breaker.admit() for _ in range(2)]
    s.breaker.hold(3600)
    assert s.breaker.state is BreakerState.OPEN
    assert all(30 < s.breaker.pause() <= 32.5 for _ in range(100))
    assert s.breaker.away(b"a", under_way[0]) <= 32.5
    failure = failure_at(s.breaker, b"b", under_way[1] or 0, ValueError("no"))
    assert not failure.counts
    assert (failure.pause or 99) <= 32.5
    s.clock.now += 3599
    assert s.breaker.admit() is None  # although batches are tried again
