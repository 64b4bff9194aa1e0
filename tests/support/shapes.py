"""What may come in: group keys, ids and payloads of every shape, for hypothesis."""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgpack
from hypothesis import strategies as st

EMOJI = "\N{GRINNING FACE}"  # 4 bytes of UTF-8

_EDGES = [
    *("{", "}", "{}", "{a}", "}{", "redisagg:{fuzz:0}:tasks:a", "a}:ids:b", "*", "?", "[a-z]"),
    *("\0", "a\0b", " ", "\n", "\r\n", "\t", "\x1b[2J", "\x7f", "\x9b31m", "\u202etxt.exe"),
    *(EMOJI * 128, "x" * 512, "\ufeff", "\u2028", "0", "-1", "nan", "é", "e\u0301", "%s", "\\"),
]
"""Texts that are special to somebody: to Redis, to a terminal, to a shell, to a careless split."""

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
any_text = st.sampled_from(_EDGES) | texts

group_keys: st.SearchStrategy[Any] = st.recursive(
    any_text | st.integers() | st.uuids(),
    lambda parts: st.lists(parts, min_size=1, max_size=3).map(tuple),
    max_leaves=3,
)

_scalars = st.one_of(
    *(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False)),
    *(any_text, st.binary(max_size=100), st.binary(min_size=300, max_size=300), st.uuids()),
    *(st.datetimes(timezones=st.none() | st.just(dt.timezone.utc)), st.dates(), st.times()),
    *(st.timedeltas(), st.decimals(allow_nan=False)),
    # Codes 1 to 9 are ours.
    st.builds(msgpack.ExtType, st.integers(10, 127), st.binary(max_size=20)),
    st.builds(msgpack.Timestamp, st.integers(-(2**63), 2**63 - 1), st.integers(0, 999_999_999)),
)
_keys = st.one_of(
    *(st.none(), st.integers(-(2**63), 2**64 - 1), any_text, st.binary(max_size=20), st.dates()),
    *(st.uuids(), st.tuples(st.integers(0, 9), texts), st.frozensets(st.integers(0, 9))),
)
payloads: st.SearchStrategy[Any] = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        *(st.lists(inner), st.tuples(inner, inner), st.dictionaries(_keys, inner)),
        *(st.sets(_keys), st.frozensets(_keys)),
    ),
    max_leaves=12,
)


def as_stored(value: Any) -> Any:
    """What comes back: tuples as lists, but where lists can't be."""
    if isinstance(value, list | tuple) and not isinstance(value, msgpack.ExtType):
        return [as_stored(item) for item in value]
    if isinstance(value, dict):
        return {key: as_stored(item) for key, item in value.items()}
    return value


CONTROLS = "".join(map(chr, (*range(0x20), *range(0x7F, 0xA0))))

HOSTILE = [
    *(f"a{control}b" for control in CONTROLS),
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x1b]8;;http://example.com\x1b\\link\x1b]8;;\x1b\\",
    "\x1b]52;c;aGk=\x07",  # puts something on the clipboard
    "\x1b[2J\x1b[H",
    "\x9b2J",
    "\x1bPq\x1b\\",
    "safe\rover",
    "a\b\b\bx",
    "\u202efdp.exe",  # shown from right to left
    "a\u200bb\u2066c\u2069",
    "\u2028\u2029\x85",
    "[red]markup[/red] [link=http://example.com]x[/link]",
    ":skull: [bold]",
    "\U000e0041\ufeff",
]
"""What a terminal, or who reads it, must not be shown as it is."""


def is_harmless(output: str) -> bool:
    """Whether a terminal shows it and does nothing else."""
    return all(char == "\n" or char.isprintable() for char in output)
