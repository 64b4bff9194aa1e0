"""The processes that tests start: python -m tests.support.worker ROLE URL SETTINGS

SETTINGS is a JSON object. Of those, ``kind`` is ``threads`` or ``asyncio``, ``merge`` the name of
a function here, ``sink`` the URL of a queue, ``config`` changes `quick_config`.

A worker ends when its standard input does, so that none outlives the tests.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import redis

from redisagg import Aggregator, AsyncAggregator, RedisAggError, Task
from redisagg.config import GroupAggregator
from tests.support.tasks import quick_config

GATE = "test:gate"
"""`merge_at_gate` waits until this key, or the one with its process id behind it, is there."""

BEGAN = "test:began"
"""A list to which `merge_at_gate` appends the process id when it begins."""


def merge(group: str, tasks: list[Task]) -> Task:
    """As the default, and says which process it was."""
    return Task("merged", {"payloads": [task.payload for task in tasks], "by": os.getpid()})


def merge_at_gate(url: str) -> GroupAggregator:
    """A merge function that waits until the test lets it end."""
    client = redis.Redis.from_url(url)

    def wait_and_merge(group: str, tasks: list[Task]) -> Task:
        client.rpush(BEGAN, os.getpid())
        while not client.exists(GATE, f"{GATE}:{os.getpid()}"):
            time.sleep(0.01)
        return merge(group, tasks)

    return wait_and_merge


def merge_and_die(group: str, tasks: list[Task]) -> Task:
    """Takes its process with it if a task says so, as a fault in a C extension does."""
    if any(task.payload == "poison" for task in tasks):
        os._exit(70)
    return merge(group, tasks)


def settings_of(url: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of an aggregator."""
    config = dict(settings.get("config", {}))
    if settings.get("merge") == "gate":
        config["group_aggregator"] = merge_at_gate(settings.get("gate_url", url))
    elif settings.get("merge") == "die":
        config["group_aggregator"] = merge_and_die
    else:
        config["group_aggregator"] = merge
    return {"config": quick_config(**config), "sink": settings.get("sink")}


def flusher(url: str, settings: dict[str, Any]) -> None:
    """Runs a flusher in the foreground. Says "running" first and "ended" at its end."""
    run_flusher(settings.get("kind"), url, **settings_of(url, settings))


def run_flusher(kind: str | None, url: str, **arguments: Any) -> None:
    """The same with the arguments of an aggregator."""
    say("running")
    if kind == "asyncio":

        async def run() -> None:
            await AsyncAggregator("tests", url, **arguments).run()

        asyncio.run(run())
    else:
        Aggregator("tests", url, **arguments).run()
    say("ended")


def producer(url: str, settings: dict[str, Any]) -> None:
    """Adds tasks with payloads [name, n], after it has heard "go".

    Settings: ``name``; ``count``; ``groups``: added to in turn; ``chunk``: tasks in a call, 1 by
    ``add_task``; ``pause``: seconds between calls. Says what was acknowledged and what failed.
    """
    agg = Aggregator("tests", url, **settings_of(url, settings))
    groups = settings["groups"]
    tasks = [
        Task("test", [settings["name"], n], groups[n % len(groups)])
        for n in range(settings["count"])
    ]
    say("ready")
    heard.wait()
    acknowledged, errors = 0, []
    chunk = settings.get("chunk", 1)
    for start in range(0, len(tasks), chunk):
        try:
            if chunk == 1:
                agg.add_task(tasks[start])
            else:
                agg.add_tasks(tasks[start : start + chunk])
            acknowledged += len(tasks[start : start + chunk])
        except RedisAggError as error:
            errors.append(f"{type(error).__name__}: {error}")
        time.sleep(settings.get("pause", 0))
    say({"acknowledged": acknowledged, "errors": errors})


def forker(url: str, settings: dict[str, Any]) -> None:
    """Uses an aggregator, forks, and goes on using it in both processes at the same time."""
    agg = Aggregator("tests", url, **settings_of(url, settings))
    if settings.get("flusher"):
        agg.start()

    def add(name: str, count: int) -> None:
        for n in range(count):
            task = Task("test", [name, n], "a")
            if n % 2:
                agg.add_task(task)
            else:
                agg.add_tasks([task])

    add("before", 20)
    child = os.fork()
    if settings.get("flusher"):
        agg.start()  # in the child, the parent's flusher is not there
    add("parent" if child else "child", 200)
    if child == 0:
        if settings.get("flusher"):
            agg.stop()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    say(status)
    agg.stop(flush=True)


heard = threading.Event()


def listen(obey: Callable[[str], object]) -> None:
    """Notes the first line from the test and obeys each; ends the process when the test is gone."""
    for line in sys.stdin:
        heard.set()
        obey(line.strip())
    os._exit(1)


def say(what: Any) -> None:
    """Prints a line for the test."""
    print(json.dumps(what), flush=True)


Role: TypeAlias = "Callable[[str, dict[str, Any]], None]"


def main(roles: Mapping[str, Role], obey: Callable[[str], object] = str) -> None:
    """Runs the role that the command line names; `obey` is told each line from the test."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s.%(msecs)03d %(message)s", datefmt="%H:%M:%S"
    )
    role, url, settings = sys.argv[1:]
    threading.Thread(target=listen, args=(obey,), daemon=True).start()
    roles[role](url, json.loads(settings))


if __name__ == "__main__":
    main({"flusher": flusher, "producer": producer, "forker": forker})
