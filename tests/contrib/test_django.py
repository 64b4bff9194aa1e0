"""Django's settings, checks, autodiscovery, commands and transactions, in this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import django
import pytest
from django.conf import settings
from django.core.checks import run_checks
from django.core.management import CommandError, call_command
from django.db import close_old_connections, connection, transaction
from django.test import override_settings
from django.utils import translation
from django.utils.translation import gettext_lazy

from redisagg import App, Task
from redisagg.contrib.django import add_task_on_commit
from redisagg.errors import InvalidGroupKey, PayloadError, RedisUnavailable
from tests.support.tasks import await_batches, enqueued

URL = "redis://localhost:1/0"

if not settings.configured:
    settings.configure(
        SECRET_KEY="for tests",
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        INSTALLED_APPS=[
            *("django.contrib.contenttypes", "django.contrib.auth", "redisagg.contrib.django"),
            "tests.contrib.shop",
        ],
        REDISAGG={"URL": URL, "GROUP_MAX_SIZE": 50, "ADD_TIMEOUT": 1},
        USE_I18N=True,
    )
    django.setup()

from redisagg.contrib.django import app  # noqa: E402 - the settings come first
from tests.contrib.shop.aggregators import digest, refresh  # noqa: E402

QUICK = {"ADD_TIMEOUT": 2, "PARTITIONS": 2, "GROUP_GRACE_PERIOD": 600, "LEASE_TIME": 2}


@pytest.fixture(autouse=True)
def project(redis_url: str) -> Iterator[None]:
    """The project with the Redis of the test."""
    with override_settings(REDISAGG={**QUICK, "URL": redis_url}):
        yield
        app.close()


# --- settings ------------------------------------------------------------------------------------


def test_the_setting_is_that_of_the_app(redis_url: str) -> None:
    assert isinstance(app, App)
    assert app.settings.url == redis_url
    assert (digest.config.partitions, digest.config.group_max_size) == (2, 2)
    with override_settings(REDISAGG={"URL": URL, "SINK": "list://all"}):
        assert digest.sink.name == "all"  # type: ignore[union-attr]
    assert app.settings.url == redis_url


def test_aggregators_are_found() -> None:
    assert app.aggregators == {"mails": digest, "searches": refresh}


def messages(setting: Any, deploy: bool = False) -> list[tuple[str | None, str]]:
    """What the checks say of a value of the setting, of which the app knows nothing."""
    before = settings.REDISAGG
    settings.REDISAGG = setting
    try:
        found = run_checks(tags=["redisagg"], include_deployment_checks=deploy)
        return [(each.id, each.msg) for each in found]
    finally:
        settings.REDISAGG = before


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ([], "it is a dict, not list"),
        ({"GROUP_MAX_SIZE": 0}, "GROUP_MAX_SIZE: group_max_size"),
        ({"GROUP_MAXSIZE": 1}, "'GROUP_MAXSIZE' is no setting; do you mean GROUP_MAX_SIZE?"),
        ({"group_max_size": 1}, "do you mean GROUP_MAX_SIZE?"),
        ({"GROUP_AGGREGATOR": len}, "is no setting"),
        ({3: 1}, "3 is no setting"),
        ({"URL": "http://x"}, "URL: "),
        ({"SINK": "nowhere://"}, "SINK: "),
    ],
)
def test_a_wrong_setting_is_an_error_of_the_checks(setting: Any, text: str) -> None:
    [(number, message)] = messages(setting)
    assert number == "redisagg.E001"
    assert text in message


def test_a_right_setting_passes_the_checks() -> None:
    together = {"GROUP_MIN_INTERVAL": 5, "GROUP_LEADING": True, "SINK": "stream://q"}
    assert messages({**QUICK, **together}, deploy=True) == []


def test_a_long_timeout_is_a_warning_of_the_deployment_checks() -> None:
    [(number, message)] = messages({}, deploy=True)
    assert number == "redisagg.W002"
    assert "30 seconds" in message
    assert messages({}) == []


def test_merges_in_processes_are_a_warning() -> None:
    with override_settings(REDISAGG={**QUICK, "EXECUTOR": "process"}):
        [(number, message)] = messages(settings.REDISAGG)
    assert number == "redisagg.W001"
    assert "'mails'" in message


def test_environment_variables_set_what_the_setting_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REDISAGG_GROUP_MAX_DELAY", "7")
    monkeypatch.setenv("REDISAGG_PARTITIONS", "7")
    with override_settings(REDISAGG=QUICK):
        assert (digest.config.group_max_delay, digest.config.partitions) == (7, 2)


def test_a_project_with_a_wrong_setting_starts_and_says_so() -> None:
    program = """
import django, redisagg.contrib.django
from django.conf import settings
settings.configure(INSTALLED_APPS=["redisagg.contrib.django", "tests.contrib.shop"],
                   REDISAGG={"GROUP_MAX_SIZE": 0})
django.setup()
from django.core.checks import run_checks
assert [each.id for each in run_checks()] == ["redisagg.E001"]
try:
    redisagg.contrib.django.app
except django.core.exceptions.ImproperlyConfigured as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("the setting REDISAGG: GROUP_MAX_SIZE"), done.stderr


# --- adding --------------------------------------------------------------------------------------


def waiting() -> list[Any]:
    """The payloads of the tasks that wait in the group ``a``."""
    group = digest.get_group("a")
    tasks = group.tasks if group else None
    return [each.task.payload for each in tasks or () if each.task]


def test_a_task_is_added_when_the_transaction_is_committed() -> None:
    with transaction.atomic():
        task_id = add_task_on_commit(digest, 1, group_key="a", headers={"h": "v"})
        assert waiting() == []
    assert waiting() == [1]
    assert digest.locate("a", task_id).place == 0


