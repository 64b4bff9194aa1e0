"""The rules of one round trip, without sockets, so that threads and asyncio share them.

A round trip sends a list of requests and returns a reply for each. `round_trip` is a generator: it
yields steps with the commands to send, and the transport sends their replies into it. It yields
again if the server did not know a script: then it repeats these calls with the script's source. If
a script replies that the namespace is not registered, it registers the namespace and repeats these
calls. If one replies that the namespace has policies, it reads them and repeats these calls with
them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeAlias, TypeVar

from redis.client import NEVER_DECODE
from redis.connection import HiredisRespSerializer
from redis.exceptions import RedisError

try:
    from hiredis import pack_command
except ImportError:
    pack_command = None  # type: ignore[assignment]

from redisagg.errors import RedisAggError
from redisagg.protocol.keys import Keyspace, Layout
from redisagg.protocol.operations import Lenient, Operation
from redisagg.protocol.policies import KnownPolicies
from redisagg.protocol.registration import register_again
from redisagg.protocol.scripts import Request
from redisagg.texts import logger
from redisagg.transport.failures import (
    is_transient,
    is_unknown_script,
    is_unregistered,
    needs_policies,
    translate_error,
)

_log = logger("policies")

T = TypeVar("T")

_REGISTRATIONS = 3
"""How often a namespace is registered for a call: it may be removed or moved again meanwhile."""

Command: TypeAlias = "tuple[Any, ...]"


class Aside(list[Command]):
    """Commands that are not the caller's requests, but others that precede them."""


_Steps: TypeAlias = Generator[list[Command], list[Any], T]
"""Yields commands that are sent at once, and is sent their replies."""

Rules: TypeAlias = Callable[[Sequence[Request]], _Steps[list[Any]]]
"""What a transport makes a round trip by: `round_trip`, or what does the same around it."""

RULES = "redisagg_round_trip"
"""The attribute of a client that has other rules than `round_trip`. Only `redisagg.testing` makes
such clients."""

RAW: dict[str, Any] = {NEVER_DECODE: []}
"""Options for redis-py: replies stay bytes even from a client made with decode_responses=True."""


def pack(commands: Sequence[Command], connection: Any) -> list[bytes]:
    """Packs commands in the Redis protocol, by hiredis if it is installed, else by redis-py.

    On asyncio redis-py itself packs in Python, in about 0.7 us per argument; hiredis takes 0.05.
    """
    if pack_command is None:
        packed: list[bytes] = connection.pack_commands(commands)
        return packed
    # Bytes only: hiredis 3.5 crashes if a signal handler raises while it formats a number.
    all_bytes: list[Any] = [
        command
        if set(map(type, command)) == _BYTES
        else tuple([each if type(each) is bytes else as_bytes(each) for each in command])
        for command in commands
    ]
    return [b"".join(map(pack_command, all_bytes))]


_BYTES = {bytes}


class BytesPacker(HiredisRespSerializer):
    """Packs the commands that redis-py sends by itself, such as HELLO with a number."""

    def pack(self, *args: Any) -> Any:
        """Packs one command. What is no number or text is left to hiredis, which may refuse it."""
        packed: Any = super()
        return packed.pack(*[as_bytes(each) if type(each) in _CONVERTED else each for each in args])


_CONVERTED = {int, float, str}

PACKER: dict[str, Any] = {} if pack_command is None else {"command_packer": BytesPacker()}
"""The options of blocking connections that make them hand hiredis bytes only."""


def as_bytes(argument: Any) -> bytes:
    """Returns an argument of a command in the form in which it is sent."""
    if isinstance(argument, bytes):
        return argument
    if isinstance(argument, int):
        return b"%d" % argument
    if isinstance(argument, float):
        return repr(argument).encode()
    return argument.encode() if isinstance(argument, str) else bytes(argument)


def rules_of(client: object) -> Rules:
    """Returns the rules of round trips with a client."""
    rules: Rules = getattr(client, RULES, round_trip)
    return rules


