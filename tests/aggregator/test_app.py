"""One app, many aggregators: adding, running them in this process, in workers and after a fork."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from redisagg import AggregationConfig, Aggregator, App, Settings, Task, run_all
from redisagg.errors import InvalidConfig, InvalidGroupKey, NamespaceMismatch
from tests.support.cli import Spawn
from tests.support.servers import wait_until
from tests.support.tasks import await_batches, await_led, enqueued, payloads, quick_config

SHARED = 33
"""The most connections of all flushers of a process to one Redis, the listener among them."""

SHOP = """
import asyncio, os, time
from redisagg import AggregationConfig, App, Settings, Task
from redisagg.sinks import CallableSink, StreamSink

URL = os.environ["REDISAGG_URL"] + os.environ.get("OPTIONS", "?client_name=shop")
config = AggregationConfig(
    group_grace_period=600, partitions=2, lease_time=2, retry_delay=0.02, shutdown_timeout=10
)
app = App(URL, settings=Settings(config=config))

def collected(tasks):
    return Task("merged", {"payloads": [task.payload for task in tasks], "by": os.getpid()})

@app.aggregator("emails", group_max_size=2)
def digest(group, tasks):
    time.sleep(float(os.environ.get("SLOW", 0)))
    return collected(tasks)

@app.aggregator("search", group_max_size=2, lease_time=3)
async def refresh(group, tasks):
    await asyncio.sleep(float(os.environ.get("SLOW", 0)))
    return collected(tasks)

def deliver(task, batch_id):
    digest.add(task.payload, group_key="delivered", id=batch_id, flush=True)

@app.aggregator("orders", group_max_size=2, sink=CallableSink(deliver))
def order(group, tasks):
    return collected(tasks)
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """The folder of a module `shop` with an app that has three aggregators."""
    (tmp_path / "shop.py").write_text(SHOP)
    return tmp_path


@pytest.fixture
def app(redis_url: str) -> Any:
    """An app whose groups are due when full or flushed only; closed at the end."""
    app = App(redis_url, settings=Settings(config=quick_config()))
    yield app
    app.close()


def collect(group: str, tasks: list[Task]) -> Task:
    return Task("merged", {"payloads": [task.payload for task in tasks]})


def watched(redis_url: str, name: str) -> Aggregator:
    """An aggregator for looking at a namespace of `shop`."""
    return Aggregator(name, redis_url, config=quick_config())


def test_aggregators_of_an_app_flush_by_their_own_functions(app: App) -> None:
    @app.aggregator("one", group_max_size=2)
    def one(group: str, tasks: list[Task]) -> Task:
        return Task("one", {"payloads": [group, *(task.payload for task in tasks)]})

    @app.aggregator("two", group_max_size=2)
    async def two(group: str, tasks: list[Task]) -> Task:
        return Task("two", {"payloads": [task.type for task in tasks]})

    async def add() -> None:
        await asyncio.gather(*(two.aadd(n, group_key="b", type=f"t{n}") for n in range(2)))
        await app.aclose()

    with app:
        for n in range(2):
            one.add(n, group_key=("user", 42))
        asyncio.run(add())
        await_batches(one, 1)
        await_batches(two, 1)
    assert payloads(enqueued(one)) == ["user:42", 0, 1]
    assert sorted(payloads(enqueued(two))) == ["t0", "t1"]


