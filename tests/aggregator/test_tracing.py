"""Spans of OpenTelemetry: of adds, claims, merges and sends, and how they belong together."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from redisagg import Aggregator, App, Task
from redisagg.errors import AggregatorFull, InvalidTask
from redisagg.flusher.merging.steps import merge as merge_claim
from redisagg.flusher.merging.tracing import LINKS, MAX_LINKS, TRACEPARENT
from redisagg.otel import Tracing, links_of
from redisagg.otel.spans import MergeSpan
from redisagg.sinks import CallableSink, StreamSink
from redisagg.sinks.routing import Router
from tests.support.aggregators import Make
from tests.support.claims import claim_of
from tests.support.markdown import CHECKOUT, read, rows, section
from tests.support.servers import wait_until
from tests.support.tasks import await_batches, await_dead, enqueued, numbered


class Spans:
    """A provider that keeps the spans that have ended."""

    def __init__(self, **options: Any) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(**options)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("test")

    def all(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all() if span.name.startswith(name)]

    def one(self, name: str) -> ReadableSpan:
        """Waits for the one span whose name begins so."""
        wait_until(lambda: self.named(name), what=f"a span {name!r} has ended")
        [span] = self.named(name)
        return span

    def watch(self, aggregator: Aggregator, **options: Any) -> Aggregator:
        """Traces an aggregator; returns it."""
        Tracing(self.provider, **options).watch(getattr(aggregator, "_inner", aggregator))
        return aggregator


@pytest.fixture
def spans() -> Spans:
    return Spans()


def traceparent(number: int, flags: str = "01") -> str:
    return f"00-{number:032x}-{number:016x}-{flags}"


def header_of(span: ReadableSpan) -> str:
    context = span.context
    assert context is not None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def linked(span: ReadableSpan) -> list[int]:
    return [link.context.span_id for link in span.links]


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


def stored(aggregator: Aggregator) -> list[Task]:
    """The tasks that wait in the group ``a``."""
    group = aggregator.get_group("a")
    assert group is not None
    assert group.tasks is not None
    return [each.task for each in group.tasks if each.task is not None]


def common(span: ReadableSpan) -> tuple[Any, ...]:
    """Its kind, and the attributes that the semantic conventions want of each span."""
    attributes = span.attributes or {}
    assert attributes["messaging.system"] == "redisagg"
    names = ("operation.name", "operation.type", "destination.name")
    return (span.kind, *(attributes[f"messaging.{name}"] for name in names))


# --- adds ----------------------------------------------------------------------------------------


def test_adds(make_both: Make, spans: Spans) -> None:
    agg = spans.watch(make_both())
    task = Task("test", 1, "a", headers={"h": "x"}, weight=3)
    assert agg.add_task(task) == task.id
    agg.submit(Task("test", 2, "a"))
    agg.add_tasks(numbered("a", 2))
    agg.add_tasks(each for each in numbered("a", 3))
    one, submitted, many, stream = spans.named("add tests")
    for span in (one, submitted, many, stream):
        assert common(span) == (SpanKind.PRODUCER, "add", "send", "tests")
        assert span.status.status_code is StatusCode.UNSET
    attributes = [span.attributes or {} for span in (one, submitted, many, stream)]
    assert attributes[0]["messaging.message.id"] == task.id
    count = "messaging.batch.message_count"
    assert [each.get(count) for each in attributes] == [None, None, 2, 3]
    headers = [each.headers for each in stored(agg)]
    assert headers[0] == {"h": "x", TRACEPARENT: header_of(one)}
    expected = [one, submitted, many, many, stream, stream, stream]
    assert [each[TRACEPARENT] for each in headers] == [header_of(span) for span in expected]
    assert stored(agg)[0] == Task("test", 1, "a", id=task.id, headers=headers[0], weight=3)


def test_an_add_is_a_child_of_the_current_span(make: Make, spans: Spans) -> None:
    agg = spans.watch(make())
    with spans.tracer.start_as_current_span("request") as request:
        agg.add_task(Task("test", 1, "a"))
    assert parent_of(spans.one("add")) == request.get_span_context().span_id


def test_a_trace_context_of_the_task_stays_and_is_linked_to(make_both: Make, spans: Spans) -> None:
    agg = spans.watch(make_both())
    agg.add_task(Task("test", 1, "a", headers={TRACEPARENT: traceparent(7)}))
    agg.add_tasks(Task("test", 1, "a", headers={TRACEPARENT: traceparent(n)}) for n in (8, 8, 9))
    one, many = spans.named("add")
    assert common(one)[0] is SpanKind.CLIENT  # its context is in no task
    assert linked(one) == [7]
    assert linked(many) == [8, 9]
    assert [each.headers[TRACEPARENT] for each in stored(agg)] == [
        traceparent(n) for n in (7, 8, 8, 9)
    ]


def test_adds_that_fail(make_both: Make, spans: Spans) -> None:
    agg = spans.watch(make_both(partitions=1, max_pending_tasks=1))
    agg.add_task(Task("test", 1, "a"))
    with pytest.raises(AggregatorFull):
        agg.add_task(Task("test", 1, "a"))
    with pytest.raises(InvalidTask):
        agg.add_task("no task")  # type: ignore[arg-type]
    with pytest.raises(InvalidTask, match=r"tasks\[1\]"):
        agg.add_tasks([Task("test", 1, "a"), 7])  # type: ignore[list-item]
    failed = spans.named("add")[1:]
    assert [(span.attributes or {})["error.type"] for span in failed] == [
        "AggregatorFull",
        "InvalidTask",
        "InvalidTask",
    ]
    assert {span.status.status_code for span in failed} == {StatusCode.ERROR}


async def test_an_async_stream(redis_url: str, spans: Spans) -> None:
    from redisagg import AsyncAggregator

    async def tasks() -> Any:
        for task in numbered("a", 3):
            yield task

    async with AsyncAggregator("tests", redis_url) as agg:
        Tracing(spans.provider).watch(agg)
        await agg.add_tasks(tasks())
    assert (spans.one("add").attributes or {})["messaging.batch.message_count"] == 3


def test_the_adds_of_an_app(redis_url: str, spans: Spans) -> None:
    app = App(redis_url)

    @app.aggregator(name="digest")
    def digest(group: str, tasks: list[Task]) -> None: ...

    Tracing(spans.provider).watch(digest)
    digest.add(1, group_key="a")
    asyncio.run(_add_and_close(digest))
    app.close()
    assert len(spans.named("add digest")) == 2


async def _add_and_close(aggregator: Any) -> None:
    await aggregator.aadd(2, group_key="a")
    await aggregator.asyncio.close()


def test_who_is_not_traced_pays_nothing(make: Make, spans: Spans) -> None:
    agg = make(group_max_size=1)
    assert "add_task" not in vars(agg)
    with agg:
        agg.add_task(Task("test", 1, "a"))
        await_batches(agg, 1)
    assert enqueued(agg)[0].headers == {}
    Tracing(spans.provider).watch(agg, agg)
    assert not hasattr(vars(agg)["add_task"].__wrapped__, "__wrapped__")  # once


# --- batches -------------------------------------------------------------------------------------


def merge(group: str, tasks: list[Task]) -> Task:
    """Merges into the span that is the current one; at the top, for worker processes."""
    current = trace.get_current_span().get_span_context()
    return Task("merged", {"span": current.span_id, "count": len(tasks)})


async def merge_later(group: str, tasks: list[Task]) -> Task:
    await asyncio.sleep(0)
    return merge(group, tasks)


def merge_awaitably(group: str, tasks: list[Task]) -> Any:
    return merge_later(group, tasks)


@pytest.mark.parametrize(
    ("function", "executor"),
    [(merge, "thread"), (merge_later, "thread"), (merge_awaitably, "thread"), (merge, "process")],
    ids=["thread", "loop", "awaitable", "process"],
)
def test_a_batch(make: Make, spans: Spans, function: Any, executor: str) -> None:
    agg = spans.watch(make(group_max_size=3, group_aggregator=function, executor=executor))
    with agg:
        agg.add_tasks(numbered("a", 2))
        agg.add_task(Task("test", 3, "a"))
        await_batches(agg, 1, timeout=60)
        sent = spans.one("enqueue tests-batches")
    added, claim, merged = spans.named("add"), spans.one("claim tests"), spans.one("merge tests")
    assert common(claim) == (SpanKind.CLIENT, "claim", "receive", "tests")
    assert common(merged) == (SpanKind.CONSUMER, "merge", "process", "tests")
    assert common(sent) == (SpanKind.CLIENT, "enqueue", "send", "tests-batches")
    # One trace for the batch, with links to those of its tasks.
    assert parent_of(claim) is None
    assert parent_of(merged) == id_of(claim)
    assert parent_of(sent) == id_of(merged)
    assert linked(claim) == linked(merged) == list(map(id_of, added))
    assert all("messaging.message.id" in (link.attributes or {}) for link in merged.links)
    # What the merge function does belongs to it, and so does what a worker does with the result.
    [batch] = enqueued(agg)
    assert batch.payload == {"span": id_of(merged), "count": 3}
    assert batch.headers[TRACEPARENT] == header_of(merged)
    assert batch.headers[LINKS] == ",".join(map(header_of, added))
    assert [link.context.span_id for link in links_of(batch.headers)] == list(map(id_of, added))
    attributes = merged.attributes or {}
    assert attributes["messaging.batch.message_count"] == 3
    assert attributes["redisagg.group_key"] == "a"
    assert attributes["redisagg.batch_id"] == batch.batch_id
    assert attributes["redisagg.reason"] == "size"
    assert attributes["redisagg.attempt"] == 1
    assert attributes["redisagg.merged_tasks"] == 1
    assert str(attributes["messaging.client.id"]).count(":") == 2
    assert claim.start_time is not None
    assert claim.end_time is not None
    assert merged.start_time is not None
    assert claim.start_time <= claim.end_time <= merged.start_time


def test_tasks_of_one_trace_are_merged_in_it(make: Make, spans: Spans) -> None:
    agg = spans.watch(make(group_max_size=3), group_keys=False)
    with agg:
        agg.add_tasks(numbered("a", 3))
        await_batches(agg, 1)
        sent = spans.one("enqueue")
    added, claim = spans.one("add"), spans.one("claim")
    assert parent_of(claim) == id_of(added)
    assert linked(claim) == [id_of(added)]
    assert sent.context is not None
    assert added.context is not None
    assert sent.context.trace_id == added.context.trace_id
    assert all("redisagg.group_key" not in (span.attributes or {}) for span in spans.all())


def test_at_most_128_links(make: Make, spans: Spans) -> None:
    agg = make(group_max_size=1_200)  # so large that the leader reads it in slices
    agg.add_tasks(
        Task("test", n, "a", headers={TRACEPARENT: traceparent(1 + n // 2)}) for n in range(1_200)
    )
    spans.watch(agg)
    with agg:
        await_batches(agg, 1)
    for span in (spans.one("claim"), spans.one("merge")):
        assert linked(span) == list(range(1, MAX_LINKS + 1))


def test_only_headers_are_linked_to(make: Make, spans: Spans) -> None:
    """A payload may look like a header, and a header like nothing."""
    agg = make(group_max_size=5)
    agg.add_tasks(
        [
            Task("test", {TRACEPARENT: traceparent(1)}, "a"),
            Task("test", {TRACEPARENT: traceparent(1)}, "a", headers={TRACEPARENT: traceparent(2)}),
            Task("test", 0, "a", headers={TRACEPARENT: "x" * 55}),
            Task("test", 0, "a", headers={TRACEPARENT: traceparent(0)}),
            Task("test", 0, "a", headers={TRACEPARENT: "short"}),
        ]
    )
    spans.watch(agg)
    with agg:
        await_batches(agg, 1)
    assert linked(spans.one("merge")) == [2]


def test_unsampled_traces_stay_so(make: Make) -> None:
    spans = Spans(sampler=ALWAYS_OFF)
    agg = spans.watch(make(group_max_size=1))
    with agg:
        agg.add_task(Task("test", 1, "a"))
        await_batches(agg, 1)
    assert spans.all() == []
    # The workers are told so.
    assert int(enqueued(agg)[0].headers[TRACEPARENT].rpartition("-")[2], 16) & 1 == 0


def test_without_an_sdk_nothing_changes(make: Make) -> None:
    agg = make(group_max_size=2)
    Tracing().watch(agg)
    header = {TRACEPARENT: traceparent(5)}
    with agg:
        agg.add_task(Task("test", 1, "a"))
        agg.add_task(Task("test", 1, "a", headers=header))
        await_batches(agg, 1)
    assert enqueued(agg)[0].headers == {**header, LINKS: traceparent(5)}


def test_a_merge_that_fails(make: Make, spans: Spans) -> None:
    def fail(group: str, tasks: list[Task]) -> None:
        raise ValueError("no")

    agg = spans.watch(make(group_max_size=1, group_aggregator=fail, max_attempts=2))
    with agg:
        agg.add_task(Task("test", 1, "a"))
        await_dead(agg)
    merges = spans.named("merge")
    assert [(span.attributes or {})["redisagg.attempt"] for span in merges] == [1, 2]
    for span in merges:
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == "ValueError: no"
        assert (span.attributes or {})["error.type"] == "ValueError"
        assert linked(span) == [id_of(spans.one("add"))]


def test_a_merge_that_hangs_ends_with_its_timeout(make: Make, spans: Spans) -> None:
    end = threading.Event()

    def hang(group: str, tasks: list[Task]) -> None:
        end.wait(60)

    agg = spans.watch(
        make(group_max_size=1, group_aggregator=hang, max_attempts=1, merge_timeout=0.2)
    )
    with agg:
        agg.add_task(Task("test", 1, "a"))
        await_dead(agg)
        span = spans.one("merge")
        end.set()
    assert (span.attributes or {})["error.type"] == "MergeTimeout"


@pytest.mark.parametrize("fails", [False, True])
def test_a_thread_leaves_the_span_after_the_merge(spans: Spans, fails: bool) -> None:
    seen = list[int]()

    def note_span(group: str, tasks: list[Task]) -> None:
        seen.append(trace.get_current_span().get_span_context().span_id)
        if fails:
            raise ValueError

    with spans.tracer.start_as_current_span("outer") as outer:
        span = spans.tracer.start_span("merge")
        claim = claim_of([Task("test", 1, "a")])._replace(span=MergeSpan(span))
        router = Router(StreamSink("x"), False, 10**6)
        outcome = merge_claim(note_span, router, claim, informed=False)
        assert (outcome.failure is not None) is fails
        assert seen == [span.get_span_context().span_id]
        assert trace.get_current_span() is outer


# --- deliveries ----------------------------------------------------------------------------------


def send_plainly(seen: list[int]) -> Callable[[Task, str], None]:
    def send(task: Task, batch_id: str) -> None:
        seen.append(trace.get_current_span().get_span_context().span_id)
        if len(seen) == 1:
            raise ValueError("not yet")

    return send


def send_later(seen: list[int]) -> Any:
    plain = send_plainly(seen)

    async def send(task: Task, batch_id: str) -> None:
        plain(task, batch_id)

    return send


@pytest.mark.parametrize("make_send", [send_plainly, send_later])
def test_deliveries(make: Make, spans: Spans, make_send: Any) -> None:
    seen = list[int]()
    agg = spans.watch(make(group_max_size=1, sink=CallableSink(make_send(seen))))
    with agg:
        agg.add_task(Task("test", 1, "a"))
        assert agg.wait_until_idle(10)
        wait_until(lambda: len(spans.named("deliver")) == 2, what="both have ended")
    failed, done = spans.named("deliver CallableSink")
    # What the function does belongs to the delivery.
    assert seen == [id_of(failed), id_of(done)]
    for span in (failed, done):
        assert common(span) == (SpanKind.CLIENT, "deliver", "send", "CallableSink")
        attributes = span.attributes or {}
        assert attributes["messaging.message.id"] == attributes["redisagg.batch_id"]
    assert (failed.attributes or {})["error.type"] == "ValueError"
    assert parent_of(failed) == id_of(spans.one("merge"))
    # The stored result is delivered by another attempt, which merges nothing.
    assert parent_of(done) == id_of(spans.named("claim")[1])
    assert done.status.status_code is StatusCode.UNSET


def test_a_queue_that_refuses(make: Make, spans: Spans, sync_redis: redis.Redis) -> None:
    sync_redis.set("broken", "no stream")
    agg = spans.watch(make(group_max_size=1, sink=StreamSink("broken"), max_attempts=1))
    with agg:
        agg.add_task(Task("test", 1, "a"))
        span = spans.one("enqueue StreamSink")
    assert span.status.status_code is StatusCode.ERROR
    assert parent_of(span) == id_of(spans.one("merge"))


def test_a_task_that_is_merged_into_nothing(make: Make, spans: Spans) -> None:
    agg = spans.watch(make(group_max_size=1, group_aggregator=lambda group, tasks: None))
    with agg:
        agg.add_task(Task("test", 1, "a"))
        assert agg.wait_until_idle(10)
        merged = spans.one("merge")
    assert (merged.attributes or {})["redisagg.merged_tasks"] == 0
    assert spans.named("enqueue") == spans.named("deliver") == []


# --- the worker ----------------------------------------------------------------------------------

PROGRAM = """
import sys
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from redisagg import AggregationConfig, Aggregator

