"""The extension of Flask: settings, application contexts, commands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask, current_app, has_app_context

from redisagg import Task
from redisagg.contrib.flask import RedisAgg
from redisagg.errors import InvalidConfig
from tests.support.cli import Spawn
from tests.support.tasks import await_batches, enqueued

QUICK = {"REDISAGG_PARTITIONS": 2, "REDISAGG_GROUP_GRACE_PERIOD": 600, "REDISAGG_LEASE_TIME": 2}


@pytest.fixture
def agg() -> Iterator[RedisAgg]:
    """The extension, with aggregators that are defined before any application."""
    made = RedisAgg()

    @made.aggregator("mails", group_max_size=2)
    def digest(group: str, tasks: list[Task]) -> Task:
        return Task("mail", current_app.config["GREETING"])

    @made.aggregator("searches", group_max_size=2)
    async def refresh(group: str, tasks: list[Task]) -> Task:
        return Task("search", current_app.config["GREETING"])

    yield made
    made.close()


def create_app(agg: RedisAgg, url: str, **config: Any) -> Flask:
    """A factory of applications."""
    flask_app = Flask("shop")
    flask_app.config.update({**QUICK, "REDISAGG_URL": url, "GREETING": "hello", **config})
    agg.init_app(flask_app)
    return flask_app


def test_an_application_sets_the_settings(agg: RedisAgg, redis_url: str) -> None:
    digest = agg.aggregators["mails"]
    flask_app = create_app(agg, redis_url, REDISAGG_SINK="list://all", REDISAGG_GROUP_MAX_SIZE=9)
    assert flask_app.extensions["redisagg"] is agg
    assert agg.settings.url == redis_url
    assert agg.settings.config.group_max_size == 9
    assert (digest.config.partitions, digest.config.group_max_size) == (2, 2)
    assert digest.sink.name == "all"  # type: ignore[union-attr]
    create_app(agg, redis_url, REDISAGG_SINK="list://other")
    assert digest.sink.name == "other"  # type: ignore[union-attr]


def test_an_application_may_be_given_at_once() -> None:
    flask_app = Flask("shop")
    flask_app.config["REDISAGG_URL"] = "redis://there:1/0"
    assert RedisAgg(flask_app).settings.url == "redis://there:1/0"


def test_environment_variables_set_what_the_application_does_not(
    monkeypatch: pytest.MonkeyPatch, agg: RedisAgg
) -> None:
    monkeypatch.setenv("REDISAGG_GROUP_MAX_DELAY", "7")
    monkeypatch.setenv("REDISAGG_PARTITIONS", "7")
    create_app(agg, "redis://there:1/0")
    config = agg.aggregators["mails"].config
    assert (config.group_max_delay, config.partitions) == (7, 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [("REDISAGG_GROUP_MAX_SIZE", 0), ("REDISAGG_GROUP_MAXSIZE", 1), ("REDISAGG_URL", "http://x")],
)
def test_a_wrong_setting_is_named(agg: RedisAgg, name: str, value: Any) -> None:
    with pytest.raises(InvalidConfig, match=name.removeprefix("REDISAGG_")):
        create_app(agg, "redis://there:1/0", **{name: value})


def test_merge_functions_run_in_an_application_context(agg: RedisAgg, redis_url: str) -> None:
    create_app(agg, redis_url)
    with agg:
        for each in agg.aggregators.values():
            each.add(1, group_key="a")
            each.add(2, group_key="a")
            await_batches(each, 1)
            assert enqueued(each)[0].payload == "hello"
    assert not has_app_context()


def test_an_extension_without_an_application_merges(
    agg: RedisAgg, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert agg.aggregators["mails"].config.group_aggregator is not None
    monkeypatch.setenv("REDISAGG_URL", redis_url)
    other = RedisAgg()
    plain = other.aggregator("plain", group_max_size=1)(lambda group, tasks: Task("t", "merged"))
    with plain:
        plain.add(1, group_key="a")
        await_batches(plain, 1)
        assert enqueued(plain)[0].payload == "merged"
    other.close()


def test_commands_use_the_settings_of_the_application(agg: RedisAgg, redis_url: str) -> None:
    runner = create_app(agg, redis_url).test_cli_runner()
    agg.aggregators["mails"].add(1, group_key="a")
    done = runner.invoke(args=["redisagg", "stats", "-n", "mails", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["pending"] == 1
    assert "worker" in runner.invoke(args=["redisagg"]).output
    assert "--only" in runner.invoke(args=["redisagg", "worker", "--help"]).output
    done = runner.invoke(args=["redisagg", "worker", "--only", "unknown"])
    assert done.exit_code == 1
    assert "those that there are: 'mails', 'searches'" in done.output


def test_the_command_of_redisagg_itself_needs_a_target(spawn: Spawn) -> None:
    assert spawn("worker", stderr=-3).wait(20) == 2
