"""The demo: producers and flushers on a private Redis server, while one flusher is killed."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import SpawnContext
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from typing import Any

import click
from rich.live import Live
from rich.table import Table

from redisagg.aggregator import Aggregator
from redisagg.cli.dashboard import address_options, check_ui
from redisagg.cli.logs import set_up_logs
from redisagg.cli.output import print_json, print_table, stderr
from redisagg.config import AggregationConfig
from redisagg.errors import RedisUnavailable
from redisagg.merges import collect
from redisagg.task import Task
from redisagg.testing import EmbeddedRedis

_NAME = "demo"
_SINK = "stream://demo-batches"
_PRODUCERS = 3
_FLUSHERS = 2
_KILL_AT = 0.3  # share of all tasks that is enqueued when a flusher is killed
_LEASE_TIME = 2.0  # seconds
_MAX_SIZE = 20


@click.command()
@click.option(
    "--tasks",
    type=click.IntRange(1, 1_000_000),
    default=20_000,
    show_default=True,
    help="Number of tasks.",
)
@click.option(
    "--groups",
    type=click.IntRange(1, 100_000),
    default=500,
    show_default=True,
    help="Number of groups.",
)
@click.option(
    "--timeout", type=float, default=60.0, show_default=True, help="Longest run in seconds."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option(
    "--dashboard",
    "with_dashboard",
    is_flag=True,
    help="In place of the count, open the dashboard on a living system, until Ctrl-C.",
)
@click.option("--no-browser", is_flag=True, help="With --dashboard, say where it is only.")
@address_options
@click.pass_context
def demo(
    context: click.Context,
    tasks: int,
    groups: int,
    timeout: float,
    as_json: bool,
    with_dashboard: bool,
    no_browser: bool,
    host: str,
    port: int,
) -> None:
    """Run producers and flushers, kill one flusher, and count every task.

    Uses a private Redis server and leaves nothing behind. The exit code is 1 if a task was lost or
    enqueued twice. With --dashboard a system with a failing sink and a late group runs instead, for
    you to find them.
    """
    if with_dashboard:
        _show_dashboard(host, port, browse=not no_browser)
        return
    with EmbeddedRedis() as server:
        result = _Demo(server.url, tasks, groups, timeout).run()
    if as_json:
        print_json(result)
    else:
        print_table(("", "tasks"), result.rows())
        click.echo(result.verdict())
    context.exit(0 if result.passed else 1)


def _show_dashboard(host: str, port: int, *, browse: bool) -> None:
    check_ui()
    from redisagg.cli.living import live

    set_up_logs("error", "text")
    logging.getLogger("redisagg").setLevel(logging.CRITICAL)  # what fails here fails on purpose
    logging.getLogger("redisagg.audit").setLevel(logging.INFO)
    with EmbeddedRedis() as server:
        try:
            asyncio.run(live(server.url, host, port, browse=browse))
        except OSError as error:
            raise click.ClickException(f"{host}:{port} can't be used: {error}") from error
        except KeyboardInterrupt:  # uvicorn raises SIGINT again when it has ended
            return


@dataclass(frozen=True)
class Result:
    """The counts of tasks and batches at the end of the demo."""

    added: int
    enqueued: int
    lost: int
    duplicated: int
    waiting: int
    batches: int
    largest_batch: int
    killed_flushers: int
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether each task was enqueued once, in batches of at most the max size."""
        unaccounted = self.lost + self.duplicated + self.waiting
        return unaccounted == 0 and self.largest_batch <= _MAX_SIZE

    def rows(self) -> Iterator[tuple[str, int]]:
        """Yields the rows of the table."""
        yield "added", self.added
        yield "enqueued", self.enqueued
        yield "lost", self.lost
        yield "duplicated", self.duplicated
        yield "still waiting", self.waiting

    def verdict(self) -> str:
        """Returns the result as a sentence."""
        return (
            f"{'passed' if self.passed else 'FAILED'}: {self.batches} batches of at most "
            f"{self.largest_batch} tasks in {self.seconds:.1f} s, "
            f"{self.killed_flushers} of {_FLUSHERS} flushers killed"
        )


