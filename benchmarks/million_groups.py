"""The pages of the dashboard at a million open groups: their server time, and Redis' slowest command.

    python -m benchmarks.million_groups [--groups 1000000]

Prints a table for docs/dashboard.md. The server gets real-time priority if this process may give it,
as in benchmarks.slowest_call: else other processes interrupt it on a busy machine, and SLOWLOG shows
calls that took longer than they needed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import statistics
from contextlib import suppress
from typing import Any

import httpx
import redis

from redisagg import AggregationConfig, Aggregator, Policy, Task, Unrecoverable
from redisagg.dashboard import asgi
from redisagg.testing.embedded import EmbeddedRedis

NAME = "shop"
DEAD = 1_000
TURNS = 5
_LOGGED_US = 200


def merge(group: str, tasks: list[Task]) -> Task:
    """Fails for some groups."""
    if group.startswith("dead"):
        raise Unrecoverable("the mail server is down")
    return Task("digest", len(tasks))


def fill(url: str, groups: int) -> Aggregator:
    """Opens the groups, and makes dead letters; a flusher runs."""
    config = AggregationConfig(
        group_grace_period=36_000, group_max_delay=360_000, group_aggregator=merge
    )
    aggregator = Aggregator(NAME, url, config=config)
    aggregator.start()
    aggregator.add_tasks(
        (Task("mail", {"n": n}, f"customer:{n}", grace_period=36_000 + n % 9_999) for n in range(groups)),
        ids=False,
    )  # fmt: skip
    aggregator.add_tasks((Task("mail", n, f"dead:{n}", max_size=1) for n in range(DEAD)), ids=False)
    for n in range(0, groups, groups // 50):
        aggregator.add_tasks(Task("mail", {"n": each}, f"customer:{n}") for each in range(15))
    aggregator.pause("customer:77")
    aggregator.set_policy("customer:*", Policy(priority=1))
    while aggregator.stats().batches_dead < DEAD:
        pass
    return aggregator


async def measure(url: str, client: Any) -> None:
    """Asks for each page several times."""
    dashboard = asgi(url, namespaces=[NAME])
    here = f"http://localhost/n/redis/{NAME}/"
    transport = httpx.ASGITransport(app=dashboard)
    async with httpx.AsyncClient(transport=transport, timeout=60) as browser:
        deep = here + "groups"
        for _ in range(20):
            html = (await browser.get(deep)).text
            deep = "http://localhost" + re.search(r'rel="next" href="([^"]+)"', html)[1].replace("&amp;", "&")  # type: ignore[index]  # fmt: skip
        letter = re.search(r'/dead-letter\?id=([^"]+)', (await browser.get(here + "dead")).text)
        pages = {
            "overview": here,
            "overview, 30 days": here + "?span=month",
            "groups, first page": here + "groups",
            "groups, page 21": deep,
            "groups, only due": here + "groups?due=1",
            "groups, prefix `customer:99`": here + "groups?prefix=customer:99",
            "groups, rare prefix `customer:999999`": here + "groups?prefix=customer:999999",
            "groups, prefix of none": here + "groups?prefix=nobody",
            "groups by size": here + "groups?sort=size",
            "groups by age": here + "groups?sort=age",
            "a group": here + "group?key=customer:5",
            "batches": here + "batches",
            f"dead letters, {DEAD:,} of them": here + "dead",
            "a dead letter": here + "dead-letter?id=" + (letter[1] if letter else ""),
            "flushers": here + "flushers",
            "policies": here + "policies?test=customer:5",
        }
        print("| page | server time, ms | slowest command of Redis, ms | |\n|---|---|---|---|")
        for name, address in pages.items():
            await browser.get(address)  # loads what is loaded once
            client.slowlog_reset()
            took = []
            for _ in range(TURNS):
                response = await browser.get(address)
                assert response.status_code == 200, (name, response.status_code)
                took.append(float(response.headers["server-timing"].partition("dur=")[2]))
            found = [
                each
                for each in client.slowlog_get(1_000)
                if not each["command"].startswith(b"SLOWLOG")
            ]
            worst = max(found, key=lambda each: each["duration"], default=None)
            slow = "< 0.2" if worst is None else f"{worst['duration'] / 1000:.1f}"
            what = "" if worst is None else worst["command"].split()[0].decode()
            print(f"| {name} | {statistics.median(took):.0f} | {slow} | {what} |", flush=True)
    await dashboard.close()


def main() -> None:
    """Fills a server and measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=1_000_000)
    options = parser.parse_args()
    with EmbeddedRedis() as server:
        client: Any = redis.Redis.from_url(server.url)
        with suppress(OSError, AttributeError):
            pid = client.info("server")["process_id"]
            os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(1))
        client.config_set("slowlog-log-slower-than", _LOGGED_US)
        client.config_set("slowlog-max-len", 1_000)
        aggregator = fill(server.url, options.groups)
        print(f"{aggregator.stats().groups:,} open groups")
        asyncio.run(measure(server.url, client))
        aggregator.close()


if __name__ == "__main__":
    main()
