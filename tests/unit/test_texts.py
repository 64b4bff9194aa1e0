"""Texts of errors and logs: no secret, no forged line, no text without end."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from redisagg import AggregationConfig, Aggregator, Task
from redisagg.cli.app import cli
from redisagg.errors import InvalidConfig, InvalidTask, RedisAggError, SinkError
from redisagg.flusher.batch import Failure
from redisagg.sinks import CallableSink, ListSink, StreamSink
from redisagg.sinks.limited_calls import Ended, value_of
from redisagg.texts import escape_control, redact, redact_url
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
    "redis+sentinel://u:hun/ter2@127.0.0.1:26379/s",
    "redis+sentinel://u:hun?ter2@127.0.0.1:26379/s",
    "redis+cluster://u:hun#ter2@127.0.0.1:7000",
    "unix://u:hunter2@/nowhere.sock?db=hunter2",
]

SINK_URLS = [
    "streem://u:hunter2@h/q",
    "u:hunter2@h/q",
    "hunter2",
    "webhook+https://u:hunter2@[h/x",
    "stream://q?url=redis://u:hunter2@h/0",
    "stream://q?max_length=hunter2",
    "stream://hunter2\ud800",
    "stream://q?format=redis://u:hunter2@h",
    "list://q?format=redis://u:hun/ter2@h",
    "list://{redis:%2F%2Fu:hunter2@h}?nonsense=redis://u:hun&ter2@h",
    "asynq://q?nonsense=redis://u:hun&ter2@h",
    "celery://q?broker=redis://u:hun&ter2@h",
    "rq://q?redis=redis://u:hun&ter2@h&function=a.b",
    "arq://q?redis=redis://u:hun&ter2@h",
    "huey://q?redis=redis://u:hun&ter2@h&kind=redis://u:hunter2@h",
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


def test_reprs_show_no_password() -> None:
    agg = Aggregator("test", "redis://u:hunter2@127.0.0.1:1/0", sink=ListSink("q"))
    for each in (agg, agg.config, agg.sink, agg._namespace, agg._transport):
        assert "hunter2" not in repr(each) + str(each)
    agg.close()


@pytest.mark.parametrize(
    "text",
    [
        "Error connecting to redis://u:hunter2@h/0.",
        "redis://:hun/ter2@h, again redis://u:hun@ter2@h:1",
        "GET 'https://h/x?a=1&password=hunter2&b=2' and redis://h?password=hunter2",
    ],
)
def test_texts_of_others_lose_the_passwords_of_urls(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    log = logging.getLogger("redisagg")
    try:
        try:
            raise ValueError(text)
        except ValueError as error:
            raise RuntimeError("x\nERROR forged \x1b[2J") from error
    except RuntimeError as error:
        failure = Failure.of(error)
        log.exception("failed: %s", text)
        log.error("failed: %r", error, exc_info=error)
    for shown in (redact(text), caplog.text, failure.error, failure.traceback):
        assert [canary for canary in CANARIES if canary in shown] == []
    assert "\x1b" not in caplog.text
    assert "\nERROR forged" not in caplog.text
    assert "://" in redact(text)


@pytest.mark.parametrize(
    "arguments",
    [
        ["worker", "redis://:hunter2@h"],
        ["worker", "a", "--redis", "redis://:hun#ter2@h"],
        ["worker", "a", "--redis", "redis://:hunter2@127.0.0.1:1", "--sink", "x://:hunter2@h"],
        ["stats", "--redis", "redis://:hunter2@127.0.0.1:1"],
        ["stats", "redis://:hunter2@h"],
        ["tail", "streem://:hunter2@h"],
        ["demo", "--tasks", "redis://:hunter2@h"],
        ["worker", "os:path://:hunter2@h"],
    ],
    ids=" ".join,
)
def test_the_command_line_shows_no_password(arguments: list[str]) -> None:
    for variable in ({}, {"REDISAGG_URL": "reddis://u:hunter2@h"}):
        result = CliRunner(env=variable).invoke(cli, arguments)
        assert result.exit_code in (1, 2)
        assert [canary for canary in CANARIES if canary in result.output] == []


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


class Mute(Exception):
    """As users write one: its text can't be read."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_an_error_that_cant_be_read_can_be_logged(caplog: pytest.LogCaptureFixture) -> None:
    odd = SyntaxError("odd")
    odd.lineno, odd.text = 1, 5  # type: ignore[assignment] # Python can't format its traceback
    log = logging.getLogger("redisagg")
    log.error("it can't be closed: %r", Mute())
    log.error("it ended: %s", "at once", exc_info=odd)
    assert "no message: __str__ raised RuntimeError" in caplog.text
    assert "    SyntaxError: odd" in caplog.text


def test_what_a_sink_raises_is_named_whether_it_can_be_read_or_not() -> None:
    class Exit(SystemExit):
        __str__ = Mute.__str__

    with pytest.raises(SinkError, match="f raised Exit: <no message"):
        value_of(Ended(error=Exit()), "f", 1)
