"""Stored tasks: encoding, decoding, and foreign bytes in their list."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redisagg import AggregationConfig, Task
from redisagg.errors import TaskTooLarge, UndecodableTask
from redisagg.protocol.entries import Encoder, decode, decode_leniently

_ENCODE = Encoder(AggregationConfig(max_task_bytes=1000))


def _entry(task: Task) -> bytes:
    encoded = _ENCODE(task)
    arrived = (1_700_000_000_123).to_bytes(6, "big")
    return arrived + bytes([len(encoded.id)]) + encoded.id + encoded.body


@pytest.mark.parametrize(
    "task",
    [
        Task("t", {"a": 1}, "g"),
        Task("t", None, "g", headers={"a": "b"}),
        Task("t", 1, "g", priority=-5, grace_period=1.5, max_delay=2, max_size=3),
        Task("t", 1, "g", headers={"a": "b"}, options={"queue": "low"}),
        Task("t", 1, "g", id="é" * 64),
    ],
)
def test_a_task_comes_back_as_it_was(task: Task) -> None:
    entry = _entry(task)
    assert decode(entry, "g") == task
    stored = decode_leniently(entry, "g")
    assert (stored.task, stored.arrived_at) == (task, 1_700_000_000.123)


def test_what_a_plain_task_takes() -> None:
    assert _ENCODE(Task("t", 1, "g")).body == msgpack.packb(["t", 1])
    assert _ENCODE(Task("t", 1, "g")).limits == b"120000 600000 20 0"
    assert _ENCODE(Task("t", 1, "g", max_size=5, priority=-2)).limits == b"120000 600000 5 -2"


def test_a_task_that_is_too_large() -> None:
    with pytest.raises(TaskTooLarge, match="max_task_bytes"):
        _ENCODE(Task("t", b"x" * 1000, "g"))


@given(st.binary())
def test_foreign_bytes_are_no_task(raw: bytes) -> None:
    with pytest.raises(UndecodableTask):
        decode(raw, "g")
    assert decode_leniently(raw, "g").raw == raw