@dataclass
class _Demo:
    """One run of the demo."""

    url: str
    tasks: int
    groups: int
    timeout: float
    killed: int = 0
    started: float = field(default_factory=time.monotonic)

    def run(self) -> Result:
        context = multiprocessing.get_context("spawn")
        acknowledged: Queue[list[str]] = context.Queue()
        with _processes() as start:
            flushers = [start(context, _flush, self.url) for _ in range(_FLUSHERS)]
            for number in range(_PRODUCERS):
                share = range(number, self.tasks, _PRODUCERS)
                start(context, _produce, self.url, share, self.groups, acknowledged)
            aggregator = _aggregator(self.url)
            self._watch(aggregator, flushers)
            added = self._collect(acknowledged)
            aggregator.wait_until_idle(max(1.0, self._left()))
            return self._count(aggregator, added)

    def _left(self) -> float:
        return self.timeout - (time.monotonic() - self.started)

    def _watch(self, aggregator: Aggregator, flushers: list[BaseProcess]) -> None:
        """Shows progress until all tasks are enqueued; kills a flusher at `_KILL_AT`."""
        console = stderr()
        with Live(console=console, auto_refresh=False, transient=True) as live:
            last_line = 0.0
            while self._left() > 0:
                stats = aggregator.stats()
                if not self.killed and stats.flushed >= _KILL_AT * self.tasks:
                    os.kill(flushers[0].pid or 0, signal.SIGKILL)
                    self.killed = 1
                state = {
                    "waiting": stats.pending,
                    "in flight": stats.in_flight,
                    "enqueued": stats.flushed,
                    "flushers killed": self.killed,
                }
                if console.is_terminal:
                    live.update(_progress(state), refresh=True)
                elif time.monotonic() - last_line > 1:
                    last_line = time.monotonic()
                    click.echo(", ".join(f"{key} {n}" for key, n in state.items()), err=True)
                if stats.flushed >= self.tasks and not stats.pending and not stats.in_flight:
                    return
                time.sleep(0.1)

    def _collect(self, acknowledged: Queue[list[str]]) -> set[str]:
        """Collects the ids that the producers' calls returned."""
        added: set[str] = set()
        for _ in range(_PRODUCERS):
            added.update(acknowledged.get(timeout=max(1.0, self._left())))
        return added

    def _count(self, aggregator: Aggregator, added: set[str]) -> Result:
        enqueued: Counter[str] = Counter()
        batches = largest = 0
        page = aggregator.read_sink()
        while page.batches:
            for batch in page.batches:
                batches += 1
                largest = max(largest, batch.count)
                enqueued.update(each["id"] for each in batch.payload["payloads"])
            page = aggregator.read_sink(page.cursor)
        stats = aggregator.stats()
        waiting = stats.pending + stats.in_flight + stats.dead
        return Result(
            added=len(added),
            enqueued=enqueued.total(),
            lost=max(0, len(added - enqueued.keys()) - waiting),
            duplicated=enqueued.total() - len(enqueued),
            waiting=waiting,
            batches=batches,
            largest_batch=largest,
            killed_flushers=self.killed,
            seconds=time.monotonic() - self.started,
        )


def _progress(state: dict[str, int]) -> Table:
    table = Table(box=None)
    for key in state:
        table.add_column(key, justify="right")
    table.add_row(*(f"{value:,}" for value in state.values()))
    return table


@contextmanager
def _processes() -> Iterator[Callable[..., BaseProcess]]:
    """Yields a function that starts processes; ends the remaining ones at the end."""
    started: list[BaseProcess] = []

    def start(context: SpawnContext, body: Callable[..., None], *args: Any) -> BaseProcess:
        process = context.Process(target=body, args=args, daemon=True)
        process.start()
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.join(5)
            if process.is_alive():
                process.kill()


def _aggregator(url: str) -> Aggregator:
    config = AggregationConfig(
        group_grace_period=1.0,
        group_max_delay=5.0,
        group_max_size=_MAX_SIZE,
        group_aggregator=_merge,
        lease_time=_LEASE_TIME,
    )
    return Aggregator(_NAME, url, config=config, sink=_SINK)


def _merge(group: str, tasks: list[Task]) -> Task:
    """Merges as by default, but slowly, so that the kill hits running merges."""
    time.sleep(0.02)
    return collect(group, tasks)


def _flush(url: str) -> None:
    """Runs in a flusher process."""
    try:
        _aggregator(url).run()
    except RedisUnavailable:  # the demo has ended and stopped its server
        return


def _produce(url: str, numbers: range, groups: int, acknowledged: Queue[list[str]]) -> None:
    """Runs in a producer process: adds its tasks in bursts over a few seconds."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    aggregator = _aggregator(url)
    ids: list[str] = []
    bursts = 40
    size = -(-len(numbers) // bursts)
    for burst in range(0, len(numbers), size):
        tasks = []
        for number in numbers[burst : burst + size]:
            task_id = f"task-{number}"
            group = f"group-{number * 7919 % groups}"
            tasks.append(Task("demo:task", {"id": task_id}, group, id=task_id))
        ids += aggregator.add_tasks(tasks)
        time.sleep(0.1)
    aggregator.close()
    acknowledged.put(ids)
