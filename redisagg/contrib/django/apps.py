"""The Django application that INSTALLED_APPS names."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.core import checks
from django.core.signals import setting_changed
from django.utils.module_loading import autodiscover_modules

from redisagg.contrib.django.checks import check_aggregators, check_settings, check_timeout
from redisagg.contrib.django.project import SETTING, project_app, read_settings
from redisagg.errors import RedisAggError


class RedisAggConfig(AppConfig):
    """Imports the module `aggregators` of each installed application, and registers the checks."""

    name = "redisagg.contrib.django"
    label = "redisagg"
    verbose_name = "redisagg"

    def ready(self) -> None:
        """Is called by Django when all models are loaded."""
        checks.register(check_settings, "redisagg")
        checks.register(check_aggregators, "redisagg")
        checks.register(check_timeout, "redisagg", deploy=True)
        setting_changed.connect(_configure, dispatch_uid="redisagg")
        try:
            read_settings()
        except RedisAggError:
            return  # the check says what is wrong, and whoever imports the app gets the error
        autodiscover_modules("aggregators")


def _configure(*, setting: str, **details: Any) -> None:
    """A test has overridden a setting."""
    if setting == SETTING:
        project_app().configure(read_settings())
