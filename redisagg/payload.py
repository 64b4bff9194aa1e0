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
========= ==================================== =====================================

Some types come back as another type: tuples as lists (as tuples where they are keys of a dict or
members of a set), dataclasses as dicts of their fields, enums as their values, `bytearray` and
`memoryview` as bytes. Decoding never runs code from the payload.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import enum
import json
import threading
import uuid
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import partial
from typing import Any, cast

import msgpack

from redisagg.errors import PayloadError

_DATETIME, _DATE, _TIME, _TIMEDELTA, _UUID, _DECIMAL, _SET, _FROZENSET = range(1, 9)

_MOST_SETS = 8
"""The depth to which sets may be nested. msgpack takes 40 KB of the C stack for each level, and a
stack overflow kills the process: one task could else kill every flusher that reads it."""

_local = threading.local()  # threads must not share a packer; making one costs more than packing


def pack(value: Any) -> bytes:
    """Packs a value as msgpack.

    Raises:
        PayloadError: the value holds a type that neither msgpack nor the table above has, an
            integer of more than 64 bits or a lone surrogate, is nested more than 500 levels deep
            (sets: 8 levels), or contains itself.
    """
    packer = getattr(_local, "packer", None)
    if packer is None:
        packer = _local.packer = msgpack.Packer(default=_EXTENDERS[0])
    try:
        packed: bytes = packer.pack(value)
    except PayloadError:
        raise
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise PayloadError(f"the payload can't be packed: {error}") from error
    return packed


def unpack(packed: bytes) -> Any:
    """Unpacks bytes that `pack` returned.

    Raises:
        ValueError: the bytes are no packed value, whatever error the decoder raised.
    """
    try:
        try:
            return msgpack.unpackb(packed, ext_hook=_RESTORERS[0], strict_map_key=False)
        except TypeError:  # a list is a key of a dict
            return _with_lists(_unpack_hashable(0, packed))
    except Exception as error:
        raise ValueError(f"not a packed value: {type(error).__name__}: {error}") from error


def _unpack_hashable(depth: int, packed: bytes) -> Any:
    """Unpacks with tuples for lists, since keys and members of sets must be hashable."""
    hook = _RESTORERS[depth]
    return msgpack.unpackb(packed, ext_hook=hook, strict_map_key=False, use_list=False)


def _with_lists(value: Any) -> Any:
    if isinstance(value, tuple) and not isinstance(value, msgpack.ExtType):
        return [_with_lists(item) for item in value]
    if isinstance(value, dict):
        return {key: _with_lists(item) for key, item in value.items()}
    return value


def _members(depth: int, packed: bytes) -> Any:
    """Unpacks the members of an extension type, in which lists become tuples."""
    if depth > _MOST_SETS:
        raise ValueError(f"sets are nested more than {_MOST_SETS} deep")
    return _unpack_hashable(depth, packed)


def _pack_within(depth: int, value: Any) -> bytes:
    """Packs a part of a payload; the thread's packer is in use for the whole payload."""
    if depth > _MOST_SETS:
        raise PayloadError(f"the payload holds sets nested more than {_MOST_SETS} deep")
    return cast(bytes, msgpack.packb(value, default=_EXTENDERS[depth]))


def _extend(depth: int, value: Any) -> Any:
    """Returns a form that msgpack knows for a value of another type."""
    # A datetime is also a date, so the narrower type comes first.
    if isinstance(value, dt.datetime):
        return msgpack.ExtType(_DATETIME, value.isoformat().encode())
    if isinstance(value, uuid.UUID):
        return msgpack.ExtType(_UUID, value.bytes)
    if isinstance(value, Decimal):
        return msgpack.ExtType(_DECIMAL, str(value).encode())
    if isinstance(value, set):
        return msgpack.ExtType(_SET, _pack_within(depth + 1, list(value)))
    if isinstance(value, frozenset):
        return msgpack.ExtType(_FROZENSET, _pack_within(depth + 1, list(value)))
    if isinstance(value, dt.date):
        return msgpack.ExtType(_DATE, value.isoformat().encode())
    if isinstance(value, dt.time):
        return msgpack.ExtType(_TIME, value.isoformat().encode())
    if isinstance(value, dt.timedelta):
        return msgpack.ExtType(
            _TIMEDELTA, _pack_within(depth + 1, [value.days, value.seconds, value.microseconds])
        )
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return dict(value)
    raise PayloadError(
        f"the payload holds a {type(value).__module__}.{type(value).__qualname__}, which has no "
        "form in msgpack; convert it to dicts, lists, strings, numbers or bytes first"
    )


_RESTORE: dict[int, Callable[[int, bytes], Any]] = {
    _DATETIME: lambda depth, data: dt.datetime.fromisoformat(data.decode("ascii")),
    _DATE: lambda depth, data: dt.date.fromisoformat(data.decode("ascii")),
    _TIME: lambda depth, data: dt.time.fromisoformat(data.decode("ascii")),
    _TIMEDELTA: lambda depth, data: dt.timedelta(*_members(depth, data)),
    _UUID: lambda depth, data: uuid.UUID(bytes=data),
    _DECIMAL: lambda depth, data: Decimal(data.decode("ascii")),
    _SET: lambda depth, data: set(_members(depth, data)),
    _FROZENSET: lambda depth, data: frozenset(_members(depth, data)),
}


def _restore(depth: int, code: int, data: bytes) -> Any:
    restore = _RESTORE.get(code)
    return restore(depth + 1, data) if restore else msgpack.ExtType(code, data)


# One hook for each depth, made once.
_EXTENDERS = [partial(_extend, depth) for depth in range(_MOST_SETS + 1)]
_RESTORERS = [partial(_restore, depth) for depth in range(_MOST_SETS + 1)]


def to_json(value: Any) -> str:
    """Writes a value as JSON, for people and for readers without msgpack.

    Dates and times become ISO 8601, timedeltas seconds, UUIDs and Decimals strings, bytes base64,
    sets lists; keys of maps become strings.

    Raises:
        PayloadError: the value holds something that JSON has no form for, such as NaN.
    """
    try:
        return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise PayloadError(f"the payload has no form in JSON: {error}") from error


def to_plain(value: Any) -> Any:
    """Reduces a value to the types of JSON, in the form that `to_json` writes; for other encoders.

    Raises:
        PayloadError: the value holds something that JSON has no form for.
    """
    try:
        return _plain(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise PayloadError(f"the payload has no form in JSON: {error}") from error


def to_builtin(value: Any) -> Any:
    """Reduces a value to builtins and types of the standard library, as `unpack` returns them.

    For encoders such as pickle, which know dates and sets, but whose readers may lack the classes
    of the program that added the payload.

    Raises:
        PayloadError: the value has no form in msgpack; see `pack`.
    """
    return unpack(pack(value))


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {_plain_key(key): _plain(item) for key, item in value.items()}
    if isinstance(value, msgpack.ExtType):
        return {"ext": value.code, "data": _plain(value.data)}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, dt.date | dt.time):  # a datetime is a date
        return value.isoformat()
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
    return _plain(_extend(0, value))


def _plain_key(key: Any) -> str:
    plain = _plain(key)
    return plain if isinstance(plain, str) else json.dumps(plain)