def test_a_transaction_that_is_rolled_back_adds_nothing() -> None:
    def fail(payload: int) -> None:
        with transaction.atomic():
            add_task_on_commit(digest, payload, group_key="a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail(1)
    with transaction.atomic():
        with pytest.raises(ZeroDivisionError):
            fail(2)
        add_task_on_commit(digest, 3, group_key="a")
    assert waiting() == [3]


def test_outside_of_a_transaction_a_task_is_added_at_once() -> None:
    add_task_on_commit(digest, 1, group_key="a")
    assert waiting() == [1]


def test_a_payload_is_that_of_the_call() -> None:
    payload = {"items": [1]}
    with transaction.atomic():
        add_task_on_commit(digest, payload, group_key="a")
        payload["items"].append(2)
    assert waiting() == [{"items": [1]}]


def test_lazy_texts_are_in_the_language_of_the_call() -> None:
    text = gettext_lazy("Monday")
    with transaction.atomic():
        with translation.override("de"):
            add_task_on_commit(digest, {"day": text, "all": [text]}, group_key="a")
        with translation.override("fr"):
            digest.add(text, group_key="a")
    assert waiting() == ["lundi", {"day": "Montag", "all": ["Montag"]}]


def test_wrong_tasks_are_refused_at_the_call() -> None:
    with transaction.atomic():
        with pytest.raises(PayloadError):
            add_task_on_commit(digest, object(), group_key="a")
        with pytest.raises(InvalidGroupKey):
            add_task_on_commit(digest, 1, group_key="")
    assert waiting() == []


def test_an_error_behind_the_commit_is_raised_unless_it_is_to_be_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with override_settings(REDISAGG={"URL": URL, "ADD_TIMEOUT": 0.01}):
        with pytest.raises(RedisUnavailable), transaction.atomic():
            add_task_on_commit(digest, 1, group_key="a")
        with transaction.atomic():
            add_task_on_commit(digest, 1, group_key="a", robust=True)
    assert "add_task in on_commit() during transaction (Redis could not" in caplog.text


# --- merging -------------------------------------------------------------------------------------


def test_merge_functions_close_old_connections_around_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []

    def close() -> None:
        calls.append(threading.current_thread().name)
        close_old_connections()

    monkeypatch.setattr("redisagg.contrib.django.project.close_old_connections", close)
    monkeypatch.setattr(app, "_aggregators", dict(app._aggregators))
    collect = app.aggregator("collected", group_max_size=2)(digest.__wrapped__)
    gather = app.aggregator("gathered", group_max_size=2)(refresh.__wrapped__)
    for each in (collect, gather):
        with each:
            each.add_task(_task(each, 1))
            each.add_task(_task(each, 2))
            await_batches(each, 1)
        assert enqueued(each)[0].payload == [1, 2]
    assert len(calls) == 4
    assert "MainThread" not in calls


def _task(aggregator: Any, payload: Any) -> Task:
    return Task(aggregator.name, payload, "a")


def test_a_call_of_the_decorated_function_touches_no_connection() -> None:
    connection.ensure_connection()
    before = connection.connection
    digest("a", [])
    assert connection.connection is before


# --- commands ------------------------------------------------------------------------------------


def test_commands_use_the_settings_of_the_project(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDISAGG_URL", URL)  # what the project sets comes first
    digest.add(1, group_key="a")
    call_command("redisagg", "groups", "-n", "mails", "--json")
    assert json.loads(capsys.readouterr().out)["group_key"] == "a"
    call_command("redisagg", "stats", "--settings=elsewhere", "-n", "mails", "--json")
    assert json.loads(capsys.readouterr().out)["pending"] == 1
    assert os.environ["REDISAGG_URL"] == URL


def test_a_project_with_one_aggregator_needs_no_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    digest.add(1, group_key="a")
    monkeypatch.setattr(app, "_aggregators", {"mails": digest})
    call_command("redisagg", "stats", "--json")
    assert json.loads(capsys.readouterr().out)["pending"] == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["stats", "-n", "nothing"], "there is no namespace 'nothing'; none exists"),
        (["stats", "--unknown"], "No such option"),
        (["unknown"], "No such command"),
        (["worker", "--only", "unknown"], "those that there are: 'mails', 'searches'"),
    ],
)
def test_errors_are_those_of_django(arguments: list[str], text: str) -> None:
    with pytest.raises(CommandError, match=text):
        call_command("redisagg", *arguments)


def test_without_a_command_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    call_command("redisagg")
    assert "worker" in capsys.readouterr().out


def test_the_worker_runs_all_aggregators(redis_url: str, tmp_path: Any) -> None:
    (tmp_path / "project_settings.py").write_text(
        "INSTALLED_APPS = ['redisagg.contrib.django', 'tests.contrib.shop']\n"
        "DATABASES = {'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': ':memory:'}}\n"
        f"REDISAGG = { ({**QUICK, 'URL': redis_url})!r}\n"
    )
    worker = subprocess.Popen(
        [
            *(sys.executable, "-m", "django", "redisagg", "worker"),
            *("--settings", "project_settings", "--pythonpath", str(tmp_path)),
        ],
        stderr=subprocess.PIPE,
    )
    try:
        for each in (digest, refresh):
            each.add_task(_task(each, 1))
            each.add_task(_task(each, 2))
            await_batches(each, 1)
        worker.terminate()
        assert worker.wait(20) == 0
        assert worker.stderr is not None
        assert b"flushing 'mails', 'searches'" in worker.stderr.read()
    finally:
        worker.kill()
        worker.wait()
