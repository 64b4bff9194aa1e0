"""What goes into the calls of a round trip, and what their replies mean."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from redisagg import Policy
from redisagg.errors import AggregatorFull, RedisUnavailable
from redisagg.producer import rounds
from redisagg.producer.options import (
    MAX_CALL_BYTES,
    MAX_CALL_TASKS,
    AddOptions,
    LimitsOfOthers,
)
from redisagg.producer.rounds import COMMIT_ROUND_TASKS, Round
from redisagg.producer.sequences import CallSequence
from redisagg.protocol.entries import EncodedTask
from tests.support.encoded import encoded, options_for


def filled(options: AddOptions, tasks: Iterable[EncodedTask]) -> Round[EncodedTask]:
    round_: Round[EncodedTask] = Round(options, COMMIT_ROUND_TASKS)
    for task in tasks:
        round_.put(task, task)
    return round_


def test_each_partition_has_its_share_of_a_limit() -> None:
    options = options_for(4, max_pending_tasks=80, max_pending_bytes=8_000, max_task_bytes=1_000)
    assert options.shares[:2] == (20, 2_000)
    assert options.shares[3:] == (5, 500)
    assert options_for(4, max_pending_tasks=4).shares.call_tasks == 1
    unlimited = options_for(4)
    assert unlimited.shares[:2] == (0, 0)
    assert unlimited.shares[3:] == (MAX_CALL_TASKS, MAX_CALL_BYTES)


def test_a_call_has_a_section_for_each_group_and_its_limits() -> None:
    options = options_for(max_pending_tasks=80, dedupe_window=1)
    tasks = [encoded("a", 0), encoded("b", 1), encoded("a", 2), encoded("a", 3, b"others")]
    tasks.append(encoded("a", 4))  # not in the section of task 2: the order would be lost
    sequence = CallSequence()
    [request] = filled(options, tasks).requests(sequence)
    partition = options.keyspace.partitions[0]
    assert request.keys[4] == partition.call(sequence.id)
    sections = [
        *(b"a", b"limits", b"2", b"0", b"x", b"2", b"x"),
        *(b"b", b"limits", b"1", b"1", b"x"),
        *(b"a", b"others", b"1", b"3", b"x"),
        *(b"a", b"limits", b"1", b"4", b"x"),
    ]
    assert request.args[3:] == [b"0/1", b"80", b"0", b"1", *sections]
    group_keys = [key for group in (b"a", b"b", b"a", b"a") for key in keys_of(options, group)]
    assert request.keys[7:] == group_keys


def test_calls_have_fewer_groups_while_others_set_limits() -> None:
    """The script reads and writes what distinguishes the tasks of each group."""

    def tasks_of_a_call() -> int:
        round_: Round[EncodedTask] = Round(options, COMMIT_ROUND_TASKS)
        while not round_.full:
            task = encoded(f"g{len(round_)}", len(round_))
            round_.put(task, task)
        return len(round_)

    now = 1000.0
    options = replace(options_for(), others=LimitsOfOthers(lambda: now))
    assert tasks_of_a_call() == MAX_CALL_TASKS
    for hint in ([1], [[0, 1]]):  # as for a task that has replaced another one
        list(filled(options, [encoded("a", 0)]).results([hint]))
        assert tasks_of_a_call() == MAX_CALL_TASKS
    list(filled(options, [encoded("a", 0)]).results([[[1, 0]]]))
    assert tasks_of_a_call() < 70
    now += 599
    assert tasks_of_a_call() < 70
    now += 2
    assert tasks_of_a_call() == MAX_CALL_TASKS


def test_a_call_has_few_tasks_that_replace_others() -> None:
    """The script searches for each of them."""
    tasks = [encoded("a", n)._replace(own=b"replace=1") for n in range(MAX_CALL_TASKS)]
    round_: Round[EncodedTask] = Round(options_for(), COMMIT_ROUND_TASKS)
    while not round_.full:
        round_.put(tasks[len(round_)], tasks[len(round_)])
    assert len(round_) == 25


@pytest.mark.parametrize(
    ("groups", "attributes", "count"),
    [
        (1, {}, 400),
        (400, {}, 400),
        (1, {"own": b"weight=3"}, 198),
        (400, {"own": b"weight=3"}, 58),
        (1, {"limits": b"1 1 1 0 max_bytes=9", "override": (0, 0, 0, 0, 9)}, 395),
        (400, {"limits": b"1 1 1 0", "override": (0, 0, 0, 7, 0)}, 67),
        (400, {"own": b"replace=1"}, 20),
    ],
)
def test_limits_leave_room_for_fewer_tasks_in_a_call(
    groups: int, attributes: dict[str, Any], count: int
) -> None:
    """The script takes longer for them; with 400 tasks it could take 15 ms."""
    assert taken(groups, options_for(), **attributes) == count


@pytest.mark.parametrize(("groups", "count"), [(1, 395), (400, 67)])
def test_limits_of_the_settings_leave_room_for_fewer_tasks_in_a_call(
    groups: int, count: int
) -> None:
    options = options_for(group_max_bytes=2_000_000)
    assert taken(groups, options, limits=b"1 1 1 0 max_bytes=2000000") == count


def taken(groups: int, options: AddOptions, **attributes: Any) -> int:
    """How many tasks one call takes that go to so many groups in turn."""
    round_: Round[EncodedTask] = Round(options, MAX_CALL_TASKS)
    while not round_.full:
        n = len(round_)
        task = encoded(f"g{n % groups}", n)._replace(**attributes)
        round_.put(task, task)
    return len(round_)


def test_tasks_whose_limits_differ_leave_room_for_fewer() -> None:
    round_: Round[EncodedTask] = Round(options_for(), MAX_CALL_TASKS)
    while not round_.full:
        n = len(round_)
        limits: Any = {
            "limits": b"1 1 %d 0" % n,
            "override": (0, 0, 0, n + 1, 0),
            "own": b"weight=3",
        }
        task = encoded("a", n)._replace(**limits)
        round_.put(task, task)
    assert len(round_) == 132


def test_groups_count_in_a_call_in_which_some_have_limits() -> None:
    round_: Round[EncodedTask] = Round(options_for(), MAX_CALL_TASKS)
    while not round_.full:
        n = len(round_)
        task = encoded(f"g{n}", n)
        round_.put(task._replace(own=b"weight=3") if n % 10 == 5 else task, task)
    assert len(round_) == 66


def test_the_limits_of_policies_leave_room_for_fewer() -> None:
    options = options_for()
    for policy, count in ((Policy(max_size=7), 400), (Policy(max_bytes=7), 67)):
        steps = options.policies.read()
        next(steps)
        with pytest.raises(StopIteration):
            steps.send([[b"%d" % count, b"g*", policy.stored()]])
        assert taken(400, options, limits=b"1 1 1 0") == count


def test_tasks_with_limits_of_their_own_have_three_arguments() -> None:
    options = options_for()
    tasks = [encoded("a", 0), encoded("a", 1)._replace(own=b"weight=2")]
    tasks += [encoded("a", 2)._replace(own=b"weight=3"), encoded("a", 3)]
    round_ = filled(options, tasks)
    for _ in range(2):  # a call may be sent again
        [request] = round_.requests(CallSequence())
        assert request.args[7:] == [
            *(b"a", b"limits", b"1", b"0", b"x"),
            *(b"a", b"limits", b"3 3", b"1", b"x", b"weight=2", b"2", b"x", b"weight=3"),
            *(b"3", b"x", b""),
        ]


def keys_of(options: AddOptions, group: bytes) -> list[bytes]:
    partition = options.keyspace.partition_of(group)
    return [partition.tasks(group), partition.ids(group)]


def test_each_partition_gets_one_call_with_a_number_of_its_own() -> None:
    options = options_for(4)
    sequence = CallSequence()
    requests = filled(options, [encoded(f"g{n}") for n in range(40)]).requests(sequence)
    assert sorted(request.args[3] for request in requests) == [b"0/4", b"1/4", b"2/4", b"3/4"]
    assert [request.args[0] for request in requests] == [b"1", b"2", b"3", b"4"]
    assert sequence.partitions == {0, 1, 2, 3}


def test_results_by_section() -> None:
    tasks = [encoded("a", 0), encoded("b", 1), encoded("a", 2)]
    round_ = filled(options_for(), tasks)
    assert list(round_.results([[2, 1]])) == [(tasks, None)]
    results = list(round_.results([[b"FULL 2 of 2 tasks", 1]]))
    assert [waiters for waiters, _ in results] == [[task] for task in tasks]
    assert [type(error) for _, error in results] == [AggregatorFull, type(None), AggregatorFull]


def test_results_of_a_round_trip_that_failed() -> None:
    tasks = [encoded(f"g{n}") for n in range(40)]
    error = RedisUnavailable("no reply")
    results = list(filled(options_for(4), tasks).failed(error))
    assert len(results) == 4
    assert {each for _, each in results} == {error}
    assert sorted(task for waiters, _ in results for task in waiters) == sorted(tasks)


@pytest.mark.parametrize(
    ("count", "size", "groups", "partitions"),
    [
        (MAX_CALL_TASKS, 1, 1, 1),
        (8, MAX_CALL_BYTES // 8, 1, 1),
        (COMMIT_ROUND_TASKS, 1, 40, 16),
        (rounds.MAX_ROUND_BYTES // 100_000 + 1, 100_000, 10_000, 256),
    ],
    ids=["tasks of a call", "bytes of a call", "tasks of a round", "bytes of a round"],
)
def test_a_round_is_full_at_its_first_limit(
    count: int, size: int, groups: int, partitions: int
) -> None:
    options = options_for(partitions)
    tasks = [encoded(f"g{n % groups}", n, size=size) for n in range(count)]
    assert not filled(options, tasks[:-1]).full
    round_ = filled(options, tasks)
    assert round_.full
    assert len(round_) == count
