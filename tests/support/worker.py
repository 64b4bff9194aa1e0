"""The processes that tests start: python -m tests.support.worker ROLE URL SETTINGS

SETTINGS is a JSON object. ``kind`` is ``threads`` or ``asyncio``; ``merge`` is ``gate``, ``die``,
``slow`` or ``block`` for `merge_at_gate`, `merge_and_die`, `merge_slowly` or `merge_and_block`;
``provider`` calls the recording provider at ``port``;
``sink`` is the URL of a queue; ``config`` changes `quick_config`.

A worker ends when its standard input is closed, so that none outlives the tests.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
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
"""`merge_at_gate` waits until this key exists, or the key with ``:`` and its process id added."""

BEGAN = "test:began"
"""A list to which `merge_at_gate` appends its process id when it begins."""


def merge(group: str, tasks: list[Task]) -> Task:
    """Merges as the default function does, and adds the process id."""
    return Task("merged", {"payloads": [task.payload for task in tasks], "by": os.getpid()})


def merge_at_gate(url: str) -> GroupAggregator:
    """Makes a merge function that waits until the test sets `GATE`."""
    client = redis.Redis.from_url(url)

    def wait_and_merge(group: str, tasks: list[Task]) -> Task:
        client.rpush(BEGAN, os.getpid())
        while not client.exists(GATE, f"{GATE}:{os.getpid()}"):
            time.sleep(0.01)
        return merge(group, tasks)

    return wait_and_merge


def merge_and_die(group: str, tasks: list[Task]) -> Task:
    """Ends its process if a payload is ``poison``, as a fault in a C extension does."""
    if any(task.payload == "poison" for task in tasks):
        os._exit(70)
    return merge(group, tasks)


def merge_slowly(group: str, tasks: list[Task]) -> Task:
    """Takes 0.15 s."""
    time.sleep(0.15)
    return merge_and_die(group, tasks)


def merge_by_provider(port: int) -> GroupAggregator:
    """Makes a merge function that calls the recording provider at a port."""

    def call(group: str, tasks: list[Task]) -> Task:
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(f"{group} {len(tasks)} {began}\n".encode())
            connection.recv(1)
        return merge(group, tasks)

    return call


async def merge_and_block(group: str, tasks: list[Task]) -> Task:
    """Blocks the event loop for 2 s if a payload is ``poison``."""
    if any(task.payload == "poison" for task in tasks):
        time.sleep(2)  # noqa: ASYNC251 -- the fault that is meant
    return merge(group, tasks)


MERGES: dict[str | None, GroupAggregator] = {
    "die": merge_and_die,
    "slow": merge_slowly,
    "block": merge_and_block,
    None: merge,
}


def settings_of(url: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of an aggregator."""
    config = dict(settings.get("config", {}))
    if settings.get("merge") == "gate":
        config["group_aggregator"] = merge_at_gate(settings.get("gate_url", url))
    elif settings.get("merge") == "provider":
        config["group_aggregator"] = merge_by_provider(settings["port"])
    else:
        config["group_aggregator"] = MERGES[settings.get("merge")]
    return {"config": quick_config(**config), "sink": settings.get("sink")}


def flusher(url: str, settings: dict[str, Any]) -> None:
    """Runs a flusher in the foreground. Prints "running" first and "ended" at its end."""
    run_flusher(settings.get("kind"), url, **settings_of(url, settings))


def run_flusher(kind: str | None, url: str, **arguments: Any) -> None:
    """Runs a flusher with these arguments of an aggregator, as `flusher` does."""
    send_line("running")
    if kind == "asyncio":

        async def run() -> None:
            await AsyncAggregator("tests", url, **arguments).run()

        asyncio.run(run())
    else:
        Aggregator("tests", url, **arguments).run()
    send_line("ended")


def producer(url: str, settings: dict[str, Any]) -> None:
    """Adds tasks with payloads [name, n] when the test has sent a line.

    Prints "ready" first, and in the end the number of acknowledged tasks and the errors.

    Settings: ``name``; ``count``: number of tasks; ``groups``: names, used in turn; ``chunk``:
    tasks in a call, by `add_task` if 1; ``pause``: seconds between calls.
    """
    agg = Aggregator("tests", url, **settings_of(url, settings))
    groups = settings["groups"]
    tasks = [
        Task("test", [settings["name"], n], groups[n % len(groups)])
        for n in range(settings["count"])
    ]
    send_line("ready")
    line_received.wait()
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
    send_line({"acknowledged": acknowledged, "errors": errors})


def forker(url: str, settings: dict[str, Any]) -> None:
    """Uses an aggregator, forks, and then uses it in both processes at the same time."""
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
        agg.start()  # the parent's flusher does not run in the child
    add("parent" if child else "child", 200)
    if child == 0:
        if settings.get("flusher"):
            agg.stop()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    send_line(status)
    agg.stop(flush=True)


line_received = threading.Event()
"""Set when the test has sent a line."""


def read_lines(handle_line: Callable[[str], object]) -> None:
    """Hands each line from the test to `handle_line`; ends the process when the test has ended."""
    for line in sys.stdin:
        line_received.set()
        handle_line(line.strip())
    os._exit(1)


def send_line(what: Any) -> None:
    """Prints a line for the test."""
    print(json.dumps(what), flush=True)


Role: TypeAlias = "Callable[[str, dict[str, Any]], None]"


def main(roles: Mapping[str, Role], handle_line: Callable[[str], object] = str) -> None:
    """Runs the role that the command line names; `handle_line` gets each line from the test."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s.%(msecs)03d %(message)s", datefmt="%H:%M:%S"
    )
    role, url, settings = sys.argv[1:]
    threading.Thread(target=read_lines, args=(handle_line,), daemon=True).start()
    roles[role](url, json.loads(settings))


if __name__ == "__main__":
    main({"flusher": flusher, "producer": producer, "forker": forker})
