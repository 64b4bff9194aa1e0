"""The `App` of a Django project."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.conf import settings as project_settings
from django.core.exceptions import ImproperlyConfigured
from django.db import close_old_connections, transaction

from redisagg.app import App, AppAggregator
from redisagg.app.aggregator import TaskFields
from redisagg.config import GroupAggregator
from redisagg.contrib.framework import settings_of
from redisagg.errors import InvalidConfig, RedisAggError
from redisagg.merge_function import is_async
from redisagg.payload import to_builtin
from redisagg.settings import Settings
from redisagg.task import GroupKey, Task, group_key_text

if TYPE_CHECKING:
    from typing_extensions import Unpack

SETTING = "REDISAGG"


class DjangoApp(App):
    """An `App` whose merge functions use Django's database connections as requests do.

    Connections that the database has closed, or that are older than `CONN_MAX_AGE`, are replaced
    before and after each merge.
    """

    def _prepared(self, merge: GroupAggregator) -> GroupAggregator:
        function: Any = merge
        if is_async(merge):
            close = sync_to_async(close_old_connections)

            @functools.wraps(function)
            async def awaited(*arguments: Any) -> Any:
                await close()
                try:
                    return await function(*arguments)
                finally:
                    await close()

            return awaited

        @functools.wraps(function)
        def called(*arguments: Any) -> Any:
            close_old_connections()
            try:
                return function(*arguments)
            finally:
                close_old_connections()

        return called


def read_settings() -> Settings:
    """Reads the setting `REDISAGG`.

    Raises:
        InvalidConfig: it is no dict, or a name or a value in it is wrong; the message names it.
        SinkError: the sink's URL needs a package that is not installed.
    """
    given = getattr(project_settings, SETTING, {})
    if not isinstance(given, Mapping):
        raise InvalidConfig(f"it is a dict, not {type(given).__name__}")
    return settings_of(given)


@lru_cache(maxsize=1)
def project_app() -> DjangoApp:
    """Returns the app of the project.

    Raises:
        ImproperlyConfigured: the setting `REDISAGG` is wrong.
    """
    try:
        return DjangoApp(settings=read_settings())
    except RedisAggError as error:
        raise ImproperlyConfigured(f"the setting {SETTING}: {error}") from error


def add_task_on_commit(
    aggregator: AppAggregator[..., Any],
    payload: Any = None,
    *,
    group_key: GroupKey,
    using: str | None = None,
    robust: bool = False,
    **fields: Unpack[TaskFields],
) -> str:
    """Adds a task when the transaction is committed; at once outside of one.

    The payload is read now: what changes in it later, or which language is active then, does not
    matter. If the transaction is rolled back, nothing is added. If the process dies, or Redis is
    away, between the commit and the add, the task is lost; docs/web-apps.md has an outbox.

    Args:
        aggregator: the aggregator, such as a function that `app.aggregator` decorates.
        payload: data; lazy strings become text in the active language.
        group_key: key of the group, as for `AppAggregator.add`.
        using: alias of the database; the default one if None.
        robust: whether an error of the add is logged by Django only, not raised behind the commit.
        fields: further fields of the `Task`. Its type is the name of the aggregator by default.

    Returns:
        The id of the task.

    Raises:
        InvalidTask: the payload, the group key or another field is wrong.
        RedisAggError: without `robust`, the add failed. Inside a transaction, what commits it
            raises this: its data is stored.
    """
    group_key_text(group_key)
    fields.setdefault("type", aggregator.name)
    task = Task(payload=to_builtin(payload), group_key=group_key, **fields)

    def add_task() -> None:  # no partial: Django logs the name of a function that failed
        aggregator.add_task(task)

    transaction.on_commit(add_task, using=using, robust=robust)
    return task.id
