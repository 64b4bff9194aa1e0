"""What the steps of a merge make of a batch, and how their cost grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from redisagg import Partial, Task
from redisagg.flusher.batch import Failure, MergeOutcome
from redisagg.flusher.merging import steps
from redisagg.flusher.merging.result_codec import pack_result
from redisagg.flusher.merging.tracing import LINKS, MAX_LINKS, TRACEPARENT
from redisagg.payload import unpack
from redisagg.sinks import AsynqSink, CallableSink, ListSink, Sink, StreamSink
from redisagg.sinks.routing import Router
from tests.support.claims import claim_of


def _merge(
    function: Any, tasks: Sequence[Task], sink: Any = None, max_bytes: int = 64 << 20
) -> MergeOutcome:
    router = Router(sink or StreamSink("q"), False, max_bytes)
    return steps.merge(function, router, claim_of(tasks), informed=False)


def _each(group: str, tasks: list[Task]) -> list[Task]:
    return [Task("each", task.payload) for task in tasks]


def _traceparent(number: int) -> str:
    return f"00-{number:032x}-{number:016x}-01"


def _traced(count: int) -> list[Task]:
    return [Task("t", n, "g", headers={TRACEPARENT: _traceparent(n)}) for n in range(count)]


def test_a_merged_task_links_to_128_traces_at_most() -> None:
    outcome = _merge(_each, _traced(1_000), CallableSink(print))
    assert len(outcome.deliveries) == 1_000
    for merged in outcome.deliveries:
        assert merged.task.headers[TRACEPARENT] == _traceparent(0)
        links = merged.task.headers[LINKS].split(",")
        assert links == [_traceparent(n) for n in range(MAX_LINKS)]
    # All share one text.
    assert len({id(merged.task.headers[LINKS]) for merged in outcome.deliveries}) == 1


def test_the_links_of_a_large_fan_out_are_bounded() -> None:
    outcome = _merge(_each, _traced(8_192))
    assert outcome.enqueue is not None
    assert sum(map(len, outcome.enqueue.arguments)) < 10_000_000
    counts = {len(headers[LINKS].split(",")) for headers in map(_headers, outcome.merged.values())}
    assert counts == {16}


def _headers(packed: bytes) -> Any:
    return unpack(packed)[3][4]


def test_each_trace_is_linked_once() -> None:
    tasks = [*_traced(3), *_traced(3), Task("t", 1, "g")]
    [merged] = _merge(lambda group, tasks: Task("m"), tasks, CallableSink(print)).deliveries
    assert merged.task.headers[LINKS] == ",".join(map(_traceparent, range(3)))


def test_headers_of_the_merge_function_stay() -> None:
    def merge(group: str, tasks: list[Task]) -> Task:
        return Task("m", headers={TRACEPARENT: "mine", "x": "y"})

    [merged] = _merge(merge, _traced(2), CallableSink(print)).deliveries
    links = ",".join(map(_traceparent, range(2)))
    assert merged.task.headers == {TRACEPARENT: "mine", LINKS: links, "x": "y"}


def test_the_tasks_of_a_batch_are_looked_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for each merged task: a merge may return as many tasks as it got."""
    calls: list[str] = []

    def count(name: str) -> None:
        function = getattr(steps, name)

        def counted(*args: Any) -> Any:
            calls.append(name)
            return function(*args)

        monkeypatch.setattr(steps, name, counted)

    count("trace_headers")
    count("_inherited")
    tasks = [Task("t", n, "g", options={"queue": "low"}) for n in range(50)]
    outcome = _merge(_each, tasks, AsynqSink())
    assert outcome.failure is None
    assert len(outcome.merged) == 50
    assert outcome.enqueue is not None
    assert outcome.enqueue.arguments.count(b"low") == 50
    assert sorted(calls) == ["_inherited", "trace_headers"]


