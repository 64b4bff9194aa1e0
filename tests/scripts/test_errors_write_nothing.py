"""An error reply of a script means that nothing was written, whatever the script is given."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from hashlib import sha1
from typing import Any, NamedTuple, TypeAlias

import msgpack
import pytest
import redis

from redisagg.protocol.keys import Keyspace, PartitionKeys
from redisagg.protocol.scripts import load
from tests.support.luacheck import LUA

SPACE = Keyspace("tests", 1)
P: PartitionKeys = SPACE.partitions[0]
INDEXES = [P.state, P.groups, P.batches, P.claims, P.retry, P.suspects, P.due, P.ready]
BODY = msgpack.packb(["t", 1])
LIMITS = b"1000 1000 3 0"
OTHER_LIMITS = b"- 500 4 7 max_bytes=300 max_weight=9;weight=2 due_at=5 not_before=9"
DEAD_ID, SOUND = b"dead-0-1", 10**6
SEEDS, MORE_SEEDS = range(60), range(60, 400)

Client: TypeAlias = Any  # redis.Redis, whose types take no bytes for keys
Dump: TypeAlias = dict[bytes, tuple[bytes, int]]


class Call(NamedTuple):
    """A call of a script."""

    name: str
    keys: list[bytes]
    args: list[Any]

    def on(self, client: Client) -> Any:
        """Runs the call and returns its reply; an error is returned too."""
        try:
            return client.eval(load(self.name).source, len(self.keys), *self.keys, *self.args)
        except redis.ResponseError as error:
            return error


def add_call(
    groups: Sequence[bytes],
    count: int,
    *,
    number: int | str = 1,
    ids: str = "i",
    limits: bytes = LIMITS,
) -> Call:
    keys = [P.state, P.groups, P.due, P.ready, P.call(b"p"), P.seen, P.seen_before]
    args: list[Any] = [number, 1000, SPACE.wake_channel, P.label, SOUND, SOUND, "1"]
    for group in groups:
        keys += (P.tasks(group), P.ids(group))
        args += (group, limits, count)
        for n in range(count):
            args += (f"{ids}{n}", BODY)
    return Call("add", keys, args)


def claim_call(token: int, items: Sequence[tuple[bytes, bytes]]) -> Call:
    keys = [*INDEXES, P.seen, P.seen_before]
    args: list[Any] = [token, 60_000, 0, 64, 1000, 1 << 20, 1000, 5000]
    for batch_id, group in items:
        keys += (P.tasks(group), P.ids(group))
        args += (batch_id, group)
    return Call("claim", keys, args)


def commit_call(
    name: str,
    token: int,
    batches: dict[bytes, bytes],
    entry: Sequence[Any] = (),
    entries: int = 1,
    *,
    extent: bytes = b"",
) -> Call:
    """A commit of `entries` entries for each batch; `extent`: the place of a slice."""
    keys = [P.state, P.groups, P.batches, P.claims, P.due, P.ready]
    keys += {"commit": []}.get(name, [b"queue"])
    args: list[Any] = [token, *([b"100"] if name == "commit_stream" else [])]
    for number, (batch_id, group) in enumerate(batches.items()):
        keys.append(P.tasks(group))
        if extent:
            keys.append(P.result(batch_id))
        if name == "commit_asynq":
            keys += [b"task%d" % number, b"pending", b"scheduled", b"unique%d" % number] * entries
        number_of_arguments = b"%d" % (len(entry) * entries)
        args += (batch_id, number_of_arguments + extent, *(list(entry) * entries))
    return Call(name, keys, args)


def permits_call(steps: Sequence[str]) -> Call:
    """A call of `permits` for two limits."""
    rule = ["me", 1000, 2000, 3, 10, 1000, 5, SPACE.wake_channel]
    return Call("permits", [SPACE.permits, P.permits(b"a")], [*rule, *steps])


SLICE = "of a slice"
PARTIAL = "of a batch of which tasks failed"


def partial_call(call: Call, batch_id: bytes) -> Call:
    """The last slice of a batch of which two tasks failed alone."""
    letters = [b"%b-task-%d" % (batch_id, place) for place in (0, 2)]
    place = call.keys.index(P.result(batch_id)) + 1
    lists = [P.dead, *map(P.dead_tasks, letters)]
    keys = [*call.keys[:place], *lists, *call.keys[place:]]
    extent = call.args.index(batch_id) + 1
    args = [*call.args, letters[0], 0, "odd", letters[1], 2, "odd"]
    args[extent] += b" 2 0 0"
    return Call(call.name, keys, args)


RETRIED = "of a batch of which tasks are tried again"
ANSWERED = "with answers"


def retried_call(call: Call, batch_id: bytes) -> Call:
    """The last slice of a batch of which two tasks failed alone and are tried again."""
    place = call.keys.index(P.result(batch_id)) + 1
    keys = [*call.keys[:place], P.retry, P.tasks(b"new"), *call.keys[place:]]
    extent = call.args.index(batch_id) + 1
    args = [*call.args, b"new id", b"new", "odd", 0, 2]
    args[extent] += b" 2 0 0 50 1"
    return Call(call.name, keys, args)


def answered_call(call: Call, batch_id: bytes) -> Call:
    """A commit whose last batch has two tasks that were submitted."""
    keys = [*call.keys, P.answer(b"b", b"i0"), P.answer(b"b", b"i2")]
    args = [*call.args, P.answers_channel, 1000, b"record", 2000, b"record"]
    args[call.args.index(batch_id) + 1] += b" a2"
    return Call(call.name, keys, args)


ASYNQ = [b"q", b"id", b"message", b"60", b"", b""]


def prepare(client: Client) -> dict[str, Call]:
    """Fills a partition; returns a valid call of each script that acts on it."""
    register = Call("register_partition", [P.state], [1])
    assert register.on(client) == 1
    assert add_call([b"a", b"b", b"c", b"d"], 8).on(client) == [8, 8, 8, 8]
    assert add_call([b"d"], 4, number="", ids="k", limits=OTHER_LIMITS).on(client) == [4]
    acquire = Call("acquire", [P.state, P.claims, P.tasks(b"")], ["me", 10**7, P.label])
    token, _ = acquire.on(client)
    claimed = claim_call(token, [(b"", b"a"), (b"", b"b"), (b"", b"c")]).on(client)
    ids: dict[bytes, list[bytes]] = {}
    for batch_id, group, *_ in claimed:
        ids.setdefault(group, []).append(batch_id)
    bury_keys = [P.state, P.groups, P.batches, P.claims, P.dead]
    first_c = ids[b"c"][0]
    bury_c = Call(
        "bury",
        [*bury_keys, P.tasks(b"c"), P.dead_tasks(first_c), P.ids(b"c"), P.result(first_c)],
        [token, first_c, 3, "e", "t"],
    )
    while (reply := bury_c.on(client)) not in (b"OK", b"GONE"):
        assert not isinstance(reply, Exception), reply
    retried = ids[b"c"][1]
    retry = Call("retry", INDEXES, [token])
    assert Call("retry", INDEXES, [token, retried, 0, 1, "e", "m"]).on(client) == [1]
    permits_call(["+me.1:1 +me.2:2 +me.0:9", "+me.1:1"]).on(client)
    permits_call(["-me.0:4", "+me.2:20"]).on(client)
    Call(
        "record",
        [SPACE.samples, SPACE.history],
        [2, *(each for n in range(2) for each in (n, 10, 4, 3, 2, 1, 7, 5, 60))],
    ).on(client)
    first = {ids[group][0]: group for group in (b"a", b"b")}
    one, last = first
    stored = ids[b"a"][1]
    store_keys = [P.state, P.batches, P.claims]
    store = Call("store_result", [*store_keys, P.result(stored)], [token, stored, "l", 0, 1, "r"])
    assert store.on(client) == 1
    index_keys = [P.state, P.groups, P.due, P.ready]
    requeue_keys = [P.state, P.groups, P.batches, P.retry, P.due, P.ready, P.dead]
    entry = [b"f", b"v"] * 7
    counted = ("waiting", "claimed", "dead", "bytes", "sequence", "flushed_tasks")
    counts = [each or b"" for each in client.hmget(P.state, *counted)]
    calls = [
        add_call([b"a", b"d", b"new"], 3, number=2, ids="j"),
        acquire,
        Call(
            "apply_limits",
            [*index_keys, P.tasks(b"d"), P.tasks(b"a")],
            [
                *(SPACE.wake_channel, 0, b"d", b"size=5 grace=7 max_bytes=90", 0),
                *(b"a", b"size=1", 1, b"x", b"size"),
            ],
        ),
        register,
        bury_c._replace(
            keys=[*bury_keys, P.tasks(b"a"), P.dead_tasks(one), P.ids(b"a"), P.result(one)],
            args=[token, one, 3, "e", "t"],
        ),
        Call("cancel_group", [*index_keys, P.tasks(b"d"), P.ids(b"d")], [b"d"]),
        Call(
            "cancel_task",
            [*index_keys, P.tasks(b"d"), P.ids(b"d"), P.answer(b"d", b"i3")],
            [b"d", b"i3", P.answers_channel],
        ),
        Call("locate", [P.groups, P.tasks(b"d"), P.ids(b"d")], [b"d", b"i3", "", 10]),
        Call(
            "answer",
            [P.state, P.batches, P.claims, P.answer(b"a", b"i4")],
            [token, stored, P.answers_channel, 1000, b"record"],
        ),
        claim_call(token, [(retried, b"c"), (b"", b"d"), (b"", b"a")]),
        commit_call("commit", token, first),
        commit_call("commit_asynq", token, first, ASYNQ, 2),
        commit_call("commit_list", token, first, [b"element"], 3),
        commit_call("commit_stream", token, first, entry, 3),
        Call("drop", [P.state, P.dead, P.dead_tasks(first_c), P.result(first_c)], [first_c]),
        Call("enqueue_asynq", [b"task", b"pending", b"scheduled", b"unique"], ASYNQ),
        Call("extend", [P.state, P.claims], [token, 1000, *first]),
        Call("flush", index_keys, [SPACE.wake_channel, 0, b"d", b"a"]),
        Call("flush_all", index_keys, [SPACE.wake_channel, 0, 0, 100]),
        Call("flushers", [SPACE.flushers], []),
        Call("forget_calls", [P.call(b"p"), P.call(b"q")], []),
        Call("join", [SPACE.flushers], ["me", 1000, SPACE.wake_channel]),
        Call("leave", [SPACE.flushers, SPACE.status], ["me", SPACE.wake_channel]),
        Call("report_status", [SPACE.status], ["me", "{}"]),
        Call("server_memory", [P.state], []),
        Call("mend_counts", [P.state], [*counts, 1, 2, 3, 4]),
        Call("mend_groups", index_keys, [SPACE.wake_channel, 0, "1", b"a", b"d", b"none"]),
        Call("mend_batches", INDEXES, [SPACE.wake_channel, 0, "1", b"c", *ids[b"c"][1:]]),
        Call(
            "mend_key",
            [P.state, P.groups, P.batches, P.dead, P.tasks(b"odd"), P.dead_tasks(b"odd")],
            ["tasks", b"odd", "1", b"odd", "error"],
        ),
        Call("pause", [P.state], [1, SPACE.wake_channel, P.label, b"ann"]),
        permits_call(["! +me.3:1 +me.4:5 =me.1:1 -me.1 ~me.2", "~me.1 +me.5:1"]),
        Call(
            "put_off",
            INDEXES,
            [token, retried, b"c", 50, b"", b"d", 1000, one, first[one], 70],
        ),
        Call("pause_group", index_keys, [1, SPACE.wake_channel, P.label, b"d", b"ann"]),
        Call("postpone", index_keys, [SPACE.wake_channel, 0, b"d", 10**12]),
        Call("poll", [*INDEXES, P.seen, P.seen_before], [token, 10, 1000]),
        Call(
            "read_tasks",
            [*INDEXES[:4], P.seen, P.seen_before, P.tasks(b"a"), P.ids(b"a")],
            [token, one, 0, 5000, 1 << 20],
        ),
        Call("read_policies", [SPACE.meta, SPACE.policies], ["x"]),
        Call("recall", [P.state, P.claims], [token, 1000, *first]),
        Call("register", [SPACE.meta], [1, 16]),
        Call("release", [P.state, P.claims], [token, SPACE.wake_channel]),
        Call("renew", [P.state], [token, 1000]),
        Call(
            "requeue",
            [*requeue_keys, P.tasks(b"c"), P.dead_tasks(first_c), P.result(first_c)],
            [first_c, SPACE.wake_channel, 0],
        ),
        retry._replace(
            args=[token, one, 10, 1, "e", "m", next(iter(reversed(first))), 10, 0, "", "m"]
        ),
        Call(
            "set_aside",
            [P.state, P.groups, P.batches, P.dead, P.tasks(b"a"), P.dead_tasks(DEAD_ID)],
            [token, one, DEAD_ID, "e", 0, 2],
        ),
        Call("split", [*INDEXES, P.result(one)], [token, one, 10, "e"]),
        Call("now", [SPACE.meta], []),
        Call("set_policies", [SPACE.meta, SPACE.policies], [10, b"a*", b"{}", b"i3", b""]),
        Call("stats", [P.state, P.groups, P.batches, P.retry, P.dead], []),
        Call(
            "store_result",
            [P.state, P.batches, P.claims, P.result(one)],
            [token, one, "label", 0, 1, "part"],
        ),
        Call("upcoming", [P.ready, P.due], [0, 10, ""]),
        *mover_calls(client, retried, stored, first_c),
        Call(
            "sample",
            [P.state, P.groups, P.batches, P.claims, P.retry, P.suspects, P.due, P.ready],
            [],
        ),
        Call(
            "record",
            [SPACE.samples, SPACE.history],
            [2, 0, 20, 9, 8, 2, 1, 7, 6, 900, 1, 20, 9, 8, 2, 1, 7, 6, 900],
        ),
        Call("list_groups", [P.due], [b"1", b"a", b"", 10, 100]),
        Call("rank_groups", [P.groups], [0, 100, b"*", b"size", b"-4", b"a", b"", b""]),
    ]
    slices = {
        f"{name} {SLICE}": commit_call(name, token, {one: first[one]}, parts, 3, extent=b" 0 0")
        for name, parts in (
            ("commit_asynq", ASYNQ),
            ("commit_list", ["x"]),
            ("commit_stream", entry),
        )
    }
    parts = {
        f"{name} {kind}": change(slices[f"{name} {SLICE}"], one)
        for name in ("commit_asynq", "commit_list", "commit_stream")
        for kind, change in ((PARTIAL, partial_call), (RETRIED, retried_call))
    }
    selected, others = P.dead_tasks(b"selected"), P.dead_tasks(b"others")
    select = select_call(client, first_c, selected, others)
    requeue = next(call for call in calls if call.name == "requeue")
    some = requeue._replace(
        keys=[
            *requeue.keys[:-2],
            *(P.dead_tasks(b"new"), P.result(b"new"), P.dead_tasks(first_c), selected, others),
        ],
        args=[b"new", *requeue.args[1:], first_c, select.args[1], 60, 30],
    )
    calls_by_name = {call.name: call for call in [*calls, select]}
    answered = {
        f"{name} {ANSWERED}": answered_call(calls_by_name[name], last)
        for name in ("commit", "commit_asynq", "commit_list", "commit_stream")
    }
    return {**calls_by_name, **slices, **parts, **answered, SOME: some}


MOVER = b"move:me"
OF_MOVERS = ("adopt", "disown", "receive", "retire", "thaw")
"""The scripts that act on a partition that was frozen."""


def mover_calls(client: Client, retried: bytes, stored: bytes, letter: bytes) -> list[Call]:
    """Calls of a mover: two batches, the second with group `a`, and a dead letter."""
    group = client.hget(P.groups, b"d")
    batch, dead = client.hget(P.batches, retried), client.hget(P.dead, letter)
    indexes = [*INDEXES, P.dead]
    adopted = [b"group", b"moved", group, 2, b"entry", b"other", 1, b"id", 7, 1]
    adopted += [b"batch", batch, b"retry", b"5", b"letter", b"letter", dead]
    disowned = [b"group", b"a", 1, stored, b"letter", letter]
    keys = [P.tasks(b"moved"), P.ids(b"moved")]
    lists = [P.tasks(b"a"), P.ids(b"a"), P.result(stored), P.dead_tasks(letter)]
    return [
        Call("freeze", [P.state, P.claims], [MOVER, ""]),
        Call("adopt", [*indexes, *keys], [MOVER, *adopted]),
        Call("disown", [*indexes, *lists], [MOVER, *disowned]),
        Call("plan_move", [SPACE.meta], ["", "", "x 1 2 copying", "partitions", 5]),
        Call("receive", [P.state, P.tasks(b"moved")], [MOVER, "list", 0, "a", "b"]),
        Call("retire", [*indexes, P.seen, P.seen_before], [MOVER]),
        Call("keep_answer", [P.answer(b"a", b"i")], [b"record", 5000]),
        Call("forget_answer", [P.answer(b"a", b"i")], [b"record"]),
        Call("unlink", [P.tasks(b"a"), P.ids(b"a")], []),
        Call("thaw", [P.state], [MOVER, "32 policies", "4 16", "1", 3, 4, 5, 10**13, 0]),
    ]


SOME = "requeue of some tasks"


def select_call(client: Client, letter: bytes, selected: bytes, others: bytes) -> Call:
    """Copies the last task of a dead letter, and then the others."""
    sha = sha1(client.hget(P.dead, letter)).hexdigest()
    count = client.llen(P.dead_tasks(letter))
    assert count == 3
    keys = [P.state, P.dead, P.dead_tasks(letter), selected, others]
    assert Call("select_tasks", keys, [letter, sha, 0, b"1"]).on(client) == 1
    return Call("select_tasks", keys, [letter, sha, 1, b"01"])


def dump(client: Client) -> Dump:
    """All keys with their serialized values and whether they expire."""
    keys = sorted(client.scan_iter(count=1000))
    pipeline = client.pipeline(transaction=False)
    for key in keys:
        pipeline.dump(key)
    return {key: (value, 0) for key, value in zip(keys, pipeline.execute(), strict=True)}


def contents(client: Client) -> dict[bytes, Any]:
    """All keys with their values. A dump would show the order of the fields of a hash too."""
    keys = sorted(client.scan_iter(count=1000))
    pipeline = client.pipeline(transaction=False)
    for key in keys:
        pipeline.type(key)
    kinds = pipeline.execute()
    for key, kind in zip(keys, kinds, strict=True):
        if kind == b"hash":
            pipeline.hgetall(key)
        else:
            pipeline.dump(key)
    return dict(zip(keys, pipeline.execute(), strict=True))


def restore(client: Client, saved: Dump) -> None:
    pipeline = client.pipeline(transaction=False)
    pipeline.flushall()
    for key, (value, ttl) in saved.items():
        pipeline.restore(key, ttl, value)
    pipeline.execute()


# --- what can be wrong ---------------------------------------------------------------------------

HOSTILE: list[Any] = [
    *(b"", b"x", b"-1", b"0", b"1.5", b"1e400", b"-1e400", b"nan", b"-nan", b"9007199254740993"),
    *(b"99999999999999999999", b"9223372036854775807", b"-9223372036854775808", b"1" * 400),
    *(b"\x00\xff" * 300, b"0x10", b" 7 ", b"1 1 1", b"1000 1000 3 0", b"3", b"1000"),
    *(b"3 0 0", b"3 0 1", b"3 1 0", b"36 0 0", b"0 0 0", b"3 0", b"3 0 0 0", b"3 -1 0", b" 3 0 0"),
    *(OTHER_LIMITS, b"- - 1 0;flush=1", b"1 1 1 0;flush=2", b"3 3", b"=;weight=1"),
    *(b"1000 1000 3 0;replace=1", b"replace=1 weight=3", b"i3", b"i7", b"k1"),
]
VALUES: list[Any] = [
    *(None, True, "x", b"", -1, 0, 1.5, float("nan"), float("inf"), float("-inf"), 2**63, 2**60),
    *(-(2**63), [], {}, 10**17, 7),
]
WRITE: list[Callable[[Client, bytes], object]] = [
    lambda client, key: client.set(key, "foreign"),
    lambda client, key: client.rpush(key, "foreign"),
    lambda client, key: client.hset(key, "foreign", "x"),
    lambda client, key: client.sadd(key, "foreign"),
    lambda client, key: client.zadd(key, {"foreign": 1}),
    lambda client, key: client.xadd(key, {"foreign": "x"}),
]


def spoil_arguments(call: Call, draw: random.Random) -> Call:
    """The call with wrong arguments, or a wrong number of keys or arguments."""
    keys, args = list(call.keys), list(call.args)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        kind = draw.random()
        first = 1 if draw.random() < 0.8 else 0  # the token stays right, or nothing is tried
        if kind < 0.8 and len(args) > first:
            args[draw.randrange(first, len(args))] = draw.choice(HOSTILE)
        elif kind < 0.9 and len(args) > first:
            del args[draw.randrange(first, len(args)) :]
        elif kind < 0.95:
            args += draw.choices(HOSTILE, k=draw.randint(1, 7))
        elif len(keys) > 1:
            del keys[draw.randrange(1, len(keys)) :]
    return Call(call.name, keys, args)


def sound_record(packed: bytes) -> list[Any]:
    """The places of a record; none if it has just been spoilt."""
    try:
        record = msgpack.unpackb(packed, raw=True)
    except ValueError:
        return []
    return record if isinstance(record, list) else []


def spoil_data(client: Client, call: Call, draw: random.Random) -> None:
    """Puts a foreign type, record, count or score into one or two keys of the call."""
    for _ in range(draw.choice((1, 1, 2))):
        key = draw.choice(call.keys)
        kind = client.type(key)
        if draw.random() < 0.4 or kind in (b"none", b"string", b"list", b"set", b"stream"):
            client.delete(key)
            if draw.random() < 0.9:
                draw.choice(WRITE)(client, key)
        elif kind == b"zset":
            member = draw.choice(client.zrange(key, 0, -1))
            client.zadd(key, {member: draw.choice((float("inf"), float("-inf"), 0, 1e300))})
        elif key == P.state or key in (SPACE.meta,):
            fields = [each for each in client.hkeys(key) if each not in (b"token", b"expires")]
            client.hset(key, draw.choice(fields), draw.choice(HOSTILE))
        else:
            field = draw.choice(client.hkeys(key))
            value: Any = draw.choice(HOSTILE)
            if draw.random() < 0.8 and key in (P.groups, P.batches, P.dead):
                record = sound_record(client.hget(key, field))
                if record:
                    record[draw.randrange(len(record))] = draw.choice(VALUES)
                value = msgpack.packb(record)
            client.hset(key, field, value)


SCRIPTS = sorted(path.stem for path in LUA.glob("*.lua"))
SCRIPTS += [f"commit_{queue} {SLICE}" for queue in ("asynq", "list", "stream")]
SCRIPTS += [f"commit_{queue} {PARTIAL}" for queue in ("asynq", "list", "stream")]
SCRIPTS += [f"commit_{queue} {RETRIED}" for queue in ("asynq", "list", "stream")]
SCRIPTS += [SOME]
SCRIPTS += [f"{name} {ANSWERED}" for name in ("commit", "commit_asynq", "commit_list")]
SCRIPTS += [f"commit_stream {ANSWERED}"]


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize(
    "seeds", [SEEDS, pytest.param(MORE_SEEDS, marks=pytest.mark.slow)], ids=["some", "more"]
)
def test_an_error_reply_means_that_nothing_was_written(
    name: str, seeds: range, sync_redis: redis.Redis
) -> None:
    calls = prepare(sync_redis)
    if name == SOME:
        assert calls["select_tasks"].on(sync_redis) == 3
    if name in OF_MOVERS:
        assert calls["freeze"].on(sync_redis) == 1
    assert_errors_write_nothing(sync_redis, calls[name], seeds)


def test_an_error_reply_to_a_further_slice_means_that_nothing_was_written(
    sync_redis: redis.Redis,
) -> None:
    call = prepare(sync_redis)["requeue"]
    source = load("requeue").source
    smaller = source.replace(b"1000 --[[SLICE_TASKS]]", b"1")
    assert smaller != source
    client: Client = sync_redis
    assert client.eval(smaller, len(call.keys), *call.keys, *call.args) == b"MORE"
    assert_errors_write_nothing(client, call)


NEVER_REFUSED = (
    *("flushers", "forget_calls", "now", "sample", "server_memory", "unlink", "upcoming"),
    "stats",
)


def assert_errors_write_nothing(client: Client, call: Call, seeds: range = SEEDS) -> None:
    name = call.name
    sound = dump(client)
    reply = call.on(client)
    assert not isinstance(reply, Exception), reply
    errors = 0
    for seed in seeds:
        draw = random.Random(f"{name} {seed}")
        restore(client, sound)
        tried = call
        if seed % 3 != 0:
            tried = spoil_arguments(call, draw)
        if seed % 3 != 1 and call.keys:
            spoil_data(client, call, draw)
        before = contents(client)
        reply = tried.on(client)
        if isinstance(reply, Exception):
            errors += 1
            after = contents(client)
            changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
            assert not changed, f"seed {seed}: {tried} changed {changed}: {reply}"
    assert errors > 3 or name in NEVER_REFUSED, errors


# --- large calls ---------------------------------------------------------------------------------

MANY = 10_000  # more values than Lua's stack takes


def large_calls(client: Client) -> list[Call]:
    """Calls whose arguments are more than fit on Lua's stack, in an order in which all succeed."""
    calls = prepare(client)
    stream, asynq = calls["commit_stream"].args, calls["commit_asynq"].args
    first = {stream[2]: b"a"}
    second = {asynq[1 + 2 + len(ASYNQ) * 2]: b"b"}
    token = stream[0]
    many = [b"%d" % n for n in range(MANY)]
    return [
        commit_call("commit_list", token, second, [b"element"], MANY),
        commit_call("commit_stream", token, first, [b"f", b"v"] * 7, MANY)._replace(
            keys=[*INDEXES[:4], P.due, P.ready, b"stream", P.tasks(b"a")]
        ),
        Call("extend", [P.state, P.claims], [token, 1000, *many]),
        Call("recall", [P.state, P.claims], [token, 1000, *many]),
        calls["flush"]._replace(args=[SPACE.wake_channel, 0, *many]),
        Call("forget_calls", many, []),
        add_call([b"large"], MANY, number=3),
        calls["add"]._replace(args=[4, *calls["add"].args[1:]]),
    ]


def test_calls_with_thousands_of_arguments_work(sync_redis: redis.Redis) -> None:
    for call in large_calls(sync_redis):
        reply = call.on(sync_redis)
        assert not isinstance(reply, Exception), f"{call.name}: {reply}"
    client: Client = sync_redis
    assert client.llen("queue") == MANY


def test_a_large_section_that_is_refused_leaves_nothing(sync_redis: redis.Redis) -> None:
    client: Client = sync_redis
    Call("register_partition", [P.state], [1]).on(client)
    client.set(P.tasks(b"large"), "foreign")
    [reply] = add_call([b"large"], MANY).on(client)
    assert b"WRONGTYPE" in reply
    assert not client.exists(P.ids(b"large"))