def test_an_add_takes_the_fields_of_a_task(app: App) -> None:
    one = app.aggregator("one")(collect)
    assert one.add({"a": 1}, group_key=("user", 42), id="x", headers={"h": "v"}, priority=3) == "x"
    assert one.add(None, group_key="other", type="t", flush=True)
    state = one.get_group(("user", 42))
    assert state is not None
    assert state.tasks is not None
    [stored] = state.tasks
    assert stored.task is not None
    assert (stored.task.type, stored.task.payload) == ("one", {"a": 1})
    assert (stored.task.headers, stored.task.priority) == ({"h": "v"}, 3)
    with pytest.raises(InvalidGroupKey):
        one.add(1, group_key=1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        one.add(1)  # type: ignore[call-arg]


def test_an_app_stops_all_flushers_at_the_same_time(app: App) -> None:
    begun, end = threading.Barrier(4), threading.Event()

    def hang(group: str, tasks: list[Task]) -> None:
        begun.wait(10)
        end.wait(20)

    aggregators = [
        app.aggregator(f"a{n}", group_max_size=1, shutdown_timeout=0.5)(hang) for n in range(3)
    ]
    app.start()
    for each in aggregators:
        each.add(1, group_key="a")
    begun.wait(10)
    began = time.monotonic()
    app.stop()
    assert time.monotonic() - began < 2 * 2.5  # one takes 0.5 to 2.5 s
    assert not any(each.is_running for each in aggregators)
    end.set()


def test_an_app_is_not_configured_while_a_flusher_runs(app: App, redis_url: str) -> None:
    one = app.aggregator("one", group_max_size=1)(collect)
    settings = Settings(url=redis_url[:-1] + "1", config=quick_config(partitions=3))
    with app, pytest.raises(InvalidConfig, match="'one' runs"):
        app.configure(settings)
    app.configure(settings)
    with app:
        one.add(1, group_key="a")
        await_batches(one, 1)
    assert len(one.stats().partitions) == 3


async def test_an_app_runs_on_an_event_loop(redis_url: str) -> None:
    async with App(redis_url, settings=Settings(config=quick_config())) as app:
        pass
    one = app.aggregator("one", group_max_size=1)(collect)
    async with app:
        assert one.asyncio.is_running
        await one.aadd(1, group_key="a")
        assert await one.asyncio.wait_until_idle(10)
        assert len((await one.asyncio.read_sink()).batches) == 1
    assert not one.asyncio.is_running


def test_all_aggregators_of_an_app_add_by_the_same_connections(
    redis_url: str, sync_redis: redis.Redis
) -> None:
    def connections() -> int:
        return sum(each["name"] == "producer" for each in sync_redis.client_list())

    app = App(f"{redis_url}?client_name=producer", settings=Settings(config=quick_config()))
    aggregators = [app.aggregator(f"a{n}")(collect) for n in range(20)]
    assert connections() == 0
    for each in aggregators:
        each.add(1, group_key="a")
    assert connections() == 1

    async def add() -> None:
        for each in aggregators:
            await each.aadd(1, group_key="a")
        assert connections() == 2
        await app.aclose()
        wait_until(lambda: connections() == 1, what="that of the event loop is closed")

    for _ in range(2):  # on another event loop each time
        asyncio.run(add())
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda each: each.add(1, group_key="a"), aggregators * 5))
    assert connections() <= 4
    app.close()
    wait_until(lambda: connections() == 0, what="all are closed")
    assert aggregators[0].add(2, group_key="a")
    app.close()
    assert [each.stats().pending for each in aggregators] == [9, *([8] * 19)]
    app.close()


# --- in workers ----------------------------------------------------------------------------------


def names_of(sync_redis: redis.Redis) -> list[str]:
    return [each["name"] for each in sync_redis.client_list()]


def test_a_worker_runs_all_on_one_pool_and_one_listener(
    spawn: Spawn, shop: Path, redis_url: str, sync_redis: redis.Redis
) -> None:
    """A plain and an async function, a queue in Redis and a function, and two lease times."""
    worker = spawn("worker", "shop:app", cwd=shop)
    aggs = {name: watched(redis_url, name) for name in ("emails", "search", "orders")}
    for agg in aggs.values():
        await_led(agg, timeout=20)
    flusher_connections = names_of(sync_redis).count("shop")
    assert flusher_connections <= SHARED
    assert sync_redis.pubsub_numsub(*sync_redis.pubsub_channels())[0][1] == 1
    listeners = [each for each in sync_redis.client_list() if int(each["sub"])]
    assert len(listeners) == 1
    assert int(listeners[0]["sub"]) == 3
    for agg in aggs.values():
        agg.add_tasks(Task("t", [n, agg.name], f"g{n // 2}", max_size=2) for n in range(40))
    wait_until(
        lambda: (
            len(payloads(enqueued(aggs["emails"]))) == 60 and len(enqueued(aggs["search"])) == 20
        ),
        what="all is merged, and orders by way of emails",
    )
    # Deliveries add by the client of the app: one connection for each thread at a time.
    assert names_of(sync_redis).count("shop") <= SHARED + 16
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(15) == 0
    wait_until(lambda: "shop" not in names_of(sync_redis), what="its connections are closed")


