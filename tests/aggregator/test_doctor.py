"""`redisagg doctor`: what it finds in Redis' settings and in the keys, and what it mends."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import msgpack
import pytest
import redis

from redisagg import Aggregator, Task
from redisagg.operations import servers
from redisagg.protocol.keys import Keyspace
from redisagg.protocol.records import group_record
from redisagg.views import Finding
from tests.aggregator.test_watching import in_retry
from tests.support.aggregators import Make
from tests.support.cli import Run
from tests.support.luacheck import ROOT
from tests.support.tasks import await_batches, await_led, enqueued, payloads

SPACE = Keyspace("tests", 2)
HERE = ("-n", "tests")


def examine(run: Run, *options: str) -> list[dict[str, Any]]:
    """What the doctor says of the keys."""
    asked = run("doctor", *HERE, "--json", *options)
    found = [json.loads(line) for line in asked.stdout.splitlines()]
    wrong = any(each["level"] == "error" and not each["mended"] for each in found)
    assert asked.exit_code == (4 if wrong else 0), asked.output
    return [each for each in found if each["check"] in ("groups", "batches", "keys")]


def mended(run: Run, text: str, number: int = 1) -> None:
    """Checks that the doctor finds one thing, mends it and then finds nothing."""
    found = examine(run)
    assert len(found) == number, found
    assert all(re.search(text, each["text"]) for each in found), found
    assert all(each["mendable"] and not each["mended"] for each in found)
    assert examine(run) == found  # it has changed nothing
    assert all(each["mended"] for each in examine(run, "--repair"))
    assert examine(run) == []


def test_what_is_well_stays_as_it_is(run: Run, make: Make, sync_redis: redis.Redis) -> None:
    agg = make(group_max_size=3, group_min_interval=0.01, group_grace_period=0.05)
    stop = threading.Event()

    def produce() -> None:
        number = 0
        while not stop.is_set():
            agg.add_tasks(Task("t", n, f"g{n % 40}") for n in range(number, number + 50))
            number += 50

    agg.pause("g7")
    producing = threading.Thread(target=produce)
    producing.start()
    try:
        with agg:
            await_batches(agg, 50)
            for option in ("--no-keys", "--repair", "--keys"):
                assert examine(run, option) == []
            stop.set()
            producing.join()
            agg.resume("g7")
            assert agg.wait_until_idle(30)
            found = payloads(enqueued(agg))
            assert sorted(found) == list(range(len(found)))
    finally:
        stop.set()
        producing.join()


def test_a_group_that_an_index_has_lost(run: Run, make: Make, sync_redis: redis.Redis) -> None:
    agg = make(group_grace_period=0.3, group_max_delay=0.3)
    p = SPACE.partition_of(b"g")
    agg.add_task(Task("t", 1, "g"))
    sync_redis.zrem(p.due.decode(), "g")
    mended(run, r"1 group of partition \d is in no index, .*: g; nothing looks at them\.")
    agg.flush("g")
    sync_redis.zrem(p.ready.decode(), "g")
    mended(run, "1 group of partition")
    with agg:
        await_led(agg)
        await_batches(agg, 1)
        agg.add_task(Task("t", 2, "g"))
        sync_redis.zrem(p.due.decode(), "g")
        examine(run, "--repair")  # it wakes the leader, if the group is due earlier than it sleeps
        await_batches(agg, 2)
        assert payloads(enqueued(agg)) == [1, 2]


def test_an_index_without_a_record(run: Run, make: Make, sync_redis: redis.Redis) -> None:
    agg = make()
    agg.add_tasks(Task("t", n, f"g{n}") for n in range(3))
    p = SPACE.partitions[0]
    names = {f"lost{n}": 2**42 for n in range(700)}
    sync_redis.zadd(p.due.decode(), names)
    sync_redis.zadd(p.ready.decode(), {"lost": 1})
    mended(run, r"701 groups of partition 0 are in no index, or in one without a record: .*, …;")
    assert sync_redis.zcard(p.due) + sync_redis.zcard(SPACE.partitions[1].due) == 3


def test_a_batch_that_an_index_has_lost(run: Run, make: Make, sync_redis: redis.Redis) -> None:
    agg = in_retry(make, 1)
    agg.stop()
    [batch] = agg.get_batches()
    p = SPACE.partition_of(b"g0")
    sync_redis.zrem(p.retry.decode(), batch.batch_id)
    mended(run, r"1 batch of partition \d is in no index, of 1 group: g0; no flusher claims them")
    assert sync_redis.zscore(p.retry.decode(), batch.batch_id)
    works = make(group_max_size=1)
    with works:
        await_batches(works, 1)
    assert works.get_groups() == {}


def test_a_hold_without_a_batch(run: Run, make: Make, sync_redis: redis.Redis) -> None:
    agg = make(group_max_size=1)
    agg.add_task(Task("t", 1, "g"))
    p = SPACE.partition_of(b"g")
    packed: Any = sync_redis.hget(p.groups.decode(), "g")
    record = group_record(packed)
    held = msgpack.packb([*record._replace(held=2)])
    sync_redis.hset(p.groups.decode(), "g", held)
    sync_redis.zrem(p.ready.decode(), "g")
    mended(run, r"1 group of partition \d is held back by a batch that is in no retry: g\.")
    assert not agg.get_groups()["g"].held
    with agg:
        await_batches(agg, 1)


def test_counts_that_are_wrong(run: Run, make: Make, sync_redis: redis.Redis) -> None:
    agg = in_retry(make, 3)
    agg.stop()
    agg.add_tasks(Task("t", n, "g", max_size=9) for n in range(4))
    assert examine(run) == []
    before = agg.stats()
    p = SPACE.partition_of(b"g")
    for field in ("waiting", "claimed", "dead", "bytes"):
        sync_redis.hset(p.state.decode(), field, 77)
    mended(
        run, r"The counts of partition \d are wrong: waiting is 77 in place of 4, claimed is 77 "
    )
    after = agg.stats()
    assert (after.pending, after.in_flight, after.stored_bytes, after.dead) == (
        *(before.pending, before.in_flight, before.stored_bytes, before.dead),
    )


def test_a_lost_record_of_a_batch_is_reported(
    run: Run, make: Make, sync_redis: redis.Redis
) -> None:
    agg = in_retry(make, 1)
    agg.stop()
    p = SPACE.partition_of(b"g0")
    sync_redis.delete(p.batches, p.retry)
    [found, counts] = examine(run, "--repair")
    assert "do not have all of its tasks in flight: g0" in found["text"]
    assert not found["mendable"]
    assert "bytes is" in counts["text"]


def test_keys_that_belong_to_nothing(run: Run, make: Make, sync_redis: redis.Redis) -> None:
    agg = make()
    agg.add_tasks(Task("t", n, "lost") for n in range(3))
    agg.add_tasks(Task("t", n, "there") for n in range(2))
    p = SPACE.partition_of(b"lost")
    for index, name in ((p.groups, "HDEL"), (p.due, "ZREM")):
        sync_redis.execute_command(name, index, "lost")
    sync_redis.hset(p.result(b"gone").decode(), "x", "y")
    sync_redis.set(p.call(b"someone").decode(), "x")
    all_found = examine(run)
    assert len(all_found) == 4
    text = "There are 1 (lists of tasks|sets of ids|merge results)|waiting is 5 in place of 2, "
    assert all(re.search(text, each["text"]) for each in all_found), all_found
    assert all(each["mended"] for each in examine(run, "--repair"))
    assert examine(run) == []
    [letter] = agg.dead_letters(tasks=True)
    assert (letter.group_key, letter.size, letter.error[:15]) == ("lost", 3, "redisagg doctor")
    assert [each.task.payload for each in letter.tasks or () if each.task] == [0, 1, 2]
    assert agg.requeue_dead_letter(letter.batch_id) == 3
    agg.flush("there")
    with agg:
        assert agg.wait_until_idle(10)
    assert sorted(payloads(enqueued(agg))) == [0, 0, 1, 1, 2]
    sync_redis.rpush(p.dead_tasks(b"gone").decode(), "x")
    [found] = examine(run, "--repair")
    assert "nothing shows them" in found["text"]
    assert not found["mendable"]
    assert examine(run, "--no-keys") == []


def test_what_it_prints(run: Run, redis_url: str, sync_redis: redis.Redis) -> None:
    agg = Aggregator("tests", redis_url)
    hostile = "\x1b[31m\n"
    agg.add_task(Task("t", 1, hostile))
    partition = Keyspace("tests", 16).partition_of(hostile.encode())
    sync_redis.zrem(partition.due.decode(), hostile)
    asked = run("doctor", *HERE)
    assert asked.exit_code == 4
    assert "\x1b" not in asked.output
    assert "\\x1b[31m\\n" in asked.output
    assert "!! groups: 1 group of partition" in asked.output
    assert " ! namespace: No flusher has ever run." in asked.output
    assert re.search(r"1 error, \d warnings?, \d notes?\n$", asked.output)
    asked = run("doctor", *HERE, "--repair")
    assert asked.exit_code == 0
    assert "!! groups: mended: 1 group" in asked.output
    assert run("doctor", *HERE, "--user", "x").exit_code == 2


# --- the server ------------------------------------------------------------------------------

GOOD = {
    "redis_version": "7.0.15",
    "role": "master",
    "maxmemory": 100,
    "used_memory": 50,
    "maxmemory_policy": "noeviction",
    "aof_enabled": 1,
}
ALWAYS = {"save": "", "appendfsync": "everysec"}


def said(change: dict[str, Any], settings: dict[str, str] | None = None) -> list[tuple[str, str]]:
    found = servers.check_server({**GOOD, **change}, ALWAYS if settings is None else settings)
    return [(each.level, each.text) for each in found]


@pytest.mark.parametrize(
    ("change", "settings", "level", "words"),
    [
        ({"redis_version": "6.0.20"}, None, "error", "version 6.0.20; redisagg needs 6.2"),
        ({"maxmemory_policy": "allkeys-lru"}, None, "error", "Redis removes tasks"),
        ({"maxmemory_policy": "volatile-ttl"}, None, "warning", "outcomes of submitted tasks"),
        ({"evicted_keys": 1200}, None, "warning", "evicted 1,200 keys"),
        ({"maxmemory": 0}, None, "note", "no maxmemory"),
        ({"used_memory": 85}, None, "warning", "uses 85% of its maxmemory"),
        ({"used_memory": 100}, None, "error", "uses 100% of its maxmemory"),
        ({"aof_last_write_status": "err"}, None, "error", "append-only file failed"),
        ({"rdb_last_bgsave_status": "err"}, None, "error", "last snapshot failed"),
        ({"aof_enabled": 0}, None, "warning", "keeps nothing on disk"),
        (
            {"aof_enabled": 0, "rdb_changes_since_last_save": 7},
            {"save": "3600 1"},
            "warning",
            "(7 changes now)",
        ),
        ({}, {"save": "", "appendfsync": "no"}, "note", "last half minute"),
        ({"role": "slave"}, None, "error", "is a replica"),
        ({"loading": 1}, None, "warning", "loads its data"),
    ],
)
def test_settings_of_the_server(
    change: dict[str, Any], settings: dict[str, str] | None, level: str, words: str
) -> None:
    [(found, text)] = said(change, settings)
    assert found == level
    assert words in text


def test_good_settings_of_the_server() -> None:
    assert said({}) == []
    [finding] = servers.check_server(GOOD, None)
    assert (finding.level, finding.check) == ("note", "server")


def test_the_slots_of_a_cluster() -> None:
    assert list(servers.check_cluster({"cluster_state": "ok"})) == []
    [finding] = servers.check_cluster({"cluster_state": "fail", "cluster_slots_ok": "10923"})
    assert "5,461 of 16,384 slots" in finding.text


# --- rights ----------------------------------------------------------------------------------


def _documented(role: str) -> str:
    text = (ROOT / "docs" / "security.md").read_text("utf-8")
    block = re.search(rf"user emails-{role} on (.*?)(\n\n|```)", text, re.DOTALL)
    assert block is not None
    return " ".join(block[1].split())


@pytest.mark.parametrize("role", servers.ROLES)
def test_the_rights_of_a_role_are_those_of_the_docs(role: str) -> None:
    rules = _documented(role)
    commands = set(re.findall(r"\+([a-z]+)", rules))
    probed = {each[0] for each in servers.probes(role, "emails")}
    of_queue = {"xadd", "xrange", "subscribe", "unsubscribe"}
    assert probed == commands - of_queue


@pytest.mark.parametrize("role", servers.ROLES)
def test_rights_are_checked(run: Run, make: Make, sync_redis: redis.Redis, role: str) -> None:
    version: Any = sync_redis.info("server")
    if version["redis_version"] < "7":
        pytest.skip("ACL DRYRUN needs Redis 7")
    make(name="emails").add_task(Task("t", 1, "g"))
    rules = _documented(role).replace(">PASSWORD", ">x").split()

    def rights() -> list[Finding]:
        lines = run("doctor", "-n", "emails", "--role", role, "--user", role, "--json").stdout
        found = [json.loads(line) for line in lines.splitlines()]
        return [Finding(**each) for each in found if each["check"] == "rights"]

    try:
        sync_redis.execute_command("ACL SETUSER", role, "reset", "on", *rules)
        assert rights() == []
        less = [rule.replace("+hmget", "") for rule in rules]
        less = [rule for rule in less if rule.strip("()")] if role == "producer" else less
        sync_redis.execute_command("ACL SETUSER", role, "reset", "on", *filter(None, less))
        [finding] = rights()
        assert f"The user {role} lacks rights of the role {role}: hmget redisagg:" in finding.text
    finally:
        sync_redis.execute_command("ACL DELUSER", role)
    assert run("doctor", "-n", "emails", "--role", role, "--user", "nobody").exit_code == 0


def test_it_says_what_it_may_not_check(
    run: Run, make: Make, redis_url: str, sync_redis: redis.Redis
) -> None:
    make(name="emails").add_task(Task("t", 1, "g"))
    rules = _documented("observer").replace(">PASSWORD", ">x").split()
    version: Any = sync_redis.info("server")
    if version["redis_version"] < "7":
        rules = [rule.strip("()") for rule in rules]
    rules = [*filter(None, rules), "+hexists"]
    try:
        sync_redis.execute_command("ACL SETUSER", "observer", "reset", "on", *rules)
        url = redis_url.replace("://", "://observer:x@")
        asked = run("doctor", "-n", "emails", "--redis", url)
    finally:
        sync_redis.execute_command("ACL DELUSER", "observer")
    assert "CONFIG GET is refused" in asked.output
    assert "keys: The keys were not checked: " in asked.output
    assert asked.exit_code == 0, asked.output


def test_a_user_who_may_do_nothing_learns_what_was_not_checked(
    run: Run, make: Make, redis_url: str, sync_redis: redis.Redis
) -> None:
    make(name="emails").add_task(Task("t", 1, "g"))
    try:
        sync_redis.execute_command("ACL SETUSER", "few", "reset", "on", ">x", "~*", "+hmget")
        asked = run("doctor", "-n", "emails", "--redis", redis_url.replace("://", "://few:x@"))
    finally:
        sync_redis.execute_command("ACL DELUSER", "few")
    assert asked.exit_code == 0, asked.output
    for words in ("INFO is refused", "namespace: It was not", "groups: They were not", "keys: The"):
        assert words in asked.output


def test_docs_name_all_checks() -> None:
    text = Path(ROOT / "docs" / "cli.md").read_text("utf-8").partition("## doctor")[2]
    for word in ("eviction", "persistence", "memory", "version", "slots", "rights", "index"):
        assert word in text.partition("\n## ")[0]
