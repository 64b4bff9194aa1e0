"""`Settings` from environment variables, and errors that name these."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from redisagg import AggregationConfig, App, Settings
from redisagg.app.app import AggregatorSettings
from redisagg.errors import InvalidConfig, SinkError
from redisagg.settings import PREFIX, variable
from redisagg.sinks import StreamSink
from tests.support.markdown import read, section

OBJECTS = {
    *("event_kinds", "group_aggregator", "group_rate_limit", "group_schedule", "on_event"),
    "rate_limit",
}
"""Settings that no text can stand for."""

CHANGED: dict[str, tuple[str, Any]] = {
    "group_grace_period": ("2.5", 2.5),
    "group_max_delay": ("None", None),
    "group_max_size": ("7", 7),
    "group_leading": ("yes", True),
    "group_min_interval": ("3", 3.0),
    "executor": ("process", "process"),
    "max_pending_tasks": ("1000", 1000),
    "min_replicas": (" 1 ", 1),
    "wait_for_fsync": ("TRUE", True),
    "isolate_failures": ("on", True),
}


def test_variables_change_settings() -> None:
    environ = {variable(name): text for name, (text, _) in CHANGED.items()}
    environ |= {"REDISAGG_URL": "redis://example:1234/5", "REDISAGG_SINK": "stream://out"}
    settings = Settings.from_env(environ)
    assert settings.url == "redis://example:1234/5"
    assert settings.sink == "stream://out"
    assert settings.config == AggregationConfig(**{k: value for k, (_, value) in CHANGED.items()})


def test_without_variables_there_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.from_env({}) == Settings()
    assert Settings.from_env({"REDISAGG_URL": "", "REDISAGG_GROUP_MAX_SIZE": " "}) == Settings()
    monkeypatch.setenv("REDISAGG_GROUP_MAX_SIZE", "99")
    assert Settings.from_env().config.group_max_size == 99
    assert App.from_env().settings.config.group_max_size == 99


def test_each_setting_has_a_variable_unless_it_is_an_object() -> None:
    for each in fields(AggregationConfig):
        default = AggregationConfig().__getattribute__(each.name)
        environ = {variable(each.name): "none" if default is None else str(default)}
        if each.name in OBJECTS:
            with pytest.raises(InvalidConfig, match=rf"{variable(each.name)} can't be set"):
                Settings.from_env(environ)
        else:
            assert Settings.from_env(environ) == Settings(), each.name


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({"GROUP_MAX_SIZE": "many"}, ["GROUP_MAX_SIZE"]),
        ({"GROUP_MAX_SIZE": "0"}, ["GROUP_MAX_SIZE"]),
        ({"GROUP_MAX_SIZE": "none"}, ["GROUP_MAX_SIZE"]),
        ({"GROUP_GRACE_PERIOD": "1 minute"}, ["GROUP_GRACE_PERIOD"]),
        ({"GROUP_GRACE_PERIOD": "-1", "LEASE_TIME": "5"}, ["GROUP_GRACE_PERIOD"]),
        ({"GROUP_LEADING": "maybe"}, ["GROUP_LEADING"]),
        ({"GROUP_LEADING": "true"}, ["GROUP_LEADING"]),  # needs another one
        ({"EXECUTOR": "fork"}, ["EXECUTOR"]),
        ({"PARTITIONS": "9999"}, ["PARTITIONS"]),
        ({"ADD_TIMEOUT": "1", "REPLICA_TIMEOUT": "2", "MIN_REPLICAS": "1"}, ["REPLICA_TIMEOUT"]),
        ({"URL": "http://example"}, ["URL"]),
        ({"SINK": "nowhere://example"}, ["SINK"]),
        ({"SINK": "celery://"}, ["SINK"]),
        ({"GROUP_MAX_SIZ": "3"}, ["GROUP_MAX_SIZ", "GROUP_MAX_SIZE"]),
        ({"LEASETIME": "3"}, ["LEASETIME", "LEASE_TIME"]),
    ],
)
def test_errors_name_the_variable(environ: dict[str, str], names: list[str]) -> None:
    with pytest.raises((InvalidConfig, SinkError)) as raised:
        Settings.from_env({PREFIX + name: text for name, text in environ.items()})
    text = str(raised.value)
    assert [name for name in names if f"{PREFIX}{name}" not in text] == []
    assert text.startswith(PREFIX)
    others = [name for name in environ if name not in names]
    assert [name for name in others if f"{PREFIX}{name}:" in text] == []


def test_no_error_or_repr_shows_a_password() -> None:
    secret = {"REDISAGG_URL": "redis://u:s3cret@h:port", "REDISAGG_SINK": "nowhere://u:s3cret@h"}
    for name, url in secret.items():
        with pytest.raises(InvalidConfig) as raised:
            Settings.from_env({name: url})
        assert "s3cret" not in str(raised.value)
    assert "s3cret" not in repr(Settings(url="redis://u:s3cret@h:1"))


def test_variables_of_others_are_left_alone() -> None:
    """Kubernetes sets such ones for a service `redisagg`; the command line has one, tests have."""
    environ = {"REDISAGG_PORT": "tcp://10.0.0.1:80", "REDISAGG_SERVICE_HOST": "10.0.0.1"}
    environ |= {"REDISAGG_NAME": "x", "REDISAGG_TEST_SERVER": "8", "OTHER": "1"}
    assert Settings.from_env(environ) == Settings()


@pytest.mark.parametrize(
    "wrong", [{"url": 3}, {"url": "http://x"}, {"sink": 3}, {"sink": "x://"}, {"config": {}}]
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig):
        Settings(**wrong)


def test_arguments_of_an_app_come_before_its_settings() -> None:
    sink = StreamSink("out")
    settings = Settings(url="redis://one", config=AggregationConfig(group_max_size=3))
    app = App("redis://two", sink=sink, settings=settings)
    assert (app.settings.url, app.settings.sink) == ("redis://two", sink)
    assert app.settings.config is settings.config


def test_the_keywords_of_the_decorator_are_the_settings() -> None:
    known = {each.name: each.type for each in fields(AggregationConfig)}
    del known["group_aggregator"]
    hints = {
        name: hint.__forward_arg__ for name, hint in AggregatorSettings.__annotations__.items()
    }
    assert hints == known


def test_the_page_of_settings_lists_the_variables() -> None:
    text = section(read("docs/settings.md"), "Environment variables")
    assert all(f"`{each}`" in text for each in OBJECTS)
    assert all(f"`{variable(name)}`" in text for name in ("url", "sink", "group_max_size"))