def test_a_worker_runs_some_of_them(spawn: Spawn, shop: Path, redis_url: str) -> None:
    worker = spawn("worker", "shop:app", "--only", "emails", cwd=shop, stderr=subprocess.PIPE)
    await_led(watched(redis_url, "emails"), timeout=20)
    assert watched(redis_url, "search").stats().flushers == []
    both = spawn("worker", "shop:refresh", "shop:order", "--concurrency", "3", cwd=shop)
    for name in ("search", "orders"):
        await_led(watched(redis_url, name), timeout=20)
    for each in (worker, both):
        each.send_signal(signal.SIGTERM)
        assert each.wait(15) == 0
    assert worker.stderr is not None
    assert b"redisagg: flushing 'emails'\n" in worker.stderr.read()


def test_a_worker_that_is_killed_loses_nothing_of_any_aggregator(
    spawn: Spawn, shop: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLOW", "0.02")
    aggs = [watched(redis_url, name) for name in ("emails", "search")]
    run = ("worker", "shop:app", "--only", "emails", "--only", "search")
    workers = [spawn(*run, cwd=shop) for _ in range(2)]
    for agg in aggs:
        wait_until(partial(_joined, agg, 2), timeout=20, what="both joined")
        await_led(agg)
        agg.add_tasks(Task("t", n, f"g{n // 2 % 7}", max_size=2) for n in range(400))
    wait_until(lambda: all(len(enqueued(agg)) >= 20 for agg in aggs), what="work is under way")
    workers[0].kill()
    workers[0].wait()
    for agg in aggs:
        await_batches(agg, 200, timeout=60)
        assert sorted(payloads(enqueued(agg))) == list(range(400))


def test_the_end_of_one_flusher_ends_the_worker(
    spawn: Spawn, shop: Path, redis_url: str, sync_redis: redis.Redis
) -> None:
    """Whoever runs it starts it again; else nobody would see that one of them is missing."""
    worker = spawn("worker", "shop:app", cwd=shop, stderr=subprocess.PIPE)
    for name in ("emails", "search", "orders"):
        await_led(watched(redis_url, name), timeout=20)
    sync_redis.delete("redisagg:{search}:meta", *(f"redisagg:{{search:{n}}}:state" for n in (0, 1)))
    Aggregator("search", redis_url, config=AggregationConfig(partitions=3)).add_task(
        Task("t", 1, "g")
    )
    _, log = worker.communicate(timeout=30)
    assert worker.returncode == 1
    assert b"search" in log
    assert b"3 partitions" in log
    assert watched(redis_url, "emails").stats().flushers == []  # it has left in order


def test_a_worker_serves_the_metrics_of_all(spawn: Spawn, shop: Path, redis_url: str) -> None:
    pytest.importorskip("prometheus_client")
    worker = spawn("worker", "shop:app", "--metrics-port", "0", cwd=shop, stderr=subprocess.PIPE)
    assert worker.stderr is not None
    address = worker.stderr.readline().decode().partition("http://")[2].strip()
    for name in ("emails", "search"):
        agg = watched(redis_url, name)
        agg.add_tasks(Task("t", n, "g", max_size=2) for n in range(2))
        await_batches(agg, 1, timeout=20)

    def all_count() -> bool:
        with urllib.request.urlopen(f"http://{address}", timeout=10) as answer:
            text = answer.read().decode()
        flushed = r'redisagg_batches_flushed_total\{[^}]*namespace="(\w+)"[^}]*\} 1.0'
        return {"emails", "search"} <= set(re.findall(flushed, text))

    # A batch counts when its commit was answered, which is after it was seen in the queue.
    wait_until(all_count, what="both namespaces count one batch")
    root = f"http://{address.removesuffix('/metrics')}"

    def led() -> bool:
        with urllib.request.urlopen(f"{root}/health", timeout=10) as answer:
            found = json.load(answer)
        return bool(found["reachable"] and found["led"])

    wait_until(led, what="the worker says that it leads all partitions")
    with urllib.request.urlopen(f"{root}/live", timeout=10) as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("shop:app", "--only", "emial"), "there is no aggregator 'emial'"),
        (("shop:app", "shop:nothing"), "shop:nothing"),
        (("shop:collected",), "shop:collected is a function"),
        (("shop:app", "emails"), "two aggregators have the name 'emails'"),
    ],
)
def test_targets_that_a_worker_refuses(
    spawn: Spawn, shop: Path, arguments: tuple[str, ...], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTIONS", "")
    done = spawn("worker", *arguments, cwd=shop, stderr=subprocess.PIPE)
    _, log = done.communicate(timeout=30)
    assert done.returncode == 1
    assert why in log.decode()
    assert log.count(b"\n") == 1


def test_a_worker_reloads_what_was_changed(spawn: Spawn, shop: Path, redis_url: str) -> None:
    pytest.importorskip("watchfiles")
    agg = watched(redis_url, "emails")
    worker = spawn("worker", "shop:app", "--reload", cwd=shop)
    await_led(agg, timeout=30)
    before = agg.stats().flushers
    text = SHOP.replace('"merged"', '"changed"')
    assert text != SHOP
    (shop / "shop.py").write_text("this is no Python")
    wait_until(lambda: not agg.stats().flushers, timeout=30, what="the worker has ended")
    (shop / "shop.py").write_text(text)
    await_led(agg, timeout=30)
    assert agg.stats().flushers != before
    agg.add_tasks(Task("t", n, "g", max_size=2) for n in range(2))
    await_batches(agg, 1)
    assert enqueued(agg)[0].type == "changed"
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    wait_until(lambda: not agg.stats().flushers, timeout=10, what="its child has ended too")


def test_run_all_runs_until_a_signal(shop: Path, redis_url: str) -> None:
    code = "from redisagg import run_all; run_all('shop:app', 'shop:digest', only=['emails'])"
    env = {**os.environ, "REDISAGG_URL": redis_url}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=shop, env=env)
    try:
        agg = watched(redis_url, "emails")
        await_led(agg, timeout=20)
        process.terminate()
        assert process.wait(15) == 0
        assert agg.stats().flushers == []
    finally:
        process.kill()
        process.wait()


