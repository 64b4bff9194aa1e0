"""A living system for the dashboard of the demo, with a failing sink and a late group to find."""

from __future__ import annotations

import asyncio
import random
import webbrowser
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

import click

from redisagg.aggregator import AsyncAggregator
from redisagg.cli.dashboard import say_where
from redisagg.config import AggregationConfig
from redisagg.merges import collect
from redisagg.policies import Policy
from redisagg.sinks import CallableSink, Sink, StreamSink
from redisagg.task import Task

if TYPE_CHECKING:
    from collections.abc import Coroutine

LATE_GROUP = "customer:7"
"""The group of `orders` that is late: its merge fails again and again."""

_LEASE_TIME = 3.0  # seconds
_PAUSE = 0.5  # seconds between two adds
_EVENTS = ("opened", "paid", "packed", "shipped", "returned")


async def live(url: str, host: str, port: int, *, browse: bool) -> None:
    """Runs the system and serves its dashboard until SIGTERM or SIGINT.

    Args:
        url: the Redis server.
        host: the address of the dashboard.
        port: its port; 0 for any.
        browse: whether to open it in a browser.

    Raises:
        OSError: the address can't be used.
    """
    from redisagg.dashboard import asgi
    from redisagg.dashboard.serving import LOCAL_HOSTS, is_local, serve

    aggregators = [_orders(url), _messages(url), _reports(url)]
    hosts = (*LOCAL_HOSTS, host) if is_local(host) else None
    dashboard = asgi(url, aggregators=aggregators, allowed_hosts=hosts)

    def on_ready(address: str) -> None:
        say_where(address)
        click.echo(
            "redisagg: find out why customer:7 of orders is late, and what is wrong with messages; "
            "Ctrl-C ends the demo",
            err=True,
        )
        if browse:
            webbrowser.open(address)

    async with AsyncExitStack() as stack:
        for each in aggregators:
            await stack.enter_async_context(each)
        stack.push_async_callback(_end, [asyncio.create_task(each) for each in _work(*aggregators)])
        await serve(dashboard, host, port, on_ready=on_ready)


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for each in tasks:
        each.cancel()
    for each in tasks:
        with suppress(asyncio.CancelledError):
            await each


def _config(**settings: object) -> AggregationConfig:
    return AggregationConfig(lease_time=_LEASE_TIME, shutdown_timeout=1.0, **settings)  # type: ignore[arg-type]


# --- orders: one group is late -------------------------------------------------------------------


def _orders(url: str) -> AsyncAggregator:
    config = _config(
        group_grace_period=6.0,
        group_max_delay=20.0,
        group_aggregator=_merge_orders,
        max_attempts=50,
        retry_delay=5.0,
        retry_max_delay=40.0,
        max_pending_tasks=5_000,
    )
    return AsyncAggregator("orders", url, config=config)


async def _merge_orders(group: str, tasks: list[Task]) -> Task:
    await asyncio.sleep(random.uniform(0.02, 0.4))
    if group == LATE_GROUP:
        raise ValueError("customer 7 has no address")
    return collect(group, tasks)


async def _add_orders(orders: AsyncAggregator) -> None:
    for number in range(10**9):
        customers = [random.randint(8, 90) for _ in range(random.randint(3, 14))]
        tasks = [
            Task(
                "order", {"order": 1_000 + number, "event": random.choice(_EVENTS)}, f"customer:{c}"
            )
            for c in customers
        ]
        if number % 20 == 0:
            tasks.append(
                Task("order", {"order": 7_000 + number, "event": "paid"}, LATE_GROUP, flush=True)
            )
        await orders.add_tasks(tasks)
        await asyncio.sleep(_PAUSE)


# --- messages: one of two sinks fails ------------------------------------------------------------


def _messages(url: str) -> AsyncAggregator:
    config = _config(
        group_grace_period=4.0,
        group_max_delay=12.0,
        group_aggregator=_merge_messages,
        max_attempts=1,
        retry_delay=3.0,
        partitions=4,
    )
    email, sms = StreamSink("messages-email"), CallableSink(_send_sms)

    def sink_of(task: Task) -> Sink:
        return sms if task.type == "sms" else email

    return AsyncAggregator("messages", url, config=config, sink=sink_of)


async def _merge_messages(group: str, tasks: list[Task]) -> Task:
    if any(task.payload.get("to") == "" for task in tasks):
        raise ValueError(f"message {random.randint(100, 999)} has no recipient")
    kind = group.partition(":")[0]
    return Task(kind, {"messages": [task.payload for task in tasks]}, group)


async def _send_sms(task: Task, batch_id: str) -> None:
    raise ConnectionError("sms.example.com refuses connections")


async def _add_messages(messages: AsyncAggregator) -> None:
    for number in range(10**9):
        kind = "sms" if number % 4 == 0 else "email"
        user = random.randint(1, 25)
        to = "" if number % 37 == 36 else f"user{user}@example.com"
        payload = {"to": to, "text": f"Order {number} is on its way"}
        await messages.add_task(Task(kind, payload, f"{kind}:{user}"))
        await asyncio.sleep(_PAUSE)


# --- reports: all is well ------------------------------------------------------------------------


def _reports(url: str) -> AsyncAggregator:
    config = _config(group_grace_period=15.0, group_max_delay=60.0, partitions=4)
    return AsyncAggregator("reports", url, config=config)


async def _add_reports(reports: AsyncAggregator) -> None:
    await reports.set_policy("daily:*", Policy(grace_period=600, max_delay=3_600, max_size=500))
    for number in range(10**9):
        kind = random.choice(("daily", "hourly"))
        group = f"{kind}:{random.choice(('sales', 'stock', 'returns', 'traffic'))}"
        await reports.add_task(Task("row", {"row": number, "amount": random.random()}, group))
        await asyncio.sleep(_PAUSE)


def _work(*aggregators: AsyncAggregator) -> list[Coroutine[None, None, None]]:
    orders, messages, reports = aggregators
    return [_add_orders(orders), _add_messages(messages), _add_reports(reports)]