@pytest.mark.parametrize("sink", [ListSink("q"), StreamSink("q")], ids=["list", "stream"])
def test_a_merge_may_return_many_thousand_tasks(sink: Sink) -> None:
    outcome = _merge(_each, [Task("t", n, "g") for n in range(10_000)], sink)
    assert outcome.failure is None
    assert outcome.enqueue is not None
    assert len(outcome.enqueue.arguments) == 10_000 * (1 if isinstance(sink, ListSink) else 14)
    stored = pack_result(outcome)
    again = MergeOutcome()
    claim = claim_of([], attempt=2, stored_result=stored)
    steps.prepare(claim, again, Router(sink, False, 64 << 20))
    assert again.enqueue == outcome.enqueue
    assert again.merged == outcome.merged


class _Small(CallableSink):
    max_bytes = 2_000


@pytest.mark.parametrize(
    ("sink", "names"),
    [
        (StreamSink("q"), "max_merged_bytes (5,000)"),
        (ListSink("q", format="json"), "max_merged_bytes (5,000)"),
        (CallableSink(print), "max_merged_bytes (5,000)"),
        (_Small(print), "_Small takes (2,000)"),
    ],
    ids=["stream", "json", "delivery", "own limit"],
)
def test_too_large_a_result_fails_for_good_and_is_not_kept(sink: Sink, names: str) -> None:
    size = 3_000 if isinstance(sink, _Small) else 2_500

    def merge(group: str, tasks: list[Task]) -> list[Task]:
        return [Task("m", b"x" * size), Task("m", b"x" * (5_000 - size))]

    outcome = _merge(merge, [Task("t", 1, "g")], sink, 6_000 if isinstance(sink, _Small) else 5_000)
    assert outcome.failure is not None
    assert outcome.failure.permanent
    assert outcome.failure.error.startswith("MergedTaskTooLarge: ")
    assert names in outcome.failure.error
    assert "group_max_size" in outcome.failure.error
    assert outcome.merged == {}


def test_the_form_of_the_sink_counts_too() -> None:
    def merge(group: str, tasks: list[Task]) -> Task:
        return Task("m", b"x" * 4_500)  # 6,000 in base64

    assert _merge(merge, [Task("t", 1, "g")], StreamSink("q"), 5_000).failure is None
    outcome = _merge(merge, [Task("t", 1, "g")], StreamSink("q", format="json"), 5_000)
    assert outcome.failure is not None
    assert outcome.failure.permanent
    assert outcome.merged == {}


def test_other_failures_are_not_permanent() -> None:
    outcome = _merge(lambda group, tasks: {}, [Task("t", 1, "g")])
    assert outcome.failure is not None
    assert not outcome.failure.permanent


def test_a_result_of_which_nothing_is_left_is_not_merged_again() -> None:
    """A merge that returned None, and one whose only task was delivered."""

    def never(group: str, tasks: list[Task]) -> None:
        raise AssertionError("merged again")

    sink = CallableSink(lambda task, batch_id: None)
    nothing = _merge(lambda group, tasks: None, [Task("t", 1, "g")], sink)
    delivered = _merge(_each, [Task("t", 1, "g")], sink)
    delivered.deliveries.clear()
    delivered.merged.clear()
    for outcome in (nothing, delivered):
        stored = pack_result(outcome)
        assert stored
        claim = claim_of([Task("t", 1, "g")], stored_result=stored)
        again = steps.merge(never, Router(sink, False, 64 << 20), claim, informed=False)
        assert again == MergeOutcome()
        assert pack_result(again) == stored


def test_a_merge_that_failed_has_no_result() -> None:
    assert pack_result(MergeOutcome(Failure("ValueError: no", ""))) == b""


def test_the_reasons_of_failed_tasks_are_made_without_tracebacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which take most of the time, on the event loop with an `async` merge function."""
    formatted: list[object] = []
    monkeypatch.setattr("traceback.format_exception", formatted.append)
    tasks = [Task("t", n, "g") for n in range(10)]
    errors: dict[str, str | BaseException] = {
        task.id: ValueError(task.payload) for task in tasks[1:]
    }
    outcome = _merge(lambda group, tasks: Partial(tasks[0], errors), tasks)
    assert outcome.failed == [(n, f"ValueError: {n}") for n in range(1, 10)]
    assert not formatted
