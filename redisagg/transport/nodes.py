"""Sends commands to the nodes of a Redis Cluster.

redis-py's own cluster clients are not used. Those before 7.2 close the connections to all nodes
when one of them does not answer, and forget nodes until none is left; and none of them sends WAIT
on the connection of the writes. Here a node that fails concerns only the commands for its slots.

`route` is a generator without sockets, which threads and asyncio share, as `round_trip` is.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import redis.exceptions as rx
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from redisagg.errors import NotReplicated, RedisAggError
from redisagg.transport.failures import FailureClass, classify
from redisagg.transport.round_trip import Command

P = TypeVar("P")

Node: TypeAlias = "tuple[str, int]"
"""Host and port."""

_MAX_REDIRECTS = 5
"""How often a command follows MOVED or ASK; then the round trip is repeated, after a wait."""

_REFRESH_INTERVAL = 0.25
"""Seconds in which the nodes are asked for their slots once at most."""

_NO_NODE = rx.SlotNotCoveredError("no node has the slot")

_REDIRECT = re.compile(r"(MOVED|ASK) (\d{1,5}) (\S*):(\d{1,5})$")

_CLUSTER_SLOTS: Command = ("CLUSTER", "SLOTS")
_ASKING: Command = ("ASKING",)


class Part(NamedTuple):
    """Commands for one node, to be sent on one connection."""

    node: Node
    commands: list[Command]
    numbers: list[int]
    """The number that each command has in its round trip; none for `CLUSTER SLOTS`."""
    asking: bool = False
    """Whether `ASKING` precedes each command."""

    @property
    def sent(self) -> list[Command]:
        """The commands as they are sent."""
        if not self.asking:
            return self.commands
        return [each for command in self.commands for each in (_ASKING, command)]

    def replies(self, received: list[Any]) -> list[Any]:
        """The replies to `commands`, of those to `sent`."""
        return received[1::2] if self.asking else received


class _Redirect(NamedTuple):
    """The reply MOVED or, if `asking`, ASK."""

    asking: bool
    slot: int
    host: str
    port: int


class Topology:
    """Which node has which slot, as far as it is known.

    Args:
        seeds: nodes to ask as long as no other one is known, or none of those answers.
        remap: translates the host and port by which nodes know each other; None to keep them.
    """

    def __init__(self, seeds: Iterable[Node], remap: Callable[[Node], Node] | None = None) -> None:
        self._seeds = tuple(seeds)
        self._remap = remap
        self._owners: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._suspects: set[Node] = set()
        """The nodes whose last call failed; they are asked last."""
        self._refreshed = 0.0
        self.nodes: tuple[Node, ...] = ()
        """The masters."""

    def node_of(self, command: Command) -> Node | None:
        """Returns the node that has the slot of the first key of a command."""
        key = command[3] if command[0] in {b"EVALSHA", b"EVAL"} else command[1]
        return self._owners[key_slot(key if isinstance(key, bytes) else str(key).encode())]

    def learn(self, slots: Iterable[Any], asked: Node) -> None:
        """Takes over the reply to `CLUSTER SLOTS`."""
        owners: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        nodes: dict[Node, None] = {}
        for first, last, master, *_ in slots:
            node = self._place(master[0], master[1], asked)
            owners[first : last + 1] = [node] * (last + 1 - first)
            nodes[node] = None
        self._owners, self.nodes = owners, tuple(nodes)

    def follow(self, redirect: _Redirect, asked: Node) -> Node:
        """Returns the node that MOVED or ASK names, and remembers it for MOVED."""
        node = self._place(redirect.host, redirect.port, asked)
        if not redirect.asking:
            self._owners[redirect.slot] = node
            if node not in self.nodes:
                self.nodes = (*self.nodes, node)
        return node

    def note(self, node: Node, *, failed: bool) -> None:
        """Notes whether the last call of a node failed."""
        if failed:
            self._suspects.add(node)
        else:
            self._suspects.discard(node)

    def begin_refresh(self) -> list[Node]:
        """Returns the nodes to ask for the slots; none if they were asked just now."""
        now = time.monotonic()
        if self.nodes and now - self._refreshed < _REFRESH_INTERVAL:
            return []
        self._refreshed = now
        known = list(dict.fromkeys((*self.nodes, *self._seeds)))
        random.shuffle(known)
        return sorted(known, key=self._suspects.__contains__)

    def is_used(self, node: Node) -> bool:
        """Whether the node has slots or is a seed."""
        return node in self.nodes or node in self._seeds

    def _place(self, host: Any, port: int, asked: Node) -> Node:
        """A node by its own words; a host that it does not know is that of the node asked."""
        name = host.decode() if isinstance(host, bytes) else host
        node = (name if name and name != "?" else asked[0], int(port))
        return self._remap(node) if self._remap else node


class Cluster(Generic[P]):
    """A Redis Cluster: its topology, and a connection pool for each node.

    Args:
        topology: has the nodes to begin with.
        make_pool: makes the connection pool of a node.
    """

    def __init__(self, topology: Topology, make_pool: Callable[[Node], P]) -> None:
        self.topology = topology
        self._make_pool = make_pool
        self._pools: dict[Node, P] = {}

    def pool(self, node: Node) -> P:
        """Returns the connection pool of a node."""
        pool = self._pools.get(node)
        return pool or self._pools.setdefault(node, self._make_pool(node))

    def take_unused(self) -> Iterator[P]:
        """Removes the pools of nodes that have left the cluster, and yields them."""
        if len(self._pools) > len(self.topology.nodes):
            for node in [each for each in self._pools if not self.topology.is_used(each)]:
                if (pool := self._pools.pop(node, None)) is not None:
                    yield pool

    def take_pools(self) -> Iterator[P]:
        """Removes all pools and yields them; the cluster can be used again."""
        while self._pools:
            yield self._pools.popitem()[1]


def route(
    topology: Topology, commands: Sequence[Command]
) -> Generator[list[Part], list[list[Any]], list[Any]]:
    """Yields what to send to which nodes, and receives the replies to `Part.sent`.

    The parts of a step can be sent at the same time. An error that concerns all commands of a part
    is the reply to each of them.

    Returns:
        A reply for each command, errors among them as exceptions.
    """
    if not topology.nodes and (error := (yield from _refresh(topology))) is not None:
        return [error] * len(commands)
    replies: list[Any] = [_NO_NODE] * len(commands)
    nodes = map(topology.node_of, commands)
    parts = _parts(commands, [(node, i, False) for i, node in enumerate(nodes) if node])
    for _ in range(1 + _MAX_REDIRECTS):
        if not parts:
            break
        received = yield parts
        redirected = []
        for part, of_part in zip(parts, received, strict=True):
            for i, reply in zip(part.numbers, part.replies(of_part), strict=True):
                replies[i] = reply
                if (redirect := _redirect(reply)) is not None:
                    node = topology.follow(redirect, part.node)
                    redirected.append((node, i, redirect.asking))
            topology.note(part.node, failed=any(map(_leads_away, of_part)))
        parts = _parts(commands, redirected)
    if any(map(_leads_away, replies)):
        yield from _refresh(topology)
    return [_moving(reply) if _redirect(reply) else reply for reply in replies]


def _parts(commands: Sequence[Command], places: Sequence[tuple[Node, int, bool]]) -> list[Part]:
    """Groups commands by node; in each part they keep their order."""
    parts: dict[Any, Part] = {}
    for node, i, asking in places:
        part = parts.setdefault((node, asking), Part(node, [], [], asking))
        part.commands.append(commands[i])
        part.numbers.append(i)
    return list(parts.values())


def _refresh(
    topology: Topology,
) -> Generator[list[Part], list[list[Any]], Exception | None]:
    """Asks one node after the other for the slots, until one replies.

    Returns:
        The error of the first node if none replied.
    """
    first = None
    for node in topology.begin_refresh():
        [[reply]] = yield [Part(node, [_CLUSTER_SLOTS], [])]
        topology.note(node, failed=isinstance(reply, Exception))
        if not isinstance(reply, Exception):
            topology.learn(reply, node)
            return None
        first = first or reply
    return first


def _redirect(reply: object) -> _Redirect | None:
    """Reads MOVED or ASK, for which some redis-py have a class and some the text only."""
    if isinstance(reply, rx.AskError):  # MOVED is a subclass of it
        asking = not isinstance(reply, rx.MovedError)
        return _Redirect(asking, reply.slot_id, reply.host, reply.port)
    if isinstance(reply, rx.ResponseError) and (found := _REDIRECT.match(str(reply))):
        return _Redirect(found[1] == "ASK", int(found[2]), found[3], int(found[4]))
    return None


def _moving(redirect: Exception) -> Exception:
    """The transient error for a command that was redirected too often."""
    return rx.TryAgainError(f"the slot is moving: {redirect}")


def _leads_away(reply: object) -> bool:
    """Whether another node may have the slot by now."""
    if isinstance(reply, NotReplicated):  # a master that is cut off from the others
        return True
    if isinstance(reply, RedisAggError) or not isinstance(reply, Exception):
        return False
    failure = classify(reply)
    return failure.kind is FailureClass.TRANSIENT and failure.elsewhere
