"""The spans of one batch: its claim, its merge, and what is sent of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextvars import Token
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.util.types import AttributeValue

from redisagg.otel.context import context_of, headers_of, links_to

SYSTEM = "redisagg"


def attributes_of(name: str, kind: str, destination: str) -> dict[str, AttributeValue]:
    """Returns what the semantic conventions want of each span.

    Args:
        name: of the operation.
        kind: ``send``, ``receive`` or ``process``.
        destination: the namespace, or what is sent to.
    """
    return {
        "messaging.system": SYSTEM,
        "messaging.operation.name": name,
        "messaging.operation.type": kind,
        "messaging.destination.name": destination,
    }


def fail(span: Span, error: str) -> None:
    """Notes in a span that its operation failed.

    Args:
        error: the class of the exception, a colon and its message.
    """
    span.set_attribute("error.type", error.partition(":")[0])
    span.set_status(Status(StatusCode.ERROR, error))


class BatchSpans:
    """Makes the spans of one batch in one attempt; see `redisagg.observers.BatchSpans`.

    The claim and the merge link to the spans that added the tasks. If all tasks come of one span,
    the batch continues its trace; else it begins one of its own.

    Args:
        namespace: name of the namespace.
        common: attributes that all spans have.
        size: the number of tasks.
        begun, ended: when the claim began and ended, nanoseconds since the epoch.
    """

    def __init__(
        self,
        tracer: Tracer,
        namespace: str,
        common: Mapping[str, AttributeValue],
        size: int,
        begun: int,
        ended: int,
    ) -> None:
        self._tracer = tracer
        self._namespace = namespace
        self._common = common
        self._size = size
        self._times = (begun, ended)
        self._context: Context | None = None
        """That of the claim, and then that of the merge: the parent of what is sent."""
        self._delivery: tuple[Span, Token[Context]] | None = None

    def merging(self, entries: Sequence[bytes] | None) -> MergeSpan | None:
        links = links_to(entries) if entries else []
        begun, ended = self._times
        count = {"messaging.batch.message_count": self._size}
        parent = Context()
        if len(links) == 1:
            parent = trace.set_span_in_context(trace.NonRecordingSpan(links[0].context), parent)
        claim = self._start("claim", "receive", SpanKind.CLIENT, parent, links, count, begun)
        claim.end(ended)
        self._context = trace.set_span_in_context(claim, Context())
        if not entries:
            return None
        merge = self._start("merge", "process", SpanKind.CONSUMER, self._context, links, count)
        self._context = trace.set_span_in_context(merge, Context())
        return MergeSpan(merge)

    def delivering(self, sink: str, merged_id: str) -> None:
        span = self._start_send("deliver", sink, {"messaging.message.id": merged_id})
        token = otel_context.attach(trace.set_span_in_context(span))
        self._delivery = (span, token)

    def delivered(self, sink: str, seconds: float, error: str) -> None:
        delivery, self._delivery = self._delivery, None
        if delivery is None:  # a queue in Redis has refused the batch
            span = self._start_send("enqueue", sink, {}, _nanoseconds_ago(seconds))
        else:
            span, token = delivery
            otel_context.detach(token)
        if error:
            fail(span, error)
        span.end()

    def enqueued(self, queue: str, seconds: float, tasks: int) -> None:
        count = {"messaging.batch.message_count": tasks}
        self._start_send("enqueue", queue, count, _nanoseconds_ago(seconds)).end()

    def _start_send(
        self, name: str, to: str, more: Mapping[str, AttributeValue], start: int | None = None
    ) -> Span:
        return self._start(name, "send", SpanKind.CLIENT, self._context, (), more, start, to)

    def _start(
        self,
        name: str,
        kind: str,
        span_kind: SpanKind,
        parent: Context | None,
        links: Sequence[Link],
        more: Mapping[str, AttributeValue],
        start: int | None = None,
        destination: str = "",
    ) -> Span:
        destination = destination or self._namespace
        return self._tracer.start_span(
            f"{name} {destination}",
            Context() if parent is None else parent,
            span_kind,
            {**attributes_of(name, kind, destination), **self._common, **more},
            links,
            start,
        )


class MergeSpan:
    """The span of a merge; see `redisagg.observers.MergeSpan`."""

    def __init__(self, span: Span) -> None:
        self.headers: Mapping[str, str] = headers_of(span)
        self._span = span
        self._token: Token[Context] | None = None
        self._ended: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteMergeSpan, (self.headers,)

    def enter(self) -> None:
        self._token = otel_context.attach(trace.set_span_in_context(self._span))

    def exit(self) -> None:
        self._ended = time.time_ns()
        if self._token is not None:
            token, self._token = self._token, None
            otel_context.detach(token)

    def end(self, error: str, tasks: int) -> None:
        span = self._span
        span.set_attribute("redisagg.merged_tasks", tasks)
        if error:
            fail(span, error)
        span.end(self._ended)


class RemoteMergeSpan:
    """The copy of a `MergeSpan` in a worker process: what the merge function does is its child."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.headers = headers
        self._token: Token[Context] | None = None

    def enter(self) -> None:
        self._token = otel_context.attach(context_of(self.headers))

    def exit(self) -> None:
        if self._token is not None:
            token, self._token = self._token, None
            otel_context.detach(token)

    def end(self, error: str, tasks: int) -> None:
        """Does nothing: the span is ended where it was begun."""


def _nanoseconds_ago(seconds: float) -> int:
    return time.time_ns() - int(1e9 * seconds)