provider = TracerProvider()
provider.add_span_processor(
    SimpleSpanProcessor(ConsoleSpanExporter(formatter=lambda span: span.to_json(None) + "\\n"))
)
trace.set_tracer_provider(provider)
reader = PeriodicExportingMetricReader(
    ConsoleMetricExporter(formatter=lambda data: data.to_json(None) + "\\n"), 100
)
metrics.set_meter_provider(MeterProvider([reader]))
config = AggregationConfig(partitions=2, group_max_size=1)
agg = Aggregator("tests", sys.argv[-1], config=config)
"""


def test_a_worker(make: Make, redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "traced.py").write_text(PROGRAM.replace("sys.argv[-1]", repr(redis_url)))
    line = [sys.executable, "-m", "redisagg", "worker", "traced:agg", "--otel"]
    make(group_max_size=1).add_task(Task("test", 1, "a", headers={TRACEPARENT: traceparent(3)}))
    with subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            names = list[str]()
            for text in process.stdout:
                said = json.loads(text)
                if "name" in said:
                    names.append(said["name"])
                elif "redisagg.batches.flushed" in text:  # a collection of metrics
                    break
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
    assert names == ["claim tests", "merge tests", "enqueue tests-batches"]


def test_without_the_extra_the_message_has_the_command(redis_url: str) -> None:
    program = textwrap.dedent(
        """
        import sys
        sys.modules["opentelemetry.trace"] = None
        from redisagg.__main__ import main
        main()
        """
    )
    line = [sys.executable, "-c", program, "worker", "tests", "--redis", redis_url]
    done = subprocess.run(
        [*line, "--sink", "stream://x", "--otel"], cwd=CHECKOUT, capture_output=True, timeout=60
    )
    assert done.returncode == 1
    assert b"pip install 'redisagg[otel]'" in done.stderr


# --- docs ----------------------------------------------------------------------------------------


def test_the_table_of_spans_is_complete(make: Make, spans: Spans) -> None:
    calls = list[str]()
    agg = spans.watch(make(group_max_size=1))
    delivered = spans.watch(
        make(
            name="other",
            group_max_size=1,
            sink=CallableSink(lambda task, batch_id: calls.append(batch_id)),
        )
    )
    with agg, delivered:
        agg.add_tasks(numbered("a", 1))
        delivered.add_task(Task("test", 1, "a"))
        for name in ("enqueue", "deliver"):
            spans.one(name)
    page = read("docs/tracing.md")
    table = {row[0].split()[0].strip("`"): row for row in rows(section(page, "Spans"))}
    seen = {span.name.split()[0]: common(span) for span in spans.all()}
    assert {name: (row[1].strip("`"), row[2].strip("`")) for name, row in table.items()} == {
        name: (kind.name, kind_of_operation)
        for name, (kind, _, kind_of_operation, _) in seen.items()
    }
    attributes = {row[0].strip("`") for row in rows(section(page, "Attributes"))}
    used = {name for span in spans.all() for name in span.attributes or {}}
    assert attributes == used | {"error.type"}
