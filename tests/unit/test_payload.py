"""Payloads as bytes and as JSON."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import itertools
import json
import math
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redisagg.errors import PayloadError
from redisagg.payload import (
    check_levels,
    pack,
    pack_merged,
    surely_has_json,
    to_json,
    to_plain,
    unpack,
)
from tests.support.pytest_runs import run_pytest

_KEYS = st.text(max_size=5) | st.integers(-(2**63), 2**64 - 1)
_FLAT = (
    st.none()
    | st.booleans()
    | st.integers()
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
    try:
        assert to_json(json.loads(to_json(payload), parse_constant=pytest.fail)) == to_json(payload)
    except PayloadError as error:
        assert "two keys" in str(error)  # noqa: PT017 - 1 and "1"; most have a form


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


class _Model:
    """As a model of pydantic."""

    def __init__(self, **fields: Any) -> None:
        self._fields = fields

    def model_dump(self) -> dict[str, Any]:
        return self._fields


class UnsetType:
    """As the type of `msgspec.UNSET`."""


class _Struct:
    """As a struct of msgspec, which may be a key of a dict."""

    __struct_fields__ = ("x", "inner", "unset")

    def __init__(self, x: Any, inner: Any) -> None:
        self.x, self.inner, self.unset = x, inner, UnsetType()


class __proxy__:
    def __init__(self, text: Any) -> None:
        self._text = text

    def __cast(self) -> Any:
        return self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __eq__(self, other: object) -> bool:
        return bool(self._text == other)


class LazyString:
    """As that of Flask-Babel."""

    def __str__(self) -> str:
        return "lazy"


_DUCKS = {
    "model": _Model(a=[_Model(b=1)], at=dt.date(2026, 1, 1)),
    "struct": _Struct(1, [_Struct((), _Colour.RED)]),
    "django": __proxy__("grüße"),
    __proxy__("key"): __proxy__(7),
    "flask": [LazyString()],
}
_DUCKS_AS_BUILTINS = {
    "model": {"a": [{"b": 1}], "at": dt.date(2026, 1, 1)},
    "struct": {"x": 1, "inner": [{"x": [], "inner": "red"}]},
    "django": "grüße",
    "key": 7,
    "flask": ["lazy"],
}


def test_models_structs_and_lazy_strings_become_builtins() -> None:
    assert unpack(pack(_DUCKS)) == _DUCKS_AS_BUILTINS
    assert to_json(_DUCKS) == to_json(_DUCKS_AS_BUILTINS)
    with pytest.raises(PayloadError, match="packed"):
        pack({_Struct(1, 2): 1})


def test_models_of_the_libraries_themselves() -> None:
    pydantic, msgspec = pytest.importorskip("pydantic"), pytest.importorskip("msgspec")
    model = pydantic.create_model("Model", a=(int, ...), b=(dt.date, ...))
    struct = msgspec.defstruct("Struct", [("a", int), ("b", Any)])
    unset = msgspec.defstruct("Unset", [("a", int), ("b", Any, msgspec.UNSET)])
    at = dt.date(2026, 1, 1)
    payload = [model(a=1, b=at), struct(1, at), unset(1)]
    assert unpack(pack(payload)) == [{"a": 1, "b": at}, {"a": 1, "b": at}, {"a": 1}]


def test_lazy_strings_of_django() -> None:
    functional = pytest.importorskip("django.utils.functional")
    lazy = functional.lazy(lambda: "grüße", str)
    assert unpack(pack({"text": lazy(), lazy(): 1})) == {"text": "grüße", "grüße": 1}
    assert to_json([lazy()]) == '["grüße"]'


class _Wide(enum.IntEnum):
    LARGE = 2**64


@pytest.mark.parametrize(
    ("number", "length"),
    [
        *((2**64, 9), (-(2**63) - 1, 9), (2**71 - 1, 9), (-(2**71), 9)),
        *((2**71, 10), (-(2**71) - 1, 10), (_Wide.LARGE, 9), (-(10**4000), 1662)),
    ],
    ids=range(8),
)
def test_whole_numbers_of_any_size_come_back(number: int, length: int) -> None:
    packed = pack(number)
    found = msgpack.unpackb(packed)
    assert (found.code, len(found.data)) == (9, length)
    assert int.from_bytes(found.data, "big", signed=True) == number
    assert unpack(packed) == number
    payload = {"n": [number, {number}], number: number}
    assert unpack(pack(payload)) == payload


@pytest.mark.parametrize("number", [2**64 - 1, -(2**63), 0, True])
def test_smaller_whole_numbers_need_no_extension(number: int) -> None:
    assert pack(number) == msgpack.packb(number)


def test_an_extension_that_is_no_large_number_comes_back_as_it_was() -> None:
    small = msgpack.ExtType(9, b"\0" * 8)
    assert unpack(pack(small)) == small


def test_a_large_number_has_a_form_in_json() -> None:
    assert to_json({"n": 2**64, 2**65: 0}) == '{"n":18446744073709551616,"36893488147419103232":0}'


def _endless() -> list[Any]:
    endless: list[Any] = []
    endless.append(endless)
    return endless


@pytest.mark.parametrize(
    "payload", [object(), "\ud800", {"a": {"b": lambda: 0}}, _endless(), [{1, object()}]]
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


# --- what is accepted can be read -------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Tag:
    name: str


class _Shape(enum.Enum):
    MAP = {"a": 1}  # noqa: RUF012 - a dict as the value is the point
    NESTED = ({"a": 1},)
    PAIR = (1, 2)
    ONE = 1


class _HashableMap(Mapping[str, int]):
    def __init__(self, **items: int) -> None:
        self._items = items

    def __getitem__(self, key: str) -> int:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return 1


class _NoTime(dt.datetime):
    """As NaT of pandas, which is a datetime without a date."""

    def isoformat(self, *args: Any, **kwargs: Any) -> str:
        return "NaT"


class _Nanoseconds(dt.datetime):
    """As a timestamp of pandas."""

    def isoformat(self, *args: Any, **kwargs: Any) -> str:
        return super().isoformat(timespec="microseconds")


@pytest.mark.parametrize(
    "payload",
    [
        {_Tag("a")},
        {_Tag("a"): 1},
        {(1, _Tag("a")): 1},
        [{"deep": {frozenset([_Tag("a")]): 1}}],
        {_Shape.MAP},
        {_Shape.MAP: 1},
        frozenset([_Shape.NESTED]),
        {_HashableMap(a=1)},
        {_HashableMap(a=1): 1},
        {_Shape.PAIR: 1, (1, 2): 2},
        {_Shape.ONE, 1},
        {_Shape.PAIR, (1, 2)},
        _NoTime(2024, 1, 1),
        [{"at": _NoTime(2024, 1, 1)}],
    ],
    ids=itertools.count(),
)
def test_what_could_not_be_read_back_is_refused(payload: Any) -> None:
    with pytest.raises(PayloadError):
        pack(payload)
    assert unpack(pack([_Tag("a"), {"a": _Shape.MAP}])) == [{"name": "a"}, {"a": {"a": 1}}]


def test_what_has_a_hash_in_its_other_form_is_a_key() -> None:
    payload = {_Shape.PAIR: {_Shape.ONE, 2}, "at": _Nanoseconds(2024, 1, 1)}
    assert unpack(pack(payload)) == {(1, 2): {1, 2}, "at": dt.datetime(2024, 1, 1)}


@pytest.mark.parametrize("code", range(1, 9))
def test_an_extension_type_of_the_user_comes_back(code: int) -> None:
    payload = {"mine": msgpack.ExtType(code, b"mine"), "keys": {msgpack.ExtType(code, b""): 1}}
    found = unpack(pack(payload))
    if code == 6:  # no bytes are no number either
        assert found == payload
    assert found["mine"] == payload["mine"]


def _nested(levels: int, wrap: Callable[[Any], Any], value: Any) -> Any:
    for _ in range(levels):
        value = wrap(value)
    return value


_WRAPS: dict[str, Callable[[Any], Any]] = {
    "lists": lambda value: [value],
    "maps": lambda value: {"a": value},
    "maps of numbers": lambda value: {1: value},
    "maps of tuples": lambda value: {(1, 2): value},
}


@pytest.mark.parametrize("wrap", _WRAPS.values(), ids=_WRAPS)
@pytest.mark.parametrize("innermost", [1, []], ids=["full", "empty"])
@pytest.mark.parametrize("siblings", [0, 3_000], ids=["small", "large"])
def test_128_levels_are_accepted_and_no_more(
    wrap: Callable[[Any], Any], innermost: Any, siblings: int
) -> None:
    """Whatever msgpack packs and unpacks, so that what one process adds another one can read."""
    deepest = 127 if innermost == [] else 128
    if wrap == _WRAPS["maps of tuples"]:
        deepest = 127  # in the innermost map, the key is nested too
    aside = "x" * siblings
    for depth in (1, 100, deepest):
        payload = _nested(depth, wrap, innermost)
        assert unpack(pack(("t", payload, aside)))[1] == payload
        # A merge puts the payload into lists and maps of its own.
        merged = (1, [{"payloads": [{"items": [payload, aside]}]}])
        assert unpack(pack_merged(merged))[1][0]["payloads"][0]["items"][0] == payload
        to_json(payload)
        check_levels(_nested(depth, wrap, 1))
    for depth in (deepest + 1, deepest + 2, 300, 600, 1_100):
        payload = _nested(depth, wrap, innermost)
        with pytest.raises(PayloadError):
            pack(("t", payload, aside))
    with pytest.raises(PayloadError, match="128"):
        pack(("t", _nested(deepest + 1, wrap, innermost), aside))
    with pytest.raises(PayloadError, match="128"):
        check_levels(_nested(129, wrap, 1))
    with pytest.raises(PayloadError):
        pack_merged(_nested(200, wrap, innermost))


def test_many_lists_side_by_side_are_not_deep() -> None:
    wide = [[n, {"a": []}] for n in range(5_000)]
    assert unpack(pack(("t", wide))) == ["t", wide]


def test_the_same_holds_for_msgpack_in_python() -> None:
    """It has no limit of its own, but that of Python's stack."""
    names = (
        *(
            "test_128_levels",
            "test_many_lists",
            "test_what_could",
            "test_an_extension",
            "test_what_has",
        ),
        *("test_colliding", "test_what_is_packed"),
    )
    done = run_pytest(
        *("-q", __file__, "-k", " or ".join(names)), environment={"MSGPACK_PUREPYTHON": "1"}
    )
    assert done.returncode == 0, done.stdout


