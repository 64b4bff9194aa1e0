"""Sends script calls to the nodes of a Redis Cluster without the cluster client's routing.

The cluster client sends each command on any connection. WAIT has to follow the writes on their own
connection, so the transports split such a round trip by node themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import redis.exceptions as rx

from redisagg.errors import RedisAggError
from redisagg.transport.failures import FailureClass, classify
from redisagg.transport.round_trip import Command


class _Node(Protocol):
    name: str


N = TypeVar("N", bound=_Node)

NO_NODE = rx.SlotNotCoveredError("no node is known to have the slot")
"""The reply to a command that `group_by_node` leaves out."""


def group_by_node(
    commands: Sequence[Command], node_of: Callable[[Any], N | None]
) -> list[tuple[N, list[int]]]:
    """Groups script calls by the node that has the slot of their first key.

    Args:
        commands: script calls, and plain commands with one key.
        node_of: returns the node of a key.

    Returns:
        Each node with the indexes of its commands; commands whose node is unknown are left out.
    """
    nodes: dict[str, tuple[N, list[int]]] = {}  # by name: some redis-py have no hash of nodes
    for i, command in enumerate(commands):
        with suppress(rx.SlotNotCoveredError):
            first_key = command[3] if command[0] in ("EVALSHA", "EVAL") else command[1]
            node = node_of(first_key)
            if node is not None:
                nodes.setdefault(node.name, (node, []))[1].append(i)
    return list(nodes.values())


def is_redirect(reply: object) -> bool:
    """Whether another node has the slot of the command, or its node can't be reached."""
    if isinstance(reply, rx.AskError):  # MOVED is a subclass of it
        return True
    if isinstance(reply, RedisAggError) or not isinstance(reply, Exception):
        return False
    failure = classify(reply)
    return failure.kind is FailureClass.TRANSIENT and failure.elsewhere


def retry_after_redirect(reply: object) -> Exception:
    """The transient error that replaces a redirect, once the cluster client knows the new node."""
    return rx.TryAgainError(f"the slot has moved, or its node is gone: {reply}")
