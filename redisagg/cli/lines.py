"""Lines of a file as payloads: JSON objects, or what a regular expression finds."""

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
"""A line to its payload; raises `ValueError` with what is wrong with the line."""


def uncompressed(raw: IO[bytes]) -> IO[bytes]:
    """The bytes of a file, through gzip if it begins as gzip files do."""
    buffered = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(cast(Any, raw))
    if buffered.peek(2)[:2] == _GZIP_MAGIC:
        return cast(IO[bytes], gzip.GzipFile(fileobj=buffered))
    return buffered


def json_lines(line: bytes) -> dict[str, Any]:
    """The JSON object in a line."""
    try:
        payload = json.loads(line)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason}") from None
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(payload, dict):
        raise ValueError(f"no JSON object but a {type(payload).__name__}")
    return payload


def regex_lines(pattern: re.Pattern[str]) -> Parse:
    """Takes the named groups of a match at the start of the line."""

    def parse(line: bytes) -> dict[str, Any]:
        # What is not UTF-8 is replaced: logs hold what clients send.
        match = pattern.match(line.decode("utf-8", "replace").rstrip("\r\n"))
        if match is None:
            raise ValueError("the regular expression does not match")
        return match.groupdict()

    return parse


def group_key(payload: dict[str, Any], fields: tuple[str, ...]) -> GroupKey:
    """The group key in a payload: one field, or several as a tuple; dots lead into objects.

    Raises:
        ValueError: a field is missing, or holds something that is no key.
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
    raise ValueError(f"the field {name!r} is no text or number but {type(value).__name__}")
