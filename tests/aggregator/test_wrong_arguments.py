"""Ids and keys that are none: each method of both faces names what is wrong and what to do."""

from __future__ import annotations

import inspect
from datetime import date, datetime, timezone
from typing import Any

import pytest

from redisagg import Aggregator
from redisagg.errors import InvalidConfig, InvalidGroupKey, InvalidTask, UnknownBatch
from tests.support.aggregators import Make

_MOMENT = datetime(2026, 11, 26, tzinfo=timezone.utc)
_VALID = {"group_key": "a", "task_id": "1", "offset": 0, "limit": 1, "until": _MOMENT}
_FLAGS = {"tasks", "due", "only", "excluding"}


_NO_TEXT = [None, 1.5, b"bytes", ["a"]]
_NO_IDS = ["", "\ud800", "a-\ud800-b", "x" * 600, f"a-{'1' * 5_000}-b", "a-4097-b", "\0"]
_WRONG: dict[str, tuple[type[Exception], list[Any]]] = {
    "group_key": (InvalidGroupKey, [*_NO_TEXT, "", "\ud800", "x" * 513, ("a", "\ud800"), ()]),
    "task_id": (InvalidTask, [*_NO_TEXT, 7, "", "\ud800", "x" * 129]),
    "batch_id": (UnknownBatch, [*_NO_TEXT, 7, *_NO_IDS]),
    "offset": (InvalidConfig, [*_NO_TEXT, -1, -(10**5000), True, "1"]),
    "limit": (InvalidConfig, [1.5, b"bytes", ["a"], -1, -(10**5000), True, "1"]),
    **dict.fromkeys(("type", "error", "after"), (InvalidConfig, [1.5, b"bytes", ["a"], 7])),
    "by": (InvalidConfig, [1.5, b"bytes", ["a"], 7, "x" * 257]),
    "until": (
        InvalidTask,
        [*_NO_TEXT, 7, "2026-11-26", date(2026, 11, 26), datetime(2026, 11, 26)],
    ),
}
_NOT_IDS = {
    *("add_task", "add_tasks", "submit", "read_sink", "run", "stop", "wait_until_idle"),
    *("read_groups", "read_batches", "find_groups", "history", "set_policy", "remove_policy"),
    *("health", "lifespan"),
}
"""Methods whose arguments are tasks, numbers, flags, policies, a search or a cursor."""


def _parameters() -> list[tuple[str, str]]:
    """The methods that take an id or a key, with the name of that parameter."""
    found = []
    for name, method in inspect.getmembers(Aggregator, inspect.isfunction):
        if not name.startswith("_") and name not in _NOT_IDS:
            names = [*inspect.signature(method).parameters][1:]
            found += [(name, each) for each in names if each not in _FLAGS]
    return found


@pytest.mark.parametrize(("method", "parameter"), _parameters())
def test_wrong_ids_and_keys_are_named(make_both: Make, method: str, parameter: str) -> None:
    aggregator = make_both()
    call = getattr(aggregator, method)
    names = [*inspect.signature(getattr(Aggregator, method)).parameters][1:]
    error, values = _WRONG[parameter]
    if method in ("pause", "resume", "dead_letters"):
        values = [value for value in values if value is not None]  # that is all groups
    for value in values:
        arguments = {name: _VALID[name] for name in names if name in _VALID} | {parameter: value}
        if method in ("get_batch", "get_dead_letter") and isinstance(value, str):
            assert call(**arguments) is None
            continue
        with pytest.raises(error, match=r"must (be|have)|; (pass|use|dead_letters\(\))") as raised:
            call(**arguments)
        assert type(raised.value) is error, value
    assert aggregator.get_groups() == {}
