"""Acknowledgement of an add by replicas (WAIT), or by the disk (WAITAOF).

Both commands are about the writes of their own connection. They are sent after the scripts whose
writes they confirm, on the same connection and in the same round trip.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redisagg.errors import AuthenticationFailed, InvalidConfig, NotReplicated
from redisagg.transport.failures import is_transient, translate_error
from redisagg.transport.round_trip import Command

_IMPOSSIBLE = ("unknown command", "appendonly is disabled")


@dataclass(frozen=True, slots=True)
class Durability:
    """When a write counts as acknowledged.

    Args:
        replicas: the number of replicas that must have it.
        fsync: whether the server and these replicas must have it on disk.
        timeout_ms: how long the server waits for them before it replies, ms.
    """

    replicas: int
    fsync: bool
    timeout_ms: int

    @property
    def command(self) -> Command:
        """The command to send after the writes."""
        if self.fsync:
            return ("WAITAOF", 1, self.replicas, self.timeout_ms)
        return ("WAIT", self.replicas, self.timeout_ms)

    def check_acknowledged(self, replies: list[Any]) -> list[Any]:
        """Checks the reply to `command`, which is the last one.

        Args:
            replies: the replies to the writes and to `command`.

        Returns:
            The replies to the writes.

        Raises:
            NotReplicated: too few replicas had the writes in time, or they are not on disk.
            InvalidConfig: the server does not support `command`.
            AuthenticationFailed: the user has no right to `command`.
            redis.exceptions.RedisError: the reply to `command` is a transient error.
        """
        *written, confirmed = replies
        if all(map(_stored_nothing, written)):
            return written  # there is nothing to confirm
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
        """The error to raise when the server refused `command`; the writes are carried out."""
        known = translate_error(error)
        if isinstance(known, NotReplicated):
            return known  # UNBLOCKED: the primary became a replica meanwhile
        if is_transient(error):
            return error
        if self.fsync and any(sign in str(error) for sign in _IMPOSSIBLE):
            return InvalidConfig(
                "wait_for_fsync needs Redis 7.2 or newer with appendonly yes; what was added is in "
                f"the server's memory all the same ({error})"
            )
        if isinstance(known, AuthenticationFailed):
            return AuthenticationFailed(f"{known} ({self.command[0]}, for min_replicas)")
        return NotReplicated(f"the server does not say whether it is replicated: {error}")


def _stored_nothing(reply: Any) -> bool:
    """Whether a script refused its whole call, or `add` each section of it."""
    if isinstance(reply, list):
        return all(isinstance(status, bytes) for status in reply)
    return isinstance(reply, Exception)
