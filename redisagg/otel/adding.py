"""Spans of adds, and the trace context in the headers of the added tasks.

The functions here stand in front of the methods of an aggregator that is traced. So who is not
traced pays nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Link, Span, SpanKind, Tracer

from redisagg.aggregator import Aggregator, AsyncAggregator
from redisagg.flusher.merging.tracing import MAX_LINKS, TRACEPARENT
from redisagg.otel.context import headers_of, span_context_of
from redisagg.otel.spans import attributes_of, fail
from redisagg.task import Task
from redisagg.texts import summary_of


def trace_adds(aggregator: Aggregator | AsyncAggregator, tracer: Tracer) -> None:
    """Makes spans of all that an aggregator adds from now on."""
    adds = _Adds(tracer, aggregator.name)
    one, many = (
        (adds.add_one, adds.add_many)
        if isinstance(aggregator, Aggregator)
        else (adds.add_one_async, adds.add_many_async)
    )
    for name, wrap in (("add_task", one), ("submit", one), ("add_tasks", many)):
        setattr(aggregator, name, wrap(getattr(aggregator, name)))


class _Adds:
    """Makes the spans of adds to one namespace."""

    def __init__(self, tracer: Tracer, namespace: str) -> None:
        self._tracer = tracer
        self._name = f"add {namespace}"
        self._attributes = attributes_of("add", "send", namespace)

    def add_one(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Returns `add_task` or `submit` with a span."""

        @wraps(method)
        def add(task: Task) -> Any:
            with self._one(task) as traced:
                return method(traced)

        return add

    def add_one_async(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Returns `add_task` or `submit` of an `AsyncAggregator` with a span."""

        @wraps(method)
        async def add(task: Task) -> Any:
            with self._one(task) as traced:
                return await method(traced)

        return add

    def add_many(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Returns `add_tasks` with a span."""

        @wraps(method)
        def add(tasks: Iterable[Task], **options: Any) -> Any:
            with self._many() as many:
                return method(many.traced(tasks), **options)

        return add

    def add_many_async(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Returns `add_tasks` of an `AsyncAggregator` with a span."""

        @wraps(method)
        async def add(tasks: Iterable[Task] | AsyncIterable[Task], **options: Any) -> Any:
            with self._many() as many:
                return await method(many.traced(tasks), **options)

        return add

    @contextmanager
    def _one(self, task: Task) -> Iterator[Task]:
        attributes, links, kind = dict(self._attributes), [], SpanKind.PRODUCER
        if isinstance(task, Task):  # else the method says what is wrong
            attributes["messaging.message.id"] = task.id
            if TRACEPARENT in task.headers:
                kind = SpanKind.CLIENT
                if (context := span_context_of(task.headers)) is not None:
                    links.append(Link(context))
        span = self._tracer.start_span(self._name, None, kind, attributes, links)
        with _current(span):
            yield _with_context(task, headers_of(span))

    @contextmanager
    def _many(self) -> Iterator[_Many]:
        span = self._tracer.start_span(self._name, None, SpanKind.PRODUCER, self._attributes)
        many = _Many(span)
        try:
            with _current(span, end=False):
                yield many
        finally:
            span.set_attribute("messaging.batch.message_count", many.count)
            span.end()


class _Many:
    """The tasks of one call of `add_tasks`."""

    def __init__(self, span: Span) -> None:
        self.count = 0
        self._span = span
        self._headers = headers_of(span)
        self._linked: set[str] = set()

    def traced(self, tasks: Any) -> Any:
        """Returns the tasks with the trace context: a list of a collection, else a stream."""
        if isinstance(tasks, Collection):
            return [self._take(each) for each in tasks]
        if isinstance(tasks, AsyncIterable):
            return self._stream_async(tasks)
        return map(self._take, tasks)

    async def _stream_async(self, tasks: AsyncIterable[Task]) -> AsyncIterator[Task]:
        async for each in tasks:
            yield self._take(each)

    def _take(self, task: Task) -> Task:
        self.count += 1
        own = task.headers.get(TRACEPARENT) if isinstance(task, Task) else None
        if own is not None and own not in self._linked and len(self._linked) < MAX_LINKS:
            self._linked.add(own)
            if (context := span_context_of(task.headers)) is not None:
                self._span.add_link(context)
        return _with_context(task, self._headers)


def _with_context(task: Task, headers: dict[str, str]) -> Task:
    """Returns the task with these headers, unless it has a trace context of its own."""
    if not headers or not isinstance(task, Task) or TRACEPARENT in task.headers:
        return task
    return replace(task, headers={**task.headers, **headers})


@contextmanager
def _current(span: Span, *, end: bool = True) -> Iterator[None]:
    """Makes a span the current one, and notes what is raised."""
    with trace.use_span(
        span, end_on_exit=end, record_exception=False, set_status_on_exception=False
    ):
        try:
            yield
        except BaseException as error:
            fail(span, summary_of(error))
            raise
