"""What is stored."""

from __future__ import annotations

from django.db import models


class Notice(models.Model):
    """Something that a user is told."""

    user: models.IntegerField[int, int] = models.IntegerField()
    text: models.CharField[str, str] = models.CharField(max_length=200)
    mailed: models.BooleanField[bool, bool] = models.BooleanField(default=False)


class Mail(models.Model):
    """A mail with several notices."""

    user: models.IntegerField[int, int] = models.IntegerField()
    text: models.TextField[str, str] = models.TextField()
