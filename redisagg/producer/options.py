"""How a producer adds tasks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from redisagg.config import AggregationConfig
from redisagg.durations import seconds
from redisagg.observers import Observers
from redisagg.protocol.entries import LimitTexts, has_further_limits
from redisagg.protocol.keys import Keyspace
from redisagg.protocol.policies import KnownPolicies
from redisagg.transport.durability import Durability

# The limits of one call, so that it keeps Redis busy for about 2 ms at most.
MAX_CALL_TASKS = 400
MAX_CALL_BYTES = 256 * 1024

# For how many seconds Redis stores the last call of a sequence: longer than the call is repeated.
# An add of a group commit may be begun anew after an interruption, hence twice `add_timeout`.
_MIN_STORED = 600.0
_MAX_STORED = 86_400.0
_STORED_MARGIN = 60.0
"""Seconds that the last attempt may take on its way to Redis."""

_REMEMBERED = 600.0
"""Seconds for which calls have fewer groups, after other producers have set limits there."""

FORGOTTEN = "the call can't be repeated: Redis may have forgotten whether it was carried out"


class LimitsOfOthers:
    """Whether Redis has said lately that groups have tasks with limits; for any number of threads.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: float | None = None

    def seen(self) -> None:
        """Redis has said so now."""
        self._until = self._clock() + _REMEMBERED

    def set_limits(self) -> bool:
        """Whether calls are made as if their own tasks had limits."""
        return self._until is not None and self._until > self._clock()


class Shares(NamedTuple):
    """What one partition and one call may take. The namespace may be moved to other partitions."""

    pending_tasks: int
    """How many tasks may be pending in one partition; 0 for no limit."""
    pending_bytes: int
    """How many bytes of tasks may be pending in one partition; 0 for no limit."""
    arguments: tuple[bytes, bytes]
    """Both as the script `add` takes them."""
    call_tasks: int
    """After how many tasks a call is full."""
    call_bytes: int
    """After how many bytes of packed tasks a call is full."""


@lru_cache
def _shares(max_tasks: int, max_bytes: int, partitions: int) -> Shares:
    """Each partition has its share of a limit; cached, since every round needs it."""
    tasks = max_tasks and max(1, max_tasks // partitions)
    size = max_bytes and max(1, max_bytes // partitions)
    return Shares(
        tasks,
        size,
        (b"%d" % tasks, b"%d" % size),
        # The script accepts or refuses a section as a whole: small ones find room sooner.
        call_tasks=max(1, min(MAX_CALL_TASKS, (tasks or 4 * MAX_CALL_TASKS) // 4)),
        call_bytes=min(MAX_CALL_BYTES, (size or 4 * MAX_CALL_BYTES) // 4),
    )


@dataclass(frozen=True, slots=True)
class AddOptions:
    """What all calls of a producer have in common."""

    keyspace: Keyspace
    max_tasks: int
    """How many tasks may be pending in all partitions together; 0 for no limit."""
    max_bytes: int
    """How many bytes of tasks may be pending in all partitions together; 0 for no limit."""
    dedupe: bytes
    """b"1" if ids of tasks flushed within the dedupe window are not accepted again, else b""."""
    linger: float
    """Seconds that a round trip waits before it is sent, so that more adds share it."""
    stored_ms: bytes
    """For how many ms Redis stores the reply to a call, for a repetition; as `add` takes it."""
    repeatable: float
    """Seconds after its first attempt for which a call may be repeated."""
    durability: Durability | None
    """What an add waits for besides the primary's reply."""
    policies: KnownPolicies
    """What the producer knows of the policies of the namespace."""
    observers: Observers
    """Its counter counts what is added, if there is one."""
    others: LimitsOfOthers
    """Whether tasks with limits of other producers wait in the same groups."""
    limited: bool
    """Whether the settings give each group more limits than the four usual ones."""

    @classmethod
    def of(
        cls,
        keyspace: Keyspace,
        config: AggregationConfig,
        durability: Durability | None,
        observers: Observers | None = None,
    ) -> AddOptions:
        """The options that a configuration asks for."""
        stored = min(
            max(_MIN_STORED, 2 * seconds(config.add_timeout) + _STORED_MARGIN), _MAX_STORED
        )
        limits = LimitTexts(config).under_policies
        return cls(
            keyspace,
            max_tasks=config.max_pending_tasks or 0,
            max_bytes=config.max_pending_bytes or 0,
            dedupe=b"1" if config.dedupe_window else b"",
            linger=seconds(config.linger),
            stored_ms=b"%d" % int(1000 * stored),
            repeatable=stored - _STORED_MARGIN,
            durability=durability,
            policies=KnownPolicies(keyspace, limits),
            observers=observers or Observers(),
            others=LimitsOfOthers(),
            limited=has_further_limits(limits({}, None)),
        )

    @property
    def shares(self) -> Shares:
        """What one partition and one call may take, of as many partitions as there are now."""
        return _shares(self.max_tasks, self.max_bytes, len(self.keyspace.partitions))
