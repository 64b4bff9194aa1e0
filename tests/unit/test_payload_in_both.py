"""Payloads with msgpack's implementations in C and in Python: both accept and read the same."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.payload_verdicts import (
    InPython,
    Shape,
    Tag,
    Verdict,
    read,
    verdict,
    verdicts_in_python,
)


@pytest.fixture(scope="module")
def in_python() -> Iterator[InPython]:
    if msgpack.Packer.__module__ == "msgpack.fallback":
        pytest.skip("msgpack has no implementation in C here")
    with verdicts_in_python() as process:
        yield process


_EXT = st.builds(msgpack.ExtType, st.integers(0, 10), st.binary(max_size=3))
_HASHABLE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.integers(-(2**64), 2**65)
    | st.floats(allow_nan=False)
    | st.sampled_from(["", "a", "one", "1", "null", "YQ==", "\ud800", "é", "ń"])
    | st.sampled_from([b"", b"a", b"raw", b"1"])
    | st.sampled_from(Shape)
    | st.builds(Tag, st.text(max_size=1))
    | st.builds(dt.date, st.integers(1, 9999), st.just(1), st.just(1))
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids()
    | _EXT,
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=2),
    max_leaves=4,
)


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.dictionaries(_HASHABLE, inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", b"a", "YQ==", b"1", "MQ=="]), inner)
        | st.sets(_HASHABLE, max_size=3)
    )


_PAYLOADS = st.recursive(_HASHABLE, _containers, max_leaves=8)


def _accepted(payload: Any, in_python: InPython) -> Verdict | None:
    """Checks that both say the same to a payload, and read alike what either has packed.

    Returns:
        What this process says, or None if the payload is refused.
    """
    said, other = verdict(payload), in_python.verdict(payload)
    assert (said.body is None, said.has_json) == (other.body is None, other.has_json)
    if said.body is None or other.body is None:
        assert not said.has_json
        return None
    found = read(said.body)
    # The members of sets may come in another order.
    assert in_python.read(said.body) == found
    assert read(other.body) == found
    return said


@given(payload=_PAYLOADS)
def test_what_is_accepted_can_be_read_by_both(payload: Any, in_python: InPython) -> None:
    said = _accepted(payload, in_python)
    if said is not None and said.body is not None:
        found = read(said.body)
        assert not isinstance(found, str), found
        assert found[1] or not said.has_json


_WRAPS: dict[str, Any] = {
    "list": lambda value: [value],
    "tuple": lambda value: (value,),
    "map": lambda value: {"a": value},
    "map of a tuple": lambda value: {(1, (2,)): value},
    "key": lambda value: {(value,): 1},
    "set": lambda value: {value},
}


@given(
    wraps=st.lists(st.sampled_from(["list", "tuple", "map", "map of a tuple"]), min_size=1),
    levels=st.integers(0, 140),
    inner=st.lists(st.sampled_from(["key", "set", "tuple"]), max_size=10),
    aside=st.sampled_from([0, 100, 3000]),
)
def test_both_have_the_same_limits(
    wraps: list[str], levels: int, inner: list[str], aside: int, in_python: InPython
) -> None:
    payload: Any = 1
    for name in inner:
        try:
            payload = _WRAPS[name](frozenset(payload) if isinstance(payload, set) else payload)
        except TypeError:  # no hash
            payload = [payload]
    for level in range(levels):
        payload = _WRAPS[wraps[level % len(wraps)]](payload)
    accepted = _accepted([payload, "x" * aside], in_python) is not None
    if not inner and "map of a tuple" not in wraps:
        assert accepted is (levels < 128)


@given(
    raw=st.binary(max_size=30)
    | st.builds(lambda n, raw: b"\x92\xa1t" + raw * n, st.integers(1, 4), st.binary(max_size=8))
)
def test_both_read_foreign_bytes_alike(raw: bytes, in_python: InPython) -> None:
    found, other = read(raw), in_python.read(raw)
    assert isinstance(found, str) == isinstance(other, str)
    if not isinstance(found, str):
        assert repr(found) == repr(other)
