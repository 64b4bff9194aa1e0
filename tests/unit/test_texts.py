"""Texts of errors and logs: no secret, no forged line, no text without end."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from redisagg import AggregationConfig, Aggregator, Task
from redisagg.errors import InvalidConfig, InvalidTask, RedisAggError
from redisagg.sinks import CallableSink, ListSink, StreamSink
from redisagg.texts import escape_control, redact_url
from redisagg.transport.endpoint import endpoint_of

CANARIES = ["hunter2", "hun", "ter2", "4711"]
"""Passwords and the parts into which a wrong character cuts one."""

REDIS_URLS = [
    "redis://:hunter2#x@127.0.0.1:6379/0",
    "redis://:4711#x@127.0.0.1:6379/0",
    "redis://u:hun/ter2@127.0.0.1:6379/0",
    "redis://u:4711/ter2@127.0.0.1:6379/0",
    "redis://u:hun?ter2@127.0.0.1",
    "redis://u:4711?ter2@127.0.0.1",
    "redis://u:hunter2@127.0.0.1:port/0",
    "redis://u:hunter2@127.0.0.1:6379/0?socket_timeout=hunter2",
    "reddis://u:hunter2@127.0.0.1:6379/0",
    "u:hunter2@127.0.0.1",
    "redis://u:hunter2@[127.0.0.1:6379/0",
    "redis+sentinel://u:hunter2@127.0.0.1:26379",
    "redis+sentinel://u:hunter2@127.0.0.1:port/s",
    "redis+cluster://u:hunter2@127.0.0.1:port",
    "rediss://u:hunter2@127.0.0.1?ssl_ca_certs=/missing",
    "redis://u:hunter2\ud800@127.0.0.1",
]

SINK_URLS = [
    "streem://u:hunter2@h/q",
    "u:hunter2@h/q",
    "hunter2",
    "webhook+https://u:hunter2@[h/x",
    "stream://q?url=redis://u:hunter2@h/0",
    "stream://q?max_length=hunter2",
    "stream://hunter2\ud800",
]


def texts_of(error: BaseException) -> str:
    """The text, the repr and the traceback without lines of source."""
    lines = traceback.format_exception(error)
    shown = [line for line in lines if not line.startswith("  File")]
    return "\n".join([str(error), repr(error), *shown])


@pytest.mark.parametrize(
    "arguments",
    [*({"redis": url} for url in REDIS_URLS), *({"sink": url} for url in SINK_URLS)],
    ids=repr,
)
def test_an_error_about_a_url_shows_no_part_of_its_password(arguments: dict[str, str]) -> None:
    with pytest.raises(RedisAggError) as raised:
        Aggregator("test", **arguments)  # type: ignore[arg-type]
    assert [canary for canary in CANARIES if canary in texts_of(raised.value)] == []


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:hunter2@h/0",
        "redis+sentinel://u:hunter2@h/s",
        "redis+cluster://u:hunter2@h",
        "redis://h?password=hunter2",
    ],
)
def test_an_endpoint_does_not_show_its_password(url: str) -> None:
    endpoint = endpoint_of(url)
    assert "hunter2" in str(endpoint.options)
    assert "hunter2" not in repr(endpoint) + str(endpoint)


def test_a_redacted_url_is_its_scheme() -> None:
    assert redact_url("redis+sentinel://u:p@h/s?x=1") == "redis+sentinel://…"
    assert "p@h" not in redact_url("u:p@h")


def test_a_log_line_has_no_control_characters_of_others(caplog: pytest.LogCaptureFixture) -> None:
    forged = "x\r\nERROR forged \x1b[2J\u2028\ud800"
    log = logging.getLogger("redisagg")
    with caplog.at_level(logging.INFO, logger="redisagg"):
        log.warning("the sink failed: %s, %s, %d", forged, ValueError(forged), 7)
    [line] = caplog.messages
    assert line.isprintable()
    assert line.startswith("the sink failed: x\\r\\nERROR forged \\x1b[2J\\u2028\\ud800, x")
    assert line.endswith(", 7")
    assert escape_control("wörter 日本") == "wörter 日本"


@pytest.mark.parametrize("value", [10**5000, -(10**5000)], ids=["positive", "negative"])
@pytest.mark.parametrize("field", ["priority", "max_size"])
def test_an_int_of_thousands_of_digits_is_refused_in_a_short_text(field: str, value: int) -> None:
    fields: dict[str, Any] = {field: value}
    with pytest.raises(InvalidTask) as raised:
        Task("test", 0, "a", **fields)
    assert len(str(raised.value)) < 200


def test_settings_of_thousands_of_digits_are_refused_in_a_short_text() -> None:
    settings = ("group_max_size", "partitions", "max_pending_tasks", "group_max_delay")
    calls: list[Callable[[int], object]] = [
        *(lambda value, name=name: AggregationConfig(**{name: value}) for name in settings),
        lambda value: StreamSink("queue", maxlen=value),
        lambda value: CallableSink(print, concurrency=value),
    ]
    for call in calls:
        for value in (10**5000, -(10**5000)):
            with pytest.raises(InvalidConfig) as raised:
                call(value)
            assert len(str(raised.value)) < 200


def test_the_name_of_a_queue_is_checked_when_the_sink_is_made() -> None:
    with pytest.raises(InvalidConfig):
        ListSink("\ud800")
