"""Stored tasks: encoding, decoding, and foreign bytes in their list."""

from __future__ import annotations

from datetime import datetime, timezone
from enum import Enum
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redisagg import AggregationConfig, Task
from redisagg.errors import PayloadError, TaskTooLarge, UndecodableTask
from redisagg.protocol.entries import Encoder, decode, decode_leniently


class _Colour(Enum):
    RED = "red"


_MOMENT = datetime.fromtimestamp(1_900_000_000.123, timezone.utc)
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
        Task("t", 1, "g", max_bytes=9, weight=0, due_at=_MOMENT, not_before=_MOMENT, flush=True),
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
    assert _ENCODE(Task("t", 1, "g", max_size=5)).own is None


def test_limits_as_the_script_takes_them() -> None:
    config = AggregationConfig(
        group_grace_period=None,
        group_max_bytes=900,
        group_max_weight=7,
        group_min_interval=2,
        group_leading=True,
    )
    encode = Encoder(config)
    shared = b"max_weight=7 min_interval=2000 leading=1"
    assert encode(Task("t", 1, "g")).limits == b"- 600000 20 0 max_bytes=900 " + shared
    encoded = encode(Task("t", 1, "g", max_bytes=5, weight=0, due_at=_MOMENT, flush=True))
    assert encoded.limits == b"- 600000 20 0 max_bytes=5 " + shared
    assert encoded.own == b"weight=0 due_at=1900000000123 flush=1"


def test_an_entry_that_stores_limits_is_decoded() -> None:
    task = Task("t", 1, "g", weight=5)
    entry = bytearray(_entry(task))
    entry[0] |= 0x80
    end = 7 + entry[6]
    entry[end:end] = b"\x0a=;weight=5"
    stored = decode_leniently(bytes(entry), "g")
    assert (stored.task, stored.arrived_at) == (task, 1_700_000_000.123)


def test_a_task_that_is_too_large() -> None:
    with pytest.raises(TaskTooLarge, match="max_task_bytes"):
        _ENCODE(Task("t", b"x" * 1000, "g"))


@given(st.binary())
def test_foreign_bytes_are_no_task(raw: bytes) -> None:
    with pytest.raises(UndecodableTask):
        decode(raw, "g")
    assert decode_leniently(raw, "g").raw == raw


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"payload": {"items": [1, {"price": object()}]}},
            r"^payload\['items'\]\[1\]\['price'\]: the payload holds a builtins.object, which",
        ),
        ({"payload": [{1, _Colour.RED, "red"}]}, r"^payload\[0\]: .*two members of a set"),
        (
            {"payload": {_Colour.RED: 1, "red": 2}},
            "^the payload .* two keys of a dict have the same",
        ),
        ({"payload": object()}, "^the payload holds a builtins.object"),
        ({"options": {"queue": object()}}, r"^options\['queue'\]: the payload holds a builtins"),
    ],
)
def test_the_error_names_the_field(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(PayloadError, match=says):
        _ENCODE(Task("t", group_key="g", **fields))
