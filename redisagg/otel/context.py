"""Trace context in the headers of tasks, by W3C Trace Context."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from redisagg.errors import UndecodableTask
from redisagg.flusher.merging.tracing import LINKS, MAX_LINKS, TRACEPARENT
from redisagg.protocol.entries import decode

_propagator = TraceContextTextMapPropagator()

_STORED = re.compile(rb"\xabtraceparent\xd9\x37(.{55})", re.DOTALL)
"""The header in a stored task: msgpack's form of its name and of a value of 55 bytes. A payload may
have the same, so what is found is looked up in the headers."""

_MOST_DECODED = 4 * MAX_LINKS
"""The number of stored tasks that are decoded in search of headers."""


def headers_of(span: Span) -> dict[str, str]:
    """Returns the headers that lead to a span; empty if it has no valid context."""
    headers: dict[str, str] = {}
    _propagator.inject(headers, trace.set_span_in_context(span, Context()))
    return headers


def context_of(headers: Mapping[str, str]) -> Context:
    """Returns the context that headers lead to; an empty one if they lead nowhere."""
    return _propagator.extract(headers, Context())


def span_context_of(headers: Mapping[str, str]) -> SpanContext | None:
    """Returns the span that headers lead to; None if they lead nowhere."""
    found = trace.get_current_span(context_of(headers)).get_span_context()
    return found if found.is_valid else None


def links_of(headers: Mapping[str, str]) -> list[Link]:
    """Returns links from a merged task to the tasks that it was made of.

    For the span of whoever works on the merged task: ``start_as_current_span(..., links=links)``.

    Args:
        headers: those of the merged task; `LINKS` is read.

    Returns:
        One link for each trace context of its tasks, 128 at most; none for a task without them.
    """
    found = (
        span_context_of({TRACEPARENT: each})
        for each in headers.get(LINKS, "").split(",")[:MAX_LINKS]
    )
    return [Link(each) for each in found if each is not None]


def links_to(entries: Sequence[bytes]) -> list[Link]:
    """Returns links to the first spans, 128 at most, that added these stored tasks, each once."""
    found: dict[str, Link] = {}
    for headers, task_id in _traced(entries):
        parent = headers[TRACEPARENT]
        if parent not in found and (context := span_context_of(headers)) is not None:
            found[parent] = Link(context, {"messaging.message.id": task_id})
            if len(found) == MAX_LINKS:
                break
    return list(found.values())


def _traced(entries: Sequence[bytes]) -> Iterable[tuple[Mapping[str, str], str]]:
    """The headers and ids of stored tasks, one for each trace context and maybe some more."""
    seen: set[bytes] = set()
    decoded = 0
    for entry in entries:
        new = {each for each in _STORED.findall(entry) if each not in seen}
        if not new:
            continue
        seen |= new
        decoded += 1
        try:
            task = decode(entry, "")
        except UndecodableTask:
            pass
        else:
            if TRACEPARENT in task.headers:
                yield task.headers, task.id
        if decoded == _MOST_DECODED:
            return
