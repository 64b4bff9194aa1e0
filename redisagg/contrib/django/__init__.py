"""redisagg in Django: settings, checks, autodiscovery, `manage.py redisagg`; docs/django.md.

`app` is the `App` of the project, made from the setting `REDISAGG` at its first use.
"""

from __future__ import annotations

from typing import Any

try:
    import django  # noqa: F401
except ImportError as error:
    raise ImportError(
        "redisagg.contrib.django needs Django; install it with: pip install 'redisagg[django]'"
    ) from error

from redisagg.contrib.django.project import DjangoApp, add_task_on_commit, project_app

__all__ = ["DjangoApp", "add_task_on_commit"]

app: DjangoApp
"""The app of the project."""


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = project_app()
    globals()["app"] = made
    return made
