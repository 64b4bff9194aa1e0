"""Checks the settings of a Redis server: eviction, persistence, memory, version, slots, rights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from redisagg.operations.observing import span
from redisagg.texts import escape_control
from redisagg.views import Finding

OLDEST = (6, 2)
"""The oldest version of Redis that redisagg runs on."""

_NEARLY_FULL = 0.8
_FULL = 0.995


def check_server(info: Mapping[str, Any], settings: Mapping[str, str] | None) -> Iterator[Finding]:
    """Checks one server.

    Args:
        info: the reply to INFO, as redis-py parses it.
        settings: replies to CONFIG GET; None if they could not be asked for.
    """
    yield from _version(info)
    yield from _memory(info)
    yield from _persistence(info, settings)
    if info.get("role") not in (None, "master"):
        yield _finding(
            "error", "The server is a replica: it refuses all writes.", "Use its primary."
        )
    if info.get("loading"):
        yield _finding("warning", "The server loads its data, and answers nothing meanwhile.")


def _finding(level: Any, text: str, advice: str = "") -> Finding:
    return Finding("server", level, text, advice)


def _version(info: Mapping[str, Any]) -> Iterator[Finding]:
    version = str(info.get("redis_version", ""))
    numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if numbers < OLDEST:
        yield _finding(
            "error",
            f"The server has version {version or 'unknown'}; redisagg needs 6.2 or later.",
            "Upgrade it.",
        )


def _memory(info: Mapping[str, Any]) -> Iterator[Finding]:
    most, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    policy, evicted = str(info.get("maxmemory_policy", "")), int(info.get("evicted_keys", 0))
    if most and policy.startswith("allkeys"):
        yield _finding(
            "error",
            f"The eviction policy is {policy}: when memory is full, Redis removes tasks.",
            "CONFIG SET maxmemory-policy noeviction.",
        )
    elif most and policy.startswith("volatile"):
        yield _finding(
            "warning",
            f"The eviction policy is {policy}: when memory is full, Redis removes outcomes of "
            "submitted tasks, permits, and what keeps a repeated add from counting twice.",
            "CONFIG SET maxmemory-policy noeviction.",
        )
    if evicted:
        yield _finding(
            "warning",
            f"The server has evicted {evicted:,} keys since it started; with an allkeys policy "
            "tasks may have been among them.",
            "CONFIG SET maxmemory-policy noeviction; redisagg doctor names what was torn.",
        )
    if not most:
        yield _finding(
            "note",
            "The server has no maxmemory: if it takes all memory of its machine, it may be killed.",
            "CONFIG SET maxmemory, and bound what waits by max_pending_bytes.",
        )
    elif used >= _NEARLY_FULL * most:
        yield _finding(
            "error" if used >= _FULL * most else "warning",
            f"The server uses {100 * used / most:.0f}% of its maxmemory; when it is full, adds "
            "are refused.",
            "Raise maxmemory, or remove what fills it.",
        )


def _persistence(info: Mapping[str, Any], settings: Mapping[str, str] | None) -> Iterator[Finding]:
    appends = bool(int(info.get("aof_enabled", 0)))
    if info.get("aof_last_write_status", "ok") != "ok":
        yield _finding(
            "error",
            "The last write to the append-only file failed: Redis refuses writes, or loses them.",
            "Look at the log of Redis and at the disk.",
        )
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        yield _finding(
            "error",
            "The last snapshot failed; with stop-writes-on-bgsave-error Redis refuses writes.",
            "Look at the log of Redis and at the disk.",
        )
    if settings is None:
        yield _finding("note", "CONFIG GET is refused, so when Redis saves was not checked.")
        return
    saves = settings.get("save", "").strip()
    if not appends and not saves:
        yield _finding(
            "warning",
            "The server keeps nothing on disk: when it restarts, all tasks that wait are lost.",
            "CONFIG SET appendonly yes.",
        )
    elif not appends:
        changes = int(info.get("rdb_changes_since_last_save", 0))
        yield _finding(
            "warning",
            "The server saves snapshots only: when it dies, the tasks since the last one are lost "
            f"({changes:,} changes now).",
            "CONFIG SET appendonly yes.",
        )
    elif settings.get("appendfsync") == "no":
        yield _finding(
            "note",
            "appendfsync is no: when the machine dies, tasks of the last half minute are lost.",
            "CONFIG SET appendfsync everysec.",
        )


def check_cluster(info: Mapping[str, str]) -> Iterator[Finding]:
    """Checks the reply to CLUSTER INFO."""
    if info.get("cluster_state") == "ok":
        return
    lacking = 16384 - int(info.get("cluster_slots_ok", 0))
    yield _finding(
        "error",
        f"The cluster is {info.get('cluster_state', 'unknown')}: {lacking:,} of 16,384 slots have "
        "no master that answers, and partitions in them stand still.",
        "Bring the masters back, or fail over to their replicas.",
    )


def check_clock(skew: float) -> Iterator[Finding]:
    """Checks the difference between this machine's clock and that of Redis, in seconds."""
    if abs(skew) > 5:
        side = "ahead of" if skew > 0 else "behind"
        yield _finding(
            "warning",
            f"This machine's clock is {span(abs(skew) * 1000)} {side} that of Redis.",
            "Synchronize both by NTP.",
        )


