"""Fields of tasks: accepted and refused values."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redisagg import Task, group_key_parts, group_key_text
from redisagg.errors import InvalidGroupKey, InvalidTask

_PARTS = st.lists(st.text("ab:\\", max_size=4), min_size=1, max_size=4).map(tuple)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("{a}:b c\n", "{a}:b c\n"),
        ("x" * 512, "x" * 512),
        ("\N{GRINNING FACE}" * 128, "\N{GRINNING FACE}" * 128),
        ("\0", "\0"),
        (42, "42"),
        (-7, "-7"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (("user", 42), "user:42"),
        (("a:b", "c\\d"), r"a\:b:c\\d"),
        (("a", ("b", "c")), r"a:b\:c"),
    ],
)
def test_a_group_key_has_one_text(key: Any, text: str) -> None:
    assert group_key_text(key) == text
    assert Task("t", None, key).group_key == text


@pytest.mark.parametrize(
    "key",
    ["x" * 513, "\N{GRINNING FACE}" * 129, "\ud800", True, None, 1.5, b"bytes", (), ("a", None)],
)
def test_other_group_keys_are_refused(key: Any) -> None:
    with pytest.raises(InvalidGroupKey):
        Task("t", None, key)


def _nested(key: Any, levels: int) -> Any:
    for _ in range(levels):
        key = (key,)
    return key


@pytest.mark.parametrize(
    "make",
    [
        lambda: 10**5_000,  # Python refuses to write it in decimal
        lambda: ("a" * 300, "b" * 300),
        lambda: _nested("a", 100_000),  # deeper than Python's stack
        lambda: _nested(":", 60),  # each level doubles the escapes
    ],
    ids=["a huge number", "a long tuple", "a deep tuple", "escaped escapes"],
)
def test_group_keys_that_are_hard_to_write_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(InvalidGroupKey, match=r"hash of it|flat tuple"):
        group_key_text(make())


def test_an_empty_group_key_is_refused_when_it_matters() -> None:
    assert Task("t").group_key == ""  # what a merge function may return
    with pytest.raises(InvalidGroupKey, match="empty"):
        group_key_text("")


@given(_PARTS, _PARTS)
def test_different_tuples_never_meet(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    if one != other and any(one) and any(other):
        assert group_key_text(one) != group_key_text(other)


@given(st.lists(st.text(max_size=9) | st.text("ab:\\\n", max_size=9), min_size=1, max_size=5))
def test_the_parts_of_a_tuple_come_back(parts: list[str]) -> None:
    key = tuple(parts)
    if any(parts) or len(parts) > 1:
        assert group_key_parts(group_key_text(key)) == key


@given(st.text("ab:\\\n", min_size=1))
def test_a_text_is_that_of_its_parts_or_of_no_tuple(text: str) -> None:
    try:
        parts = group_key_parts(text)
    except InvalidGroupKey:
        return
    assert group_key_text(parts) == text


def test_parts_of_other_types_come_back_as_text() -> None:
    key = ("a:b", 42, uuid.UUID(int=1), ("c", "d:e"))
    *plain, nested = group_key_parts(group_key_text(key))
    assert plain == ["a:b", "42", str(uuid.UUID(int=1))]
    assert group_key_parts(nested) == ("c", "d:e")
    assert group_key_parts("no tuple") == ("no tuple",)


@pytest.mark.parametrize(
    "text", ["", "C:\\temp", "a\\", "\\\\\\", "a:\\b", "x" * 513, "\ud800", 7, None, ("a", "b")]
)
def test_what_has_no_parts_is_refused(text: Any) -> None:
    with pytest.raises(InvalidGroupKey):
        group_key_parts(text)


@pytest.mark.parametrize(
    "fields",
    [
        {"type": ""},
        {"type": 7},
        {"type": "x" * 513},
        {"type": "\ud800" * 200},
        {"id": ""},
        {"id": "x" * 129},
        {"id": 7},
        {"priority": 1001},
        {"priority": -1001},
        {"priority": 1.5},
        {"priority": True},
        {"headers": {"a": 1}},
        {"headers": {1: "a"}},
        {"headers": None},
        {"headers": [("a", "b")]},
        {"options": None},
        {"options": {1: 2}},
        {"grace_period": 0},
        {"grace_period": -1},
        {"grace_period": float("nan")},
        {"grace_period": float("inf")},
        {"max_delay": "1"},
        {"max_delay": True},
        {"max_delay": timedelta(0)},
        {"max_size": 0},
        {"max_size": -1},
        {"max_size": 1.5},
        {"max_size": True},
    ],
    ids=str,
)
def test_bad_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidTask):
        Task(**{"type": "t", "group_key": "g", **fields})


def test_a_task_is_frozen_slotted_and_comparable() -> None:
    task = Task("t", {"a": [1]}, "g", id="1", headers={"h": "v"}, max_delay=timedelta(seconds=2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.type = "u"  # type: ignore[misc]
    assert not hasattr(task, "__dict__")
    assert task.max_delay == 2.0
    assert task == copy.deepcopy(task) == pickle.loads(pickle.dumps(task))
    assert task != dataclasses.replace(task, payload=None)


def test_headers_are_the_tasks_own() -> None:
    headers = {"a": "b"}
    task = Task("t", None, "g", headers=headers)
    headers["a"] = "c"
    assert task.headers == {"a": "b"}
