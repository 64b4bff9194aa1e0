"""What an add waits for behind its writes: that replicas have them, or that they are on disk.

WAIT and WAITAOF are about the writes of their own connection. They go out behind the scripts whose
writes they are to confirm, on the same connection and in the same round trip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import redis.exceptions as rx

from redisagg.errors import AuthenticationFailed, InvalidConfig, NotReplicated, RedisAggError
from redisagg.transport.failures import is_transient, translate_error
from redisagg.transport.rounds import Command

N = TypeVar("N")

NO_NODE = rx.SlotNotCoveredError("no node is known to have the slot")
"""In place of a reply to a command that `by_node` leaves out."""

_IMPOSSIBLE = ("unknown command", "appendonly is disabled")


@dataclass(frozen=True, slots=True)
class Durability:
    """When a write counts as acknowledged.

    Args:
        replicas: so many replicas have it.
        fsync: the server, and those replicas, have it on disk.
        timeout_ms: how long the server waits for that before it says how many there are.
    """

    replicas: int
    fsync: bool
    timeout_ms: int

    @property
    def command(self) -> Command:
        """What to send behind the writes."""
        if self.fsync:
            return ("WAITAOF", 1, self.replicas, self.timeout_ms)
        return ("WAIT", self.replicas, self.timeout_ms)

    def settle(self, replies: list[Any]) -> list[Any]:
        """The replies to the writes, without the last one, which is that to `command`.

        Raises:
            NotReplicated: too few replicas had the writes in time, or it is not on disk.
            InvalidConfig: the server can't tell.
            AuthenticationFailed: the user may not ask.
        """
        *written, confirmed = replies
        if all(isinstance(reply, Exception) for reply in written):
            return written  # so nothing is there to be confirmed
        if isinstance(confirmed, Exception):
            raise self._failure(confirmed)
        local, replicas = confirmed if self.fsync else (0, confirmed)
        if replicas < self.replicas or local < self.fsync:
            raise NotReplicated(self._shortfall(local, replicas))
        return written

    def _shortfall(self, local: int, replicas: int) -> str:
        missing = []
        if local < self.fsync:
            missing.append("the primary does not have it on disk")
        if replicas < self.replicas:
            where = " on disk" if self.fsync else ""
            missing.append(f"{replicas} of {self.replicas} replicas have it{where}")
        within = f"after {self.timeout_ms / 1000:g} seconds"
        return f"what was written to the primary is not safe yet: {within} {', '.join(missing)}"

    def _failure(self, error: Exception) -> Exception:
        """What it means that the server refused `command` itself; the writes are carried out."""
        if is_transient(error):
            return error
        if self.fsync and any(sign in str(error) for sign in _IMPOSSIBLE):
            return InvalidConfig(
                "wait_for_fsync needs Redis 7.2 or newer with appendonly yes; what was added is in "
                f"the server's memory all the same ({error})"
            )
        known = translate_error(error)
        if isinstance(known, AuthenticationFailed):
            return AuthenticationFailed(f"{known} ({self.command[0]}, for min_replicas)")
        # Such as UNBLOCKED: the primary was made a replica meanwhile.
        return NotReplicated(f"the server does not say whether it is replicated: {error}")


def by_node(commands: Sequence[Command], node_of: Callable[[Any], N | None]) -> dict[N, list[int]]:
    """Which of the commands, calls of scripts, go to which node of a cluster; none that is not
    known to go to any."""
    nodes: dict[N, list[int]] = {}
    for i, command in enumerate(commands):
        with suppress(rx.SlotNotCoveredError):
            node = node_of(command[3])  # the first key
            if node is not None:
                nodes.setdefault(node, []).append(i)
    return nodes


def is_redirect(reply: object) -> bool:
    """Whether a node of a cluster is not the right one for a command, or can't be asked."""
    if isinstance(reply, rx.AskError):  # MOVED is a kind of it
        return True
    if isinstance(reply, rx.TryAgainError | RedisAggError):
        return False
    return isinstance(reply, Exception) and is_transient(reply)


def try_again(reply: object) -> Exception:
    """The reply for a command that went astray, after the cluster client has found its node."""
    return rx.TryAgainError(f"the slot has moved, or its node is gone: {reply}")
