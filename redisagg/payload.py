"""Payloads as bytes: msgpack, with extension types for types that msgpack lacks.

========= ==================================== =====================================
code      Python type                          bytes
========= ==================================== =====================================
1         `datetime.datetime`                  ISO 8601 in ASCII, offset kept
2         `datetime.date`                      ISO 8601
3         `datetime.time`                      ISO 8601
4         `datetime.timedelta`                 msgpack array of days, seconds, microseconds
5         `uuid.UUID`                          16 bytes, big endian
6         `decimal.Decimal`                    its decimal notation in ASCII
7         `set`                                msgpack array
8         `frozenset`                          msgpack array
9         `int` of more than 64 bits           two's complement, big endian, at least 9 bytes
========= ==================================== =====================================

Some types come back as another type: tuples as lists (as tuples where they are keys of a dict or
members of a set), dataclasses as dicts of their fields, enums as their values, `bytearray` and
`memoryview` as bytes, subclasses of the types above as those types. Models of pydantic come back as
what their `model_dump` returns, structs of msgspec as dicts of their fields, and lazy strings of
Django and Flask-Babel as `str`, in the language that is active when the task is added. An `ExtType`
of code 1 to 9 comes back as the type above if its bytes have that form, else unchanged.

Decoding never runs code from the payload. Its time depends on the size of the payload only: maps
and sets with too many keys of the same hash are refused.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import enum
import itertools
import json
import math
import operator
import re
import threading
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from decimal import Decimal
from functools import lru_cache, partial
from typing import Any, TypeAlias, cast

import msgpack
from msgpack import unpackb

from redisagg.errors import PayloadError

_DATETIME, _DATE, _TIME, _TIMEDELTA, _UUID, _DECIMAL, _SET, _FROZENSET, _INT = range(1, 10)

_MOST_SETS = 8
"""The depth to which sets may be nested. msgpack takes 40 KB of the C stack for each level, and a
stack overflow kills the process: one task could else kill every flusher that reads it."""

MAX_LEVELS = 128
"""The depth to which payloads may be nested. All releases of msgpack read it, with room for what a
merge puts around it: those before 1.2 pack 511 levels, and the implementation in Python, which
needs up to four frames a level, reads some 250."""

_MOST_LEVELS = MAX_LEVELS + 1
"""The depth to which `pack` goes: a payload is in the list of the fields of a task."""

_MOST_MERGED_LEVELS = _MOST_LEVELS + 64
"""The depth to which a merge result is packed: merge functions and sinks put payloads into lists
and maps of their own."""

_TOO_DEEP = f"the payload is nested more than {MAX_LEVELS} levels deep"

_NO_HEADERS = bytes(b for b in range(256) if not (0x80 <= b <= 0x9F or 0xDC <= b <= 0xDF))
"""All bytes that no list and no map begins with."""

_LARGE_BYTES = 1024
"""From this size on the depth is looked at without counting lists and maps first."""

_MOST_STACK_LEVELS = 8192

_SMALL_BYTES = 2048
"""Decoding this many bytes is quick, whatever hashes the keys have."""

_MOST_SAME_HASH = 64
"""The number of keys of one map, or members of one set, that may have the same hash. Each of them
is compared with the others, and a producer can choose keys of the same hash: only `str` and
`bytes` have random ones."""

_IN_PYTHON = msgpack.Packer.__module__ == "msgpack.fallback"

# What the packer, and methods of the packed objects, raise for a value that can't be packed. Not
# `Exception`: that would hide what a signal handler raises.
_PACK_ERRORS = (
    *(TypeError, ValueError, ArithmeticError, AssertionError, AttributeError, BufferError),
    *(LookupError, RecursionError),
)

_Packing: TypeAlias = "tuple[Any, list[Any]]"

_local = threading.local()  # threads must not share a packer; making one costs more than packing


def _packing() -> _Packing:
    """Returns the packer of this thread.

    Returns:
        It, and a list to which the hook adds something if `unpack` may not be able to read what
        was packed.
    """
    try:
        found: _Packing = _local.packing
    except AttributeError:
        found = _local.packing = (msgpack.Packer(default=_EXTENDERS[0]), _Doubts())
    return found


class _Doubts(list[Any]):
    """Always true if the packer is the one in Python, since that one has no limit of levels."""

    if _IN_PYTHON:

        def __bool__(self) -> bool:
            return True


def pack(value: Any) -> bytes:
    """Packs a value as msgpack.

    Raises:
        PayloadError: the value holds a type that neither msgpack nor the table above has, an
            lone surrogate, is nested more than 128 levels deep
            (sets: 8 levels), or contains itself. Or it could not be read back: a key of a dict or a
            member of a set would become a dict, or the same as another one.
    """
    try:
        packer, doubts = _local.packing
    except AttributeError:
        packer, doubts = _packing()
    try:
        packed: bytes = packer.pack(value)
        if doubts:
            _check_readable(packed)
        if len(packed) > _MOST_LEVELS:
            _check_packed_levels(packed, _MOST_LEVELS)
    except PayloadError:
        raise
    except _PACK_ERRORS as error:
        raise PayloadError(f"the payload can't be packed: {error}") from error
    return packed


def _check_readable(packed: bytes) -> None:
    """Raises a `PayloadError` or `ValueError` if `unpack` can't read what was packed."""
    doubts = _packing()[1]
    if doubts:
        doubts.clear()
        try:  # all keys are strings
            unpackb(packed, ext_hook=_ignore_ext, object_pairs_hook=_dict_without_repeats)
        except Exception:
            _decode_checked(packed, repeats=False)


