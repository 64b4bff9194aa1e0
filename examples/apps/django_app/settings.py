"""The settings of the project."""

from __future__ import annotations

import os

SECRET_KEY = os.environ.get("SECRET_KEY", "for development only")
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "django_app.urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
INSTALLED_APPS = ["redisagg.contrib.django", "django_app.mails"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("DATABASE", "db.sqlite3"),
    }
}
REDISAGG = {"ADD_TIMEOUT": 1}  # a request waits no longer; REDISAGG_URL is in the environment
