"""Replies that are flat arrays from Redis, but dicts from redis-py's cluster client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Fields: TypeAlias = "Mapping[bytes, bytes] | Sequence[bytes]"


def as_dict(fields: Fields) -> dict[bytes, bytes]:
    """Returns the fields of a hash or a stream entry as a dict."""
    if isinstance(fields, Mapping):
        return dict(fields)
    return dict(zip(fields[::2], fields[1::2], strict=True))


def scan_page(reply: Any) -> tuple[int, dict[bytes, bytes]]:
    """Splits a reply of HSCAN into its cursor and its fields."""
    cursor, fields = reply
    return int(cursor), as_dict(fields)
