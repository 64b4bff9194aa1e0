"""Replies that come as a flat array from Redis, and as a dict from redis-py's cluster client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Fields: TypeAlias = "Mapping[bytes, bytes] | Sequence[bytes]"


def as_dict(fields: Fields) -> dict[bytes, bytes]:
    """The fields of a hash or a stream entry, in whichever form they came."""
    if isinstance(fields, Mapping):
        return dict(fields)
    return dict(zip(fields[::2], fields[1::2], strict=True))


def scan_page(reply: Any) -> tuple[int, dict[bytes, bytes]]:
    """The cursor and the fields in a reply of HSCAN."""
    cursor, fields = reply
    return int(cursor), as_dict(fields)
