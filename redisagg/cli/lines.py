"""Lines of a file as payloads: JSON objects, or the matches of a regular expression."""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Callable
from typing import IO, Any, TypeAlias, cast

from redisagg.task import GroupKey

_GZIP_MAGIC = b"\x1f\x8b"

Parse: TypeAlias = Callable[[bytes], "dict[str, Any]"]
"""Turns a line into a payload; raises `ValueError` if the line has another form."""


def uncompressed(raw: IO[bytes]) -> IO[bytes]:
    """Returns a file, decompressed if it starts as gzip files do."""
    buffered = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(cast(Any, raw))
    if buffered.peek(2)[:2] == _GZIP_MAGIC:
        return cast(IO[bytes], gzip.GzipFile(fileobj=buffered))
    return buffered


def json_lines(line: bytes) -> dict[str, Any]:
    """Parses a line as a JSON object."""
    try:
        payload = json.loads(line)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason}") from None
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(payload, dict):
        raise ValueError(f"not a JSON object but a {type(payload).__name__}")
    return payload


def regex_lines(pattern: re.Pattern[str]) -> Parse:
    """Returns a parser that matches a line from its start and takes the named groups."""

    def parse(line: bytes) -> dict[str, Any]:
        # Logs hold bytes that clients sent, not always UTF-8.
        match = pattern.match(line.decode("utf-8", "replace").rstrip("\r\n"))
        if match is None:
            raise ValueError("the regular expression does not match")
        return match.groupdict()

    return parse


def group_key(payload: dict[str, Any], fields: tuple[str, ...]) -> GroupKey:
    """Reads the group key from a payload: the value of one field, or a tuple of several.

    Args:
        payload: the payload.
        fields: names of fields; ``a.b`` is the field ``b`` of the object ``a``.

    Raises:
        ValueError: a field is missing, or is neither text nor a number.
    """
    values = tuple(_field(payload, name) for name in fields)
    return values[0] if len(values) == 1 else values


def _field(payload: dict[str, Any], name: str) -> str | int:
    value: Any = payload
    if name in payload:
        value = payload[name]
    else:
        for part in name.split("."):
            if not isinstance(value, dict) or part not in value:
                raise ValueError(f"there is no field {name!r}")
            value = value[part]
    if isinstance(value, str | int) and not isinstance(value, bool):
        return value
    if isinstance(value, float | bool):
        return json.dumps(value)
    raise ValueError(f"the field {name!r} must be text or a number, not {type(value).__name__}")
