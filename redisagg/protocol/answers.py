"""What is stored of the outcome of a task that was submitted, under a key that expires.

A record is a msgpack array: the state, the id of the batch, and what the state needs. A message on
the channel is a msgpack array of keys, each followed by its record, or by an empty one if it is
too long for a message. See lua/includes/answers.lua.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias, cast, get_args

import msgpack

from redisagg.errors import KeyConflict
from redisagg.payload import pack_merged, unpack

AnswerState = Literal["result", "merged", "dropped", "failed", "cancelled"]
"""``result``: the merge returned a value for the task. ``merged``: it returned none, but merged
tasks. ``dropped``: it returned neither. ``failed``: the task is a dead letter, or the merge
returned an exception for it. ``cancelled``: it was removed before a batch was cut."""

_STATES = get_args(AnswerState)

Answered: TypeAlias = tuple[bytes, int, bytes]
"""The id of a task, how long its answer is kept (ms), and the record."""


class Answer(NamedTuple):
    """The outcome of a task."""

    state: AnswerState
    batch_id: str
    """The id of its batch; empty if it was cancelled."""
    value: Any
    """The value of a result; of a failure the reason and the id of the dead letter, or None."""


def pack_answer(state: AnswerState, batch_id: str, value: Any = None) -> bytes:
    """Packs a record.

    Raises:
        PayloadError: msgpack has no form for the value.
    """
    return pack_merged((state, batch_id, value))


def pack_failure(batch_id: str, reason: str, dead_letter: str | None) -> bytes:
    """Packs the record of a task that failed."""
    text = reason.encode("utf-8", "backslashreplace").decode()
    return pack_answer("failed", batch_id, (text, dead_letter))


def unpack_answer(record: bytes, key: bytes) -> Answer:
    """Reads a record.

    Raises:
        KeyConflict: the bytes are something else.
    """
    try:
        state, batch_id, value = unpack(record)
        if state in _STATES and isinstance(batch_id, str):
            if state == "failed":
                reason, letter = value
                value = (str(reason), None if letter is None else str(letter))
            return Answer(cast(AnswerState, state), batch_id, value)
    except Exception as error:  # foreign bytes can raise anything
        raise KeyConflict(f"the key {key!r} holds no answer: {error}") from error
    raise KeyConflict(f"the key {key!r} holds no answer, but {record[:64]!r}")


def announced(message: bytes) -> dict[bytes, bytes]:
    """The records of a message by key; empty for one that is too long. A foreign one has none."""
    try:
        flat = msgpack.unpackb(message, raw=True)
        if all(type(each) is bytes for each in flat):
            return dict(zip(flat[::2], flat[1::2], strict=True))
    except Exception:  # foreign bytes can raise anything
        pass
    return {}
