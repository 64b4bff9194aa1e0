"""The actions of the pages do what the methods of an aggregator do."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from redisagg import AsyncAggregator, Policy, Task
from redisagg.dashboard import Action
from tests.dashboard.site import NAME, Open, Site, check_clean, controls
from tests.support.tasks import quick_config


async def eventually(what: str, condition: Callable[[], Awaitable[object]]) -> None:
    """Waits until a condition holds."""
    end = time.monotonic() + 20
    while not await condition():
        assert time.monotonic() < end, f"not in time: {what}"
        await asyncio.sleep(0.01)


@pytest.fixture
async def site(agg: AsyncAggregator, open_site: Open) -> Site:
    """A dashboard of a namespace with the groups a and b, of two tasks each."""
    await agg.add_tasks(
        [Task("test", n, group, id=f"{group}{n}") for n in (0, 1) for group in "ab"]
    )
    return await open_site()


async def test_groups_are_flushed_postponed_paused_and_cancelled(
    site: Site, agg: AsyncAggregator
) -> None:
    assert "2 tasks are due now." in (await site.act("flush", group="a")).text
    assert list(await agg.get_groups(due=True)) == ["a"]
    assert "2 tasks wait until" in (await site.act("postpone", group="b", minutes="90")).text
    assert ((await agg.get_groups())["b"].due_at or 0) > time.time() + 80 * 60
    assert "not postponed any more" in (await site.act("postpone", group="b", minutes="0")).text
    for minutes in ("-1", "x", "1.5", "99999999", "²"):
        assert "whole number" in (await site.act("postpone", group="b", minutes=minutes)).text
    await site.act("pause", group="b")
    assert (await agg.get_groups())["b"].paused
    assert "resume" in controls(await site.text("group", key="b"))
    await site.act("resume", group="b")
    assert not (await agg.get_groups())["b"].paused
    assert "The task was removed." in (await site.act("cancel", group="b", task="b0")).text
    assert "does not wait any more" in (await site.act("cancel", group="b", task="b0")).text
    assert "1 waiting task was removed." in (await site.act("cancel", group="b")).text
    assert list(await agg.get_groups()) == ["a"]
    assert "group key" in (await site.act("flush", group="")).text


async def test_all_groups_are_paused_resumed_and_flushed(site: Site, agg: AsyncAggregator) -> None:
    await site.act("pause")
    assert (await agg.stats()).paused
    assert "resume" in controls(await site.text())
    await site.act("resume")
    assert not (await agg.stats()).paused
    assert "4 tasks are due now." in (await site.act("flush-all")).text
    assert len(await agg.get_groups(due=True)) == 2


async def test_policies_are_set_and_removed(site: Site, agg: AsyncAggregator) -> None:
    await site.act(
        "set-policy",
        pattern="a*",
        grace_period="2.5",
        max_delay=" ",
        max_size="7",
        min_interval="3",
        leading="1",
        priority="-2",
    )
    given = Policy(grace_period=2.5, max_size=7, min_interval=3, leading=True, priority=-2)
    assert await agg.policies() == {"a*": given}
    html = await site.text("policies", test="ab")
    assert "a*" in html
    assert "2.5 s" in html
    wrong: dict[str, Any]
    for wrong, text in (
        ({"max_size": "many"}, "max_size must be a number"),
        ({"max_size": "0"}, "max_size"),
        ({}, "changes nothing"),
        ({"pattern": "", "max_size": "3"}, "pattern"),
    ):
        fields: dict[str, Any] = {"pattern": "b*", **wrong}
        answer = await site.act("set-policy", **fields)
        assert text in answer.text, wrong
    assert list(await agg.policies()) == ["a*"]
    await site.act("remove-policy", pattern="a*")
    assert await agg.policies() == {}
    assert "no such policy" in (await site.act("remove-policy", pattern="a*")).text


async def test_an_action_returns_to_its_page_and_to_no_other_site(site: Site) -> None:
    await site.get("groups")
    for back, expected in (
        (f"{site.here}/groups?prefix=a", rf"{site.here}/groups\?prefix=a&m=\S+"),
        ("https://evil.example/", r"/\?m=\S+"),
        ("//evil.example/", r"/\?m=\S+"),
        ("/\\evil.example", r"/\?m=\S+"),
        ("/\r\nset-cookie: a=b", r"/\?m=\S+"),
        ("javascript:alert(1)", r"/\?m=\S+"),
    ):
        response = await site.act("flush", follow=False, group="a", back=back)
        assert response.status_code == 303
        assert re.fullmatch(expected, response.headers["location"]), back
    answer = await site.act("flush", follow=False, group="a")
    shown = await site.client.get(answer.headers["location"])
    assert "due now." in shown.text
    again = await site.client.get(answer.headers["location"])
    assert "due now." not in again.text, "a message is shown once"


async def test_an_unknown_action_is_not_there(site: Site) -> None:
    assert (await site.act("explode")).status_code == 404


# --- dead letters --------------------------------------------------------------------------------


class Failing:
    """An aggregator whose merges fail until they are to succeed."""

    def __init__(self, url: str) -> None:
        self.works = False

        def merge(group: str, tasks: list[Task]) -> Task | None:
            if not self.works:
                raise ValueError(f"row {len(group) * 7} of {group[0]} is locked")
            return None

        config = quick_config(group_aggregator=merge, max_attempts=1, group_max_size=2)
        self.aggregator = AsyncAggregator(NAME, url, config=config)

    async def bury(self, count: int, group: str = "g") -> None:
        """Makes dead letters of two tasks each, in groups of their own."""
        before = (await self.aggregator.stats()).batches_dead
        await self.aggregator.add_tasks(
            [Task("test", n, f"{group}:{n // 2}", id=f"t{n}") for n in range(2 * count)]
        )

        async def died() -> bool:
            return (await self.aggregator.stats()).batches_dead == before + count

        await eventually(f"{count} dead letters", died)


@pytest.fixture
async def failing(redis_url: str) -> AsyncIterator[Failing]:
    made = Failing(redis_url)
    async with made.aggregator:
        yield made


async def test_dead_letters_are_grouped_by_their_error_and_searched(
    failing: Failing, open_site: Open
) -> None:
    await failing.bury(3, "aa")
    await failing.bury(2, "b")
    site = await open_site()
    html = await site.text("dead")
    assert "ValueError: row # of a is locked" in html
    assert "ValueError: row # of b is locked" in html
    assert html.count('name="id"') == 5
    reason = "ValueError: row # of b is locked"
    assert (await site.text("dead", reason=reason)).count('name="id"') == 2
    assert (await site.text("dead", q="AA:1")).count('name="id"') == 1
    assert (await site.text("dead", q="row", reason=reason)).count('name="id"') == 2
    assert "No dead letter matches" in await site.text("dead", q="none")


async def test_selected_dead_letters_are_requeued_and_dropped(
    failing: Failing, open_site: Open
) -> None:
    await failing.bury(4)
    site = await open_site()
    ids = [each.batch_id for each in await failing.aggregator.dead_letters()]
    answer = await site.act("drop", id=ids[:2])
    assert "2 dead letters with 4 tasks dropped." in answer.text
    assert "2 were gone already" in (await site.act("drop", id=ids[:2])).text
    failing.works = True
    letter = await site.text("dead-letter", id=ids[2])
    assert letter.count('name="task"') == 2
    task_id = re.search(r'name="task" value="(\w+)"', letter)
    assert task_id is not None
    answer = await site.act("requeue", id=ids[2], task=task_id[1])
    assert "1 task was requeued." in answer.text
    assert "1 dead letter with 1 task requeued." in (await site.act("requeue", id=ids[2])).text
    assert "1 dead letter with 2 tasks requeued." in (await site.act("requeue", id=ids[3])).text
    assert "Nothing was selected." in (await site.act("requeue")).text
    assert await failing.aggregator.wait_until_idle(20)
    assert (await failing.aggregator.stats()).batches_dead == 0


async def test_many_dead_letters_are_handled_with_progress(
    failing: Failing, open_site: Open
) -> None:
    await failing.bury(40, "a")
    await failing.bury(25, "b")
    seen: list[Action] = []
    site = await open_site(on_action=seen.append)
    await site.text("dead")
    failing.works = True
    fields: dict[str, Any] = {"matching": "1", "reason": "ValueError: row # of a is locked"}
    answer = await site.act("requeue", **fields)
    job = str(answer.url.path)
    assert "/jobs/" in job
    check_clean(answer.text)

    async def done() -> bool:
        text = (await site.client.get(job)).text
        return "40 of 40" in text and "40 dead letters, 80 tasks" in text

    await eventually("the progress is told", done)
    assert (await failing.aggregator.stats()).batches_dead == 25
    ids = [each.batch_id for each in await failing.aggregator.dead_letters()]
    answer = await site.act("drop", id=ids)
    assert "/jobs/" in answer.url.path

    async def dropped() -> bool:
        return (await failing.aggregator.stats()).batches_dead == 0 and len(seen) == 4

    await eventually("all are dropped", dropped)
    assert [(each.action, each.outcome) for each in seen] == [
        *(("requeue", "done"), ("requeue", "done"), ("drop", "done"), ("drop", "done")),
    ]
    assert seen[1].result == "40 dead letters with 80 tasks"
    assert seen[1].target == "all dead letters with the error 'ValueError: row # of a is locked'"
    assert seen[3].result == "25 dead letters with 50 tasks"
    assert "There is no such action" in await site.text("jobs/none")


async def test_a_dead_letter_is_tried(failing: Failing, open_site: Open) -> None:
    await failing.bury(1)
    [letter] = await failing.aggregator.dead_letters()
    seen: list[Action] = []
    site = await open_site({}, aggregators=[failing.aggregator], on_action=seen.append)
    assert "disabled" not in controls(await site.text("dead-letter", id=letter.batch_id))["try"]
    failed = await site.act("try", id=letter.batch_id)
    check_clean(failed.text)
    assert "The merge fails" in failed.text
    assert "is locked" in failed.text
    assert "Traceback" in failed.text
    failing.works = True
    assert "The merge succeeds" in (await site.act("try", id=letter.batch_id)).text
    assert (await failing.aggregator.stats()).batches_dead == 1
    assert [each.action for each in seen] == ["try", "try"]
    assert "no dead letter has the id" in (await site.act("try", id="x")).text
    unknowing = await open_site()
    answer = await unknowing.act("try", id=letter.batch_id)
    assert "the merge function is not known here" in answer.text
