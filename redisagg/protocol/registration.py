"""The registration of a namespace: the record in `meta`, and the number in each partition's state.

The record decides. It is written at the first use of the namespace. A script that finds no number
of partitions in a state, or another one than its caller's, writes nothing and replies
``UNREGISTERED``. The caller then compares its number with the record, writes it into the state and
repeats the call.

A namespace that was moved (`redisagg move`) leaves a record behind: its schema is ``moved`` and the
new name. If only the number of partitions has changed, `former` has the numbers of before. Clients
that have the earlier layout get `NamespaceMoved`, and follow.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence

from redisagg.errors import KeyConflict, NamespaceMismatch
from redisagg.protocol.keys import SCHEMA, WITH_POLICIES, Keyspace, Layout
from redisagg.protocol.operations import Operation, ask, ask_all
from redisagg.protocol.scripts import Request, call, command
from redisagg.protocol.status import LONGEST_ERROR, REFUSED, pack_status

MOVED = b"moved "
"""In place of the schema of a namespace that was moved; the new name follows."""

_MOST_MOVES = 16
"""How many names of a namespace that was moved again and again are followed."""


class NamespaceMoved(NamespaceMismatch):
    """The namespace has another layout than that of the caller, who may follow it."""

    def __init__(self, layout: Layout, message: str) -> None:
        super().__init__(message)
        self.layout = layout


def record(keyspace: Keyspace) -> Request:
    """Reads the record; the reply is for `compare`, with None in it if there is no record."""
    return command("HMGET", keyspace.meta, b"schema", b"partitions")


def compare(keyspace: Keyspace, found: Sequence[bytes]) -> Operation[None]:
    """Compares the record with the schema of this version and the partitions of `keyspace`.

    Asks Redis only if they differ.

    Raises:
        NamespaceMoved: the namespace had that number of partitions and has another one now, or it
            was given another name.
        NamespaceMismatch: the record has another key schema or number of partitions.
        KeyConflict: the record holds a value that redisagg did not write.
    """
    if found[0].startswith(MOVED):
        yield from _raise_moved(keyspace, found[0])
    schema, partitions = (recorded_number(keyspace.meta, each) for each in found)
    if schema != SCHEMA:
        raise NamespaceMismatch(
            f"the namespace {keyspace.name!r} has key schema {schema}, this version of redisagg "
            f"has schema {SCHEMA}; use the version of redisagg that the other nodes use"
        )
    if partitions != len(keyspace.partitions):
        # Both at once: it may just be moved.
        request = command("HMGET", keyspace.meta, b"partitions", b"former")
        raw, former = yield from ask(request)
        partitions = partitions if raw is None else recorded_number(keyspace.meta, raw)
        if (
            partitions != len(keyspace.partitions)
            and b"%d" % len(keyspace.partitions) in (former or b"").split()
        ):
            raise NamespaceMoved(
                Layout(keyspace.name, partitions),
                f"the namespace {keyspace.name!r} has {partitions} partitions now, no longer "
                f"{len(keyspace.partitions)}; set partitions={partitions}",
            )
    _compare_partitions(keyspace, partitions)


def check(keyspace: Keyspace) -> Operation[bool]:
    """Reads the record and compares it; returns False if there is none. Raises as `compare`."""
    found = yield from ask(record(keyspace))
    if None in found:
        return False
    yield from compare(keyspace, found)
    return True


def _raise_moved(keyspace: Keyspace, schema: bytes) -> Operation[None]:
    """Raises `NamespaceMoved` with the last name of a namespace."""
    target = keyspace
    for _ in range(_MOST_MOVES):
        target = Keyspace(schema.removeprefix(MOVED).decode("ascii", "replace"), 1)
        schema, partitions = yield from ask(record(target))
        if schema is None or partitions is None:
            break
        if not schema.startswith(MOVED):
            layout = Layout(target.name, recorded_number(target.meta, partitions))
            raise NamespaceMoved(
                layout,
                f"the namespace {keyspace.name!r} was moved: it is {target.name!r} now, with "
                f"{layout.partitions} partitions",
            )
    raise NamespaceMismatch(
        f"the namespace {keyspace.name!r} was moved to {target.name!r}, which does not exist; "
        f"`redisagg remove {keyspace.name}` removes what is left of it"
    )


def register(keyspace: Keyspace) -> Operation[None]:
    """Records the namespace if it has no record, else compares the record.

    If the record is gone, the partitions that still hold a number decide, so that a newcomer with
    another number can't replace it.

    Raises:
        NamespaceMoved: as `compare`.
        NamespaceMismatch: the record or a partition has another key schema or number of partitions.
        KeyConflict: the record or a partition holds a value that redisagg did not write.
    """
    found = yield from ask(record(keyspace))
    if None in found:
        replies = yield from ask_all(
            [command("HMGET", p.state, b"partitions") for p in keyspace.partitions]
        )
        for p, [number] in zip(keyspace.partitions, replies, strict=True):
            if number is not None:
                number = number.removesuffix(WITH_POLICIES)
                _compare_partitions(keyspace, recorded_number(p.state, number))
        found = yield from ask(call("register", [keyspace.meta], SCHEMA, len(keyspace.partitions)))
    yield from compare(keyspace, found)


def note_refusal(keyspace: Keyspace, error: NamespaceMismatch) -> Operation[None]:
    """Notes in Redis why a flusher of this host can't run, for those who look.

    Nothing is written to a namespace of another schema.
    """
    [schema] = yield from ask(command("HMGET", keyspace.meta, b"schema"))
    if schema == b"%d" % SCHEMA:
        host = socket.gethostname()[:64]
        text = pack_status({"error": str(error)[:LONGEST_ERROR]})
        yield [call("report_status", [keyspace.status], REFUSED + host, text)]


def register_again(keyspace: Keyspace, states: Iterable[bytes]) -> Operation[None]:
    """As `register`; then writes the number of partitions into these states.

    Also that the namespace has policies, if the record says so.

    Args:
        keyspace: the keys of the namespace.
        states: the keys `state` of the partitions for which a script replied ``UNREGISTERED``.
    """
    wanted = list(states)
    for attempt in range(_MOST_MOVES):
        try:
            yield from _register_states(keyspace, wanted)
            return
        except NamespaceMoved:
            raise
        except NamespaceMismatch as error:
            # It was moved since its record was read, which now says where to.
            if attempt == _MOST_MOVES - 1 or "UNREGISTERED" not in str(error):
                raise


def _register_states(keyspace: Keyspace, states: Sequence[bytes]) -> Operation[None]:
    yield from register(keyspace)
    number = b"%d" % len(keyspace.partitions)
    [policies] = yield from ask(command("HMGET", keyspace.meta, b"policies"))
    if policies is not None:
        number += WITH_POLICIES
    yield from ask_all([call("register_partition", [each], number) for each in states])


def recorded_number(key: bytes, raw: bytes) -> int:
    """Reads a schema or a number of partitions.

    Raises:
        KeyConflict: `raw` is no such number.
    """
    if not raw.isdigit() or len(raw) > 9:
        raise KeyConflict(
            f"the key {key.decode()} holds {raw[:64]!r} in place of the schema or the number of "
            "partitions, which redisagg did not write; find out who writes to redisagg's keys"
        )
    return int(raw)


def _compare_partitions(keyspace: Keyspace, recorded: int) -> None:
    own = len(keyspace.partitions)
    if recorded != own:
        raise NamespaceMismatch(
            f"the namespace {keyspace.name!r} was created with {recorded} partitions, not {own}; "
            f"set partitions={recorded}, or use another name"
        )
