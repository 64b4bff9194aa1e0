"""Payloads as bytes: msgpack, with extension types for what msgpack lacks.

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

One way only: tuples come back as lists (as tuples where they are keys of a dict or members of a
set), dataclasses as dicts of their fields, enums as their values, `bytearray` and `memoryview` as
bytes. Nothing that is decoded can run code.
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
from typing import Any

import msgpack

from redisagg.errors import PayloadError

_DATETIME, _DATE, _TIME, _TIMEDELTA, _UUID, _DECIMAL, _SET, _FROZENSET = range(1, 9)

_MOST_SETS = 8
"""How deep sets may be nested. msgpack takes 40 KB of the C stack for each, and a process whose
stack overflows dies: without a limit, one task could kill every flusher that reads it."""

_local = threading.local()  # a packer must not be shared; making one costs more than packing


def pack(value: Any) -> bytes:
    """`value` as msgpack.

    Raises:
        PayloadError: it holds something that the table above has no row for, an integer of more
            than 64 bits, a lone surrogate, or it is nested more than 500 deep (sets: 8) or holds
            itself.
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
    """What `pack` packed.

    Raises:
        ValueError: `packed` is not such a value; any error of the decoder is turned into one.
    """
    try:
        try:
            return msgpack.unpackb(packed, ext_hook=_RESTORERS[0], strict_map_key=False)
        except TypeError:  # a list as a key
            return _with_lists(_unpack_hashable(0, packed))
    except Exception as error:
        raise ValueError(f"not a packed value: {type(error).__name__}: {error}") from error


def _unpack_hashable(depth: int, packed: bytes) -> Any:
    """The same with tuples for lists."""
    hook = _RESTORERS[depth]
    return msgpack.unpackb(packed, ext_hook=hook, strict_map_key=False, use_list=False)


def _with_lists(value: Any) -> Any:
    if isinstance(value, tuple) and not isinstance(value, msgpack.ExtType):
        return [_with_lists(item) for item in value]
    if isinstance(value, dict):
        return {key: _with_lists(item) for key, item in value.items()}
    return value


def _members(depth: int, packed: bytes) -> Any:
    """The members of a set, which a list can't be."""
    if depth > _MOST_SETS:
        raise ValueError(f"sets are nested more than {_MOST_SETS} deep")
    return _unpack_hashable(depth, packed)


def _pack_within(depth: int, value: Any) -> bytes:
    """Packs a part of a payload while the thread's own packer is at work on the whole."""
    if depth > _MOST_SETS:
        raise PayloadError(f"the payload holds sets nested more than {_MOST_SETS} deep")
    packed: bytes = msgpack.packb(value, default=_EXTENDERS[depth])
    return packed


def _extend(depth: int, value: Any) -> Any:
    """The form of a value that msgpack does not know."""
    # datetime is a date too: the narrower type first.
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
        "form in msgpack; turn it into dicts, lists, strings, numbers or bytes first"
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


# Hooks that know how deep they are, made once.
_EXTENDERS = [partial(_extend, depth) for depth in range(_MOST_SETS + 1)]
_RESTORERS = [partial(_restore, depth) for depth in range(_MOST_SETS + 1)]


def to_json(value: Any) -> str:
    """`value` as JSON, for readers without msgpack and for people.

    Dates and times become ISO 8601, timedeltas seconds, UUIDs and Decimals strings, bytes base64,
    sets lists; keys of maps become strings.

    Raises:
        PayloadError: it holds something that has no such form, such as NaN.
    """
    try:
        return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise PayloadError(f"the payload has no form in JSON: {error}") from error


def to_plain(value: Any) -> Any:
    """`value` as `to_json` writes it, before that: of what JSON knows only, for other encoders.

    Raises:
        PayloadError: it holds something that has no such form.
    """
    try:
        return _plain(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise PayloadError(f"the payload has no form in JSON: {error}") from error


def to_builtin(value: Any) -> Any:
    """`value` as `unpack` would return it: of builtins and the standard library only.

    For encoders such as pickle, which know dates and sets, but whose readers may not have the
    classes that a program defined for itself.

    Raises:
        PayloadError: it has no form in msgpack; see `pack`.
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
        except OverflowError:  # it may be any of 2^64 seconds
            return value.to_unix()
    return _plain(_extend(0, value))


def _plain_key(key: Any) -> str:
    plain = _plain(key)
    return plain if isinstance(plain, str) else json.dumps(plain)
