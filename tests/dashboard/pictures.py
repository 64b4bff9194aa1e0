"""Takes the pictures in docs/images of a dashboard on a namespace as a shop could have it.

python -m tests.dashboard.pictures
"""

from __future__ import annotations

import math
import random
import struct
from pathlib import Path
from typing import Any

import redis
from playwright.sync_api import sync_playwright

from redisagg import Task
from redisagg.protocol.history import COARSE, FINE, Ring
from redisagg.protocol.keys import Keyspace
from redisagg.testing.embedded import EmbeddedRedis
from tests.dashboard.browser import CHROMIUM, NAME, Stage, quick_history, served
from tests.support.servers import wait_until
from tests.support.tasks import server_ms

FOLDER = Path(__file__).parents[2] / "docs" / "images"
ERRORS = (
    *("SMTPServerDisconnected: the mail server is down",) * 6,
    *("TimeoutError: no answer from api.example.org within 10 s",) * 3,
    "KeyError: 'customer_id'",
)


def fill(stage: Stage) -> None:
    """Makes groups, dead letters and batches in retry."""
    agg, draw = stage.agg, random.Random(4)
    agg.start()
    agg.add_tasks(
        Task("kind", text, f"dead:digest:{n}", max_size=1) for n, text in enumerate(ERRORS)
    )
    for n in range(3):
        agg.add_task(Task("kind", "the mail server is down", f"fail:order:{n}", max_size=1))
    agg.add_tasks(
        Task("mail", {"to": f"someone-{n}@example.org", "text": "hello"}, f"digest:{n % 240}")
        for n in range(1_400)
    )
    for n in range(240):
        agg.add_tasks(
            Task("mail", {"n": each}, f"digest:{n}", grace_period=60 + n * 9, max_delay=9_000)
            for each in range(draw.randrange(1, 9))
        )
    agg.add_tasks(Task("mail", {"n": n}, f"weekly:{n % 40}", max_size=15) for n in range(40 * 15))
    agg.pause("digest:17")
    wait_until(lambda: agg.stats().batches_flushed == 40, what="the weekly ones are flushed")
    wait_until(lambda: agg.stats().batches_dead == len(ERRORS), what="they are dead")
    wait_until(lambda: agg.stats().batches_in_retry == 3, what="they are tried again")
    wait_until(lambda: bool(agg.history().points), what="a step is recorded")


def write_history(client: Any) -> None:
    """Writes what flushers would have recorded in a month."""
    draw, now = random.Random(7), server_ms(client)
    for ring in (FINE, COARSE):
        newest = now // ring.step_ms - 1
        for step in range(newest - ring.steps + 2, newest + 1):
            _write_point(client, ring, step, draw)


def _write_point(client: Any, ring: Ring, step: int, draw: random.Random) -> None:
    seconds = ring.step_ms / 1000
    day = math.sin(2 * math.pi * step * seconds / (86_400 if ring is COARSE else 2_400))
    rate = (90 + 55 * day) * draw.uniform(0.85, 1.15)
    tasks, size = int(rate * seconds), draw.uniform(13, 17)
    failures = draw.choice((0, 0, 0, 1, 3))
    values = (tasks, int(tasks * draw.uniform(0.96, 1.02)), int(tasks / size), failures)
    late = draw.choice((0, 0, 120, 400, 900))
    point = struct.pack(">8d", step, *values, int(1_400 + 600 * day), 10, late)
    client.setrange(Keyspace(NAME, 1).history, ring.first + step % ring.steps * 64, point)


def main() -> None:
    """Takes the pictures."""
    pages: dict[str, tuple[str, dict[str, Any]]] = {
        "dashboard-overview": ("", {}),
        "dashboard-groups": ("groups?prefix=digest%3A", {"color_scheme": "dark"}),
        "dashboard-dead-letters": ("dead", {}),
        "dashboard-narrow": ("", {"viewport": {"width": 400, "height": 860}}),
    }
    FOLDER.mkdir(exist_ok=True)
    with quick_history(), EmbeddedRedis() as server:
        stage = Stage(server.url)
        try:
            fill(stage)
            with redis.Redis.from_url(server.url) as client:
                write_history(client)
            with served(server.url, aggregators=[stage.agg]) as site, sync_playwright() as runner:
                browser = runner.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
                for name, (page, options) in pages.items():
                    size = {"width": 1280, "height": 860}
                    window = browser.new_page(**{"viewport": size, **options})
                    window.goto(f"{site}/n/redis/{NAME}/{page}")
                    window.wait_for_load_state("load")
                    window.screenshot(path=FOLDER / f"{name}.png")
                browser.close()
        finally:
            stage.close()


if __name__ == "__main__":
    main()
