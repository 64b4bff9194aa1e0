"""Lists the namespaces of a Redis, and removes one with all of its keys."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from redisagg.errors import InvalidConfig, KeyConflict, NamespaceInUse, RedisAggError
from redisagg.operations.inspecting import stats
from redisagg.protocol.keys import MOVER, SCHEMA, WITH_POLICIES, Keyspace
from redisagg.protocol.operations import Operation, ask, ask_all
from redisagg.protocol.registration import MOVED, recorded_number
from redisagg.protocol.scripts import call, command
from redisagg.transport.threads import Transport
from redisagg.views import Stats

_META = re.compile(rb"redisagg:\{([A-Za-z0-9][A-Za-z0-9._-]{0,63})\}:meta")

_SCAN_COUNT = 1_000
"""Keys that one SCAN looks at, or one call removes: well below a millisecond."""


class Names(NamedTuple):
    """The namespaces that were found."""

    found: list[str]
    complete: bool
    """Whether all keys were looked at."""


@dataclass(frozen=True, slots=True)
class NamespaceState:
    """A namespace in a list."""

    name: str
    partitions: int | None = None
    """None if the record can't be read."""
    stats: Stats | None = None
    moved_to: str | None = None
    """The name that it was given; None if it was not moved."""
    moving_to: str | None = None
    """The name that a move gives it, which has not ended; None if there is no such move."""
    error: str | None = None
    """Why it can't be read; None if it can."""


def find_namespaces(transport: Transport, timeout: float = 2.0) -> Names:
    """Looks through the keys for the records of namespaces.

    Args:
        transport: sends the requests.
        timeout: seconds after which the search ends; other data may be in the same Redis.

    Raises:
        redis.exceptions.RedisError: Redis refused, for instance since the user has no right.
        RedisUnavailable: no node of the cluster answers.
    """
    deadline = time.monotonic() + timeout
    found: set[str] = set()
    for client in transport.masters():
        cursor: Any = 0
        while True:
            reply: Any = client.scan(cursor, match="redisagg:{*}:meta", count=_SCAN_COUNT)
            cursor, keys = reply
            found.update(match[1].decode() for match in map(_META.fullmatch, keys) if match)
            if not cursor:
                break
            if time.monotonic() > deadline:
                return Names(sorted(found), complete=False)
    return Names(sorted(found), complete=True)


def describe(name: str) -> Operation[NamespaceState]:
    """Reads what is known of a namespace, in three round trips."""
    keyspace = Keyspace(name, 1)
    state = NamespaceState(name)
    request = command("HMGET", keyspace.meta, b"schema", b"partitions", b"move")
    try:
        schema, partitions, plan = yield from ask(request)
        if plan and not plan.startswith(b"from "):
            state = replace(state, moving_to=plan.split(b" ")[0].decode("ascii", "replace"))
        if schema is not None and schema.startswith(MOVED):
            return replace(state, moved_to=schema.removeprefix(MOVED).decode("ascii", "replace"))
        if schema is None or partitions is None:
            raise KeyConflict("the record has no schema or no number of partitions")
        number = recorded_number(keyspace.meta, partitions)
        found = yield from stats(Keyspace(name, number))
        return replace(state, partitions=number, stats=found)
    except RedisAggError as error:
        return replace(state, error=str(error))


def remove_namespace(
    transport: Transport,
    name: str,
    *,
    force: bool = False,
    progress: Callable[[int], object] = lambda _: None,
) -> int:
    """Removes a namespace with all of its keys, a few hundred at a time.

    What `add` remembers of calls stays until it expires: a producer that has lost a reply may
    still ask for it.

    Args:
        transport: sends the requests.
        name: its name.
        force: whether tasks and dead letters are removed too.
        progress: is called from time to time with the number of keys removed so far.

    Returns:
        The number of keys removed.

    Raises:
        InvalidConfig: there is no such namespace, or its name has another form.
        NamespaceInUse: it has a flusher or, without `force`, tasks or dead letters; or it is being
            moved.
    """
    keyspace = Keyspace(name, 1)
    meta = keyspace.meta
    request = command("HMGET", meta, b"schema", b"partitions", b"move", b"policies", b"former")
    schema, partitions, plan, policies, former = transport.run(ask(request))
    if schema is None:
        raise InvalidConfig(f"there is no namespace {name!r}")
    if plan:
        raise NamespaceInUse(f"the namespace {name!r} is being moved; end that move first")
    if schema == b"%d" % SCHEMA and partitions is not None:
        keyspace = Keyspace(name, recorded_number(meta, partitions))
        label = b"%d" % len(keyspace.partitions) + (b"" if policies is None else WITH_POLICIES)
        _freeze_if_unused(transport, keyspace, force, (label, former or b""))
    removed: int = 0
    for client in transport.masters():
        # All but the states first: while one is there, it is frozen.
        for wanted in ("keys", "states"):
            cursor: Any = 0
            while True:
                pattern = f"redisagg:{{{name}*}}:*"
                reply: Any = client.scan(cursor, match=pattern, count=_SCAN_COUNT)
                cursor, keys = reply
                removed += _unlink(transport, keyspace, keys, states=wanted == "states")
                progress(removed)
                if not cursor:
                    break
    last: int = transport.run(ask(call("unlink", [meta])))
    return removed + last


def _freeze_if_unused(
    transport: Transport, keyspace: Keyspace, force: bool, layout: tuple[bytes, bytes]
) -> None:
    """Stops all changes of a namespace; takes that back and raises if it is in use."""
    remover = MOVER + f"{socket.gethostname()[:64]}:{os.getpid()}:{os.urandom(4).hex()}".encode()
    _raise_if_used(transport.run(stats(keyspace)), keyspace.name, force)
    states = keyspace.partitions
    transport.run(ask_all([call("freeze", [p.state, p.claims], remover, b"") for p in states]))
    try:
        _raise_if_used(transport.run(stats(keyspace)), keyspace.name, force)
    except NamespaceInUse:
        thaw = (*layout, b"", 0, 0, 0, 0, 0)
        transport.run(ask_all([call("thaw", [p.state], remover, *thaw) for p in states]))
        raise


def _raise_if_used(found: Stats, name: str, force: bool) -> None:
    if found.flushers:
        raise NamespaceInUse(
            f"{len(found.flushers)} flushers run in the namespace {name!r}, such as "
            f"{found.flushers[0]}; stop them first"
        )
    tasks = found.pending + found.in_flight
    if (tasks or found.dead or found.unreadable) and not force:
        raise NamespaceInUse(
            f"the namespace {name!r} has {tasks} tasks and {found.dead} tasks in dead letters; "
            "export them or wait until they are flushed, or remove them too, by --force"
        )


def _unlink(transport: Transport, keyspace: Keyspace, keys: list[bytes], *, states: bool) -> int:
    """Removes those of the keys that belong to the namespace."""
    own = re.compile(
        rb"redisagg:\{%b(?::\d{1,4})?\}:(.*)" % re.escape(keyspace.name.encode()), re.DOTALL
    )
    by_slot: dict[bytes, list[bytes]] = {}
    for key in keys:
        found = own.fullmatch(key)
        if found is None or key == keyspace.meta or found[1].startswith(b"call:"):
            continue
        if (found[1] == b"state") is states:
            by_slot.setdefault(key[: key.index(b"}")], []).append(key)
    removed = transport.run(ask_all([call("unlink", some) for some in by_slot.values()]))
    return sum(removed)
