"""The form of a merged task in streams and lists, as msgpack or JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from redisagg.errors import InvalidConfig
from redisagg.payload import pack_merged, to_json, unpack
from redisagg.sinks.base import EnqueuedBatch, MergedTask
from redisagg.texts import shorten

Format: TypeAlias = Literal["msgpack", "json"]


def check_format(format: str) -> None:
    """Raises `InvalidConfig` if the format is neither ``msgpack`` nor ``json``."""
    if format not in {"msgpack", "json"}:
        raise InvalidConfig(f"the format of a queue is 'msgpack' or 'json', not {shorten(format)}")


def dump(value: Any, format: Format) -> bytes:
    """`value` as bytes.

    Raises:
        PayloadError: the format has no form for `value`.
    """
    return pack_merged(value) if format == "msgpack" else to_json(value).encode()


def load(raw: bytes, format: Format) -> Any:
    """The inverse of `dump`.

    Raises:
        ValueError: `dump` did not make these bytes.
    """
    return unpack(raw) if format == "msgpack" else json.loads(raw)


def fields(merged: MergedTask) -> dict[str, Any]:
    """The fields of an entry, in the order in which they are written."""
    return {
        "batch_id": merged.batch_id,
        "type": merged.task.type,
        "group": merged.group,
        "count": merged.count,
        "payload": merged.task.payload,
        "headers": dict(merged.task.headers),
        "reason": merged.reason,
    }


def enqueued(values: Mapping[str, Any]) -> EnqueuedBatch:
    """The batch in the fields of an entry.

    Raises:
        ValueError: a field is missing or has the wrong type.
    """
    try:
        return EnqueuedBatch(
            batch_id=str(values["batch_id"]),
            type=str(values["type"]),
            group=str(values["group"]),
            count=int(values["count"]),
            payload=values["payload"],
            headers=dict(values["headers"]),
            reason=str(values["reason"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not an entry that redisagg wrote: {error}") from error
