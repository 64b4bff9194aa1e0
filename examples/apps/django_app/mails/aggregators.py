"""Found by autodiscovery: manage.py redisagg worker"""

from __future__ import annotations

from django.db import transaction

from django_app.mails.models import Mail, Notice
from redisagg import Task, group_key_parts
from redisagg.contrib.django import app


@app.aggregator("django-mails", group_grace_period=300, group_max_size=50)
def mail(group: str, tasks: list[Task]) -> None:
    """Writes one mail; if it runs twice for a batch, the second run finds nothing to do."""
    _, user = group_key_parts(group)
    with transaction.atomic():
        notices = Notice.objects.filter(pk__in=[task.payload for task in tasks], mailed=False)
        if texts := [notice.text for notice in notices]:
            Mail.objects.create(user=int(user), text="\n".join(texts))
            notices.update(mailed=True)