# --- keys of the same hash --------------------------------------------------------------------


def _colliding_map(count: int) -> bytes:
    """A map of arrays of -1 and -2, whose hashes are the same."""
    bits = itertools.islice(itertools.product((-1, -2), repeat=15), count)
    return (
        b"\xdf"
        + count.to_bytes(4, "big")
        + b"".join(msgpack.packb(each) + b"\xc0" for each in bits)
    )


def _colliding_numbers(count: int) -> bytes:
    """A map of multiples of 2^61 - 1 (with those below 2^64, and as floats and UUIDs)."""
    keys = [msgpack.ExtType(5, (n * (2**61 - 1)).to_bytes(16, "big")) for n in range(count)]
    packed: bytes = msgpack.packb(dict.fromkeys(keys))
    return packed


def _colliding_set(count: int) -> bytes:
    keys = [msgpack.ExtType(5, (n * (2**61 - 1)).to_bytes(16, "big")) for n in range(count)]
    packed: bytes = msgpack.packb({"a": [msgpack.ExtType(7, msgpack.packb(keys))]})
    return packed


@pytest.mark.parametrize("make", [_colliding_map, _colliding_numbers, _colliding_set])
def test_colliding_keys_are_refused_in_no_time(make: Callable[[int], bytes]) -> None:
    packed = make(2**14)
    began = time.process_time()
    with pytest.raises(ValueError, match="same hash"):
        unpack(packed)
    assert time.process_time() - began < 2
    unpack(make(60))  # as many as this harm nobody


