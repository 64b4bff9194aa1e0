"""What requests do."""

from __future__ import annotations

from dataclasses import asdict

from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from django_app.mails.aggregators import mail
from django_app.mails.models import Notice
from redisagg.contrib.django import add_task_on_commit, app


@csrf_exempt
@require_POST
@transaction.atomic
def notices(request: HttpRequest, user: int) -> JsonResponse:
    """Stores a notice, and adds its task when that is committed."""
    notice = Notice.objects.create(user=user, text=request.POST["text"])
    add_task_on_commit(mail, notice.pk, group_key=("user", user), robust=True)
    return JsonResponse({"notice": notice.pk}, status=201)


def health(request: HttpRequest) -> JsonResponse:
    """Says whether Redis can be reached, and whether mails are late."""
    found = app.health(timeout=1)
    return JsonResponse(asdict(found), status=200 if found.reachable else 503)
