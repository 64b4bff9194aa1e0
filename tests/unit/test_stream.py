"""The stream of a producer: which round is sent when, and how tasks wait for room."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redisagg.errors import AggregatorFull, KeyConflict, RedisUnavailable
from redisagg.producer import rounds
from redisagg.producer.room import Lines
from redisagg.producer.rounds import Round
from redisagg.producer.sequences import CallSequence
from redisagg.producer.stream import NO_RESULTS, Receive, Send, Sleep, Step, Steps, Stream
from redisagg.protocol.entries import EncodedTask
from tests.support.encoded import encoded, options_for

FULL = b"FULL max_pending_tasks"
LONG = 1_000.0
"""A `full_timeout`, seconds; nothing here really waits."""


@pytest.fixture(autouse=True)
def _small_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "STREAM_ROUND_TASKS", 3)


Statuses = list[Any]
Reply = Statuses | Exception
"""The reply to a call: a status for each section, or an error."""


class Driver:
    """Carries out the steps of a stream.

    Args:
        reply: returns the reply to a call with these sections, each the ids of its tasks.
    """

    def __init__(
        self, reply: Callable[[list[list[bytes]]], Reply], full_timeout: float = 0
    ) -> None:
        self.progress: list[int] = []
        options = options_for()
        self.lines = Lines(options, math.inf)
        self.stream = Stream(options, self.progress.append, full_timeout, self.lines)
        self.steps: list[Step] = []
        self._reply = reply
        self._in_flight: Round[EncodedTask] | None = None

    def put(self, *tasks: EncodedTask) -> None:
        for task in tasks:
            self.stream.filling.put(task, task)
            if self.stream.filling.full:
                self.carry_out(self.stream.send())

    def finish(self) -> None:
        self.carry_out(self.stream.finish())
        assert self._in_flight is None

    def carry_out(self, steps: Steps) -> None:
        with closing(steps), suppress(StopIteration):
            step = next(steps)
            while True:
                self.steps.append(step)
                step = steps.send(self._results(step))

    def _results(self, step: Step) -> Any:
        if isinstance(step, Send):
            assert self._in_flight is None
            self._in_flight = step.round_
        elif isinstance(step, Receive):
            assert self._in_flight is not None
            round_, self._in_flight = self._in_flight, None
            return round_.results(map(self._reply_to, round_.requests(CallSequence())))
        return NO_RESULTS

    def _reply_to(self, request: Any) -> Reply:
        args, sections = list(request.args[7:]), []
        while args:
            count = int(args[2])
            sections.append(args[3 : 3 + 2 * count : 2])
            del args[: 3 + 2 * count]
        return self._reply(sections)

    def kinds(self) -> list[type[Step]]:
        return [type(step) for step in self.steps]


def accept(sections: list[list[bytes]]) -> Statuses:
    return [len(section) for section in sections]


def test_one_round_is_in_flight_while_the_next_is_filled() -> None:
    driver = Driver(accept)
    driver.put(*(encoded("a", n) for n in range(3)))
    assert driver.kinds() == [Send]
    driver.put(*(encoded("a", n) for n in range(3, 5)))
    assert driver.kinds() == [Send]
    driver.put(encoded("a", 5))
    assert driver.kinds() == [Send, Receive, Send]
    assert driver.progress == [3]


def test_the_rest_is_sent_at_the_end() -> None:
    driver = Driver(accept)
    driver.put(*(encoded("a", n) for n in range(4)))
    driver.finish()
    assert driver.kinds() == [Send, Receive, Send, Receive]
    assert [len(step.round_) for step in driver.steps if isinstance(step, Send)] == [3, 1]
    assert driver.progress == [3, 4]


def test_nothing_is_sent_for_no_tasks() -> None:
    driver = Driver(accept)
    driver.finish()
    assert driver.steps == []


def test_the_first_refusal_is_raised_at_the_end_and_the_others_are_added() -> None:
    replies: list[Statuses] = [[b"WRONGTYPE first", 2], [b"WRONGTYPE second"], [1]]
    driver = Driver(lambda _: replies.pop(0))
    driver.put(encoded("a", 0), encoded("b", 1), encoded("b", 2))
    driver.put(*(encoded("a", n) for n in range(3, 7)))
    with pytest.raises(KeyConflict, match="first"):
        driver.finish()
    assert driver.progress == [2, 2, 3]


def test_a_round_trip_that_failed_ends_the_stream() -> None:
    driver = Driver(lambda _: RedisUnavailable("no reply"))
    driver.put(*(encoded("a", n) for n in range(5)))
    with pytest.raises(RedisUnavailable):
        driver.put(encoded("a", 5))
    assert driver.kinds() == [Send, Receive]
    assert driver.progress == []


def test_a_stream_that_does_not_wait_for_room_goes_on() -> None:
    replies: list[Statuses] = [[FULL], [1]]
    driver = Driver(lambda _: replies.pop(0))
    driver.put(*(encoded("a", n) for n in range(4)))
    with pytest.raises(AggregatorFull):
        driver.finish()
    assert driver.kinds() == [Send, Receive, Send, Receive]
    assert driver.progress == [0, 1]


def test_only_what_found_no_room_is_sent_again_before_anything_later() -> None:
    asked: list[list[list[bytes]]] = []
    replies: list[Statuses] = [[1, FULL], [FULL], [FULL], [2], [1]]

    def reply(sections: list[list[bytes]]) -> Statuses:
        asked.append(sections)
        return replies.pop(0)

    driver = Driver(reply, LONG)
    driver.put(encoded("a", 0), encoded("b", 1), encoded("b", 2), encoded("b", 3))
    driver.finish()
    again = [Send, Receive]
    assert driver.kinds() == [*again, *again, Sleep, *again, Sleep, *again, *again]
    assert asked == [[[b"0"], [b"1", b"2"]], *[[[b"1", b"2"]]] * 3, [[b"3"]]]
    assert all(0 <= step.seconds <= 1 for step in driver.steps if isinstance(step, Sleep))
    assert driver.progress == [1, 1, 1, 3, 4]


def test_tasks_of_a_group_with_a_line_wait_behind_it_and_others_are_sent() -> None:
    asked: list[list[list[bytes]]] = []

    def reply(sections: list[list[bytes]]) -> Statuses:
        asked.append(sections)
        if len(asked) == 1:  # what waits in the line of "a" is added meanwhile
            driver.lines.leave(b"a", earlier, time.monotonic())
        return accept(sections)

    driver = Driver(reply, LONG)
    earlier = driver.lines.enter(b"a", encoded("a", 9), time.monotonic() + LONG)
    driver.put(encoded("a", 0), encoded("b", 1), encoded("a", 2))
    driver.finish()
    assert asked == [[[b"1"]], [[b"0", b"2"]]]
    assert driver.progress == [1, 3]
    assert not driver.lines.by_group


def test_a_stream_that_waits_for_room_has_a_place_in_the_line_until_it_ends() -> None:
    driver = Driver(lambda _: [FULL], full_timeout=1e-9)
    lengths: list[int] = []

    def reply(sections: list[list[bytes]]) -> Statuses:
        lengths.append(len(driver.lines.by_group))
        return [FULL] * len(sections)

    driver._reply = reply
    driver.put(encoded("a", 0), encoded("b", 1), encoded("a", 2))
    with pytest.raises(AggregatorFull):
        driver.finish()
    assert lengths == [0, 2]
    assert not driver.lines.by_group


def test_a_stream_behind_a_line_that_does_not_move_ends_with_the_timeout() -> None:
    driver = Driver(accept, full_timeout=1e-9)
    driver.lines.enter(b"a", encoded("a", 9), time.monotonic() + LONG)
    with pytest.raises(AggregatorFull, match="earlier tasks"):
        driver.put(encoded("a", 0), encoded("b", 1), encoded("a", 2))
    assert driver.progress == [1, 1]


def test_waiting_for_room_ends_with_the_timeout() -> None:
    driver = Driver(lambda _: [FULL], full_timeout=1e-9)
    driver.put(*(encoded("a", n) for n in range(3)))
    with pytest.raises(AggregatorFull):
        driver.finish()
    assert driver.kinds() == [Send, Receive, Send, Receive]


def test_waiting_for_room_ends_when_a_round_trip_fails() -> None:
    replies: list[Reply] = [[FULL], RedisUnavailable("no reply")]
    driver = Driver(lambda _: replies.pop(0), LONG)
    driver.put(*(encoded("a", n) for n in range(3)))
    with pytest.raises(RedisUnavailable):
        driver.finish()
    assert driver.kinds() == [Send, Receive, Send, Receive]


@given(groups=st.lists(st.sampled_from("abc"), max_size=20), rooms=st.lists(st.booleans()))
def test_each_task_is_added_once_and_in_the_order_of_its_group(
    groups: list[str], rooms: list[bool]
) -> None:
    added: list[bytes] = []
    left = iter(rooms)

    def reply(sections: list[list[bytes]]) -> Statuses:
        statuses: Statuses = []
        for section in sections:
            if room := next(left, True):
                added.extend(section)
            statuses.append(len(section) if room else FULL)
        return statuses

    driver = Driver(reply, LONG)
    tasks = [encoded(group, number) for number, group in enumerate(groups)]
    driver.put(*tasks)
    driver.finish()
    assert sorted(map(int, added)) == list(range(len(tasks)))
    for group in "abc":
        own = [number for number, each in enumerate(groups) if each == group]
        assert [int(each) for each in added if int(each) in own] == own
    assert driver.progress[-1:] == [len(tasks)] * bool(tasks)
