"""pytest django_app, in the folder of the applications."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.test import Client

from django_app.mails.aggregators import mail
from django_app.mails.models import Mail, Notice
from redisagg.contrib.django import app
from redisagg.testing import Clock, EmbeddedRedis, Flushed, Kit

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def batching(redisagg_kit: Kit) -> None:
    """Has the aggregators be of this test."""
    redisagg_kit.clock.freeze()
    redisagg_kit.redirect(app)


def mails() -> list[tuple[int, str]]:
    """All mails."""
    return [(each.user, each.text) for each in Mail.objects.all()]


def test_notices_are_one_mail(
    client: Client, clock: Clock, flush_due: Callable[[], Flushed]
) -> None:
    for text in ("one", "two"):
        assert client.post("/users/7/notices", {"text": text}).status_code == 201
        clock.advance(minutes=4)
    flush_due()
    assert mails() == []
    clock.advance(minutes=1)
    flush_due()
    assert mails() == [(7, "one\ntwo")]


def test_what_is_merged_twice_is_mailed_once(client: Client) -> None:
    client.post("/users/7/notices", {"text": "one"})
    group = mail.get_group(("user", 7))
    assert group is not None
    tasks = [each.task for each in group.tasks or () if each.task]
    for _ in range(2):
        mail("user:7", tasks)
    assert mails() == [(7, "one")]


def test_a_request_that_fails_adds_nothing(client: Client) -> None:
    client.raise_request_exception = False
    assert client.post("/users/7/notices", {}).status_code in (400, 500)
    assert (Notice.objects.count(), mail.stats().pending) == (0, 0)


def test_a_notice_is_stored_while_redis_is_away(
    client: Client, redisagg_server: EmbeddedRedis
) -> None:
    redisagg_server.stop()
    assert client.post("/users/7/notices", {"text": "one"}).status_code == 201
    assert client.get("/health").status_code == 503
    assert Notice.objects.count() == 1
