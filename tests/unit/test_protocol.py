"""The protocol holds in every state that it can reach, and each of its checks is needed."""

from __future__ import annotations

import pytest

from tests.protocol.model import Scenario
from tests.protocol.search import search

_ONE_GROUP = (((0, "a1"), (0, "a2")), ((0, "b1"),))
_TWO_GROUPS = (((0, "a1"), (0, "a2")), ((1, "b1"),))
_FEW = (((0, "a1"),), ((0, "b1"),))
_SAME_ID = (((0, "x"),), ((0, "x"),))

_SCENARIOS = {
    "two producers, batches of 1": (Scenario(_FEW, size=1), 1_000),
    "one group, batches of up to 2": (Scenario(_ONE_GROUP, size=2), 10_000),
    "two groups, batches of 1": (Scenario(_TWO_GROUPS, size=1), 10_000),
}
"""Each with how many states it has at least: the search was not empty."""

_LONG = pytest.mark.slow

_UNSAFE = {
    "token": "a flusher whose lease is over has written",
    "lease": "a flusher whose lease is over has written",
    "growth": "a lease was given away without a larger token",
    "order": "a task is lost, enqueued twice, or enqueued out of order",
    "size": "a batch holds more than the max size",
    "calls": "a call that had been answered was carried out later",
}

_STUCK = {
    "void": "the batches that a dead leader had claimed stay claimed",
    "gone": "a batch leaves while it is in retry, and its group is held for ever",
}


@pytest.mark.parametrize(
    "name",
    [
        "two producers, batches of 1",
        pytest.param("one group, batches of up to 2", marks=_LONG),
        pytest.param("two groups, batches of 1", marks=_LONG),
    ],
)
def test_no_state_has_a_fault(name: str) -> None:
    scenario, least = _SCENARIOS[name]
    found = search(scenario)
    print(f"{name}: {found}")
    assert not found.fault, found
    assert found.states > least


@pytest.mark.parametrize("check", _UNSAFE)
def test_without_a_check_something_wrong_happens(check: str) -> None:
    found = search(Scenario(_FEW, size=1, without=frozenset({check})))
    print(f"without {check}: {found}")
    assert found.fault == _UNSAFE[check]
    assert 0 < len(found.trace) < 10


@_LONG
def test_slices_of_a_merge_result_are_enqueued_once() -> None:
    found = search(Scenario(_FEW, size=1, slices=2))
    print(f"in slices: {found}")
    assert not found.fault, found
    assert found.states > 1_000


def test_a_slice_is_enqueued_twice_if_a_commit_does_not_say_which_it_is() -> None:
    found = search(Scenario(_FEW, size=1, slices=2, without=frozenset({"slice"})))
    assert found.fault == "a slice of a merge result is enqueued twice"


@_LONG
def test_a_next_leader_may_not_know_what_was_enqueued() -> None:
    """A commit that begins anew is told."""
    found = search(Scenario(_FEW, size=1, slices=2, without=frozenset({"goes on"})))
    assert not found.fault, found


_WHOLE = (((0, "a1"),),)
_PAIR = (((0, "a1"), (0, "a2")),)
_STORED = Scenario(_WHOLE, size=1, slices=2, failed=2, parts=2)

_MORE = {
    "tasks that fail alone": Scenario(_FEW, size=1, failed=2),
    "stored merge results": _STORED,
    "halves": Scenario(_PAIR, size=2, splits=True),
    "halves of batches with stored results": Scenario(
        _PAIR, size=2, splits=True, slices=2, parts=1, flushers=1
    ),
    "pauses of a group": Scenario(_PAIR, size=1, pauses=True),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=_LONG if name == "tasks that fail alone" else ()) for name in _MORE],
)
def test_no_state_of_a_further_feature_has_a_fault(name: str) -> None:
    found = search(_MORE[name])
    print(f"{name}: {found}")
    assert not found.fault, found
    assert found.states > 1_000


_MORE_UNSAFE = {
    "parted": (
        Scenario(_WHOLE, size=1, failed=2),
        "a task that failed alone is in two dead letters",
    ),
    "stored": (_STORED, "parts of two merge results of a batch are done"),
    "labels": (_STORED, "a stored merge result has parts of another one"),
    "parts": (_STORED, "a stored merge result has not all parts"),
    "unsplit result": (
        _MORE["halves of batches with stored results"],
        "parts of two merge results of a batch are done",
    ),
    "pause": (_MORE["pauses of a group"], "a batch of a paused group is claimed"),
    "pause of retries": (_MORE["pauses of a group"], "a batch of a paused group is claimed"),
    # A batch in retry is split, and counts as in retry for ever.
    "claimed": (
        Scenario((((0, "a1"), (0, "a2"), (0, "a3")),), size=2, splits=True, flushers=1),
        "the tasks will never be enqueued, even without further failures",
    ),
}


@pytest.mark.parametrize("check", _MORE_UNSAFE)
def test_without_a_check_of_a_further_feature_something_is_wrong(check: str) -> None:
    scenario, fault = _MORE_UNSAFE[check]
    found = search(scenario._replace(without=frozenset({check})))
    print(f"without {check}: {found}")
    assert found.fault == fault


def test_tasks_that_fail_alone_need_a_stored_result_too() -> None:
    scenario = Scenario(_WHOLE, size=1, failed=2, parts=1, without=frozenset({"stored"}))
    assert search(scenario).fault == "parts of two merge results of a batch are done"


@pytest.mark.parametrize("check", _STUCK)
def test_without_a_check_something_is_never_enqueued(check: str) -> None:
    found = search(Scenario(_FEW, size=1, without=frozenset({check})))
    print(f"without {check}, {_STUCK[check]}: {found}")
    assert found.fault.startswith("the tasks will never be enqueued")
    assert 0 < len(found.trace) < 10


def test_a_paused_leader_that_commits_is_what_the_token_is_for() -> None:
    found = search(Scenario(_FEW, size=1, without=frozenset({"token"})))
    assert [line.split(" -> ")[0] for line in found.trace] == [
        "producer 0: add a1",
        "flusher A: acquire",
        "flusher A: claim a new batch",
        "time: the lease runs out",
        "flusher B: acquire",
        "flusher A: commit batch g0",
    ]


def test_a_batch_is_enqueued_twice_only_without_two_checks() -> None:
    """Whether it is still in flight, and whether it is at the head of its group."""
    found = search(Scenario(_FEW, size=1, without=frozenset({"gone", "order"})))
    assert found.fault == "a task is lost, enqueued twice, or enqueued out of order"
    assert [line.split(": ")[1] for line in found.trace[-2:]] == [
        "commit batch g0 -> OK (reply lost)",
        "commit batch g0 -> OK",
    ]


def test_a_call_that_found_its_task_waiting_is_not_carried_out_later() -> None:
    found = search(Scenario(_SAME_ID, size=1))
    assert not found.fault, found
