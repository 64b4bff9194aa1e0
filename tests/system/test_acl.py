"""The rules in docs/security.md: with them each role can do its job, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import pytest
import redis
from click.testing import CliRunner
from redis.exceptions import NoPermissionError

from redisagg import AggregationConfig, Aggregator, Policy, Results, Task
from redisagg.aggregator import reading
from redisagg.cli.app import cli
from redisagg.errors import AuthenticationFailed, NotReplicated
from redisagg.namespace import Namespace
from redisagg.operations import (
    explaining,
    inspecting,
    listing,
    locating,
    measuring,
    observing,
    policing,
    remembering,
    steering,
)
from redisagg.payload import pack
from redisagg.protocol.keys import SCHEMA, Keyspace
from redisagg.protocol.operations import Operation
from redisagg.protocol.scripts import call
from redisagg.testing.embedded import EmbeddedRedis
from redisagg.transport.failures import error_from_reply, translate_error
from redisagg.transport.threads import Transport
from tests.support.aggregators import KINDS, making
from tests.support.servers import wait_until
from tests.support.tasks import await_dead, enqueued, payloads, quick_config

T = TypeVar("T")

DOC = Path(__file__).parents[2] / "docs" / "security.md"
NAME, QUEUE = "emails", b"email-batches"
SINK = "stream://email-batches"
SPACE = Keyspace(NAME, 1)
P = SPACE.partitions[0]
INDEX = [P.state, P.groups, P.batches, P.claims, P.retry, P.suspects, P.due, P.ready]

Rules: TypeAlias = list[str]


def documented() -> dict[str, Rules]:
    """The rules of each role, one by one, with the brackets around them."""
    block = re.search(r"<!-- ci: acl -->\n```\n(.*?)```", DOC.read_text("utf-8"), re.DOTALL)
    assert block is not None
    users = [user.split() for user in block[1].split("\n\n")]
    return {words[1].removeprefix(f"{NAME}-"): words[2:] for words in users}


ROLES = documented()
_NO_BRACKETS = "rules in brackets need Redis 7: without, one command is allowed by several rules"
RIGHTS = [
    pytest.param(role, place, id=f"{role} {place} {rule.strip('()')}")
    for role, rules in ROLES.items()
    for place, rule in enumerate(rules)
    if rule.lstrip("(")[0] in "+~&"
]


class User:
    """Calls scripts as a user, on one connection; raises an error for what was refused."""

    def __init__(self, url: str) -> None:
        self.client = redis.Redis.from_url(url)
        self._transport = Transport(self.client, 0)

    def __call__(self, name: str, keys: list[bytes], *args: Any) -> Any:
        [reply] = self._transport.exchange([call(name, keys, *args)])
        self._raise_refusal(reply)
        return reply

    def run(self, operation: Operation[T]) -> T:
        return self._transport.run(operation)

    def _raise_refusal(self, reply: Any) -> None:
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, list):
            for each in reply:
                self._raise_refusal(each)
        elif isinstance(reply, bytes):  # what was refused of a part of a call
            error = error_from_reply(reply.decode(errors="replace"))
            if isinstance(error, AuthenticationFailed):
                raise error

    # --- calls of producers and flushers ---------------------------------------------------------

    def add(
        self, group: bytes, *ids: bytes, size: int = 100, number: Any = "", most: int = 0
    ) -> Any:
        """Adds tasks that are due at once."""
        keys = [P.state, P.groups, P.due, P.ready, P.call(b"me"), P.seen, P.seen_before]
        keys += (P.tasks(group), P.ids(group))
        args = [number, 1000, SPACE.wake_channel, P.label, most, 0, "1"]
        args += [group, b"0 0 %d 0" % size, len(ids)]
        return self("add", keys, *args, *(part for each in ids for part in (each, pack(["t", 1]))))

    def acquire(self) -> int:
        token: int = self("acquire", [P.state, P.claims, P.tasks(b"")], "me", 60_000, P.label)[0]
        return token

    def claim(self, token: int) -> dict[bytes, bytes]:
        """Claims all batches that can be claimed; returns their groups by batch id."""
        _, flat, suspect = self("poll", [*INDEX, P.seen, P.seen_before], token, 100, 1000)
        flat += suspect
        groups = flat[1::2]
        keys = [key for group in groups for key in (P.tasks(group), P.ids(group))]
        limits = [60_000, 0, 100, 1000, 1_000_000, 1000, 1000]
        keys = [*INDEX, P.seen, P.seen_before, *keys]
        claimed = self("claim", keys, token, *limits, *flat)
        return {batch_id: group for batch_id, group, *_ in claimed}

    def retry(self, token: int, batch_id: bytes, delay: int = 0) -> None:
        self("retry", INDEX, token, batch_id, delay, 1, "error", "merged")

    def bury(self, token: int, batch_id: bytes, group: bytes) -> None:
        keys = [P.state, P.groups, P.batches, P.claims, P.dead]
        keys += [P.tasks(group), P.dead_tasks(batch_id), P.ids(group), P.result(batch_id)]
        assert self("bury", keys, token, batch_id, 1, "error", "traceback") == b"OK"

    def read_tasks(self, token: int, batch_id: bytes, group: bytes, count: int) -> None:
        keys = [P.state, P.groups, P.batches, P.claims, P.seen, P.seen_before]
        keys += [P.tasks(group), P.ids(group)]
        read = 0
        while read < count:
            read += len(self("read_tasks", keys, token, batch_id, read, 1000, 1_000_000))

    def store_result(self, token: int, batch_id: bytes, label: str) -> None:
        keys = [P.state, P.batches, P.claims, P.result(batch_id)]
        for place in range(2):
            assert self("store_result", keys, token, batch_id, label, place, 2, "part") == 1

    def commit_slice(self, token: int, batch_id: bytes, group: bytes, number: int) -> None:
        keys = [P.state, P.groups, P.batches, P.claims, P.due, P.ready, QUEUE, P.tasks(group)]
        keys.append(P.result(batch_id))
        extent = f"14 {number} {1 - number}"
        reply = self("commit_stream", keys, token, "", batch_id, extent, *("x",) * 14)
        assert reply == [b"OK" if number else 1]

    def commit(self, token: int, batch_id: bytes, group: bytes) -> None:
        keys = [P.state, P.groups, P.batches, P.claims, P.due, P.ready, QUEUE, P.tasks(group)]
        reply = self("commit_stream", keys, token, "", batch_id, 14, *("x",) * 14)
        assert reply == [b"OK"]


# --- the jobs, with all branches of their scripts -----------------------------------------------


def register(user: User) -> None:
    user("register", [SPACE.meta], SCHEMA, len(SPACE.partitions))
    user("register_partition", [P.state], len(SPACE.partitions))


def produce(user: User, admin: User) -> None:
    register(user)
    # The leader sleeps, and ids were flushed lately.
    admin.client.hset(P.state, mapping={"wake": 1 << 52, "seen_until": 1 << 52})
    assert user.add(b"a", b"1", size=2, number=1) == [1]
    assert user.add(b"a", b"2", size=2, number=2) == [1]
    assert user.add(b"a", b"2", size=2, number=2) == [1]
    assert user.add(b"a", b"2", size=2, number=3, most=2) == [0]
    assert b"128 bytes" in user.add(b"b", b"1", b"")[0]
    user("forget_calls", [P.call(b"me")])
    admin.run(policing.set_policy(SPACE, "*", Policy(max_size=1)))
    assert len(user("read_policies", [SPACE.meta, SPACE.policies], "")) == 3


def flush(user: User, admin: User) -> None:
    register(user)
    user("join", [SPACE.flushers], "me", 1000, SPACE.wake_channel)
    token = user.acquire()
    admin.add(b"a", b"1", b"2", b"3", size=2)
    admin.add(b"b", b"1", b"2", size=2)
    admin.add(b"c", b"1")
    in_hand = user.claim(token)
    assert sorted(in_hand.values()) == [b"a", b"a", b"b", b"c"]
    user("extend", [P.state, P.claims], token, 60_000, *in_hand)
    user("recall", [P.state, P.claims], token, 60_000)
    assert user.claim(token) == in_hand
    first, second, third, last = sorted(in_hand, key=lambda each: (in_hand[each], each))
    user.retry(token, last)
    assert user.claim(token) == {last: b"c"}
    aside = [P.state, P.groups, P.batches, P.dead, P.tasks(b"a"), P.dead_tasks(b"aside")]
    user("set_aside", aside, token, first, b"aside", "error", 0)
    user.bury(token, first, b"a")
    user.bury(token, third, b"b")
    user.commit(token, second, b"a")
    for _ in range(2):  # the leader dies: the batch becomes a suspect
        token = user.acquire()
        assert user.claim(token) == {last: b"c"}
    user.commit(token, last, b"c")
    admin.add(b"d", *(b"%d" % number for number in range(1_001)), size=1_001)
    [large] = user.claim(token)
    user.read_tasks(token, large, b"d", 1_001)
    user.commit(token, large, b"d")
    admin.add(b"e", b"1", size=1)
    [fan_out] = user.claim(token)
    for label in ("first", "second"):
        user.store_result(token, fan_out, label)
    user.commit_slice(token, fan_out, b"e", 0)
    assert user.client.hmget(P.result(fan_out), "second:0", "second:2") == [b"part", None]
    user.commit_slice(token, fan_out, b"e", 1)
    record_history(user)
    user("renew", [P.state], token, 1000)
    user("release", [P.state, P.claims], token, SPACE.wake_channel)
    user("report_status", [SPACE.status], "old", "{}")
    admin.client.hset(SPACE.status, "old", "1 {}")
    user("report_status", [SPACE.status], "me", "{}")
    assert admin.client.hkeys(SPACE.status) == [b"me"]
    user("leave", [SPACE.flushers, SPACE.status], "me", SPACE.wake_channel)
    listen(user)


def record_history(user: User) -> None:
    keys = [P.state, P.groups, P.batches, P.claims, P.retry, P.suspects, P.due, P.ready]
    sample = user("sample", keys)
    user("record", [SPACE.samples, SPACE.history], len(SPACE.partitions), 0, *sample)


def listen(user: User) -> None:
    try:
        with user.client.pubsub() as pubsub:
            pubsub.subscribe(SPACE.wake_channel)
            assert pubsub.get_message(timeout=1)
            pubsub.ping()
            assert pubsub.get_message(timeout=1)
            pubsub.unsubscribe(SPACE.wake_channel)
            assert pubsub.get_message(timeout=1)
    except redis.RedisError as error:
        raise translate_error(error) from error


def furnish(admin: User) -> tuple[list[bytes], list[bytes]]:
    """Makes groups, batches in all states and three dead letters.

    Returns:
        The batch ids of the dead letters, and those of the batches in flight.
    """
    register(admin)
    admin("join", [SPACE.flushers], "me", 60_000, SPACE.wake_channel)
    token = admin.acquire()
    for group in (b"dead1", b"dead2", b"retry", b"claimed"):
        admin.add(group, b"1")
    admin.add(b"dead3", *(b"%d" % number for number in range(1_002)), size=1_002)
    in_hand = {group: batch_id for batch_id, group in admin.claim(token).items()}
    letters = [in_hand[b"dead1"], in_hand[b"dead2"], in_hand[b"dead3"]]
    for letter, group in zip(letters, (b"dead1", b"dead2", b"dead3"), strict=True):
        admin.bury(token, letter, group)
    admin.retry(token, in_hand[b"retry"], 60_000)
    admin.add(b"claimed", b"2")
    admin.add(b"waiting", b"1", b"2", b"3")
    admin.client.hset(P.state, "wake", 1 << 52)
    return letters, [in_hand[b"retry"], in_hand[b"claimed"]]


def observe(user: User, admin: User) -> None:
    letters, flying = furnish(admin)
    namespace = Namespace.make(NAME, "redis://", AggregationConfig(partitions=1), SINK)
    assert user.run(namespace.check())
    assert user.run(inspecting.groups(SPACE, tasks=True)).keys() >= {"claimed", "waiting"}
    assert user.run(inspecting.groups(SPACE, tasks=False, limit=1, due=True))
    for order in ("due", "size", "any"):
        search: Any = {"prefix": "w", "order": order, "limit": 9, "cursor": None, "tasks": True}
        [state] = user.run(listing.find_groups(SPACE, **search)).states
        assert state.group_key == "waiting"
    assert user.run(inspecting.group(SPACE, b"waiting", limit=10))
    assert user.run(locating.locate(SPACE, b"waiting", b"1")).state == "waiting"
    assert user.run(locating.locate(SPACE, b"nobody", b"1")).state == "unknown"
    batches = user.run(inspecting.batches(SPACE, tasks=True))
    assert sorted(batch.batch_id.encode() for batch in batches) == sorted(flying)
    assert len(user.run(inspecting.dead_letters(SPACE, tasks=True))) == 3
    assert user.run(inspecting.dead_letter(SPACE, letters[0].decode()))
    assert user.run(inspecting.stats(SPACE)).flushers == ["me"]
    record_history(admin)
    assert user.run(remembering.history(SPACE, "hour")).points
    assert user.run(measuring.measure(SPACE)).oldest_overdue > 0
    health, replies = user.run(observing.health(SPACE, clustered=False))
    assert health.memory
    assert (health.live, replies) == (["me"], [])
    for group in (b"waiting", b"retry", b"dead1", b"nobody"):
        assert user.run(explaining.explain(SPACE, group, clustered=False))
    user.run(reading.read_sink(namespace, [QUEUE], {}, 10))
    admin.run(policing.set_policy(SPACE, "*", Policy(max_size=1)))
    assert user.run(policing.policies(SPACE))


def operate(user: User, admin: User) -> None:
    letters, _ = furnish(admin)
    register(user)  # as pause does
    assert user.run(steering.flush(SPACE, b"waiting")) == 3
    assert user.run(steering.flush_all(SPACE)) == 1
    assert user.run(steering.cancel_task(SPACE, b"waiting", b"3"))
    assert user.run(steering.cancel_group(SPACE, b"waiting")) == 2
    assert user.run(steering.cancel_group(SPACE, b"claimed")) == 1
    user.run(steering.pause(SPACE, paused=True))
    user.run(steering.pause(SPACE, paused=False))
    for paused in (True, False):
        user.run(steering.pause_group(SPACE, b"waiting", paused=paused))
        user.run(steering.pause_group(SPACE, b"nobody", paused=paused))
    admin.add(b"dead3", b"next")
    assert user.run(steering.requeue_dead_letter(SPACE, letters[0].decode())) == 1
    one = steering.ChosenTasks({b"7"}, excluded=False)
    assert user.run(steering.requeue_tasks(SPACE, letters[2].decode(), one)) == 1
    assert user.run(steering.requeue_dead_letter(SPACE, letters[2].decode())) == 1_001
    assert user.run(steering.drop_dead_letter(SPACE, letters[1].decode())) == 1
    # A group that is due is removed from both indices.
    admin.add(b"waiting", b"4")
    assert user.run(steering.cancel_task(SPACE, b"waiting", b"4"))
    user.run(policing.set_policy(SPACE, "*", Policy(max_size=1)))
    user.run(policing.apply_policy(SPACE, "*"))
    assert user.run(policing.remove_policy(SPACE, "*"))


JOBS: dict[str, Callable[[User, User], None]] = {
    "producer": produce,
    "flusher": flush,
    "observer": observe,
    "operator": operate,
}


# --- the server ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(server_binary: Path) -> Iterator[EmbeddedRedis]:
    """A server for this module, which adds users."""
    with EmbeddedRedis(server_binary) as server:
        yield server


@pytest.fixture
def admin(server: EmbeddedRedis) -> Iterator[User]:
    """A user with all rights, on a server with users and without data and scripts."""
    admin = User(server.url)
    admin.client.flushall()
    admin.client.script_flush()
    for role, rules in ROLES.items():
        allow(admin, role, rules)
    admin.client.acl_log_reset()
    yield admin
    admin.client.close()


def version(admin: User) -> tuple[int, ...]:
    """The version of the server."""
    info: Any = admin.client.info("server")
    return tuple(map(int, info["redis_version"].split(".")))


def allow(admin: User, role: str, rules: Rules) -> None:
    """Sets the rules of the user of a role."""
    if version(admin) < (7,):
        rules = [rule.strip("()") for rule in rules]
    admin.client.execute_command("ACL SETUSER", role, "reset", *filter(None, rules))


def url_of(server: EmbeddedRedis, role: str) -> str:
    return server.url.replace("redis://", f"redis://{role}:PASSWORD@")


@pytest.fixture
def log_in(server: EmbeddedRedis, admin: User) -> Iterator[Callable[[str], User]]:
    """Logs in as the user of a role."""
    users: list[User] = []

    def log_in(role: str) -> User:
        users.append(User(url_of(server, role)))
        return users[-1]

    yield log_in
    for user in users:
        user.client.close()


def refused(admin: User) -> set[str]:
    """The objects that users were refused since the test began."""
    entries: Any = admin.client.acl_log()
    # redis-py sends CLIENT SETINFO when it connects, and ignores the refusal.
    return {entry["object"] for entry in entries} - {"client|setinfo", "client"}


# --- the tests -------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_a_role_can_do_its_job(admin: User, log_in: Callable[[str], User], role: str) -> None:
    JOBS[role](log_in(role), admin)
    assert refused(admin) == set()


@pytest.mark.parametrize(("role", "place"), RIGHTS)
def test_each_right_is_needed_and_named_when_it_is_missing(
    admin: User, log_in: Callable[[str], User], role: str, place: int
) -> None:
    if version(admin) < (7,):
        pytest.skip(_NO_BRACKETS)
    rules = list(ROLES[role])
    right = rules[place].strip("()")
    rules[place] = re.sub(r"[^()]", "", rules[place])
    allow(admin, role, rules)
    with pytest.raises(AuthenticationFailed) as caught:
        JOBS[role](log_in(role), admin)
    kind, what, said = right[0], right[1:], str(caught.value)
    if kind == "~":
        assert "key" in said
    elif kind == "&":
        assert "channel" in said
    elif (role, right) not in _UNNAMED:
        named = f"'{what}'" in said.lower() or f"({what} " in said.lower()
        assert named or "redis.call(command, key" in said


_UNNAMED = {
    *(("producer", "+hsetnx"), ("producer", "+rpush"), ("producer", "+hexists")),
    ("producer", "+hdel"),
    *(("flusher", "+lrange"), ("flusher", "+xadd")),
}
"""Refusals within a script that goes on: Redis names the command only since 7.2."""


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("other", JOBS)
def test_no_role_can_do_the_job_of_another(
    admin: User, log_in: Callable[[str], User], role: str, other: str
) -> None:
    if role == other:
        pytest.skip("its own job")
    with pytest.raises(AuthenticationFailed):
        JOBS[other](log_in(role), admin)


_TASKS = P.tasks(b"waiting")

FORBIDDEN: dict[str, list[tuple[Any, ...]]] = {
    "producer": [
        ("LRANGE", _TASKS, 0, -1),
        ("LPOP", _TASKS),
        ("DEL", _TASKS),
        ("RENAME", _TASKS, P.tasks(b"mine")),
        ("HGETALL", P.groups),
        ("HDEL", P.groups, "waiting"),
        ("HGET", P.batches, "x"),
        ("ZADD", P.claims, 0, "x"),
        ("HGETALL", P.dead),
        ("XADD", QUEUE, "*", "a", "b"),
        ("XRANGE", QUEUE, "-", "+"),
        ("SUBSCRIBE", SPACE.wake_channel),
        ("PUBLISH", "another", "x"),
    ],
    "flusher": [("DEL", QUEUE), ("XTRIM", QUEUE, "MAXLEN", 0), ("PUBLISH", "another", "x")],
    "observer": [
        ("HSET", P.state, "token", 1),
        ("HSETNX", P.state, "x", 1),
        ("DEL", _TASKS),
        ("RPUSH", _TASKS, "x"),
        ("XADD", QUEUE, "*", "a", "b"),
        ("PUBLISH", SPACE.wake_channel, "x"),
    ],
    "operator": [("XADD", QUEUE, "*", "a", "b"), ("XRANGE", QUEUE, "-", "+")],
}
EVERYWHERE: list[tuple[Any, ...]] = [
    ("GET", "another"),
    ("SET", "another", "x"),
    ("HGET", Keyspace("emails2", 1).partitions[0].state, "token"),
    ("HSETNX", Keyspace("emails2", 1).meta, "schema", 1),
    ("KEYS", "*"),
    ("SCAN", 0),
    ("CONFIG", "GET", "*"),
    ("ACL", "LIST"),
    ("FLUSHALL",),
    ("SCRIPT", "FLUSH"),
    ("CLIENT", "LIST"),
    ("MONITOR",),
]


@pytest.mark.parametrize("role", ROLES)
def test_no_role_can_use_other_commands_and_keys(
    admin: User, log_in: Callable[[str], User], role: str
) -> None:
    if version(admin) < (7,):
        pytest.skip(_NO_BRACKETS)
    furnish(admin)
    before = admin.client.dump(_TASKS)
    user = log_in(role)
    for command in (*FORBIDDEN[role], *EVERYWHERE):
        with pytest.raises(NoPermissionError):
            user.client.execute_command(*command)
        if isinstance(command[-1], int) or len(command) < 2:
            continue
        # Nor in a script of its own.
        script = f"return redis.call('{command[0]}', unpack(ARGV))"
        with pytest.raises(redis.ResponseError, match=r"script|ACL"):
            user.client.eval(script, 0, *command[1:])
    assert admin.client.dump(_TASKS) == before


@pytest.mark.parametrize("kind", KINDS)
def test_all_roles_work_together(server: EmbeddedRedis, admin: User, kind: str) -> None:
    def merge(group: str, tasks: list[Task]) -> Task:
        if group == "bad":
            raise ValueError("as it is told")
        return Task("merged", {"payloads": [task.payload for task in tasks]})

    config = quick_config(partitions=4, group_max_size=2, max_attempts=2, group_aggregator=merge)
    with making(kind) as make:
        as_role: dict[str, Aggregator] = {
            role: make(NAME, url_of(server, role), config=config, sink=SINK) for role in ROLES
        }
        with as_role["flusher"]:
            producer, observer, operator = (
                as_role[role] for role in ("producer", "observer", "operator")
            )
            producer.add_tasks([Task("t", n, f"g{n % 10}") for n in range(100)])
            producer.add_task(Task("t", 1, "bad"))
            assert operator.flush("bad") == 1
            operator.flush_all()
            [letter] = await_dead(observer)
            assert observer.get_dead_letter(letter.batch_id)
            assert operator.requeue_dead_letter(letter.batch_id) == 1
            [letter] = await_dead(observer)
            assert operator.drop_dead_letter(letter.batch_id) == 1
            assert observer.stats().batches_dead == 0
            operator.pause()
            operator.resume()
            assert observer.wait_until_idle(5)
        assert sorted(payloads(enqueued(observer))) == list(range(100))
        assert observer.get_entries(tasks=True) == {}
        assert observer.get_batches(tasks=True) == []
        for aggregator in as_role.values():
            aggregator.close()
    assert refused(admin) == set()


@pytest.mark.parametrize("kind", KINDS)
def test_a_producer_that_waits_for_replicas_needs_the_right_to_wait(
    server: EmbeddedRedis, admin: User, kind: str
) -> None:
    config = quick_config(min_replicas=1, add_timeout=0.5, replica_timeout=0.1)
    with making(kind) as make:
        for rights, error in (([], AuthenticationFailed), (["+wait"], NotReplicated)):
            allow(admin, "producer", [*ROLES["producer"], *rights])
            producer = make(NAME, url_of(server, "producer"), config=config)
            with pytest.raises(error, match=r"\(WAIT,|0 of 1 replicas"):
                producer.add_task(Task("t", 1, "g"))


@pytest.mark.parametrize(
    "line",
    [
        *(("why", "waiting"), ("batches", "--json", "--tasks"), ("stats",), ("top", "--once")),
        *(("groups",), ("peek", "waiting"), ("locate", "waiting", "1"), ("dead", "list")),
    ],
    ids=" ".join,
)
def test_an_observer_may_use_the_command_line(
    server: EmbeddedRedis, admin: User, line: tuple[str, ...]
) -> None:
    furnish(admin)
    asked = CliRunner().invoke(cli, [*line, "--name", NAME, "--redis", url_of(server, "observer")])
    assert asked.exit_code in ((0, 4) if line[0] == "why" else (0,)), asked.output
    assert refused(admin) == set()


def test_a_flusher_with_limits_on_work_needs_further_rights(
    admin: User, log_in: Callable[[str], User]
) -> None:
    text = DOC.read_text("utf-8").partition("A flusher with [limits on work]")[2]
    note = text.partition("\n-")[0]
    rules = [word for rule in re.findall(r"`([^`]*)`", note) for word in rule.split()]
    assert len(rules) == 9
    user = log_in("flusher")
    steps = ["+me.1:1 +me.2:2", "=me.1 -me.1 ~me.2"]

    def work() -> None:
        for keys in ([SPACE.permits], [P.permits(b"g")]):
            for each in steps:
                user("permits", keys, "me", 1000, 2000, 2, 9, 1000, 9, SPACE.wake_channel, each)

    with pytest.raises(AuthenticationFailed):
        work()
    assert not admin.client.exists(SPACE.permits)
    allow(admin, "flusher", [*ROLES["flusher"], *rules])
    user = log_in("flusher")
    work()
    if version(admin) >= (7,):
        for place, right in enumerate(rules):
            lacking = list(rules)
            lacking[place] = re.sub(r"[^()]", "", right)
            allow(admin, "flusher", [*ROLES["flusher"], *lacking])
            user = log_in("flusher")
            with pytest.raises(AuthenticationFailed):
                work()


@pytest.mark.parametrize("kind", KINDS)
def test_receipts_need_further_rights(server: EmbeddedRedis, admin: User, kind: str) -> None:
    text = DOC.read_text("utf-8").partition("A producer that [submits]")[2].partition("\n-")[0]
    rules = [rule.split() for rule in re.findall(r"`([^`]*)`", text)]
    submits, flushes = [*rules[0], *rules[1]], [*rules[2], *rules[3]]
    allow(admin, "producer", [*ROLES["producer"], *submits])
    allow(admin, "flusher", [*ROLES["flusher"], *flushes])
    with making(kind) as make:
        config = quick_config(
            group_max_size=1,
            group_aggregator=lambda group, tasks: Results({t.id: t.payload for t in tasks}),
        )
        producer = make(NAME, url_of(server, "producer"), config=config, sink=SINK)
        with make(NAME, url_of(server, "flusher"), config=config, sink=SINK):
            results = [producer.submit(Task("t", n, "g")).result(20) for n in range(1, 4)]
        assert results == [1, 2, 3]
        denied: list[Any] = admin.client.acl_log()
    # redis-py names itself when it connects, and does not mind a refusal.
    objects = {str(each["object"]) for each in denied}
    assert {each for each in objects if not each.startswith("client")} == set()


def test_a_flusher_logs_a_missing_right_and_goes_on_when_it_has_it(
    server: EmbeddedRedis, admin: User, caplog: pytest.LogCaptureFixture
) -> None:
    lacking = [rule for rule in ROLES["flusher"] if rule != "+zrangebyscore"]
    allow(admin, "flusher", lacking)
    with making("threads") as make:
        config = quick_config(group_grace_period=0.1)
        agg = make(NAME, url_of(server, "flusher"), config=config, sink=SINK)
        producer = make(NAME, url_of(server, "producer"), config=config)
        with agg:
            producer.add_task(Task("t", 1, "g"))
            wait_until(lambda: "'ZRANGEBYSCORE'" in caplog.text, what="the missing right is logged")
            allow(admin, "flusher", ROLES["flusher"])
            wait_until(lambda: admin.client.xlen(QUEUE), timeout=5, what="it goes on")
    assert admin.client.xlen(QUEUE) == 1