def round_trip(requests: Sequence[Request]) -> _Steps[list[Any]]:
    """Yields what to send and receives the replies, errors among them as exceptions.

    Returns:
        A reply for each request; for one that Redis refused, the `RedisAggError` that says why.

    Raises:
        redis.exceptions.RedisError: a reply is a transient error; the whole round trip is to be
            repeated.
    """
    policed = requests[0].policed if requests else None
    if policed is not None and policed.policies.in_use:
        if policed.policies.is_due and (error := (yield from _read(policed.policies))):
            return [error] * len(requests)
        requests = _under_policies(requests)
    replies = yield [request.command() for request in requests]
    for reply in replies:
        if isinstance(reply, Exception):
            break
    else:  # the usual case, without the cost of all that follows
        return replies
    yield from _send_unknown_again(requests, replies)
    unregistered = [i for i, reply in enumerate(replies) if is_unregistered(reply)]
    layout = requests[unregistered[0]].registers if unregistered else None
    if layout is not None:
        again = yield from _registered(layout, [requests[i] for i in unregistered])
        for i, reply in zip(unregistered, again, strict=True):
            replies[i] = reply
    if policed is not None:
        yield from _send_with_policies(policed.policies, requests, replies)
    for i, reply in enumerate(replies):
        if isinstance(reply, Exception):
            if is_transient(reply) and not isinstance(requests, Lenient):
                raise reply
            replies[i] = translate_error(reply, requests[i])
    return replies


def _with_sources(requests: Sequence[Request]) -> _Steps[list[Any]]:
    """Sends the requests; those whose script the server does not know again, with the source."""
    replies = yield [request.command() for request in requests]
    yield from _send_unknown_again(requests, replies)
    return replies


def _send_unknown_again(requests: Sequence[Request], replies: list[Any]) -> _Steps[None]:
    """Puts other replies in place of those of a server that does not know the script."""
    unknown = [i for i, reply in enumerate(replies) if is_unknown_script(reply)]
    if unknown:
        again = yield [requests[i].command_with_source() for i in unknown]
        for i, reply in zip(unknown, again, strict=True):
            replies[i] = reply


def _registered(layout: Layout, refused: Sequence[Request]) -> _Steps[list[Any]]:
    """Registers the namespace of these requests, and sends them once more.

    Returns:
        The replies, or the error for which the namespace can't be registered in place of each.
    """
    replies: list[Any] = [None] * len(refused)
    left = list(range(len(refused)))
    for _ in range(_REGISTRATIONS):
        states = dict.fromkeys(refused[i].keys[0] for i in left)
        try:
            yield from _run(register_again(Keyspace(*layout), states))
        except RedisAggError as error:
            again: list[Any] = [error] * len(left)
        else:
            again = yield from _with_sources([refused[i] for i in left])
        for i, reply in zip(left, again, strict=True):
            replies[i] = reply
        left = [i for i in left if is_unregistered(replies[i])]
        if not left:
            break
    return replies


def _send_with_policies(
    policies: KnownPolicies, requests: Sequence[Request], replies: list[Any]
) -> _Steps[None]:
    """Sends calls that were made without policies again with them; puts in the other replies."""
    refused = [i for i, reply in enumerate(replies) if needs_policies(reply)]
    if not refused:
        return
    error = None
    if policies.is_due:  # else another call has read them meanwhile
        error = yield from _read(policies)
    if error is None:
        again = yield from _with_sources(_under_policies([requests[i] for i in refused]))
    else:
        again = [error] * len(refused)
    for i, reply in zip(refused, again, strict=True):
        replies[i] = reply


def _under_policies(requests: Sequence[Request]) -> list[Request]:
    return [each.policed.under_policies(each) if each.policed else each for each in requests]


def _read(policies: KnownPolicies) -> _Steps[RedisAggError | None]:
    """Reads the policies.

    Those that are known stay in use while their node of a cluster is down: nobody can change them
    then, and the nodes of the other partitions can take adds.

    Returns:
        The error for which they can't be read, if it will last.
    """
    began = time.monotonic()
    try:
        yield from _run(policies.read())
    except (RedisAggError, RedisError) as error:
        if not is_transient(error):
            return translate_error(error)
        if not policies.keep(time.monotonic() - began):
            raise
        _log.warning("the policies can't be read (%s); those of before stay in use", error)
    return None


def _run(operation: Operation[None]) -> _Steps[None]:
    """Runs an operation within the round trip."""
    try:
        requests = next(operation)
        while True:
            requests = operation.send((yield from _aside(round_trip(requests))))
    except StopIteration:
        return


def _aside(steps: _Steps[T]) -> _Steps[T]:
    """Carries out steps that are not about the caller's requests."""
    try:
        commands = next(steps)
        while True:
            commands = steps.send((yield Aside(commands)))
    except StopIteration as stop:
        result: T = stop.value
        return result