def test_run_all_raises_what_is_wrong(app: App, redis_url: str) -> None:
    one = app.aggregator("one")(collect)
    Aggregator("one", redis_url, config=quick_config(partitions=3)).add_task(Task("t", 1, "g"))
    with pytest.raises(NamespaceMismatch):
        run_all(app)
    with pytest.raises(NamespaceMismatch):
        app.run()
    with pytest.raises(InvalidConfig):
        run_all(one, concurrency=0)
    with pytest.raises(InvalidConfig):
        run_all()


def _joined(agg: Aggregator, count: int) -> bool:
    return len(agg.stats().flushers) == count


# --- after a fork --------------------------------------------------------------------------------

PREFORK = """
import asyncio, os, sys, threading
from shop import app, digest, refresh

def add(name, count):
    threads = [
        threading.Thread(target=digest.add, args=([name, n],), kwargs={"group_key": ("user", n)})
        for n in range(count)
    ]
    for each in threads: each.start()
    for each in threads: each.join()
    async def add_more():
        await asyncio.gather(
            *(refresh.aadd([name, n], group_key=("user", n)) for n in range(count))
        )
        await app.aclose()
    asyncio.run(add_more())

if sys.argv[1] == "used":  # as gunicorn --preload, when the import has used it
    add("before", 20)
    app.start()
children = []
for number in range(3):
    child = os.fork()
    if child == 0:
        add(f"child{number}", 20)
        if number == 0: app.start()
        app.close()
        os._exit(0)
    children.append(child)
add("parent", 20)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
app.close()
"""


@pytest.mark.parametrize("used", ["used", "unused"])
def test_forked_children_use_the_app_beside_their_parent(
    shop: Path, redis_url: str, sync_redis: redis.Redis, used: str
) -> None:
    env = {**os.environ, "REDISAGG_URL": redis_url, "PYTHONWARNINGS": "ignore::DeprecationWarning"}
    subprocess.run([sys.executable, "-c", PREFORK, used], cwd=shop, env=env, check=True, timeout=60)
    adders = ["child0", "child1", "child2", "parent", *(["before"] * (used == "used"))]
    expected = sorted([name, n] for name in adders for n in range(20))
    for name in ("emails", "search"):
        agg = watched(redis_url, name)
        agg.flush_all()
        with agg:
            assert agg.wait_until_idle(10)
        assert sorted(payloads(enqueued(agg))) == expected
