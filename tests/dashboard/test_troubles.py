"""The dashboard names the cause of each planted trouble."""

from __future__ import annotations

import re

import pytest

from redisagg import AsyncAggregator, Task
from redisagg.testing.embedded import HOST
from tests.dashboard.site import NAME, Open
from tests.dashboard.test_actions import eventually
from tests.support.fixtures import Plants
from tests.support.servers import ClusterTopology
from tests.support.tasks import quick_config
from tests.support.troubles import TROUBLES

OF_ALL = {
    *("no_flusher", "paused", "sink_down", "rate_limit", "no_leader", "redis_full"),
    *("partition_away", "wrong_partitions", "clock"),
}
"""Causes that concern the namespace, so that the overview names them too."""


def causes(html: str) -> list[str]:
    """The causes that a page names, the main one first."""
    return re.findall(r'data-cause="(\w+)"', html)


@pytest.mark.parametrize("name", TROUBLES)
async def test_the_pages_name_the_cause(plant: Plants, open_site: Open, name: str) -> None:
    trouble = plant(name)
    site = await open_site(trouble.url, namespaces=[NAME])

    async def group_names_it() -> bool:
        answer = await site.get("group", key=trouble.group)
        if trouble.cause == "redis_full":  # nothing of the group is there
            return "data-cause" in answer.text
        return causes(answer.text)[:1] == [trouble.cause]

    await eventually(f"the page of the group names {trouble.cause}", group_names_it)

    async def overview_names_it() -> bool:
        return trouble.cause in causes((await site.get()).text)

    assert await group_names_it()
    if trouble.cause in OF_ALL:
        await eventually(f"the overview names {trouble.cause}", overview_names_it)


async def test_a_cluster_that_was_down_before_the_dashboard_came_is_named(
    cluster: ClusterTopology, cluster_url: str, open_site: Open
) -> None:
    url = "redis+cluster://" + ",".join(f"{HOST}:{node.port}" for node in cluster.masters)
    async with AsyncAggregator(NAME, url, config=quick_config()) as aggregator:
        await aggregator.add_task(Task("test", 1, "a"))
    cluster.kill(cluster.master_of(f"redisagg:{{{NAME}}}:meta"))
    site = await open_site(url)
    answer = await site.get("groups")
    assert answer.status_code == 503
    assert causes(answer.text) == ["partition_away"]
