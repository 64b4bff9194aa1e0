"""How a receipt waits, without Redis; and the mark of a submitted task."""

from __future__ import annotations

import time
from typing import Any

import msgpack
import pytest

from redisagg import AggregationConfig, NoResult, ResultTimeout, Task, TaskCancelled, TaskFailed
from redisagg.errors import AuthenticationFailed, KeyConflict, RedisUnavailable
from redisagg.protocol.answers import pack_answer, pack_failure
from redisagg.protocol.entries import Encoder, decode, mark_submitted, submitted_ms
from redisagg.protocol.scripts import Request
from redisagg.receipts.waiting import Inbox, Slot, open_answer

KEY = b"redisagg:{n:0}:answer:1:g:id"
RECORD = pack_answer("result", "b", 7)


def message(*pairs: bytes) -> bytes:
    packed: bytes = msgpack.packb(list(pairs), use_bin_type=False)
    return packed


def end_of(steps: Any, reply: Any = None) -> Any:
    """What the steps return after this reply."""
    with pytest.raises(StopIteration) as stopped:
        steps.send(reply)
    return stopped.value.value


def test_a_new_task_is_not_looked_for_at_once() -> None:
    inbox = Inbox()
    inbox.handle(None)
    slot = inbox.slot(KEY, new=True)
    steps = slot.steps(5)
    assert isinstance(next(steps), float)
    inbox.handle(message(b"other", b"x", KEY, RECORD))
    assert end_of(steps) == RECORD


@pytest.mark.parametrize("listens", [False, True])
def test_an_earlier_answer_is_looked_for(listens: bool) -> None:
    """Also that of a new task if messages may have been lost since."""
    inbox = Inbox()
    if listens:
        inbox.handle(None)
    slot = inbox.slot(KEY, new=not listens)
    steps = slot.steps(5)
    request = next(steps)
    assert isinstance(request, Request)
    assert tuple(request.args) == ("GET", KEY)
    assert isinstance(steps.send(None), float)
    inbox.handle(None)  # the subscription was interrupted
    assert isinstance(steps.send(None), Request)
    assert end_of(steps, RECORD) == RECORD


def test_a_message_without_the_record_has_it_read() -> None:
    inbox = Inbox()
    inbox.handle(None)
    steps = inbox.slot(KEY, new=True).steps(5)
    assert isinstance(next(steps), float)
    # Kept alive by the steps.
    inbox.handle(message(KEY, b""))
    assert isinstance(steps.send(None), Request)
    assert end_of(steps, RECORD) == RECORD


def test_a_later_outcome_replaces_an_earlier_one() -> None:
    inbox = Inbox()
    slot = inbox.slot(KEY, new=True)
    failed = pack_failure("b", "no", "b")
    inbox.handle(message(KEY, failed))
    assert end_of(slot.steps(0)) == failed
    inbox.handle(message(KEY, RECORD))
    assert end_of(slot.steps(0)) == RECORD


def test_a_timeout_of_nothing_looks_once() -> None:
    inbox = Inbox()
    inbox.handle(None)
    steps = inbox.slot(KEY, new=True).steps(0)
    assert isinstance(next(steps), Request)
    with pytest.raises(ResultTimeout):
        steps.send(None)


def test_an_outage_ends_in_the_timeout() -> None:
    steps = Slot(KEY, look=True).steps(0.05)
    away = RedisUnavailable("away")

    def wait() -> None:
        step = next(steps)
        while True:
            if isinstance(step, Request):
                step = steps.send(away)
            else:
                time.sleep(step)
                step = steps.send(None)

    with pytest.raises(ResultTimeout) as raised:
        wait()
    assert raised.value.__cause__ is away


def test_a_refusal_is_raised() -> None:
    steps = Slot(KEY, look=True).steps(5)
    next(steps)
    with pytest.raises(AuthenticationFailed):
        steps.send(AuthenticationFailed("no"))


@pytest.mark.parametrize(
    "foreign", [b"", b"\xc1", b"\x01", msgpack.packb([b"a"]), msgpack.packb([[], b""])]
)
def test_foreign_messages_are_ignored(foreign: bytes) -> None:
    inbox = Inbox()
    slot = inbox.slot(KEY, new=True)
    inbox.handle(foreign)
    assert slot.record is None


def test_the_receipts_of_a_task_share_a_slot_that_goes_with_them() -> None:
    inbox = Inbox()
    inbox.handle(None)
    first = inbox.slot(KEY, new=True)
    assert inbox.slot(KEY, new=False) is first
    assert first.look
    del first
    assert not inbox._slots


def test_outcomes() -> None:
    assert open_answer(RECORD, KEY, "id") == 7
    with pytest.raises(TaskFailed) as failed:
        open_answer(pack_failure("b", "no\udcff", None), KEY, "id")
    assert (failed.value.reason, failed.value.batch_id) == ("no\\udcff", "b")
    for state, kind in (("merged", NoResult), ("dropped", NoResult), ("cancelled", TaskCancelled)):
        with pytest.raises(kind):
            open_answer(msgpack.packb([state, "b", None]), KEY, "id")


@pytest.mark.parametrize(
    "foreign", [b"", b"\xc1", msgpack.packb(["result"]), msgpack.packb(["odd", "b", 1])]
)
def test_a_foreign_record(foreign: bytes) -> None:
    with pytest.raises(KeyConflict):
        open_answer(foreign, KEY, "id")


@pytest.mark.parametrize(
    "task",
    [
        Task("t", 1, "g", "id"),
        Task("t", 1, "g", "id", headers={"a": "b"}),
        Task("t", 1, "g", "id", options={"queue": "q"}),
        Task("t", 1, "g", "id", headers={"a": "b"}, weight=3, priority=2),
    ],
)
@pytest.mark.parametrize("keep_ms", [1, 127, 3_600_000, 2**32 - 1])
def test_the_mark_of_a_submitted_task(task: Task, keep_ms: int) -> None:
    plain = Encoder(AggregationConfig())(task)
    marked = mark_submitted(plain, keep_ms)
    assert (marked.id, marked.group, marked.limits) == (plain.id, plain.group, plain.limits)
    for head, limits in ((b"\0" * 6, b""), (b"\x80" + b"\0" * 5, b"\x08weight=3")):
        entry = head + bytes([len(marked.id)]) + marked.id + limits + marked.body
        found: dict[str, int] = {}
        decoded = decode(entry, "g", found)
        assert (decoded.payload, decoded.headers, decoded.weight) == (1, task.headers, task.weight)
        assert found == {"id": keep_ms}
        assert submitted_ms(entry) == keep_ms
        unmarked = head + bytes([len(plain.id)]) + plain.id + limits + plain.body
        assert submitted_ms(unmarked) == 0
        assert decode(unmarked, "g", found).payload == 1


@pytest.mark.parametrize("entry", [b"", b"\0" * 6, b"\0" * 7, b"\x80" * 8, b"\0" * 6 + b"\xff"])
def test_bytes_that_are_no_entry_have_no_mark(entry: bytes) -> None:
    assert submitted_ms(entry) == 0
