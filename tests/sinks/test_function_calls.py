"""Merged tasks as function calls, and sinks whose library is missing; needs none of them."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from redisagg import Task
from redisagg.errors import InvalidConfig, SinkError
from redisagg.payload import to_builtin, to_plain
from redisagg.sinks import sink_from_url
from redisagg.sinks.function_calls import (
    Arguments,
    FunctionCall,
    FunctionCallOptions,
    message_headers,
)


def call(
    task: Task,
    *,
    function: str | None = None,
    known: Collection[str] = (),
    options: Mapping[str, Any] | None = None,
    arguments: Arguments = "auto",
    **others: Any,
) -> FunctionCall:
    """The call for a merged task; `options` are those of the sink."""
    settings = {"encode": to_builtin, **others}
    return FunctionCallOptions(function, known, options or {}, arguments, **settings).call(task)


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
    expected = FunctionCall("t", args, kwargs, queue=None, options={})
    assert call(Task("t", payload), arguments=arguments) == expected


def test_keys_are_str_in_json() -> None:
    made = call(Task("t", {1: 2}), function="other", encode=to_plain)
    assert (made.name, made.args, made.kwargs) == ("other", (), {"1": 2})


def test_only_maps_can_be_passed_by_keywords() -> None:
    with pytest.raises(SinkError, match="no map"):
        call(Task("t", [1]), arguments="keywords")


def test_a_class_of_the_program_becomes_a_map() -> None:
    at = MAIL.at
    assert call(Task("t", MAIL)).kwargs == {"at": at, "to": ["a", "b"]}
    in_json = {"at": at.isoformat(), "to": ["a", "b"]}
    assert call(Task("t", MAIL), encode=to_plain).kwargs == in_json


def test_arguments_and_options_are_checked() -> None:
    wrong: Any = "args"
    with pytest.raises(InvalidConfig, match="arguments is"):
        call(Task("t"), arguments=wrong)
    with pytest.raises(InvalidConfig, match="unknown option: que; known: queue, ttl"):
        call(Task("t"), options={"que": 1}, known=("queue", "ttl"))


def test_a_task_overrides_the_options_of_a_sink() -> None:
    task = Task("t", options={"ttl": 2, "unrelated": 1})
    made = call(task, options={"ttl": 1, "at_front": True}, known=("ttl", "at_front", "retry"))
    assert made.options == {"ttl": 2, "at_front": True}


@pytest.mark.parametrize(("options", "queue"), [({}, "a"), ({"queue": "b"}, "b")])
def test_a_task_overrides_the_queue_of_a_sink(options: dict[str, Any], queue: str) -> None:
    assert call(Task("t", options=options), queue="a").queue == queue


def test_headers_can_be_one_more_keyword_argument() -> None:
    task = Task("t", {"a": 1, "h": 2}, headers={"x": "y"})
    assert call(task).kwargs == {"a": 1, "h": 2}
    assert call(task, headers_as="h").kwargs == {"a": 1, "h": {"x": "y"}}


def test_a_header_that_the_system_reserves_is_refused() -> None:
    task = Task("t", headers={"id": "1", "x": "y"})
    assert message_headers(task, {"retries"}, "Celery") == {"id": "1", "x": "y"}
    with pytest.raises(SinkError, match="Celery reserves the header id"):
        message_headers(task, {"id", "retries"}, "Celery")


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
