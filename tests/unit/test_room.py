"""The lines in which adds wait for room."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redisagg.errors import AggregatorFull, KeyConflict, RedisOutOfMemory
from redisagg.producer.room import Attempt, Line, Lines, Ticket
from redisagg.producer.rounds import AddResults
from tests.support.encoded import encoded, options_for

FULL = AggregatorFull("too much is pending")
LONG = 1_000.0
"""Seconds; nothing here really waits."""


def lines(patience: float = math.inf) -> Lines:
    return Lines(options_for(), patience)


def join(own: Lines, number: int, deadline: float = LONG, group: str = "g") -> Ticket:
    return own.enter(group.encode(), encoded(group, number), deadline)


def numbers(attempt: Attempt) -> list[int]:
    return [int(ticket.task.id) for ticket in attempt.round.waiters() if ticket.task]


def results(attempt: Attempt, error: Exception | None) -> AddResults[Ticket]:
    return iter([(list(attempt.round.waiters()), error)])


def attempt_of(ticket: Ticket, now: float) -> Attempt:
    attempt = ticket.step(now)
    assert isinstance(attempt, Attempt)
    return attempt


def test_the_first_ticket_tries_and_the_others_wait() -> None:
    own = lines()
    first, second = join(own, 1), join(own, 2)
    assert isinstance(second.step(0), float)
    attempt = attempt_of(first, 0)
    assert numbers(attempt) == [1]
    assert first.line.settle(attempt, results(attempt, None), 0)
    assert first.step(0) is None
    assert first.error is None
    assert numbers(attempt_of(second, 0)) == [2]


def test_a_line_is_of_one_group_and_ends_with_its_last_ticket() -> None:
    own = lines()
    first, other = join(own, 1), join(own, 2, group="h")
    attempt_of(first, 0)
    attempt_of(other, 0)
    own.leave(b"g", first, 0)
    assert list(own.by_group) == [b"h"]
    own.leave(b"h", other, 0)
    own.leave(b"h", other, 0)
    assert not own.by_group


def test_after_a_refusal_the_next_attempt_is_made_later_with_one_task() -> None:
    own = lines()
    tickets = [join(own, n) for n in range(4)]
    for error, expected in ((None, [0]), (FULL, [1, 2]), (None, [1]), (None, [2, 3])):
        sender = tickets[expected[0]]
        now = sender.line.not_before
        attempt = attempt_of(sender, now)
        assert numbers(attempt) == expected
        sender.line.settle(attempt, results(attempt, error), now)
        if error is not None:
            wait = sender.step(now)
            assert isinstance(wait, float)
            assert 0 < wait <= 0.02


def test_waits_grow_up_to_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda _, longest: longest)
    line = Line(options_for(), math.inf)
    waits = []
    for _ in range(12):
        line.refused(FULL, 5.0)
        waits.append(line.not_before - 5.0)
    assert waits[:3] == pytest.approx([0.02, 0.04, 0.08])
    assert waits[-1] == 1


def test_a_ticket_ends_at_its_deadline_with_the_last_refusal() -> None:
    own = lines()
    first, second = join(own, 1, deadline=5), join(own, 2, deadline=3)
    first.line.refused_outside(RedisOutOfMemory("OOM"), 0)
    assert second.step(2.5) == 0.5
    assert second.step(3) is None
    assert type(second.error) is RedisOutOfMemory
    assert isinstance(first.step(3), Attempt)


def test_a_ticket_whose_task_is_under_way_waits_for_the_result() -> None:
    own = lines()
    first = join(own, 1, deadline=3)
    attempt = attempt_of(first, 2)
    second = join(own, 2, deadline=3)
    assert isinstance(first.step(4), float)
    assert second.step(4) is None  # its task is not
    first.line.settle(attempt, results(attempt, FULL), 4)
    assert first.step(4) is None
    assert first.error is FULL


def test_another_refusal_ends_the_wait() -> None:
    own = lines()
    first = join(own, 1)
    attempt = attempt_of(first, 0)
    error = KeyConflict("WRONGTYPE")
    first.line.settle(attempt, results(attempt, error), 0)
    assert first.step(0) is None
    assert first.error is error


def test_the_attempt_of_an_interrupted_sender_is_sent_by_the_next_as_it_is() -> None:
    own = lines()
    first, second = join(own, 1), join(own, 2)
    woken: list[str] = []
    second.wake = lambda: woken.append("second")
    attempt = attempt_of(first, 0)
    own.leave(b"g", first, 0)
    assert woken
    assert attempt_of(second, 0) is attempt
    assert second.line.settle(attempt, results(attempt, None), 0)
    assert not second.line.settle(attempt, results(attempt, FULL), 0)  # of a sender that was late
    assert numbers(attempt_of(second, 0)) == [2]


@pytest.mark.parametrize(("patience", "again"), [(1.0, True), (math.inf, False)])
def test_what_a_sender_left_without_a_word_is_sent_again_after_its_deadline(
    patience: float, again: bool
) -> None:
    own = lines(patience)
    first, second = join(own, 1, deadline=5), join(own, 2, deadline=20)
    attempt = attempt_of(first, 0)
    assert isinstance(second.step(5.9), float)
    assert (second.step(6.1) is attempt) is again


def test_a_ticket_that_was_left_behind_is_passed_after_its_deadline() -> None:
    own = lines()
    join(own, 1, deadline=5)
    second = join(own, 2, deadline=20)
    assert isinstance(second.step(5.9), float)
    assert isinstance(second.step(6.1), Attempt)


def test_a_stream_sends_its_tasks_itself_and_those_before_and_behind_wait_for_it() -> None:
    own = lines()
    first = join(own, 1)
    stream = own.enter(b"g", None, LONG)
    last = join(own, 3)
    first.line._width = 9
    assert not stream.is_first(0)
    attempt = attempt_of(first, 0)
    assert numbers(attempt) == [1]
    own.leave(b"g", first, 0)
    assert not stream.is_first(0)  # the attempt is under way
    first.line.settle(attempt, results(attempt, None), 0)
    assert stream.is_first(0)
    assert isinstance(last.step(0), float)
    own.leave(b"g", stream, 0)
    assert numbers(attempt_of(last, 0)) == [3]


def test_a_forked_child_has_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    own = lines()
    join(own, 1)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert numbers(attempt_of(join(own, 2), 0)) == [2]


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    rooms=st.lists(st.integers(0, 9), max_size=30),
    left=st.sets(st.integers(0, 11)),
)
def test_tasks_are_added_in_the_order_of_the_line(
    sizes: list[int], rooms: list[int], left: set[int]
) -> None:
    """Whatever room there is at each attempt, and whoever is interrupted after sending."""
    own = lines()
    tickets = [join(own, number) for number in range(len(sizes))]
    whole = set(range(len(sizes))) - left
    added: list[int] = []
    room_left: Iterator[int] = iter(rooms)
    now = 0.0
    while own.by_group:
        now += 1
        for number, ticket in enumerate(tickets):
            if ticket.left:
                continue
            step = ticket.step(now)
            if step is None:
                own.leave(b"g", ticket, now)
            elif isinstance(step, Attempt) and number in left:
                left.discard(number)
                own.leave(b"g", ticket, now)
            elif isinstance(step, Attempt):
                sent = numbers(step)
                fits = sum(sizes[each] for each in sent) <= next(room_left, 100)
                if fits:
                    added += sent
                ticket.line.settle(step, results(step, None if fits else FULL), now)
    assert added == sorted(added)
    assert whole <= set(added)
    assert all(ticket.error is None for ticket in tickets)