def _ignore_ext(code: int, data: bytes) -> None:
    """Restores nothing: the members of a set were checked when it was packed."""


def pack_merged(value: Any) -> bytes:
    """Packs a merge result, which is nested deeper than the payloads in it.

    Raises:
        PayloadError: see `pack`; but a merge result may be nested 64 levels deeper than a payload.
    """
    try:
        packer, doubts = _local.packing
    except AttributeError:
        packer, doubts = _packing()
    try:
        packed: bytes = packer.pack(value)
        if doubts:
            _check_readable(packed)
        if len(packed) > _MOST_MERGED_LEVELS:
            _check_packed_levels(packed, _MOST_MERGED_LEVELS)
    except PayloadError:
        raise
    except _PACK_ERRORS as error:
        raise PayloadError(f"the merge result can't be packed: {error}") from error
    return packed


def _check_packed_levels(packed: bytes, levels: int) -> None:
    """Raises a `PayloadError` if packed bytes are nested deeper.

    The stack of the unpacker in C has a limit, which lists around the bytes use up but for
    `levels`. `skip` makes no objects, so that this is quick.
    """
    if len(packed) <= _LARGE_BYTES and len(packed.translate(None, _NO_HEADERS)) <= levels:
        return  # fewer lists and maps than that
    if _STACK_LEVELS is None:
        deepest = itertools.islice(_levels(_decode_checked(packed)), levels, None)
        if any(_is_nested(each) for level in deepest for each in level):
            raise PayloadError(_TOO_DEEP)
    elif not _fits_stack(_STACK_LEVELS - levels, packed):
        raise PayloadError(_TOO_DEEP)


def _fits_stack(lists: int, packed: bytes) -> bool:
    """Whether the unpacker can read a value within some lists."""
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    unpacker.feed(b"\x91" * lists + packed)
    try:
        unpacker.skip()
    except (msgpack.StackError, RecursionError):
        return False
    return True


def _stack_levels() -> int | None:
    """Returns the depth that the unpacker in C reads; None for one without such a limit."""
    if _IN_PYTHON or _fits_stack(_MOST_STACK_LEVELS, b"\xc0"):
        return None
    fits, fails = 0, _MOST_STACK_LEVELS
    while fails - fits > 1:
        middle = (fits + fails) // 2
        fits, fails = (middle, fails) if _fits_stack(middle, b"\xc0") else (fits, middle)
    return fits


_STACK_LEVELS = _stack_levels()


