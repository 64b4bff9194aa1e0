"""Payloads as bytes and as JSON."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import math
import uuid
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redisagg.errors import PayloadError
from redisagg.payload import pack, to_json, unpack

_KEYS = st.text(max_size=5) | st.integers(-(2**63), 2**64 - 1)
_FLAT = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.binary()
    | st.uuids()
    | st.decimals(allow_nan=False)
    | st.datetimes()
    | st.datetimes(timezones=st.timezones().map(lambda zone: dt.timezone.utc))
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.sets(st.integers(0, 9) | st.uuids())
    | st.frozensets(st.text(max_size=3))
)
_PAYLOADS = st.recursive(
    _FLAT, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=4)
)


@given(_PAYLOADS)
def test_what_is_packed_comes_back(payload: Any) -> None:
    assert unpack(pack(payload)) == payload


@given(_PAYLOADS)
def test_every_payload_has_a_form_in_json(payload: Any) -> None:
    assert to_json(json.loads(to_json(payload), parse_constant=pytest.fail)) == to_json(payload)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_in_json_is_refused_there(number: float) -> None:
    assert str(unpack(pack(number))) == str(number)
    with pytest.raises(PayloadError):
        to_json({"number": [number]})


@dataclasses.dataclass
class _Point:
    x: int
    tags: set[str]


class _Colour(enum.Enum):
    RED = "red"


def test_what_has_one_way_only() -> None:
    payload = {"p": _Point(1, {"a"}), "c": _Colour.RED, "t": (1, 2), "b": bytearray(b"x")}
    assert unpack(pack(payload)) == {
        "p": {"x": 1, "tags": {"a"}},
        "c": "red",
        "t": [1, 2],
        "b": b"x",
    }


def _endless() -> list[Any]:
    endless: list[Any] = []
    endless.append(endless)
    return endless


@pytest.mark.parametrize(
    "payload", [object(), 2**64, "\ud800", {"a": {"b": lambda: 0}}, _endless(), [{1, object()}]]
)
def test_what_can_not_be_packed_is_named(payload: Any) -> None:
    with pytest.raises(PayloadError, match="payload"):
        pack(payload)
    assert unpack(pack({"after": "an error"})) == {"after": "an error"}


@given(st.binary())
def test_foreign_bytes_are_a_value_error_at_worst(raw: bytes) -> None:
    try:
        unpack(raw)
    except Exception as error:
        assert isinstance(error, ValueError)  # noqa: PT017 - most of them raise nothing


def test_json_is_as_documented() -> None:
    payload = {
        "at": dt.datetime(2026, 1, 2, tzinfo=dt.timezone.utc),
        "for": dt.timedelta(seconds=90),
        "id": uuid.UUID(int=1),
        "price": Decimal("1.10"),
        "raw": b"\x00\xff",
        "set": {1},
        1: "number",
    }
    assert json.loads(to_json(payload)) == {
        "at": "2026-01-02T00:00:00+00:00",
        "for": 90.0,
        "id": "00000000-0000-0000-0000-000000000001",
        "price": "1.10",
        "raw": "AP8=",
        "set": [1],
        "1": "number",
    }
