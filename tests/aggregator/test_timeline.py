"""`get_batch`: what happened to a batch, step by step."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from redisagg import BatchState, BatchTimeline, Task, Unrecoverable
from redisagg.errors import SinkError
from redisagg.sinks import CallableSink
from redisagg.timeline import timeline_of
from tests.support.aggregators import Make
from tests.support.servers import wait_until
from tests.support.tasks import await_dead, numbered


def steps(timeline: BatchTimeline | None) -> dict[str, bool]:
    """The names of the steps in order; whether each has happened."""
    assert timeline is not None
    return {step.name: step.done for step in timeline.steps}


def step(timeline: BatchTimeline | None, name: str) -> Any:
    assert timeline is not None
    [found] = [each for each in timeline.steps if each.name == name]
    return found


def test_a_batch_that_is_being_merged(make_both: Make) -> None:
    gate = threading.Event()

    def merge(group: str, tasks: list[Task]) -> Task:
        assert gate.wait(20)
        return Task("merged", 1)

    agg = make_both(group_aggregator=merge, group_max_size=2)
    try:
        with agg:
            agg.add_tasks(numbered("a", 2))
            wait_until(lambda: bool(agg.get_batches()), what="it is claimed")
            [batch] = agg.get_batches()
            found = agg.get_batch(batch.batch_id)
            assert found is not None
            assert (found.state, found.size, found.attempts) == ("claimed", 2, 1)
            assert found.until is not None
            assert steps(found) == {
                "opened": True,
                "due": True,
                "claimed": True,
                "merged": False,
                "enqueued": False,
            }
            times = [step(found, name).at for name in ("opened", "due", "claimed")]
            assert times == [batch.opened_at, batch.due_at, batch.claimed_at] == sorted(times)
            assert step(found, "due").detail == "size"
            gate.set()
            assert agg.wait_until_idle(10)
            assert agg.get_batch(batch.batch_id) is None
    finally:
        gate.set()


def test_a_batch_whose_merge_failed(make_both: Make) -> None:
    def merge(group: str, tasks: list[Task]) -> Task:
        raise ValueError("<b>bad</b>")

    agg = make_both(group_aggregator=merge, group_max_size=2, retry_delay=60, retry_max_delay=60)
    with agg:
        agg.add_tasks(numbered("a", 2))
        wait_until(lambda: agg.stats().batches_in_retry == 1, what="it is tried again")
        [batch] = agg.get_batches()
        found = agg.get_batch(batch.batch_id)
    assert found is not None
    assert (found.state, found.attempts) == ("retry", 1)
    assert list(steps(found).items())[3:] == [
        ("failed", True),
        ("retry", False),
        ("merged", False),
        ("enqueued", False),
    ]
    assert step(found, "failed").detail == found.error == "ValueError: <b>bad</b>"
    assert step(found, "retry").at == batch.until


def test_a_batch_whose_sink_failed(make: Make) -> None:
    def deliver(task: Task, batch_id: str) -> None:
        raise SinkError("down")

    config: dict[str, Any] = {"retry_delay": 60, "retry_max_delay": 60, "group_max_size": 1}
    agg = make(sink=CallableSink(deliver), **config)
    with agg:
        agg.add_tasks(numbered("a", 1))
        wait_until(lambda: agg.stats().batches_in_retry == 1, what="it is tried again")
        [batch] = agg.get_batches()
    assert batch.merged
    assert list(steps(agg.get_batch(batch.batch_id)).items())[3:] == [
        ("merged", True),
        ("failed", True),
        ("retry", False),
        ("enqueued", False),
    ]


def test_a_dead_letter(make_both: Make) -> None:
    def merge(group: str, tasks: list[Task]) -> Task:
        raise Unrecoverable("no")

    agg = make_both(group_aggregator=merge, group_max_size=1)
    with agg:
        agg.add_tasks(numbered("a", 1))
        await_dead(agg, 1)
    [letter] = agg.dead_letters()
    found = agg.get_batch(letter.batch_id)
    assert found == timeline_of(letter)
    assert found.state == "dead"
    assert "Unrecoverable" in found.traceback
    assert list(steps(found))[3:] == ["failed", "dead"]
    assert step(found, "dead").at == letter.died_at
    agg.drop_dead_letter(letter.batch_id)
    assert agg.get_batch(letter.batch_id) is None


@pytest.mark.parametrize("batch_id", ["", "nobody", "01a21bfd500c-9999-00000001"])
def test_no_batch_has_such_an_id(make_both: Make, batch_id: str) -> None:
    assert make_both().get_batch(batch_id) is None


def test_a_batch_of_which_a_part_is_enqueued() -> None:
    state = BatchState(
        batch_id="b",
        group_key="g",
        size=3,
        attempts=2,
        claimed_at=3.0,
        state="claimed",
        until=9.0,
        error="",
        reason="grace",
        opened_at=1.0,
        due_at=2.0,
        merged=True,
        enqueued=300,
    )
    found = timeline_of(state)
    assert steps(found)["merged"]
    assert step(found, "enqueued").detail == "300 merged tasks"