def unpack(packed: bytes) -> Any:
    """Unpacks bytes that `pack` returned.

    Raises:
        ValueError: the bytes are no packed value, whatever error the decoder raised, or hold a map
            or a set with too many keys of the same hash.
    """
    try:
        if len(packed) <= _SMALL_BYTES:
            return unpackb(packed, ext_hook=_restore_outer, strict_map_key=False)
        return unpackb(packed, ext_hook=_restore_outer)  # all keys are strings
    except Exception:  # a key is a list, or is to be checked
        pass
    try:
        return _decode_checked(packed)
    except Exception as error:
        raise ValueError(f"not a packed value: {type(error).__name__}: {error}") from error


def _decode_checked(packed: bytes, *, repeats: bool = True) -> Any:
    """Unpacks with a check of all keys.

    Args:
        repeats: whether a map may have a key twice.
    """
    return unpackb(
        packed,
        ext_hook=_restore_outer,
        strict_map_key=False,
        object_pairs_hook=_dict_of if repeats else _dict_without_repeats,
    )


def _dict_of(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    listed = list(pairs)
    keys = [key for key, _ in listed]
    types = set(map(type, keys))
    if list in types:
        keys = [_hashable(key) for key in keys]
        listed = [(key, value) for key, (_, value) in zip(keys, listed, strict=True)]
    if not types <= _RANDOM_HASHES:
        _check_hashes(keys)
    return dict(listed)


def _dict_without_repeats(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    listed = list(pairs)
    made = _dict_of(listed)
    if len(made) < len(listed):
        raise ValueError("two keys of a dict have the same form in msgpack")
    return made


def _hashable(key: Any) -> Any:
    return tuple(map(_hashable, key)) if type(key) is list else key


_RANDOM_HASHES = {str, bytes}


def _check_hashes(keys: Collection[Any]) -> None:
    """Raises `_Refused` if a dict or set of these keys would take too long to build."""
    if len(keys) > _MOST_SAME_HASH:
        hashes = sorted(map(hash, keys))  # a set of the hashes could itself be slow
        if any(map(operator.eq, hashes, hashes[_MOST_SAME_HASH:])):
            raise _Refused(f"more than {_MOST_SAME_HASH} keys have the same hash")


class _Refused(ValueError):
    """An extension type is ours, but exceeds a limit."""


def _no_dict(pairs: Iterable[tuple[Any, Any]]) -> Any:
    raise TypeError("a dict is a member of a set")


def _members(depth: int, packed: bytes) -> Any:
    """Unpacks the members of an extension type, in which lists become tuples."""
    if depth > _MOST_SETS:
        raise _Refused(f"sets are nested more than {_MOST_SETS} deep")
    members = unpackb(
        packed, ext_hook=_RESTORERS[depth], use_list=False, object_pairs_hook=_no_dict
    )
    if type(members) is not tuple:
        raise TypeError("no array of members")
    return members


def _set_members(depth: int, packed: bytes) -> Any:
    members = _members(depth, packed)
    if len(packed) > _SMALL_BYTES and not _RANDOM_HASHES.issuperset(map(type, members)):
        _check_hashes(members)
    return members


def _pack_within(depth: int, value: Any) -> bytes:
    """Packs a part of a payload; the thread's packer is in use for the whole payload."""
    if depth > _MOST_SETS:
        raise PayloadError(f"the payload holds sets nested more than {_MOST_SETS} deep")
    return cast(bytes, msgpack.packb(value, default=_EXTENDERS[depth]))


def _pack_set(depth: int, value: Collection[Any]) -> bytes:
    """Packs the members of a set, so that they can be unpacked to as many members."""
    doubts = _packing()[1]
    before = len(doubts)
    packed = _pack_within(depth, list(value))
    # A TypeError if a member becomes a dict.
    if len(doubts) > before and len(set(_set_members(depth, packed))) < len(value):
        raise ValueError("two members of a set have the same form in msgpack")
    return packed


def _extend(depth: int, value: Any) -> Any:
    """Returns a form that msgpack knows for a value of another type.

    Args:
        depth: the number of sets around the value.
    """
    # A proxy claims the class of another object.
    kind = type(value)
    form = _FORMS.get(kind) or _form_of(kind) or _form_of(value.__class__)
    if form is None:
        raise PayloadError(
            f"the payload holds a {kind.__module__}.{kind.__qualname__}, which has "
            "no form in msgpack; convert it to dicts, lists, strings, numbers or bytes first"
        )
    return form(depth, value)


_KindToForm: TypeAlias = "Callable[[type], Callable[..., Any] | None]"


def _cached(function: _KindToForm) -> _KindToForm:
    return lru_cache(maxsize=1024)(function)


@_cached
def _form_of(kind: type) -> Callable[[int, Any], Any] | None:
    """Returns the function that makes the form of a value of this type; None if there is none."""
    for base, form in _FORMS.items():
        if issubclass(kind, base):
            return form
    return _of_builtin if _builtin_form_of(kind) else None


@_cached
def _builtin_form_of(kind: type) -> Callable[[Any], Any] | None:
    """Returns the function that reduces a value of this type to a builtin type."""
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
        return lambda value: {name: getattr(value, name) for name in names}
    if issubclass(kind, enum.Enum):
        return operator.attrgetter("value")
    if callable(getattr(kind, "model_dump", None)):  # a model of pydantic
        return operator.methodcaller("model_dump")
    if isinstance(getattr(kind, "__struct_fields__", None), tuple):  # of msgspec
        return _struct_fields
    if hasattr(kind, "_proxy____cast"):  # the lazy results of Django, such as of gettext_lazy
        return operator.methodcaller("_proxy____cast")
    if kind.__name__ == "LazyString":  # of Flask-Babel and others
        return str
    return dict if issubclass(kind, Mapping) else None


def _struct_fields(value: Any) -> dict[str, Any]:
    fields = ((name, getattr(value, name)) for name in value.__struct_fields__)
    return {name: item for name, item in fields if type(item).__name__ != "UnsetType"}


def _of_builtin(depth: int, value: Any) -> Any:
    kind = type(value)
    reduce = _builtin_form_of(kind) or _builtin_form_of(value.__class__)
    assert reduce is not None  # else `_form_of` would not have returned this function
    builtin = reduce(value)
    # It may be a key or a member of a set, and the builtin is unhashable or equal to another one.
    if kind.__hash__ is not None:
        _packing()[1].append(kind)
    return builtin


def _as_builtin(value: Any) -> Any:
    """Returns a dict for a dataclass or a mapping, the value of an enum, and all else unchanged."""
    if isinstance(value, _NATIVE):
        return value
    reduce = _builtin_form_of(type(value)) or _builtin_form_of(value.__class__)
    return value if reduce is None else reduce(value)


_NATIVE = (str, bytes, int, float, list, tuple, dict, type(None))


def _iso(value: dt.date | dt.time) -> bytes:
    """Returns the ISO 8601 form of a date, a time or both."""
    if type(value) in _ISO_TYPES:
        return value.isoformat().encode()
    # A subclass may have another form, as pandas.NaT has.
    kind = next(kind for kind in _ISO_TYPES if isinstance(value, kind))
    return kind.fromisoformat(value.isoformat()).isoformat().encode()


_ISO_TYPES = (dt.datetime, dt.date, dt.time)


def _of_timedelta(depth: int, value: dt.timedelta) -> Any:
    if type(value) is not dt.timedelta:
        value = dt.timedelta(value.days, value.seconds, value.microseconds)
    parts = [value.days, value.seconds, value.microseconds]
    return msgpack.ExtType(_TIMEDELTA, _pack_within(depth + 1, parts))


def _of_int(value: int) -> Any:
    number = int(value)  # it may be a proxy, or an int of any size within one
    if -(2**63) <= number < 2**64:
        return number
    size = (number + (number < 0)).bit_length() // 8 + 1
    return msgpack.ExtType(_INT, number.to_bytes(size, "big", signed=True))


def _to_int(data: bytes) -> int:
    if len(data) <= 8:
        raise ValueError("msgpack has a number of this size without an extension type")
    return int.from_bytes(data, "big", signed=True)


# A datetime is also a date, so the narrower type comes first.
_FORMS: dict[type, Callable[[int, Any], Any]] = {
    dt.datetime: lambda depth, value: msgpack.ExtType(_DATETIME, _iso(value)),
    uuid.UUID: lambda depth, value: msgpack.ExtType(_UUID, value.bytes),
    Decimal: lambda depth, value: msgpack.ExtType(_DECIMAL, Decimal.__str__(value).encode()),
    set: lambda depth, value: msgpack.ExtType(_SET, _pack_set(depth + 1, value)),
    frozenset: lambda depth, value: msgpack.ExtType(_FROZENSET, _pack_set(depth + 1, value)),
    dt.date: lambda depth, value: msgpack.ExtType(_DATE, _iso(value)),
    dt.time: lambda depth, value: msgpack.ExtType(_TIME, _iso(value)),
    dt.timedelta: _of_timedelta,
    int: lambda depth, value: _of_int(value),
}


_RESTORE: dict[int, Callable[[int, bytes], Any]] = {
    _DATETIME: lambda depth, data: dt.datetime.fromisoformat(data.decode("ascii")),
    _DATE: lambda depth, data: dt.date.fromisoformat(data.decode("ascii")),
    _TIME: lambda depth, data: dt.time.fromisoformat(data.decode("ascii")),
    _TIMEDELTA: lambda depth, data: dt.timedelta(*_members(depth, data)),
    _UUID: lambda depth, data: uuid.UUID(bytes=data),
    _DECIMAL: lambda depth, data: Decimal(data.decode("ascii")),
    _SET: lambda depth, data: set(_set_members(depth, data)),
    _FROZENSET: lambda depth, data: frozenset(_set_members(depth, data)),
    _INT: lambda depth, data: _to_int(data),
}


def _restore(depth: int, code: int, data: bytes) -> Any:
    restore = _RESTORE.get(code)
    if restore is None:
        return msgpack.ExtType(code, data)
    try:
        return restore(depth + 1, data)
    except _Refused:
        raise
    except Exception:  # the producer's own `ExtType`, which the packer stores without a hook
        return msgpack.ExtType(code, data)


# One hook for each depth, made once.
_EXTENDERS = [partial(_extend, depth) for depth in range(_MOST_SETS + 1)]
_RESTORERS = [partial(_restore, depth) for depth in range(_MOST_SETS + 1)]
_restore_outer = _RESTORERS[0]


def check_levels(value: Any) -> None:
    """Raises a `PayloadError` if an unpacked value is nested more than 128 levels deep."""
    for depth, _ in enumerate(_levels(value)):
        if depth > MAX_LEVELS:
            raise PayloadError(_TOO_DEEP)


def parts_of(value: Any) -> Iterator[Any]:
    """Returns an unpacked value and everything in it but the members of sets."""
    return itertools.chain.from_iterable(_levels(value))


def _levels(value: Any) -> Iterator[list[Any]]:
    level, seen = [value], set()
    while level:
        yield level
        inner: list[Any] = []
        for each in level:
            if not _is_nested(each) or id(each) in seen:
                continue
            seen.add(id(each))  # what a merge function made may contain itself
            inner += each
            if isinstance(each, dict):
                inner += each.values()
        level = inner


def _is_nested(value: Any) -> bool:
    return isinstance(value, dict | list | tuple) and not isinstance(value, msgpack.ExtType)


def to_json(value: Any) -> str:
    """Writes a value as JSON, for people and for readers without msgpack.

    Dates and times become ISO 8601, timedeltas seconds, UUIDs and Decimals strings, bytes base64,
    sets lists; keys of maps become strings.

    Raises:
        PayloadError: the value holds something that JSON has no form for, such as NaN, or two keys
            of a map that become the same string, such as 1 and "1". The error names its place.
    """
    try:
        return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except _PACK_ERRORS as error:
        raise _no_json(value, error) from error


def to_plain(value: Any) -> Any:
    """Reduces a value to the types of JSON, in the form that `to_json` writes; for other encoders.

    Raises:
        PayloadError: as `to_json`.
    """
    try:
        return _plain(value)
    except _PACK_ERRORS as error:
        raise _no_json(value, error) from error


def _no_json(value: Any, error: Exception) -> PayloadError:
    """The error for a value without a form in JSON, with the path to the place in it."""
    path, error = _place_of(value, error, _plain)
    where = f" at {path}" if path else ""
    return PayloadError(f"the payload has no form in JSON{where}: {error}")


def with_place(error: PayloadError, **parts: Any) -> PayloadError:
    """Puts the place of what can't be packed into the error of `pack`, such as ``payload['a'][3]``.

    Args:
        error: the error.
        parts: what was packed, by name.
    """
    for name, value in parts.items():
        path, reason = _place_of(value, error, pack)
        if path:
            return PayloadError(f"{name}{path}: {reason}")
    return error


def _place_of(
    value: Any, error: Exception, convert: Callable[[Any], object]
) -> tuple[str, Exception]:
    """Finds the smallest part of a value for which `convert` raises an error.

    Returns:
        The path to it, at most 200 characters, and the error. An empty path and the error that was
        given if `convert` refuses no part.
    """
    path = ""
    for _ in range(_MOST_MERGED_LEVELS):  # it may contain itself
        for step, item in _items(value):
            try:
                convert(item)
            except _PACK_ERRORS as reason:
                path, value, error = path + step, item, reason
                break
        else:
            break
    return path[:200], error


def _items(value: Any) -> Iterable[tuple[str, Any]]:
    """The parts of a container, each with its step in a path."""
    try:
        value = _as_builtin(value)
        if isinstance(value, Mapping):
            return [(f"[{key!r:.40}]", item) for key, item in value.items()]
        if isinstance(value, list | tuple | set | frozenset):
            return [(f"[{index}]", item) for index, item in enumerate(value)]
    except _PACK_ERRORS:
        pass
    return ()


def surely_has_json(packed: bytes) -> bool:
    """Whether `to_json` surely has a form for what was packed: a quick check.

    It has if all numbers are finite, all keys strings, and there are no extension types.
    """
    hook = None
    if _MAYBE_NO_JSON.search(packed):
        if _MAYBE_NOT_FINITE.search(packed):
            return False
        hook = _only_text_keys  # msgpack itself also lets bytes be keys
    try:
        unpackb(packed, ext_hook=_no_ext, object_pairs_hook=hook)
    except Exception:
        return False
    return True


_MAYBE_NOT_FINITE = re.compile(rb"\xcb[\x7f\xff]")
_MAYBE_NO_JSON = re.compile(rb"\xcb[\x7f\xff]|[\xc4-\xc6]")
"""Floats that may not be finite, and bytes; or a part of a text."""


def _only_text_keys(pairs: Iterable[tuple[Any, Any]]) -> None:
    for key, _ in pairs:
        if type(key) is not str:
            raise TypeError("a key that is no string")


def _no_ext(code: int, data: bytes) -> Any:
    raise TypeError("an extension type")


def to_builtin(value: Any) -> Any:
    """Reduces a value to builtins and types of the standard library, as `unpack` returns them.

    For encoders such as pickle, which know dates and sets, but whose readers may lack the classes
    of the program that added the payload.

    Raises:
        PayloadError: the value has no form in msgpack; see `pack`.
    """
    return unpack(pack_merged(value))


def _plain(value: Any) -> Any:
    # Loops, since a comprehension takes a frame of its own: payloads may be 500 levels deep.
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"JSON has no float {value}")
        return value
    if isinstance(value, Mapping):
        plain: dict[str, Any] = {}
        for key, item in value.items():
            name = key if type(key) is str else _plain_key(key)
            if name in plain:
                raise ValueError(f"two keys of a dict become {name!r:.40}")
            plain[name] = _plain(item)
        return plain
    if isinstance(value, msgpack.ExtType):
        return {"ext": value.code, "data": _plain(value.data)}
    if isinstance(value, list | tuple | set | frozenset):
        members = []
        for item in value:
            members.append(_plain(item))  # noqa: PERF401 - see above
        return members
    if isinstance(value, dt.date | dt.time):  # a datetime is a date
        return _iso(value).decode()
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    if isinstance(value, uuid.UUID | Decimal):
        return str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(bytes(value)).decode("ascii")
    if isinstance(value, msgpack.Timestamp):
        try:
            return value.to_datetime().isoformat()
        except OverflowError:  # msgpack allows 2^64 seconds, Python the years 1 to 9999
            return value.to_unix()
    builtin = _as_builtin(value)
    return _plain(_extend(0, value) if builtin is value else builtin)


def _plain_key(key: Any) -> str:
    plain = _plain(key)
    return plain if isinstance(plain, str) else json.dumps(plain)
