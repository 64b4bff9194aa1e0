"""A sink that keeps what it is given, and the comparison of that with what a test expects."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from redisagg.payload import to_json
from redisagg.sinks.base import DeliverySink, MergedTask, ScriptSink, Sink
from redisagg.sinks.routing import Route
from redisagg.task import Task, group_key_text
from redisagg.testing.driver import BatchFailure, Crash, Flushed

_WIDTH = 70
"""Characters of a value that stands in one line of a difference."""


class RecordingSink(DeliverySink):
    """Keeps merged tasks in the order in which they arrive.

    Args:
        like: the sink in whose place it is. Payloads that this one can't take are refused too, and
            a function that chooses sinks is called for each merged task.
        into: another one, whose lists and errors this one shares.
    """

    limits_itself = True

    def __init__(
        self, like: Sink | Route | None = None, *, into: RecordingSink | None = None
    ) -> None:
        self.batches: list[MergedTask] = [] if into is None else into.batches
        """What has arrived."""
        self.sinks: list[Sink] = [] if into is None else into.sinks
        """For each of `batches` the sink for which it was meant, if the sink is a function."""
        self._like = like
        self._failures: list[BaseException] = [] if into is None else into._failures
        self._crashes: list[bool] = [] if into is None else into._crashes
        if isinstance(like, Sink):
            self.takes_json = like.takes_json
            # Class variables of the sinks, which depend on the sink here.
            self.inherits = like.inherits  # type: ignore[misc]
            self.max_bytes = like.max_bytes  # type: ignore[misc]

    @property
    def tasks(self) -> list[Task]:
        """The merged tasks without what is known of their batches."""
        return [each.task for each in self.batches]

    @property
    def payloads(self) -> list[Any]:
        """The payloads of the merged tasks."""
        return [each.task.payload for each in self.batches]

    def fail(self, error: BaseException, times: int = 1) -> None:
        """Has the next deliveries raise an error, as a queue that is down.

        Args:
            error: what they raise.
            times: number of deliveries.
        """
        self._failures += [error] * times

    def crash_after_next(self) -> None:
        """Has the flusher die behind the next delivery, before Redis is told of it; see `Crash`.

        The batch is delivered again then, with the same batch id.
        """
        self._crashes.append(True)

    def clear(self) -> None:
        """Forgets what has arrived, and the errors to come."""
        self.batches.clear()
        self.sinks.clear()
        self._failures.clear()
        self._crashes.clear()

    async def deliver(self, merged: MergedTask) -> None:
        """Keeps a merged task.

        Raises:
            PayloadError: the sink in whose place it is has no form for it.
            BaseException: the next error of `fail`.
        """
        if self._failures:
            raise self._failures.pop(0)
        sink = self._like
        if sink is not None and not isinstance(sink, Sink):
            sink = sink(merged.task)
            self.sinks.append(sink)
        if isinstance(sink, ScriptSink):
            sink.arguments(merged)  # raises what the queue has no form for
        elif sink is not None and sink.takes_json:
            to_json(merged.task.payload)
        self.batches.append(merged)
        if self._crashes:
            self._crashes.pop()
            raise Crash("after a delivery")


def assert_batched(
    batches: Sequence[MergedTask],
    expected: Mapping[Any, Any] | Sequence[Any],
    *,
    by: Callable[[MergedTask], Any] = lambda merged: merged.task.payload,
) -> None:
    """Compares what was flushed with what a test expects.

    Args:
        batches: what `flush_due` or `drain` returned, or `RecordingSink.batches`.
        expected: for each group key the payloads of its merged tasks in order, and groups in any
            order: ``{"ann": [...], ("user", 42): [...]}``. Or a list of all payloads in order.
        by: what is compared of a merged task instead of its payload.

    Raises:
        AssertionError: they differ; the message has the difference line by line, and the errors of
            attempts that failed.
    """
    found: Any
    if isinstance(expected, Mapping):
        found = {}
        for each in batches:
            found.setdefault(each.group, []).append(by(each))
        wanted: Any = {group_key_text(key): list(each) for key, each in expected.items() if each}
        found = dict(sorted(found.items()))
        wanted = dict(sorted(wanted.items()))
    else:
        found, wanted = [by(each) for each in batches], list(expected)
    if found == wanted:
        return
    lines = list(
        difflib.unified_diff(
            _lines(wanted), _lines(found), "expected", "flushed", lineterm="", n=10_000
        )
    )
    # The lines behind the header `@@`.
    text = "what was flushed differs from what is expected:\n" + "\n".join(lines[:2] + lines[3:])
    if isinstance(batches, Flushed):
        text += describe(batches)
    raise AssertionError(text)


def _lines(value: Any, before: str = "", behind: str = "") -> list[str]:
    """A value in lines, one for each item of what does not fit into a line.

    Args:
        before, behind: texts around it.
    """
    text = repr(value)
    indent = " " * (len(before) - len(before.lstrip()))
    if len(text) + len(indent) <= _WIDTH or not isinstance(value, dict | list | tuple):
        return [f"{before}{text}{behind}"]
    opening, closing = text[0], text[-1]
    if isinstance(value, dict):
        parts = [(f"{key!r}: ", each) for key, each in value.items()]
    else:
        parts = [("", each) for each in value]
    inner = [line for name, each in parts for line in _lines(each, f"{indent}    {name}", ",")]
    return [f"{before}{opening}", *inner, f"{indent}{closing}{behind}"]


def describe(flushed: Flushed) -> str:
    """Says which attempts failed, and when more is due; empty if nothing is to be said."""
    text = "".join(f"\n{_failure_text(each)}" for each in flushed.failures)
    if flushed.next_due is not None:
        text += f"\nmore is due in {flushed.next_due:g} seconds; move the clock with clock.advance"
    return text


def _failure_text(failure: BatchFailure) -> str:
    what = "a dead letter" if failure.buried else f"tried again in {failure.delay:g} seconds"
    text = f"a batch of group {failure.group!r} failed in attempt {failure.attempt} and is {what}: "
    return text + failure.error + (f"\n{failure.traceback}" if failure.traceback else "")
