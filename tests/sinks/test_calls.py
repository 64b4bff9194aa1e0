"""A merged task as a function call, and sinks whose library is missing; needs none of them."""

from __future__ import annotations

import datetime as dt
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from redisagg import Task
from redisagg.errors import InvalidConfig, SinkError
from redisagg.payload import to_builtin, to_plain
from redisagg.sinks import sink_from_url
from redisagg.sinks.function_calls import (
    Arguments,
    Call,
    check_arguments,
    check_options,
    options_for,
)


@dataclass
class Mail:
    at: dt.datetime
    to: tuple[str, ...]


MAIL = Mail(dt.datetime(2026, 1, 2, tzinfo=dt.timezone.utc), ("a", "b"))


@pytest.mark.parametrize(
    ("payload", "arguments", "args", "kwargs"),
    [
        ({"a": 1}, "auto", (), {"a": 1}),
        ({"a": 1}, "keywords", (), {"a": 1}),
        ({"a": 1}, "payload", ({"a": 1},), {}),
        ({}, "auto", (), {}),
        ([1], "auto", ([1],), {}),
        (None, "auto", (None,), {}),
        ({1: 2}, "payload", ({1: 2},), {}),
        ({1: 2}, "auto", ({1: 2},), {}),
    ],
)
def test_a_payload_becomes_arguments(
    payload: Any, arguments: Arguments, args: Any, kwargs: Any
) -> None:
    assert Call.of(Task("t", payload), None, arguments, to_builtin) == Call("t", args, kwargs)


def test_keys_are_str_in_json() -> None:
    assert Call.of(Task("t", {1: 2}), "other", "auto", to_plain) == Call("other", (), {"1": 2})


def test_only_maps_can_be_passed_by_keywords() -> None:
    with pytest.raises(SinkError, match="no map"):
        Call.of(Task("t", [1]), None, "keywords", to_plain)


def test_a_class_of_the_program_becomes_a_map() -> None:
    task = Task("t", MAIL)
    at = MAIL.at
    assert Call.of(task, None, "auto", to_builtin).kwargs == {"at": at, "to": ["a", "b"]}
    assert Call.of(task, None, "auto", to_plain).kwargs == {
        "at": at.isoformat(),
        "to": ["a", "b"],
    }


def test_arguments_and_options_are_checked() -> None:
    with pytest.raises(InvalidConfig, match="arguments is"):
        check_arguments("args")
    with pytest.raises(InvalidConfig, match="unknown option: que; known: queue, ttl"):
        check_options({"que": 1}, ("queue", "ttl"))


def test_a_task_overrides_the_options_of_a_sink() -> None:
    task = Task("t", options={"queue": "b", "unrelated": 1})
    options = options_for(task, {"queue": "a", "ttl": 1}, ("queue", "ttl"))
    assert options == {"queue": "b", "ttl": 1}


LIBRARIES = {
    "celery": "broker",
    "rq": "redis",
    "arq": "redis",
    "dramatiq": "redis",
    "taskiq": "redis",
    "saq": "redis",
    "huey": "redis",
    "streaq": "redis",
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_missing_library_is_named_with_its_extra(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)  # importing it raises ImportError
    url = f"{library}://q?{LIBRARIES[library]}=redis://127.0.0.1"
    with pytest.raises(SinkError, match=rf"'{library}': pip install 'redisagg\[{library}\]'"):
        sink_from_url(url)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_url_says_where_the_queue_is(library: str) -> None:
    with pytest.raises(InvalidConfig, match=f"needs the option {LIBRARIES[library]}"):
        sink_from_url(f"{library}://q")