def test_large_maps_and_sets_of_other_keys_are_read() -> None:
    payload = {
        "numbers": dict.fromkeys(range(-5000, 5000)),
        "ids": {uuid.uuid4() for _ in range(1000)},
        "pairs": {(x, y): 0 for x in range(-50, 50) for y in range(-50, 50)},
        "mixed": {None: 1, "a": 2, b"b": 3, 1.5: 4},
    }
    assert unpack(pack(payload)) == payload


# --- JSON ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [(1, "1"), (None, "null"), (b"", ""), (1.0, "1.0")])
def test_keys_that_are_the_same_in_json_are_refused(keys: tuple[Any, Any]) -> None:
    for function in (to_json, to_plain):
        with pytest.raises(PayloadError, match=r"at \['a'\]\[1\]: two keys"):
            function({"a": [0, dict.fromkeys(keys)]})


def test_the_place_of_what_json_has_no_form_for_is_named() -> None:
    for function in (to_json, to_plain):
        with pytest.raises(PayloadError, match=r"at \['items'\]\[2\]\['price'\]: .*nan"):
            function({"items": [1, 2, {"id": 1, "price": math.nan}]})
    with pytest.raises(PayloadError, match="recursion"):
        to_json(_endless())


@given(_PAYLOADS | st.floats())
def test_the_quick_check_is_right_when_it_says_yes(payload: Any) -> None:
    if surely_has_json(pack(payload)):
        assert to_json(payload)


def test_the_quick_check_accepts_ordinary_payloads() -> None:
    assert surely_has_json(pack(("t", {"a": [1, 2.5, None, True], "b": {"c": "d"}})))
    assert not surely_has_json(pack(("t", {"a": [math.nan]})))
    assert not surely_has_json(pack(("t", {1: 1})))
    assert surely_has_json(pack(("t", {"ń": {"b": b"raw"}})))
    assert not surely_has_json(pack(("t", [{b"a": 1, "YQ==": 2}])))
