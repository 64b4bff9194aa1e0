"""The form of a task in Asynq: the message `TaskMessage` in protobuf.

Fields and numbers are those of `internal/proto/asynq.proto` in v0.26.0, the encoding is that of
https://protobuf.dev/programming-guides/encoding/: each field has ``number << 3 | wire type``, then
a varint (wire type 0) or a length and bytes (wire type 2). A field with its zero value is left out;
the others are in the order of their numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

_FIELDS: dict[int, tuple[str, type]] = {
    1: ("type", str),
    2: ("payload", bytes),
    3: ("id", str),
    4: ("queue", str),
    5: ("retry", int),
    6: ("retried", int),
    7: ("error_msg", str),
    8: ("timeout", int),
    9: ("deadline", int),
    10: ("unique_key", str),
    11: ("last_failed_at", int),
    12: ("retention", int),
    13: ("completed_at", int),
    14: ("group_key", str),
    15: ("headers", dict),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskMessage:
    """A task as Asynq stores it. Times are Unix times, durations are in seconds, 0 means none."""

    type: str = ""
    payload: bytes = b""
    id: str = ""
    queue: str = ""
    retry: int = 0
    """The largest number of retries."""
    retried: int = 0
    """The number of retries so far."""
    error_msg: str = ""
    """The error of the last attempt."""
    timeout: int = 0
    """The time limit of one attempt."""
    deadline: int = 0
    """The time at which the last attempt has to be complete."""
    unique_key: str = ""
    """The Redis key that keeps equal tasks out."""
    last_failed_at: int = 0
    retention: int = 0
    """The time for which the task is kept after it succeeded."""
    completed_at: int = 0
    group_key: str = ""
    """The group in which it waits for an aggregation by Asynq itself."""
    headers: Mapping[str, str] = field(default_factory=dict)


def encode(message: TaskMessage) -> bytes:
    """The bytes of a message, as Asynq's own `EncodeMessage` returns them.

    A map has no order in protobuf; here it has that of `headers`.
    """
    out = bytearray()
    for number, (name, kind) in _FIELDS.items():
        value = getattr(message, name)
        if kind is dict:
            for key, text in value.items():
                # An entry of a map is a message of two fields, written even if they are empty.
                _put(out, number, _field(1, key) + _field(2, text))
        elif value:
            _put(out, number, value)
    return bytes(out)


def decode(data: bytes) -> TaskMessage:
    """The message in `data`; fields that Asynq v0.26.0 does not have are skipped.

    Raises:
        ValueError: `data` is no such message.
    """
    values: dict[str, Any] = {}
    headers: dict[str, str] = {}
    for number, value in _fields(data):
        name, kind = _FIELDS.get(number, ("", None))
        if kind is None:
            continue
        if isinstance(value, int) != (kind is int):
            raise ValueError(f"field {number} ({name}) has the wrong wire type")
        if isinstance(value, int):
            values[name] = value
        elif kind is dict:
            entry = dict(_fields(value))
            headers[_text(entry.get(1, b""))] = _text(entry.get(2, b""))
        else:
            values[name] = _text(value) if kind is str else value
    return TaskMessage(**values, headers=headers)


def _put(out: bytearray, number: int, value: int | str | bytes) -> None:
    if isinstance(value, int):
        _put_varint(out, number << 3 | _VARINT)
        _put_varint(out, value)
        return
    raw = value.encode() if isinstance(value, str) else value
    _put_varint(out, number << 3 | _BYTES)
    _put_varint(out, len(raw))
    out += raw


def _field(number: int, value: int | str | bytes) -> bytes:
    out = bytearray()
    _put(out, number, value)
    return bytes(out)


def _put_varint(out: bytearray, value: int) -> None:
    """Writes seven bits a byte, the lowest first; the high bit is set if more bytes follow."""
    value &= (1 << 64) - 1  # a negative number is its two's complement in 64 bits
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The numbers and values of the fields in a message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire_type = key >> 3, key & 7
        if wire_type == _VARINT:
            value, at = _varint(data, at)
            yield number, value - (1 << 64) if value >> 63 else value
            continue
        if wire_type == _BYTES:
            size, at = _varint(data, at)
        elif wire_type in (_FIXED32, _FIXED64):
            size = 4 if wire_type == _FIXED32 else 8
        else:
            raise ValueError(f"field {number} has the unknown wire type {wire_type}")
        if at + size > len(data):
            raise ValueError(f"field {number} ends beyond the message")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins at the index `at`, and the index behind it."""
    value = 0
    for place in range(10):
        if at + place >= len(data):
            raise ValueError("the message ends within a number")
        byte = data[at + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value & (1 << 64) - 1, at + place + 1
    raise ValueError("a number has more than 64 bits")


def _text(value: int | bytes) -> str:
    if isinstance(value, int):
        raise ValueError("an entry of a map holds a number")
    return value.decode()
