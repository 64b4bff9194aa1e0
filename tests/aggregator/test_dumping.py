"""`redisagg export` and `import`: tasks that wait as JSON lines."""

from __future__ import annotations

import gzip
import json
import math
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID

import msgpack
import pytest
import redis

from redisagg import Aggregator, Cron, Policy, Task
from redisagg.operations.dumping import Exported, export_lines, import_lines
from redisagg.protocol.keys import Keyspace
from redisagg.protocol.scripts import load
from redisagg.transport.endpoint import close, endpoint_of
from redisagg.transport.threads import Transport
from tests.support.aggregators import Make
from tests.support.cli import Run
from tests.support.servers import wait_until

SOON = datetime.now(timezone.utc) + timedelta(hours=3)

PAYLOADS: list[Any] = [
    *(None, True, 0, -1, 2**63, 2**70, 1.5, -0.0, "", "ü\n\u2028", "😀", [], {}),
    [1, [2, {"a": None}], "x"],
    {"b": 1, "a": {"z": [0.1, 1e300]}},
    {1: "int key", "2": 3},
    *(math.nan, math.inf, b"\x00\xff", (1, 2), {1, 2}, SOON, UUID(int=7), timedelta(seconds=1)),
    "x" * 300_000,
]


def entries(client: Any, name: str) -> dict[bytes, list[bytes]]:
    """The stored entries by group, without their arrival times."""
    found: dict[bytes, list[bytes]] = {}
    for key in client.scan_iter(f"redisagg:{{{name}:*}}:tasks:*"):
        group = key.split(b"}:tasks:")[1]
        listed = client.lrange(key, 0, -1)
        found[group] = [each[:1][0] // 128 * b"L" + each[6:] for each in listed]
    return found


def records(client: Any, name: str) -> dict[bytes, list[Any]]:
    """The limits in the records of the groups."""
    found: dict[bytes, list[Any]] = {}
    for key in client.scan_iter(f"redisagg:{{{name}:*}}:groups"):
        for group, packed in client.hgetall(key).items():
            record = msgpack.unpackb(packed, raw=True)
            rules = record[18] and [*record[18][:5], *record[18][6:7], *record[18][8:10]]
            found[group] = [record[0], *record[6:10], rules]
    return found


def fill(agg: Aggregator) -> int:
    tasks = [Task("t", payload, f"g{n % 4}", f"id{n}") for n, payload in enumerate(PAYLOADS)]
    tasks += [Task("t", n, "large", f"id{n}", headers={"n": "ü"}) for n in range(450)]
    tasks += [
        Task("t", n, "limits", f"id{n}", priority=n % 3, weight=1 + n % 4, max_size=50 + n % 2)
        for n in range(30)
    ]
    tasks += [
        Task("t", 1, "due", "a", due_at=SOON, not_before=SOON - timedelta(hours=1)),
        Task("t", 1, "due", "b", grace_period=None, max_delay=86400, options={"queue": "x"}),
        Task("t", 1, "same due", "a", due_at=SOON),
        Task("t", 1, "same due", "b", due_at=SOON, weight=3),
        Task("t", 1, "later", "a", schedule=Cron("0 5 * * *")),
        Task("t", 1, ("ü", "b\n"), "ü"),
    ]
    agg.add_tasks(tasks)
    agg.submit(Task("t", 1, "submitted", "a"))
    return len(tasks) + 1


def test_an_import_restores_what_was_exported(
    run: Run, make: Make, sync_redis: redis.Redis, tmp_path: Path
) -> None:
    options = {"group_max_size": 600, "group_max_weight": 900, "group_min_interval": 60}
    count = fill(make(name="plain")) + fill(make(name="weighed", **options))
    before = [(entries(sync_redis, n), records(sync_redis, n)) for n in ("plain", "weighed")]
    for name in ("plain", "weighed"):
        path = tmp_path / name
        exported = run("export", "-n", name, str(path))
        assert exported.exit_code == 0
        assert exported.stderr == f"{count // 2} tasks\n"
        assert "removed" in run("remove", name, "--force").stdout
    for name, partitions, wanted in zip(("plain", "weighed"), ("3", "5"), before, strict=True):
        source = gzip.compress((tmp_path / name).read_bytes())
        new = ("import", "-n", name, "--partitions", partitions)
        assert run(*new, input=source).stdout == f"{count // 2} tasks added, 0 known already\n"
        assert (entries(sync_redis, name), records(sync_redis, name)) == wanted
        again = json.loads(run("import", "-n", name, "--json", str(tmp_path / name)).stdout)
        assert again == {"added": 0, "known": count // 2}
        assert (entries(sync_redis, name), records(sync_redis, name)) == wanted


def test_the_lines_are_readable_where_that_is_exact(run: Run, make: Make) -> None:
    agg = make(partitions=2)
    agg.add_tasks(
        [
            Task("send", {"to": 7}, "a", "one", headers={"h": "x"}),
            Task("send", b"\x00", "a", "two"),
            Task("send", 1, "a", "three", priority=4),
        ]
    )
    head, *lines = map(json.loads, run("export", "-n", "tests").stdout.splitlines())
    assert (head["redisagg_export"], head["namespace"]) == (1, "tests")
    one, two, three = lines
    arrived = one.pop("arrived_at")
    assert 0 < arrived <= two["arrived_at"]
    limits = "600000 600000 20 0"
    assert one == {
        "group": "a",
        "id": "one",
        "limits": limits,
        "type": "send",
        "payload": {"to": 7},
        "headers": {"h": "x"},
    }
    assert (two["body"], two["limits"]) == ("kqRzZW5kxAEA", limits)
    assert "payload" not in two
    assert three["limits"] == "600000 600000 20 4"


def test_the_limits_of_the_file_stay_under_policies(
    run: Run, make: Make, sync_redis: redis.Redis
) -> None:
    make(name="old", group_max_size=77).add_task(Task("t", 1, "a"))
    exported = run("export", "-n", "old").stdout
    make(name="new").set_policy("*", Policy(max_size=5))
    assert run("import", "-n", "new", input=exported.encode()).exit_code == 0
    assert records(sync_redis, "new") == records(sync_redis, "old")


def test_tasks_in_flight_are_exported_in_their_order(run: Run, make: Make) -> None:
    go_on, begun = threading.Event(), threading.Event()

    def merge(group: str, tasks: list[Task]) -> Task:
        begun.set()
        go_on.wait(20)
        return Task("t", 1)

    with make(group_aggregator=merge, group_max_size=3) as agg:
        try:
            agg.add_tasks(Task("t", n, "a", f"id{n}") for n in range(4))
            assert begun.wait(10)
            wait_until(lambda: agg.stats().in_flight == 3, timeout=10, what="a batch was cut")
            _, *lines = map(json.loads, run("export", "-n", "tests").stdout.splitlines())
        finally:
            go_on.set()
    assert [(each["id"], each.get("in_flight")) for each in lines] == [
        *(("id0", True), ("id1", True), ("id2", True), ("id3", None)),
    ]


@pytest.fixture
def transport(redis_url: str) -> Iterator[Transport]:
    client = endpoint_of(redis_url).answering_within(5).blocking()
    yield Transport(client, 10)
    close(client)


def test_what_is_there_all_the_time_is_exported_once(
    make: Make, transport: Transport, sync_redis: redis.Redis
) -> None:
    """While the first tasks of a group leave, and others are cancelled."""
    agg = make(partitions=1)
    agg.add_tasks(Task("t", n, "a", f"id{n}") for n in range(1000))
    lines = export_lines(transport, Keyspace("tests", 1), Exported())
    found, gone = [], set()
    for number, line in enumerate(lines):
        found.append(json.loads(line).get("id"))
        if number in (1, 250, 430):
            for n in range(number, number + 40, 3):
                gone.add(f"id{n}")
                agg.cancel_task("a", f"id{n}")
    wanted = [f"id{n}" for n in range(1000) if f"id{n}" not in gone]
    assert [each for each in found[1:] if each not in gone] == wanted


def test_foreign_data_are_left_out(run: Run, make: Make, sync_redis: redis.Redis) -> None:
    client: Any = sync_redis
    agg = make(partitions=1)
    p = Keyspace("tests", 1).partitions[0]
    agg.add_tasks(Task("t", n, "a", f"id{n}") for n in range(3))
    client.lset(p.tasks(b"a"), 1, b"x")
    client.hset(p.groups, b"foreign", b"x")
    keys = [p.state, p.groups, p.due, p.ready, p.call(b"x"), p.seen, p.seen_before]
    section = [b"\xfe", b"1000 1000 9 0", 1, b"\xfd", msgpack.packb(["t", 1])]
    client.eval(
        load("add").source,
        *(9, *keys, p.tasks(b"\xfe"), p.ids(b"\xfe")),
        *("", 1000, "w", p.label, 0, 0, "", *section),
    )
    exported = run("export", "-n", "tests")
    assert (exported.exit_code, exported.stderr) == (3, "3 tasks, 2 left out\n")
    _, *lines = map(json.loads, exported.stdout.splitlines())
    named = [each for each in lines if "group_base64" in each]
    assert [(each["group_base64"], each["id_base64"]) for each in named] == [("/g==", "/Q==")]
    done = run("import", "-n", "new", input=exported.stdout.encode())
    assert done.stdout == "3 tasks added, 0 known already\n"
    assert entries(client, "new")[b"\xfe"] == entries(client, "tests")[b"\xfe"]


WRONG: dict[str, tuple[list[Any], str]] = {
    "no header": ([{"group": "a"}], "does not begin as an export"),
    "no json": (["x"], "does not begin as an export"),
    "another version": ([{"redisagg_export": 2}], "has version 2"),
    "no id": (
        [{"redisagg_export": 1}, {"group": "a", "limits": "1 1 1 0", "body": "kqF0AQ=="}],
        "there is no field 'id'",
    ),
    "no base64": ([{"redisagg_export": 1}, {"limits": "", "body": "="}], "line 2: no task"),
    "limits": (
        [{"redisagg_export": 1}, {"group": "a", "id": "i", "limits": "x", "body": "kqF0AQ=="}],
        "limits: GRACE_MS",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_one_line(run: Run, case: str) -> None:
    lines, message = WRONG[case]
    text = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines)
    done = run("import", "-n", "tests", input=text.encode())
    assert done.exit_code == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert run("export", "-n", "unknown").stderr == "Error: there is no namespace 'unknown'\n"


def test_an_import_in_calls_of_a_few_tasks_keeps_the_order(
    make: Make, transport: Transport
) -> None:
    agg = make(name="old", partitions=1)
    agg.add_tasks(Task("t", n, "a", f"id{n}", priority=n % 2) for n in range(700))
    lines = [each.encode() for each in export_lines(transport, Keyspace("old", 1), Exported())]
    new = make(name="new", partitions=3)
    new.add_task(Task("t", 0, "a", "id5"))
    assert import_lines(transport, Keyspace("new", 3), lines).known == 1
    group = new.get_group("a")
    assert group is not None
    ids = [each.task.id for each in group.tasks or () if each.task]
    assert ids == ["id5", *(f"id{n}" for n in range(700) if n != 5)]