# --- rights ------------------------------------------------------------------------------------

Probe = tuple[Any, ...]

_SPACE, _PART = "redisagg:{%s}:%s", "redisagg:{%s:0}:%s"

_RIGHTS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "producer": (
        (_SPACE, "meta", "hsetnx hmget"),
        (_SPACE, "policies", "hgetall"),
        (_PART, "state", "hmget hset"),
        (_PART, "groups", "hmget hset"),
        (_PART, "due", "zcard zadd zrem"),
        (_PART, "ready", "zcard zadd"),
        (_PART, "call:x", "get set pexpire del"),
        (_PART, "tasks:x", "rpush"),
        (_PART, "ids:x", "hsetnx hexists hdel"),
        (_PART, "seen", "scard sismember"),
        (_PART, "seen_before", "scard sismember"),
    ),
    "flusher": (
        (_SPACE, "meta", "hsetnx hmget"),
        (_SPACE, "flushers", "zadd zrem zrange zremrangebyscore"),
        (_SPACE, "status", "hlen hgetall hset hdel"),
        (_SPACE, "samples", "hset hlen pexpire"),
        (_SPACE, "history", "strlen getrange setrange pexpire"),
        (
            _PART,
            "x",
            "hget hmget hset hdel hexists hincrby hkeys hlen hscan zadd zcard zrange zrangebyscore "
            "zrem zscore zmscore lindex llen lrange ltrim rpush scard sadd rename unlink exists",
        ),
    ),
    "observer": (
        (_SPACE, "meta", "hmget"),
        (_SPACE, "policies", "hgetall"),
        (_SPACE, "flushers", "zrange"),
        (_SPACE, "status", "hgetall"),
        (_SPACE, "permits", "hgetall"),
        (_SPACE, "history", "getrange"),
        (_PART, "x", "hmget hget hlen hscan lrange lindex get zcard zrange zscore hgetall"),
    ),
    "operator": (
        (_SPACE, "meta", "hmget hset hdel"),
        (_SPACE, "policies", "hgetall hlen hexists hset hdel"),
        (
            _PART,
            "x",
            "hget hmget hset hdel hexists hincrby hlen hscan zadd zcard zrem zscore lindex llen "
            "lpush lrange lrem lset ltrim persist pexpire rename unlink",
        ),
    ),
}
"""By role, which commands on which keys; docs/security.md has the same as rules of an ACL."""

_WITHOUT_KEY: dict[str, tuple[Probe, ...]] = {
    "producer": (("time",),),
    "flusher": (("time",), ("ping",)),
    "observer": (("time",), ("info", "memory")),
    "operator": (("time",),),
}

_CHANNELS = {"producer", "flusher", "operator"}

_MORE: dict[str, Sequence[Any]] = {
    "hsetnx": ("f", "v"),
    "hmget": ("f",),
    "hget": ("f",),
    "hset": ("f", "v"),
    "hdel": ("f",),
    "hexists": ("f",),
    "hincrby": ("f", "1"),
    "hscan": ("0",),
    "zadd": ("0", "m"),
    "zrem": ("m",),
    "zrange": ("0", "0"),
    "zrangebyscore": ("0", "0"),
    "zremrangebyscore": ("0", "0"),
    "zscore": ("m",),
    "zmscore": ("m",),
    "lindex": ("0",),
    "lrange": ("0", "0"),
    "ltrim": ("0", "-1"),
    "lpush": ("v",),
    "rpush": ("v",),
    "lrem": ("0", "v"),
    "lset": ("0", "v"),
    "set": ("v",),
    "getrange": ("0", "0"),
    "setrange": ("0", "v"),
    "pexpire": ("1",),
    "sadd": ("m",),
    "sismember": ("m",),
}
"""The arguments of a command behind its key; none for others."""

ROLES = tuple(_RIGHTS)


def probes(role: str, name: str) -> Iterator[Probe]:
    """The commands that a user of a role has to be allowed, for ACL DRYRUN.

    Args:
        name: of the namespace.
    """
    yield from _WITHOUT_KEY[role]
    if role in _CHANNELS:
        yield ("publish", f"redisagg:{{{name}}}:wake", "x")
    keys: dict[str, None] = {}
    for form, part, commands in _RIGHTS[role]:
        key = form % (name, part)
        keys[key] = None
        for command in commands.split():
            more = (key,) if command == "rename" else _MORE.get(command, ())
            yield (command, key, *more)
    for script in ("evalsha", "eval"):
        yield (script, "0" * 40, str(len(keys)), *keys)


def rights_finding(role: str, user: str, refused: Sequence[Probe]) -> Finding:
    """What a user may not do that its role needs."""
    commands = ", ".join(dict.fromkeys(f"{each[0]} {_key_of(each)}".strip() for each in refused))
    return Finding(
        "rights",
        "error",
        f"The user {escape_control(user)} lacks rights of the role {role}: {commands}.",
        "Give it the rules of docs/security.md.",
    )


def _key_of(probe: Probe) -> str:
    return "" if probe[0] in ("evalsha", "eval", "info") or len(probe) < 2 else str(probe[1])
